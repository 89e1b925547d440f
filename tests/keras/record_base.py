"""Models of base size with random weights, and what PyTorch returns: python -m tests.keras.record_base OUT"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from openblip import BlipConfig, BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipForQuestionAnswering
from tests.keras.base_cases import BEAMS, NEW_TOKENS, PIXELS, QUESTIONS, SEP

CONFIG = {"text_config": {"num_attention_heads": 12}, "vision_config": {}}


def main() -> None:
    """Write folders and results."""
    out = Path(sys.argv[1])
    pixels, questions = torch.from_numpy(PIXELS), torch.from_numpy(QUESTIONS)
    with torch.no_grad():
        torch.manual_seed(0)
        captioner = BlipForConditionalGeneration(BlipConfig(**CONFIG)).eval()
        captioner.text_decoder.cls.predictions.bias.normal_(std=0.5)
        captioner.text_decoder.cls.predictions.bias[SEP] = 1.5
        results = {"logits": captioner(pixels, questions).logits}
        for beams in BEAMS:
            results[f"caption-{beams}"] = captioner.generate(pixels, num_beams=beams, max_new_tokens=NEW_TOKENS)
        captioner.save_pretrained(out / "captioner")
        answerer = BlipForQuestionAnswering(BlipConfig(**CONFIG)).eval()
        answerer.text_decoder.cls.predictions.bias.normal_(std=0.5)
        results["answer-loss"] = answerer(questions, pixels, labels=questions).loss
        for beams in BEAMS:
            results[f"answer-{beams}"] = answerer.generate(
                questions, pixels, num_beams=beams, max_new_tokens=NEW_TOKENS
            )
        answerer.save_pretrained(out / "answerer")
        matcher = BlipForImageTextRetrieval(BlipConfig(**CONFIG)).eval()
        output = matcher(questions, pixels)
        results |= {"itm": output.itm_score, "states": output.last_hidden_state, "text": output.question_embeds}
        results["itc"] = matcher(questions, pixels, use_itm_head=False).itm_score
        matcher.save_pretrained(out / "matcher")
    np.savez(out / "results.npz", **{name: value.numpy() for name, value in results.items()})


if __name__ == "__main__":
    main()

"""What the Keras classes are compared on: toy models, inputs and calls. PyTorch's results are in `fixtures`.

Free of frameworks. `record_fixtures.py` computes the fixtures with the classes of PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"
PAD, SEP, DEC = 0, 3, 118
IGNORED = -100
LEARNING_RATE, WEIGHT_DECAY, STEPS = 1e-3, 0.05, 5

TEXT: dict[str, Any] = {
    "vocab_size": 120, "hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 48, "bos_token_id": DEC, "sep_token_id": SEP,
    "pad_token_id": PAD, "label_smoothing": 0.1,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
    "patch_size": 16,
}  # fmt: skip
WIDE_VISION = {**VISION, "hidden_size": 48, "num_attention_heads": 6}
CONFIGS: dict[str, dict[str, Any]] = {
    "BlipVisionModel": VISION,
    "BlipTextModel": TEXT,
    "BlipModel": {"text_config": TEXT, "vision_config": WIDE_VISION, "projection_dim": 24},
    "BlipForConditionalGeneration": {"text_config": TEXT, "vision_config": WIDE_VISION},
    "BlipForImageTextRetrieval": {"text_config": TEXT, "vision_config": WIDE_VISION, "image_text_hidden_size": 16},
    "BlipForQuestionAnswering": {"text_config": TEXT, "vision_config": VISION},
}

_random = np.random.RandomState(7)
PIXELS = _random.standard_normal((3, 3, 32, 32)).astype(np.float32)
IDS = _random.randint(4, 118, (3, 6)).astype(np.int64)
MASK = np.array([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
IDS[MASK == 0] = PAD
LEFT_MASK = MASK[:, ::-1].copy()
LEFT_IDS = IDS[:, ::-1].copy()
SHARED_MASK = np.pad(MASK, ((0, 0), (0, 2)))  # two columns of padding in every row
SHARED_IDS = np.pad(IDS, ((0, 0), (0, 2)))
PROMPTS = np.where(MASK, IDS, PAD)
PROMPTS[np.arange(3), MASK.sum(1) - 1] = SEP
STATES = _random.standard_normal((3, 7, 32)).astype(np.float32)
STATES_MASK = np.array([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 0]])
LABELS = _random.randint(4, 118, (3, 6)).astype(np.int64)
LABELS[:, 0] = DEC
LABELS[1, 4:], LABELS[2, 3:] = IGNORED, IGNORED
ANSWERS = np.where(LABELS == IGNORED, PAD, LABELS)
ANSWER_MASK = (LABELS != IGNORED).astype(np.int64)


class Case(NamedTuple):
    """One call.

    Attributes:
        model: The class of PyTorch; Keras' has TF in front.
        name: Name of the case.
        method: The method to call; "" calls the model.
        inputs: Arrays and options by name.
    """

    model: str
    name: str
    method: str
    inputs: dict[str, Any]

    @property
    def id(self) -> str:
        """Name of the case among all."""
        return f"{self.model}.{self.name}"


EVERYTHING = {"output_attentions": True, "output_hidden_states": True}
TRAINING = {
    "BlipForConditionalGeneration": {
        "pixel_values": PIXELS, "input_ids": ANSWERS, "attention_mask": ANSWER_MASK, "labels": LABELS,
    },
    "BlipForQuestionAnswering": {
        "input_ids": IDS, "pixel_values": PIXELS, "attention_mask": MASK, "decoder_attention_mask": ANSWER_MASK,
        "labels": LABELS,
    },
}  # fmt: skip

CALLS = (
    Case("BlipVisionModel", "everything", "", {"pixel_values": PIXELS, **EVERYTHING}),
    Case("BlipTextModel", "alone", "", {"input_ids": IDS}),
    Case("BlipTextModel", "masked", "", {"input_ids": IDS, "attention_mask": MASK, **EVERYTHING}),
    Case("BlipTextModel", "left", "", {"input_ids": LEFT_IDS, "attention_mask": LEFT_MASK}),
    Case("BlipTextModel", "shared", "", {"input_ids": SHARED_IDS, "attention_mask": SHARED_MASK}),
    Case(
        "BlipTextModel",
        "grounded",
        "",
        {
            "input_ids": IDS,
            "attention_mask": MASK,
            "encoder_hidden_states": STATES,
            "encoder_attention_mask": STATES_MASK,
            **EVERYTHING,
        },
    ),
    Case("BlipTextModel", "one-memory", "", {"input_ids": IDS, "encoder_hidden_states": STATES[:1]}),
    Case("BlipTextModel", "one-text", "", {"input_ids": IDS[:1], "encoder_hidden_states": STATES}),
    Case(
        "BlipTextModel",
        "decoder",
        "",
        {"input_ids": IDS, "attention_mask": MASK, "encoder_hidden_states": STATES, "is_decoder": True, **EVERYTHING},
    ),
    Case(
        "BlipModel",
        "everything",
        "",
        {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": MASK, "return_loss": True},
    ),
    Case("BlipModel", "text", "get_text_features", {"input_ids": IDS, "attention_mask": MASK}),
    Case("BlipModel", "left", "get_text_features", {"input_ids": LEFT_IDS, "attention_mask": LEFT_MASK}),
    Case("BlipModel", "image", "get_image_features", {"pixel_values": PIXELS}),
    Case(
        "BlipForConditionalGeneration",
        "loss",
        "",
        {**TRAINING["BlipForConditionalGeneration"], **EVERYTHING},
    ),
    Case("BlipForConditionalGeneration", "logits", "", {"pixel_values": PIXELS, "input_ids": IDS}),
    Case("BlipForQuestionAnswering", "loss", "", {**TRAINING["BlipForQuestionAnswering"], **EVERYTHING}),
    Case(
        "BlipForQuestionAnswering",
        "decoder-ids",
        "",
        {"input_ids": IDS, "pixel_values": PIXELS, "decoder_input_ids": ANSWERS, "labels": LABELS},
    ),
    Case(
        "BlipForImageTextRetrieval",
        "itm",
        "",
        {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": MASK, **EVERYTHING},
    ),
    Case(
        "BlipForImageTextRetrieval",
        "itc",
        "",
        {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": MASK, "use_itm_head": False},
    ),
    Case("BlipForImageTextRetrieval", "one-text", "", {"input_ids": IDS[:1], "pixel_values": PIXELS}),
)

_CAPTION = {"pixel_values": PIXELS}
_PROMPTED = {"pixel_values": PIXELS, "input_ids": PROMPTS, "attention_mask": MASK}
_QUESTION = {"input_ids": IDS, "pixel_values": PIXELS, "attention_mask": MASK}
_OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {"max_new_tokens": 10},
    "beams-2": {"max_new_tokens": 10, "num_beams": 2},
    "beams-3": {"max_new_tokens": 10, "num_beams": 3},
    "beams-4": {"max_new_tokens": 10, "num_beams": 4, "num_return_sequences": 2},
}
_MORE: dict[str, dict[str, Any]] = {
    "penalty": {"max_new_tokens": 10, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    "beam-options": {
        "max_length": 12, "min_length": 5, "num_beams": 3, "length_penalty": 2.0, "early_stopping": True,
        "repetition_penalty": 1.3, "suppress_tokens": [5, 6],
    },
    "never": {"max_new_tokens": 8, "num_beams": 3, "early_stopping": "never", "no_repeat_ngram_size": 2},
}  # fmt: skip
GENERATIONS = (
    *(
        Case("BlipForConditionalGeneration", name, "generate", {**_CAPTION, **options})
        for name, options in {**_OPTIONS, **_MORE}.items()
    ),
    *(
        Case("BlipForConditionalGeneration", f"prompted-{name}", "generate", {**_PROMPTED, **options})
        for name, options in _OPTIONS.items()
        if name in ("greedy", "beams-3")
    ),
    Case("BlipForConditionalGeneration", "left", "generate", {
        "pixel_values": PIXELS, "input_ids": LEFT_IDS, "attention_mask": LEFT_MASK, "max_new_tokens": 6,
    }),
    Case("BlipForConditionalGeneration", "one-prompt", "generate", {
        "pixel_values": PIXELS, "input_ids": PROMPTS[:1], "max_new_tokens": 6,
    }),
    *(
        Case("BlipForQuestionAnswering", name, "generate", {**_QUESTION, **options})
        for name, options in _OPTIONS.items()
    ),
    Case("BlipForQuestionAnswering", "shared", "generate", {
        "input_ids": SHARED_IDS, "pixel_values": PIXELS, "attention_mask": SHARED_MASK, "max_new_tokens": 6,
    }),
)  # fmt: skip

# What transformers 4.46.3 computes alike in TensorFlow; see `record_tf446.py`.
TF446 = frozenset(
    (
        "BlipVisionModel.everything", "BlipTextModel.alone", "BlipTextModel.masked", "BlipTextModel.grounded",
        "BlipTextModel.decoder", "BlipModel.everything", "BlipModel.text", "BlipModel.image",
        "BlipForConditionalGeneration.loss", "BlipForConditionalGeneration.logits",
        "BlipForQuestionAnswering.decoder-ids", "BlipForImageTextRetrieval.itm", "BlipForImageTextRetrieval.itc",
        "BlipForConditionalGeneration.greedy",
    )
)  # fmt: skip
TF446_H5 = ("BlipForConditionalGeneration", "BlipModel")

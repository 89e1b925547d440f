"""The published sizes, with random weights: every class at ViT-B, captions at ViT-L.

All models share one set of tensors, so that memory and time go into the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.compat.compat_toys import Ours, Theirs, close

TOLERANCE = 1e-4
PIXELS = torch.randn(1, 3, 384, 384, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[101, 1037, 3861, 1997, 2048, 3869, 102]])
TEXT = {"num_attention_heads": 12}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}


def _random(shapes: dict[str, torch.Size], seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in shapes.items():
        tensor = torch.empty(shape)
        if "norm" in name.lower():
            tensor.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            spread = 0.2 if "word_embeddings" in name else 0.035
            tensor.uniform_(-spread, spread, generator=generator)
        tensors[name] = tensor
    return tensors


class Pool:
    """Random tensors by the last part of their names, made once for all models of one size."""

    def __init__(self, vision: dict[str, Any]) -> None:
        self.vision = vision
        self.tensors: dict[str, Tensor] = {}

    def pair(self, name: str) -> tuple[Any, Any]:
        """Their model and ours over the same tensors."""
        models = []
        for library in (Theirs, Ours):
            config = library.BlipConfig(text_config=TEXT, vision_config=self.vision)
            subconfig = {"BlipTextModel": "text_config", "BlipVisionModel": "vision_config"}.get(name)
            with torch.device("meta"):
                models.append(getattr(library, name)(getattr(config, subconfig) if subconfig else config))
        theirs, ours = models
        state = {key: self._tensor(key, tensor.shape) for key, tensor in ours.state_dict().items()}
        for model in models:
            model.load_state_dict(state, assign=True)
            model.eval()
        for module in theirs.modules():
            if hasattr(module, "position_ids"):
                module.position_ids = torch.arange(512)[None]
        return theirs, ours

    def _tensor(self, name: str, shape: torch.Size) -> Tensor:
        key = name
        for prefix in ("vision_model.", "text_encoder.", "text_model.", "text_decoder.bert.", "text_decoder."):
            key = key.removeprefix(prefix)
        if "predictions.decoder" in key:
            key = "embeddings.word_embeddings.weight" if key.endswith("weight") else "cls.predictions.bias"
        if key not in self.tensors or self.tensors[key].shape != shape:
            self.tensors |= _random({key: shape}, seed=len(self.tensors))
        return self.tensors[key]


@pytest.fixture(scope="module")
def base() -> Pool:
    return Pool({})


@torch.no_grad()
def test_captions_at_base_size(base: Pool) -> None:
    theirs, ours = base.pair("BlipForConditionalGeneration")
    output = ours(PIXELS, IDS, labels=IDS)
    close(output, theirs(PIXELS, IDS, labels=IDS), TOLERANCE)
    _same_texts(theirs, ours, output.image_embeds, (1, 2, 3, 4, 5))
    image, text = base.pair("BlipVisionModel"), base.pair("BlipTextModel")
    close(image[1](PIXELS).last_hidden_state, output.image_embeds, TOLERANCE)
    states = output.image_embeds
    close(text[1](IDS, encoder_hidden_states=states), text[0](IDS, encoder_hidden_states=states), TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("name", ["BlipForQuestionAnswering", "BlipForImageTextRetrieval", "BlipModel"])
def test_other_classes_at_base_size(base: Pool, name: str) -> None:
    theirs, ours = base.pair(name)
    options = {"labels": IDS[:, :4]} if name == "BlipForQuestionAnswering" else {}
    close(ours(IDS, PIXELS, **options), theirs(IDS, PIXELS, **options), TOLERANCE)


@torch.no_grad()
def test_captions_at_large_size() -> None:
    theirs, ours = Pool(LARGE).pair("BlipForConditionalGeneration")
    output = ours(PIXELS, IDS)
    close(output, theirs(PIXELS, IDS), TOLERANCE)
    _same_texts(theirs, ours, output.image_embeds, (1, 2, 3))


def _same_texts(theirs: Any, ours: Any, image: Tensor, beams: Sequence[int]) -> None:
    """Both decoders write the same about an image."""
    prompt = torch.tensor([[30522, 1037, 3861, 1997]])
    arguments = {"encoder_hidden_states": image, "eos_token_id": 102, "pad_token_id": 0, "max_new_tokens": 4}
    texts: set[tuple[int, ...]] = set()
    for count in beams:
        options: dict[str, Any] = {"num_beams": count}
        if count % 2:
            options |= {"repetition_penalty": 1.5, "min_length": 7, "num_return_sequences": min(count, 2)}
        actual = ours.text_decoder.generate(prompt, **arguments, **options)
        expected = theirs.text_decoder.generate(input_ids=prompt.clone(), **arguments, **options)
        assert actual.tolist() == expected.tolist()
        texts.update(map(tuple, actual.tolist()))
    assert len(texts) > 1

"""Toy models of transformers and OpenBLIP with equal weights, large enough that inputs matter and texts end early."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from openblip.compat import transformers_api

Theirs: Any = transformers
Ours: Any = transformers_api

VOCAB, SIZE, PATCH, WIDTH = 60, 32, 16, 32
PAD, CLS, SEP, DEC = 0, 2, 3, 58
WHOLE = ("BlipForConditionalGeneration", "BlipForQuestionAnswering", "BlipForImageTextRetrieval", "BlipModel")
CLASSES = (*WHOLE, "BlipTextModel", "BlipVisionModel")


def their_config(*, vision_width: int = WIDTH, vocab: int = VOCAB, dec: int = DEC, **text: Any) -> Any:
    """Two layers in each tower."""
    return Theirs.BlipConfig(
        text_config={
            "vocab_size": vocab,
            "hidden_size": WIDTH,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 40,
            "bos_token_id": dec,
            "sep_token_id": SEP,
            **text,
        },
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": PATCH,
        },
        image_text_hidden_size=16,
        projection_dim=24,
    )


def our_config(theirs: Any) -> Any:
    """The same configuration, as ours."""
    return getattr(Ours, type(theirs).__name__)(**theirs.to_dict())


def part(name: str, config: Any) -> Any:
    """The configuration that a class takes."""
    if name in ("BlipTextModel", "BlipTextLMHeadModel"):
        return config.text_config
    return config.vision_config if name == "BlipVisionModel" else config


def loud(model: nn.Module, seed: int, scale: float) -> None:
    """Draw weights wide, and make the end of a text likely enough that some rows reach it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if name.endswith("predictions.bias"):
                parameter[SEP] += 1.5


def pair(name: str, config: Any = None, seed: int = 0, scale: float = 0.1) -> tuple[Any, Any]:
    """Their model and ours with the same weights, both in evaluation mode."""
    config = their_config() if config is None else config
    torch.manual_seed(seed)
    theirs = getattr(Theirs, name)(copy.deepcopy(part(name, config))).eval()
    loud(theirs, seed, scale)
    ours = getattr(Ours, name)(our_config(part(name, config))).eval()
    assert not any(ours.load_state_dict(theirs.state_dict()))
    return theirs, ours


def pixels(count: int = 2, seed: int = 0, size: int = SIZE) -> Tensor:
    """Images (count, 3, size, size)."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def ids(count: int = 2, length: int = 6, seed: int = 0) -> Tensor:
    """Texts (count, length) from [CLS] to [SEP]."""
    words = torch.randint(5, VOCAB - 2, (count, length), generator=torch.Generator().manual_seed(seed))
    words[:, 0], words[:, -1] = CLS, SEP
    return words


def padded(lengths: list[int], width: int, *, left: bool = False, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Texts of these lengths padded to ``width``, and their mask."""
    rows, mask = torch.zeros(len(lengths), width, dtype=torch.long), torch.zeros(len(lengths), width, dtype=torch.long)
    for row, length in enumerate(lengths):
        columns = slice(width - length, width) if left else slice(0, length)
        rows[row, columns] = ids(1, length, seed=seed + row)[0]
        mask[row, columns] = 1
    return rows, mask


def close(ours: Any, theirs: Any, tolerance: float = 1e-5) -> None:
    """Outputs agree: the same entries in the same order, equal within the tolerance."""
    if isinstance(theirs, Tensor):
        assert isinstance(ours, Tensor)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)
    elif isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        for actual, expected in zip(ours, theirs, strict=True):
            close(actual, expected, tolerance)
    elif hasattr(theirs, "keys"):
        names = [name for name in theirs if name != "past_key_values"]
        assert [name for name in ours.keys() if name != "past_key_values"] == names  # noqa: SIM118 (ours is no dict)
        for name in names:
            close(ours[name], theirs[name], tolerance)
    else:
        assert ours == theirs or (ours is None and theirs is None)

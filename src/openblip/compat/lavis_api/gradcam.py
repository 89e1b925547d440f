"""Where a match was found, as LAVIS's ``compute_gradcam`` gives it and ``getAttMap`` draws it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from openblip.compat.lavis_api.models import MATCH_TOKENS, BlipITM
from openblip.engine.protocols import Explanations
from openblip.errors import InputError

_BLUR = 0.02  # of the longer side: the deviation of the blur
_OPACITY = 0.7  # the power of the heat that is its opacity
_JET = (  # places in 0..1 and what red, green and blue are there, straight in between
    ((0.0, 0.35, 0.66, 0.89, 1.0), (0.0, 0.0, 1.0, 1.0, 0.5)),
    ((0.0, 0.125, 0.375, 0.64, 0.91, 1.0), (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)),
    ((0.0, 0.11, 0.34, 0.65, 1.0), (0.5, 1.0, 1.0, 0.0, 0.0)),
)


def compute_gradcam(
    model: BlipITM, visual_input: Tensor, text_input: Any, tokenized_text: Any, block_num: int = 6
) -> tuple[list[Tensor], Tensor]:
    """Heat maps (T + 1, G, G) of every image with its text, and the ITM logits (B, 2).

    Row 0 is [ENC], row 1 the mean over word pieces, then come the tokens after [ENC]; those of padding are zero.
    ``tokenized_text`` is what ``model.tokenizer`` made of the texts: its length is that of the maps.
    """
    texts = [text_input] if isinstance(text_input, str) else list(text_input)
    part, grid = model.part, model.part.config.vision.grid
    length = int(torch.as_tensor(tokenized_text["attention_mask"]).shape[-1])
    maps = []
    for image, text in zip(visual_input, texts, strict=True):
        states = part.engine.encode_images(image[None])
        tokens = part.tokenizer.encode([text], "enc", max_length=MATCH_TOKENS)
        heat = part.engine.require(Explanations).explain_match(tokens.ids, tokens.mask, states, block_num)[0][0].cpu()
        heat = heat.reshape(-1, grid, grid)
        words = heat[1:-1].mean(0, keepdim=True)
        padding = heat.new_zeros(max(0, length - len(heat)), grid, grid)
        maps.append(torch.cat([heat[:1], words, heat[1:], padding]))
    return maps, model({"image": visual_input, "text_input": texts}, match_head="itm")


def getAttMap(img: ArrayLike, attMap: ArrayLike, blur: bool = True, overlap: bool = True) -> NDArray[Any]:  # noqa: N802, N803 (names of LAVIS)
    """A picture (H, W, 3) of floats in 0..1 under a heat map (h, w): floats (H, W, 3).

    Heat counts from the least to the greatest in the map. ``blur`` smooths it; without ``overlap`` it comes alone, as
    floats (H, W) in 0..1. Neither argument is changed. Raises :class:`InputError` for other shapes.
    """
    picture, heat = np.asarray(img, np.float64), np.asarray(attMap, np.float32)
    if picture.ndim != 3 or picture.shape[2] != 3 or heat.ndim != 2:
        raise InputError(f"a picture is (H, W, 3) and a heat map (h, w), not {picture.shape} and {heat.shape}")
    size = (picture.shape[1], picture.shape[0])
    large = Image.fromarray(_stretched(heat)).resize(size, Image.Resampling.BICUBIC)
    level = np.asarray(large, np.float64).clip(0, 1)
    if blur:
        level = _stretched(_blurred(_blurred(level, _BLUR * max(size)).T, _BLUR * max(size)).T)
    if not overlap:
        return level
    colours = np.stack([np.interp(level, places, values) for places, values in _JET], -1)
    opacity = level[..., None] ** _OPACITY
    return picture * (1 - opacity) + colours * opacity


def _stretched(heat: NDArray[Any]) -> NDArray[Any]:
    """Heat from 0 to 1; all zero if it is the same everywhere."""
    above = heat - heat.min()
    return above / above.max() if above.max() > 0 else above


def _blurred(heat: NDArray[Any], deviation: float) -> NDArray[Any]:
    """Every column under a Gaussian, cut at four deviations, the map mirrored at its edges."""
    radius = int(4 * deviation + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    padded = np.pad(heat, ((radius, radius), (0, 0)), mode="symmetric")
    return sum(weight * padded[i : i + len(heat)] for i, weight in enumerate(weights / weights.sum()))

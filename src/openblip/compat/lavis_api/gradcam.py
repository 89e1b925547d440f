"""Grad-CAM heat maps of matches: `compute_gradcam` and `getAttMap` of LAVIS."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from openblip.compat.lavis_api.models import BlipITM
from openblip.compat.published_module import MATCH_TOKENS
from openblip.engine.protocols import Explanations
from openblip.errors import InputError

FloatArray: TypeAlias = NDArray[np.floating[Any]]

_BLUR = 0.02  # standard deviation of the blur, as a fraction of the longer edge
_OPACITY_EXPONENT = 0.7  # opacity = heat ** exponent
_JET = (  # matplotlib's "jet": positions and values of red, green and blue, linear between them
    ((0.0, 0.35, 0.66, 0.89, 1.0), (0.0, 0.0, 1.0, 1.0, 0.5)),
    ((0.0, 0.125, 0.375, 0.64, 0.91, 1.0), (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)),
    ((0.0, 0.11, 0.34, 0.65, 1.0), (0.5, 1.0, 1.0, 0.0, 0.0)),
)


def compute_gradcam(
    model: BlipITM, visual_input: Tensor, text_input: Any, tokenized_text: Any, block_num: int = 6
) -> tuple[list[Tensor], Tensor]:
    """Compute where images match their texts.

    Args:
        model: The matching model.
        visual_input: Images (B, 3, S, S).
        text_input: One text per image.
        tokenized_text: Output of `model.tokenizer` for the texts; its length T is the length of the maps.
        block_num: Layer whose cross-attention is used.

    Returns:
        Heat maps (T + 1, G, G) for each image and its text, and the ITM logits (B, 2). Map 0 belongs to [ENC], map 1 is
        the mean over word pieces, the others belong to the tokens after [ENC]. Maps of padding are zero.
    """
    texts = [text_input] if isinstance(text_input, str) else list(text_input)
    task_model = model.task_model
    engine, grid = task_model.engine, task_model.config.vision.grid
    length = int(torch.as_tensor(tokenized_text["attention_mask"]).shape[-1])
    maps = []
    for image, text in zip(visual_input, texts, strict=True):
        states = engine.encode_images(image[None])
        tokens = task_model.tokenizer.encode([text], "enc", max_length=MATCH_TOKENS)
        heat = engine.require(Explanations).explain_match(tokens.ids, tokens.mask, states, block_num)[0][0].cpu()
        heat = heat.reshape(-1, grid, grid)
        mean = heat[1:-1].mean(0, keepdim=True)
        padding = heat.new_zeros(max(0, length - len(heat)), grid, grid)
        maps.append(torch.cat([heat[:1], mean, heat[1:], padding]))
    return maps, model({"image": visual_input, "text_input": texts}, match_head="itm")


def getAttMap(img: ArrayLike, attMap: ArrayLike, blur: bool = True, overlap: bool = True) -> FloatArray:  # noqa: N802, N803 (names of LAVIS)
    """Draw a heat map over an image.

    Args:
        img: Image (H, W, 3) of floats between 0 and 1.
        attMap: Heat map (h, w) of any size. Its minimum is transparent, its maximum red.
        blur: Smooth the heat map.
        overlap: Draw over the image; otherwise return the heat map.

    Returns:
        Floats (H, W, 3), or (H, W) without `overlap`, between 0 and 1.

    Raises:
        InputError: If an argument has another shape.
    """
    image, heat = np.asarray(img, np.float64), np.asarray(attMap, np.float32)
    if image.ndim != 3 or image.shape[2] != 3 or heat.ndim != 2:
        raise InputError(f"img must be (H, W, 3) and attMap (h, w), got {image.shape} and {heat.shape}")
    size = (image.shape[1], image.shape[0])
    enlarged = Image.fromarray(_normalize(heat)).resize(size, Image.Resampling.BICUBIC)
    level = np.asarray(enlarged, np.float64).clip(0, 1)
    if blur:
        deviation = _BLUR * max(size)
        level = _normalize(_blur_columns(_blur_columns(level, deviation).T, deviation).T)
    if not overlap:
        return level
    colors = np.stack([np.interp(level, positions, values) for positions, values in _JET], -1)
    opacity = level[..., None] ** _OPACITY_EXPONENT
    return image * (1 - opacity) + colors * opacity


def _normalize(heat: FloatArray) -> FloatArray:
    """Scale to the range 0 to 1. A constant map becomes 0."""
    shifted = heat - heat.min()
    return shifted / shifted.max() if shifted.max() > 0 else shifted


def _blur_columns(heat: FloatArray, deviation: float) -> FloatArray:
    """Convolve columns with a Gaussian, cut off at four standard deviations. Edges are mirrored."""
    radius = int(4 * deviation + 0.5)
    weights = np.exp(-0.5 * (np.arange(-radius, radius + 1) / deviation) ** 2)
    padded = np.pad(heat, ((radius, radius), (0, 0)), mode="symmetric")
    return sum(weight * padded[i : i + len(heat)] for i, weight in enumerate(weights / weights.sum()))

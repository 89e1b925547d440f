"""Where a match was found, as LAVIS's ``compute_gradcam`` gives it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from openblip.compat.lavis_api.models import MATCH_TOKENS, BlipITM


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
        heat = part.eager.explain_match(tokens.ids, tokens.mask, states, block_num)[0][0].cpu()
        heat = heat.reshape(-1, grid, grid)
        words = heat[1:-1].mean(0, keepdim=True)
        padding = heat.new_zeros(max(0, length - len(heat)), grid, grid)
        maps.append(torch.cat([heat[:1], words, heat[1:], padding]))
    return maps, model({"image": visual_input, "text_input": texts}, match_head="itm")

"""Decode several captions of an image in one row, so that little of a batch is padding and each image is read once.

Shapes: I images, L tokens of a row: caption after caption, then padding; D width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.model.captioner import Captioner
from openblip.model.layers import hiding_bias
from openblip.training.objectives.language import IGNORED

NUM_GROUPS = 3
"""Groups of rows of similar length; each group is as long as its longest row."""


@dataclass(frozen=True)
class PackedRows:
    """Rows of captions.

    Attributes:
        ids: Token ids (I, L).
        positions: Position (I, L) of each token in its caption.
        captions: Number (I, L) of each token's caption in the row, from 1; 0 for padding.
    """

    ids: Tensor
    positions: Tensor
    captions: Tensor

    def labels(self, prompt_length: int) -> Tensor:
        """Return the labels (I, L): all tokens except prompt and padding."""
        return self.ids.masked_fill((self.captions == 0) | (self.positions < prompt_length), IGNORED)

    def attention_bias(self, dtype: torch.dtype) -> Tensor:
        """Return the bias (I, 1, L, L) with which a token sees itself and the tokens before it in its caption."""
        length = self.ids.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=self.ids.device).triu(1)
        other_caption = self.captions[:, :, None] != self.captions[:, None, :]
        return hiding_bias((later | other_caption)[:, None], dtype)

    def group_by_length(self, num_groups: int = NUM_GROUPS) -> Iterator[tuple[Tensor, PackedRows]]:
        """Yield the images (I',) of similarly long rows, and these rows without the padding they have in common."""
        lengths = (self.captions > 0).sum(1)
        for images in lengths.argsort(stable=True).chunk(num_groups):
            longest = max(int(lengths[images].max()), 1)
            parts = (part[images, :longest] for part in (self.ids, self.positions, self.captions))
            yield images, PackedRows(*parts)


def decode_packed(
    model: Captioner, rows: PackedRows, image_tokens: Tensor
) -> Iterator[tuple[Tensor, Tensor, PackedRows]]:
    """Decode packed captions, group by group.

    Args:
        model: The captioner.
        rows: The captions of I images.
        image_tokens: Tokens (I, N + 1, D) of the images.

    Yields:
        The images (I',) of a group, the decoder states (I', L', D) of their captions, and their rows.
    """
    memory = model.decoder.project(image_tokens)
    for images, group in rows.group_by_length():
        x = model.decoder.embeddings(group.ids, positions=group.positions)
        bias = group.attention_bias(x.dtype)
        yield images, model.decoder.run(x, bias, memory.select(images), None, causal=True), group

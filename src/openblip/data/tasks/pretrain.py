"""Pretraining: images and captions for ITC, ITM and LM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openblip.data.collate import stack_images, tokenize
from openblip.data.samples import Sample
from openblip.data.tasks.base import CaptionedData, DataOptions


@dataclass(frozen=True, kw_only=True)
class PretrainData(CaptionedData):
    """Images with captions.

    With `texts_per_image=n`, the first caption drawn serves ITC and ITM and all n serve LM, so the image is encoded
    once. Texts are padded to `max_tokens`, so that processes can exchange them.
    """

    max_tokens: int = 30

    @classmethod
    def from_options(cls, options: DataOptions) -> PretrainData:
        """Build the data class from the options of a recipe."""
        options.refuse("pretrain", "packed")
        return cls(
            tokenizer=options.tokenizer,
            transform=options.transform(),
            texts_per_image=options.texts_per_image,
            **options.limits,
        )

    def make_batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return `pixels` (B, S, S, 3), `ids` and `mask` (B, T); also `lm_ids` and `lm_mask` (B * n, T) if n > 1."""
        limit = self.max_tokens
        batch = {
            "pixels": stack_images(samples),
            **tokenize(self.tokenizer, [sample.texts[0] for sample in samples], "cls", limit, limit),
        }
        if self.texts_per_image is not None and self.texts_per_image > 1:
            texts = [text for sample in samples for text in sample.texts]
            batch |= tokenize(self.tokenizer, texts, "dec", limit, limit, "lm_")
        return batch

"""Image-text retrieval: images and captions for ITC and ITM, with the ids of the images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openblip.data.collate import as_tensor, stack_images, tokenize
from openblip.data.samples import Sample
from openblip.data.tasks.base import CaptionedData, DataOptions
from openblip.errors import InputError


@dataclass(frozen=True, kw_only=True)
class RetrievalData(CaptionedData):
    """Images with one caption each; `texts_per_image` is `None` (every caption is a sample) or 1."""

    max_tokens: int = 35

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.texts_per_image not in (None, 1):
            raise InputError(f"texts_per_image must be None or 1 for retrieval, got {self.texts_per_image}")

    @classmethod
    def from_options(cls, options: DataOptions) -> RetrievalData:
        """Build the data class from the options of a recipe."""
        options.refuse("retrieval", "packed")
        return cls(
            tokenizer=options.tokenizer,
            transform=options.transform(),
            texts_per_image=options.texts_per_image,
            **options.limits,
        )

    def make_batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return `pixels` (B, S, S, 3), `ids` and `mask` (B, T), and `image_ids` (B,)."""
        texts = [sample.texts[0] for sample in samples]
        return {
            "pixels": stack_images(samples),
            **tokenize(self.tokenizer, texts, "cls", self.max_tokens, self.max_tokens),
            "image_ids": as_tensor([sample.image_id for sample in samples]),
        }

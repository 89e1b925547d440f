"""Captioning: images and captions for the LM loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openblip.data.collate import pack_texts, stack_images, tokenize
from openblip.data.samples import Sample
from openblip.data.tasks.base import CaptionedData, DataOptions
from openblip.errors import InputError
from openblip.model.config import CAPTION_PROMPT


@dataclass(frozen=True, kw_only=True)
class CaptionData(CaptionedData):
    """Images with captions that start with a prompt.

    Attributes:
        prompt: Text before every caption; its tokens are given, not learned.
        max_tokens: Tokens kept of prompt and caption.
        packed: Put up to `texts_per_image` captions of an image, none of them twice, in one row, so that little of a
            batch is padding.
    """

    prompt: str = CAPTION_PROMPT
    max_tokens: int = 40
    packed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packed and self.texts_per_image is None:
            raise InputError("packed captions need texts_per_image, the most captions of a row, got None")

    @classmethod
    def from_options(cls, options: DataOptions) -> CaptionData:
        """Build the data class from the options of a recipe."""
        return cls(
            tokenizer=options.tokenizer,
            transform=options.transform(),
            texts_per_image=options.texts_per_image,
            prompt=options.prompt,
            packed=options.packed,
            **options.limits,
        )

    @property
    def prompt_length(self) -> int:
        """Number of tokens that are given, [DEC] included."""
        return len(self.tokenizer.encode_prompt(self.prompt))

    def draw_texts(self, texts: list[str], count: int) -> list[str]:
        """Return `count` captions of an image: the first ones if they are packed, otherwise random ones."""
        return texts[:count] if self.packed else super().draw_texts(texts, count)

    def make_batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return `pixels` (I, S, S, 3), and `ids` and `mask` (C, T): C / I captions per image, in order of images.

        Packed captions have one row (I, L) per image, as `pack_texts` returns them.
        """
        texts = [self.prompt + text for sample in samples for text in sample.texts]
        tokens = tokenize(self.tokenizer, texts, "dec", self.max_tokens)
        if self.packed:
            counts = [len(sample.texts) for sample in samples]
            tokens = pack_texts(tokens["ids"], tokens["mask"], counts, self.tokenizer.pad_id)
        return {"pixels": stack_images(samples), **tokens}

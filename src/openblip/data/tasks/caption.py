"""Captioning: images and captions for the LM loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from openblip.data.collate import stack_images, tokenize
from openblip.data.samples import Sample
from openblip.data.tasks.base import CaptionedData, DataOptions
from openblip.model.config import CAPTION_PROMPT


@dataclass(frozen=True, kw_only=True)
class CaptionData(CaptionedData):
    """Images with captions that start with a prompt.

    Attributes:
        prompt: Text before every caption; its tokens are given, not learned.
        max_tokens: Tokens kept of prompt and caption.
    """

    prompt: str = CAPTION_PROMPT
    max_tokens: int = 40

    @classmethod
    def from_options(cls, options: DataOptions) -> CaptionData:
        """Build the data class from the options of a recipe."""
        return cls(
            tokenizer=options.tokenizer,
            transform=options.transform(),
            texts_per_image=options.texts_per_image,
            prompt=options.prompt,
            **options.limits,
        )

    @property
    def prompt_length(self) -> int:
        """Number of tokens that are given, [DEC] included."""
        return len(self.tokenizer.encode_prompt(self.prompt))

    def make_batch(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Return `pixels` (I, S, S, 3), and `ids` and `mask` (C, T): C / I captions per image, in order of images."""
        texts = [self.prompt + text for sample in samples for text in sample.texts]
        return {"pixels": stack_images(samples), **tokenize(self.tokenizer, texts, "dec", self.max_tokens)}

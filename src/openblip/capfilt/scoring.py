"""Captions and scores of a batch of images: one captioner and one filter that share the decoded images.

Shapes: I images, N synthetic texts per image, M image tokens, D width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from openblip.blip import Blip
from openblip.capfilt.rows import ScoredText
from openblip.engine.protocols import Matches
from openblip.errors import InputError
from openblip.pipelines.base import TEXT_ROWS, OpenedImage, Prepared, iter_row_batches
from openblip.pipelines.caption import Prompt
from openblip.pipelines.retrieval import MAX_WORDS
from openblip.preprocess.image import load_image
from openblip.preprocess.text import clean_caption

if TYPE_CHECKING:
    from openblip.pipelines.inputs import ImageInput
    from openblip.preprocess.image import ImageSource
    from openblip.signatures import CaptionPipelineOptions

MAX_CHARACTERS = 1000
"""Longest text that is scored. Longer ones are pages, not captions; the model would see their first 30 words."""


@dataclass(frozen=True)
class Sampling:
    """Sampling options of the captioner.

    The defaults are the paper's nucleus sampling (section 4.2) with the lengths and the penalty of the authors' code.

    Attributes:
        num: Synthetic texts per image.
        top_p: Total probability of the most likely tokens to sample from.
        min_new_tokens: Minimum number of tokens before [SEP].
        max_new_tokens: Maximum number of tokens, [SEP] included.
        repetition_penalty: Divides the scores of tokens that occurred before.
        num_beams: Number of beams of a beam search; 0 samples instead.
        prompt: Start of every text; by default the prompt of the checkpoint.
        seed: Seed of all samples.
    """

    num: int = 1
    top_p: float = 0.9
    min_new_tokens: int = 6
    max_new_tokens: int = 26
    repetition_penalty: float = 1.1
    num_beams: int = 0
    prompt: str | None = None
    seed: int = 0

    def to_dict(self) -> dict[str, str | float | None]:
        """Return the options as a dictionary for JSON.

        Returns:
            The options by name.
        """
        return asdict(self)

    def options(self) -> CaptionPipelineOptions:
        """Return the options of the caption pipeline.

        Returns:
            Keyword arguments of [`CaptionPipeline`][openblip.pipelines.caption.CaptionPipeline].
        """
        shared: CaptionPipelineOptions = {
            "n": self.num,
            "min_new_tokens": self.min_new_tokens,
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
            "no_repeat_ngram_size": 0,  # as the authors, whatever the captioner stores
            "prompt": self.prompt,
        }
        if self.num_beams:
            return {**shared, "num_beams": max(self.num_beams, self.num)}
        return {**shared, "do_sample": True, "top_p": self.top_p}


@dataclass(eq=False)
class Candidate:
    """An image and its web texts, ready for the models.

    Attributes:
        key: Name of the image, which seeds its samples.
        captioned: The image for the captioner.
        matched: The image for the filter.
        texts: Web texts.
    """

    key: str
    captioned: Prepared[Prompt]
    matched: OpenedImage
    texts: tuple[str, ...]


def find_fault(text: str) -> str | None:
    """Return why a text cannot be scored: it is empty after cleaning, or too long to be a caption."""
    if len(text) > MAX_CHARACTERS:
        return f"longer than {MAX_CHARACTERS} characters"
    return None if clean_caption(text, MAX_WORDS) else "empty after cleaning"


class Scorer:
    """A captioner and a filter.

    Args:
        captioner: Model that generates captions.
        matcher: Model that scores texts; the filter of the paper.
        sampling: Sampling options of the captioner.
    """

    def __init__(self, captioner: Blip, matcher: Blip, sampling: Sampling | None = None) -> None:
        self.sampling = sampling or Sampling()
        self._captions = captioner.pipeline("caption", **self.sampling.options())
        self._matches = matcher.pipeline("retrieval")
        settings = (self._captions.model.image_settings, self._matches.model.image_settings)
        self._shared_pixels = settings[0].size == settings[1].size
        self._target_size = max(setting.size for setting in settings)
        self.batch_size = self._captions.model.batching.batch_size
        self.num_workers = self._captions.model.batching.num_workers

    def open(self, key: str, image: ImageSource, texts: Sequence[str]) -> Candidate:
        """Decode an image once for both models.

        Args:
            key: Name of the image.
            image: The image.
            texts: Its web texts.

        Returns:
            The image, ready for `score`.

        Raises:
            ImageError: The image cannot be read.
        """
        source: ImageInput = image
        if not self._shared_pixels:
            source = load_image(image, target_size=self._target_size)
        captioned = self._captions.preprocess((source, None))
        captioned.text = replace(captioned.text, seed=None if self.sampling.num_beams else self.seed_of(key))
        matched = captioned.image if self._shared_pixels else self._matches.model.open_image(source, videos=False)
        if captioned.image.frames:
            raise InputError("the input must be an image, got a video")
        return Candidate(key, captioned, matched, tuple(texts))

    def seed_of(self, key: str) -> int:
        """Return the seed of an image's samples, which depends only on its key and the seed of the job."""
        digest = hashlib.blake2b(f"{self.sampling.seed}\n{key}".encode("utf-8", "surrogateescape"), digest_size=8)
        return int.from_bytes(digest.digest(), "big") >> 1

    def score(self, batch: Sequence[Candidate]) -> list[tuple[ScoredText, ...]]:
        """Return the texts of each image with their scores: the web texts, then the synthetic ones.

        Args:
            batch: The images.

        Returns:
            The texts of each image.
        """
        prepared = [candidate.captioned for candidate in batch]
        captions = self._captions.postprocess(self._captions.forward(prepared), prepared)
        texts: list[list[ScoredText]] = []
        for candidate, caption in zip(batch, captions, strict=True):
            web = [ScoredText(text, "web", reason=find_fault(text)) for text in candidate.texts]
            samples = [
                ScoredText(each.text, "synthetic", logprob=each.logprob, reason=find_fault(each.text))
                for each in (caption, *caption.alternatives)
            ]
            texts.append([*web, *samples])
        usable = [[text for text in image_texts if text.reason is None] for image_texts in texts]
        scores = self._match([candidate.matched for candidate in batch], usable)
        results = []
        for image_texts, image_scores in zip(texts, map(iter, scores), strict=True):
            row = []
            for text in image_texts:
                itm, itc = (None, None) if text.reason is not None else next(image_scores)
                row.append(replace(text, itm=itm, itc=itc))
            results.append(tuple(row))
        return results

    @torch.inference_mode()
    def _match(
        self, images: Sequence[OpenedImage], texts: Sequence[Sequence[ScoredText]]
    ) -> list[list[tuple[float, float]]]:
        """Return the ITM probability and the ITC cosine of each image's texts. Every image is encoded once."""
        pipeline = self._matches
        states = pipeline.model.encode_images(images)  # (I, M, D)
        embeddings = pipeline.embed_images(states)
        rows = [pipeline.tokenize([text.text for text in image_texts]) for image_texts in texts]
        flat = [row for image_rows in rows for row in image_rows]
        owners = torch.tensor([image for image, image_rows in enumerate(rows) for _ in image_rows], dtype=torch.long)
        cosines = (pipeline.embed_texts(flat) * embeddings[owners.to(embeddings.device)]).sum(-1).tolist()
        probabilities = [0.0] * len(flat)
        starts = torch.cumsum(torch.tensor([0, *map(len, rows)]), 0).tolist()
        engine = pipeline.model.engine.require(Matches)
        memory = engine.project_images(states)
        for count in {len(image_rows) for image_rows in rows}:
            group = [image for image, image_rows in enumerate(rows) if len(image_rows) == count]
            group_rows = [pipeline.with_enc(rows[image]) for image in group]
            for chosen, columns, batch in iter_row_batches(group_rows, TEXT_ROWS):
                ids, mask = pipeline.model.pad(batch)
                scores = engine.match(ids, mask, memory.subset(group[chosen])).tolist()
                targets = [starts[image] + column for image in group[chosen] for column in range(count)[columns]]
                for target, score in zip(targets, scores, strict=True):
                    probabilities[target] = score
        pairs = list(zip(probabilities, cosines, strict=True))
        return [pairs[start:end] for start, end in pairwise(starts)]

"""The NLVR2 pipeline: two images and statements about them to `Comparison`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.engine.protocols import Comparisons
from openblip.pipelines.base import TEXT_ROWS, OpenedImage, Pipeline, Prepared, check_text, iter_row_batches
from openblip.pipelines.inputs import ImageInput
from openblip.preprocess.text import clean_caption
from openblip.results import Comparison

MAX_WORDS = 40  # of a statement


@dataclass(frozen=True)
class Statements:
    """The right image of a pair, and the token ids of the statements about the pair."""

    right: OpenedImage
    rows: list[list[int]]


class NlvrPipeline(Pipeline[tuple[ImageInput, ImageInput, "Sequence[str]"], Statements, Tensor, "list[Comparison]"]):
    """Judges statements about two images. Items are a left image, a right image and statements.

    A result is a list with a comparison for each statement. A pair is encoded once for all its statements.
    """

    def preprocess(self, item: tuple[ImageInput, ImageInput, Sequence[str]]) -> Prepared[Statements]:
        """Return the opened images and the token ids of the statements."""
        left, right, statements = item
        opened = self.model.open_image(left, videos=False)
        opened_right = self.model.open_image(right, videos=False)
        rows = [self.tokenize(statement) for statement in statements]
        return Prepared(opened, Statements(opened_right, rows), len(rows))

    def forward(self, batch: list[Prepared[Statements]]) -> Tensor:
        """Return logits (pairs, statements, 2), on the CPU; column 1 is "true"."""
        left = self.model.encode_images([prepared.image for prepared in batch])
        right = self.model.encode_images([prepared.text.right for prepared in batch])
        logits = torch.empty(len(batch), batch[0].num_texts, 2)
        for pairs, texts, rows in iter_row_batches([prepared.text.rows for prepared in batch], TEXT_ROWS):
            scores = self.compare(rows, left[pairs], right[pairs])
            logits[pairs, texts] = scores.view(logits[pairs, texts].shape).cpu()
        return logits

    def postprocess(self, raw: Tensor, batch: list[Prepared[Statements]]) -> list[list[Comparison]]:
        """Return the comparisons of each pair."""
        results = []
        for labels, probabilities in zip(raw.argmax(-1).tolist(), raw.softmax(-1)[..., 1].tolist(), strict=True):
            results.append([Comparison(label == 1, p) for label, p in zip(labels, probabilities, strict=True)])
        return results

    def tokenize(self, statement: str) -> list[int]:
        """Return the token ids of a statement, cleaned as in training.

        Args:
            statement: The statement.

        Returns:
            Token ids from [ENC] to [SEP].

        Raises:
            InputError: The statement is not a string, or is too long.
        """
        cleaned = clean_caption(check_text(statement, "a statement"), MAX_WORDS)
        return self.model.check_length(self.model.token_ids(cleaned, "enc"))

    def compare(self, rows: Sequence[list[int]], left: Tensor, right: Tensor) -> Tensor:
        """Judge statements about encoded images.

        Args:
            rows: Token ids of B statements; the statements of a pair are consecutive, equally many for each.
            left: States (I, M, D) of the left images.
            right: States (I, M, D) of the right images.

        Returns:
            Logits (B, 2); column 1 is "true".
        """
        return self.model.engine.require(Comparisons).compare_logits(*self.model.pad(rows), left, right)

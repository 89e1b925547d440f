"""The grounding pipeline: an image and expressions to `Box`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.engine.protocols import Grounding
from openblip.errors import InputError
from openblip.pipelines.base import Pipeline, Prepared, check_text, iter_row_batches
from openblip.pipelines.inputs import ImageInput, ImagePreview
from openblip.preprocess.text import clean_expression
from openblip.results import Box

MAX_TOKENS = 128  # of an expression
BOX_ROWS = 16  # most expressions in one forward pass: each has its own copy of the image's keys and values


@dataclass(frozen=True)
class Expressions:
    """The size and the preview of an image, and the token ids of the expressions about it."""

    size: tuple[int, int]
    preview: ImagePreview | None
    rows: list[list[int]]


class GroundingPipeline(Pipeline[tuple[ImageInput, "Sequence[str]"], Expressions, Tensor, "list[Box]"]):
    """Finds the regions that expressions name. Items are pairs of an image and its expressions.

    A result is a list with a box for each expression. An image is encoded once for all its expressions.
    """

    def preprocess(self, item: tuple[ImageInput, Sequence[str]]) -> Prepared[Expressions]:
        """Return the opened image and the token ids of the expressions."""
        image, expressions = item
        opened = self.model.open_image(image, videos=False)
        if opened.size is None:
            raise InputError("the size of the encoded image is unknown: create it with size=(width, height)")
        rows = [self.tokenize(expression) for expression in expressions]
        return Prepared(opened, Expressions(opened.size, self.model.preview(image, opened), rows), len(rows))

    def forward(self, batch: list[Prepared[Expressions]]) -> Tensor:
        """Return the edges as shares of the image, and the log-probability (images, expressions, 5), on the CPU."""
        states = self.model.encode_images([prepared.image for prepared in batch])
        boxes = torch.empty(len(batch), batch[0].num_texts, 5)
        for images, texts, rows in iter_row_batches([prepared.text.rows for prepared in batch], BOX_ROWS):
            shares, logprobs = self.locate(rows, states[images])
            boxes[images, texts] = torch.cat([shares, logprobs[:, None]], 1).view(boxes[images, texts].shape).cpu()
        return boxes

    def postprocess(self, raw: Tensor, batch: list[Prepared[Expressions]]) -> list[list[Box]]:
        """Return the boxes of each image, in its pixels."""
        results = []
        for boxes, prepared in zip(raw, batch, strict=True):
            sides = torch.tensor(prepared.text.size, dtype=torch.float64).repeat(2)
            image_boxes = []
            edges, probabilities = (boxes[:, :4].double() * sides).tolist(), boxes[:, 4].exp().tolist()
            for (left, top, right, bottom), probability in zip(edges, probabilities, strict=True):
                image_boxes.append(Box(left, top, right, bottom, probability, prepared.text.preview))
            results.append(image_boxes)
        return results

    def tokenize(self, expression: str) -> list[int]:
        """Return the token ids of an expression, cleaned as in training.

        Args:
            expression: The expression.

        Returns:
            Token ids from [CLS] to [SEP].

        Raises:
            InputError: The expression is not a string, has no words, or is too long.
        """
        cleaned = clean_expression(check_text(expression, "an expression"))
        if not cleaned:
            raise InputError(f"an expression must contain words, got {expression!r}")
        return self.model.check_length(self.model.token_ids(cleaned, "cls", MAX_TOKENS))

    def locate(self, rows: Sequence[list[int]], states: Tensor) -> tuple[Tensor, Tensor]:
        """Return the boxes of expressions.

        Args:
            rows: Token ids of B expressions; the expressions of an image are consecutive, equally many for each.
            states: States (I, M, D) of the images.

        Returns:
            The left, top, right and bottom edges as shares of the image (B, 4), and log-probabilities (B,).
        """
        return self.model.engine.require(Grounding).ground(*self.model.pad(rows), states)

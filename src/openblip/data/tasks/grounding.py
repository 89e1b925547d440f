"""Visual grounding: expressions with the boxes they name."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import ImageOps
from torch import Tensor

from openblip.data.augment import exchange_sides
from openblip.data.boxes import BoxTransform, GroundingTransform, ResizeWithBoxes
from openblip.data.collate import as_tensor, stack_images, tokenize
from openblip.data.images import open_image
from openblip.data.records import Expression, Record
from openblip.data.samples import GroundingSample
from openblip.data.sources.base import Counts
from openblip.data.tasks.base import (
    DataOptions,
    TaskData,
    check_texts_per_image,
    choose,
    image_indices,
    samples_per_record,
)
from openblip.data.views import COMPLETE, ViewCache, boxes_in_view, draw_window, view_key
from openblip.errors import InputError
from openblip.preprocess.text import clean_expression


@dataclass(frozen=True, kw_only=True)
class GroundingData(TaskData[GroundingSample]):
    """Images with expressions and boxes.

    Attributes:
        transform: Makes pixels of an image and moves its boxes along.
        texts_per_image: As published, `None` makes every expression a sample with its image. With n, an image is one
            sample with up to n of its expressions, drawn at random each time.
        mirror: Probability to mirror an image, its boxes, and the words "left" and "right" in its expressions.
        max_tokens: Tokens kept of an expression.
    """

    transform: BoxTransform | ViewCache = field(default_factory=ResizeWithBoxes)
    texts_per_image: int | None = None
    mirror: float = 0.0
    max_tokens: int = 128
    needs: ClassVar[str] = "one image and an expression with a box"

    def __post_init__(self) -> None:
        check_texts_per_image(self.texts_per_image)

    @classmethod
    def from_options(cls, options: DataOptions) -> GroundingData:
        """Build the data class from the options of a recipe."""
        options.refuse("grounding", "packed", "max_words")
        augment, size = options.augment, options.image.size
        transform: BoxTransform | ViewCache = ResizeWithBoxes(size)
        if options.views is not None:
            transform = options.views
        elif augment is not None:
            transform = GroundingTransform(size=size, jitter=augment.color_jitter())
        return cls(
            tokenizer=options.tokenizer,
            transform=transform,
            texts_per_image=options.texts_per_image,
            mirror=augment.mirror if augment is not None else 0.0,
            **options.limits,
        )

    def num_samples(self, counts: Counts) -> NDArray[np.int64]:
        """Return the number of samples (N,) in each of N records."""
        return samples_per_record(counts["expressions"], self.texts_per_image) * (counts["images"] == 1)

    def make_sample(self, record: Record, index: int, rng: random.Random) -> GroundingSample:
        """Make sample `index` of a record."""
        expressions = choose(record.expressions, index, self.texts_per_image, rng)
        texts = [clean_expression(expression.text) for expression in expressions]
        if not all(texts):
            raise InputError("an expression is empty after cleaning")
        image = open_image(record.images[0])
        if isinstance(self.transform, ViewCache):
            return self._sample_view(self.transform, record, expressions, image.size, rng)
        boxes = [expression.box for expression in expressions]
        for x0, y0, x1, y1 in boxes:
            if min(x1, image.width) - max(x0, 0) <= 0 or min(y1, image.height) - max(y0, 0) <= 0:
                bbox = [x0, y0, x1 - x0, y1 - y0]
                raise InputError(f"bbox must overlap the image of {image.width} x {image.height}, got {bbox}")
        if self.mirror and rng.random() < self.mirror:
            image = ImageOps.mirror(image)
            boxes = [(image.width - x1, y0, image.width - x0, y1) for x0, y0, x1, y1 in boxes]
            texts = [exchange_sides(text) for text in texts]
        pixels, boxes = self.transform(image, boxes, rng)
        return GroundingSample(images=[pixels], texts=texts, boxes=boxes, image_id=record.image_id)

    def _sample_view(
        self,
        cache: ViewCache,
        record: Record,
        expressions: Sequence[Expression],
        size: tuple[int, int],
        rng: random.Random,
    ) -> GroundingSample:
        """Return a cached view with the expressions whose boxes it shows; the complete image if it shows none."""
        image, boxes = record.images[0], [expression.box for expression in expressions]
        key = view_key(image.address)
        features, view = cache.draw(image, rng)
        shares = boxes_in_view(boxes, size, view, key)
        if not any(shares):
            features, view = cache.read(image, COMPLETE), COMPLETE
            shares = boxes_in_view(boxes, size, view, key)
        if not any(shares):
            raise InputError(f"a box must overlap the image of {size[0]} x {size[1]}, got {boxes}")
        is_mirrored, cells = draw_window(*size, view, key)[1], features.shape[-1]
        texts, scaled = [], []
        for expression, box in zip(expressions, shares, strict=True):
            if box is not None:
                text = clean_expression(expression.text)
                texts.append(exchange_sides(text) if is_mirrored else text)
                scaled.append((box[0] * cells, box[1] * cells, box[2] * cells, box[3] * cells))
        return GroundingSample(images=[features], texts=texts, boxes=scaled, image_id=record.image_id)

    def make_batch(self, samples: Sequence[GroundingSample]) -> dict[str, Tensor]:
        """Return the tensors of I images and B expressions.

        `pixels` (I, S, S, 3); `ids` and `mask` (B, T); `boxes` (B, 4) in pixels of images of width and height `sizes`
        (B, 2); and, unless every image has one expression, `image_index` (B,), the image of each expression.
        """
        boxes = as_tensor([box for sample in samples for box in sample.boxes])
        pixels = stack_images(samples)
        batch = {
            "pixels": pixels,
            **tokenize(self.tokenizer, [text for sample in samples for text in sample.texts], "cls", self.max_tokens),
            "boxes": boxes,
            "sizes": boxes.new_full((len(boxes), 2), pixels.shape[2]),  # of a square, in pixels or cells
        }
        if self.texts_per_image is not None:
            batch["image_index"] = image_indices(samples)
        return batch

"""The encoding pipeline: an image to an `EncodedImage`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

from torch import Tensor

from openblip.errors import OpenBlipError
from openblip.pipelines.base import Pipeline, Prepared, TaskModel, iter_chunks
from openblip.pipelines.inputs import EncodedImage, ImageInput, ImagePreview


class EncodePipeline(Pipeline[ImageInput, "ImagePreview | None", Tensor, EncodedImage]):
    """Encodes images and videos for one model. Items are images."""

    def preprocess(self, item: ImageInput) -> Prepared[ImagePreview | None]:
        """Return the opened image."""
        opened = self.model.open_image(item)
        return Prepared(opened, self.model.preview(item, opened))

    def forward(self, batch: list[Prepared[ImagePreview | None]]) -> Tensor:
        """Return the states of the images."""
        return self.model.encode_images([prepared.image for prepared in batch])

    def postprocess(self, raw: Tensor, batch: list[Prepared[ImagePreview | None]]) -> list[EncodedImage]:
        """Return encoded images; each has its own memory, so that a batch is not kept for one of its images."""
        results = []
        for states, prepared in zip(raw, batch, strict=True):
            encoded = states.clone() if len(batch) > 1 else states
            results.append(EncodedImage({id(self.model.engine): encoded}, prepared.image.size, prepared.text))
        return results


def encode_images(models: Sequence[TaskModel], images: Iterable[ImageInput]) -> Iterator[EncodedImage | OpenBlipError]:
    """Encode images for several models.

    Args:
        models: The models. A single model loads the images as its results are consumed. Several models load
            one batch at a time.
        images: The images.

    Yields:
        Each image encoded for all models, or its first error.
    """
    pipelines = [EncodePipeline(model) for model in models]
    if len(pipelines) == 1:
        yield from pipelines[0].run(images)
        return
    for chunk in iter_chunks(images, models[0].batching.batch_size):
        # A file object can be read only once, but several encoders need its bytes.
        content = [cast(bytes, image.read()) if hasattr(image, "read") else image for image in chunk]
        runs = [pipeline.run(content) for pipeline in pipelines]
        for results in zip(*runs, strict=True):
            yield _merge(results)


def _merge(results: Sequence[EncodedImage | OpenBlipError]) -> EncodedImage | OpenBlipError:
    """Return one encoded image with the states of all models, or the first error."""
    states: dict[int, Tensor] = {}
    for result in results:
        if isinstance(result, OpenBlipError):
            return result
        states |= result.states
        size, preview = result.size, result.preview
    return EncodedImage(states, size, preview)

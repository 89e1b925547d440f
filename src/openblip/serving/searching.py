"""The search index of a server: a batcher stage for queries, and thumbnails of indexed images."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath

from PIL import Image

from openblip.errors import OpenBlipError, SearchError
from openblip.preprocess.image import load_image
from openblip.preprocess.limits import DecodeLimits
from openblip.search import Filter, Index, SearchResults
from openblip.serving.batching import Stage
from openblip.serving.errors import ApiError
from openblip.serving.models import Models, ServedModel

MAX_THUMBNAIL = 1024
_QUALITY = 82


@dataclass(frozen=True)
class Query:
    """A query, as in `Index.search`.

    Attributes:
        text: The text.
        image: An encoded image.
        minus: Texts that results should not match.
        n: Maximum number of results.
        rerank: Length of the shortlist to re-rank; 0 for no re-rank.
        min_probability: With `rerank`, minimum probability of a match.
        where: Filter of the images to search.
        hide_duplicates: Whether to leave out near-duplicates.
    """

    text: str | None
    image: bytes | None
    minus: tuple[str, ...]
    n: int
    rerank: int
    min_probability: float
    where: Filter
    hide_duplicates: bool


class SearchStage(Stage[Query, "tuple[Query, Image.Image | None]", SearchResults]):
    """Answers one query at a time.

    Args:
        index: The index.
        model: The model that made it.
    """

    max_batch = 1

    def __init__(self, index: Index, model: ServedModel) -> None:
        self._index, self._model = index, model
        self.kind = self.key = f"{model.name}/search"

    def prepare(self, item: Query) -> tuple[Query, Image.Image | None]:
        """Decode the image of a query."""
        if item.image is None:
            return item, None
        return item, load_image(bytes(item.image), limits=self._model.decode_limits)

    def run(self, batch: list[tuple[Query, Image.Image | None]]) -> list[SearchResults | OpenBlipError]:
        """Search. A bad query becomes an error of its own."""
        results: list[SearchResults | OpenBlipError] = []
        for query, image in batch:
            results.append(
                self._index.search(
                    self._model.blip,
                    query.text,
                    image=image,
                    minus=query.minus,
                    n=query.n,
                    rerank=query.rerank,
                    min_probability=query.min_probability,
                    where=query.where,
                    hide_duplicates=query.hide_duplicates,
                )
            )
        return results


class Gallery:
    """An open index, with the model whose weights made it.

    Args:
        location: Folder or address of the index.
        models: The loaded models.
        limits: Limits of decoding.

    Raises:
        SearchError: The index cannot be opened, or was made with none of the models.
    """

    def __init__(self, location: str, models: Models, limits: DecodeLimits) -> None:
        self.index = Index.open(location)
        self.model = _find_model(self.index, models)
        self.stage = SearchStage(self.index, self.model)
        self._limits = limits

    def thumbnail(self, image_id: str, size: int) -> bytes:
        """Return a small JPEG of an indexed image, without its metadata.

        Args:
            image_id: Its opaque id.
            size: Longest edge in pixels.

        Raises:
            ApiError: The id is unknown, or the file does not exist below an indexed folder, or is not an image (404).
        """
        try:
            with self.index.open_file(image_id) as file:
                content = file.read()
            image = load_image(content, target_size=size, limits=self._limits)
        except (OpenBlipError, OSError, KeyError):
            raise ApiError(404, "no image has this id", code="not_found") from None
        image.thumbnail((size, size))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=_QUALITY)
        return buffer.getvalue()


def make_filter(values: Mapping[str, str | None]) -> Filter:
    """Return the filter of a request.

    Args:
        values: `folder`, `after`, `before` and `caption`.

    Raises:
        ApiError: A value is invalid, or `folder` is not relative to an indexed folder (422).
    """
    folder = values.get("folder")
    if folder is not None:
        is_absolute = PurePath(folder).is_absolute() or PureWindowsPath(folder).anchor != ""
        if is_absolute or ".." in PurePath(folder).parts or "\0" in folder:
            raise ApiError(422, "folder must be relative to an indexed folder", param="folder", code="invalid_value")
    try:
        return Filter(
            folder=folder, after=values.get("after"), before=values.get("before"), caption=values.get("caption")
        )
    except OpenBlipError as error:
        raise ApiError(422, str(error), code="invalid_value") from None


def _find_model(index: Index, models: Models) -> ServedModel:
    """Return the model whose weights made the index, or raise the `SearchError` of the first model."""
    problems = [_check_model(index, model) for model in models]
    for model, problem in zip(models, problems, strict=True):
        if problem is None:
            return model
    assert problems[0] is not None
    raise problems[0]


def _check_model(index: Index, model: ServedModel) -> SearchError | None:
    try:
        index.check_model(model.blip)
    except SearchError as error:
        return error
    return None

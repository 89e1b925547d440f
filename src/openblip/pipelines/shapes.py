"""Shapes of inputs and outputs: one input gives one result, a list gives a list, an iterator gives an iterator."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set, Sized
from dataclasses import dataclass
from enum import Enum
from itertools import repeat, zip_longest
from typing import Any, Generic, Literal, TypeAlias, TypeVar, cast

from openblip.errors import InputError, OpenBlipError, StoppedError
from openblip.io import limits
from openblip.io.limits import Limit, Stop
from openblip.io.progress import bar
from openblip.pipelines.inputs import ImageInput

Item = TypeVar("Item")
Result = TypeVar("Result")

OnError: TypeAlias = Literal["raise", "return"]
Progress: TypeAlias = bool | Callable[[int, "int | None"], None]
ImageList: TypeAlias = Sequence[ImageInput]
ImageStream: TypeAlias = Iterator[ImageInput]
TextList: TypeAlias = Sequence[str]
Texts: TypeAlias = Iterable[str]
ImageInputs: TypeAlias = ImageInput | ImageList | ImageStream
Output: TypeAlias = (
    Result
    | OpenBlipError
    | list[Result]
    | list[Result | OpenBlipError]
    | Iterator[Result]
    | Iterator[Result | OpenBlipError]
)


class Shape(Enum):
    """The shape of the inputs, which is the shape of the results."""

    ONE = "one"
    LIST = "list"
    STREAM = "stream"


@dataclass(frozen=True)
class Inputs(Generic[Item]):
    """The inputs of one call, as items of a pipeline.

    Attributes:
        items: One item per image.
        shape: The shape of the images.
        total: Number of images; `None` for an iterator.
        nested: Whether an image has a list of results, one per text.
    """

    items: Iterable[Item]
    shape: Shape
    total: int | None
    nested: bool = False

    def deliver(
        self,
        results: Iterator[Result | OpenBlipError],
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Result]:
        """Return the results in the shape of the inputs.

        Args:
            results: One result or error per item, in order.
            on_error: `"raise"` raises the first error; `"return"` returns each error in place of its result.
            progress: Whether to show a progress bar, or a function of the number done and the total.
            timeout: Seconds after which the call raises `TimeLimitError`.
            stop: Function that returns True to end the call with `StoppedError`.

        Returns:
            One result, a list of results, or an iterator over results.

        Raises:
            InputError: `on_error` is unknown, or `timeout` is not positive.
            OpenBlipError: An item failed and `on_error` is `"raise"`.
            StoppedError: The call was stopped.
        """
        if on_error not in ("raise", "return"):
            raise InputError(f"on_error must be 'raise' or 'return', got {on_error!r}")
        if timeout is not None or stop is not None:
            results = limits.apply(results, Limit(timeout, stop))
        if progress is not False:
            results = report_progress(results, self.total, progress)
        if self.shape is Shape.STREAM:
            return results if on_error == "return" else _raise_errors(results)
        delivered: list[Result | OpenBlipError] = []
        for result in _keep_partial(results, delivered, self.shape):
            if on_error == "raise" and isinstance(result, OpenBlipError):
                if self.shape is Shape.LIST:
                    result.index, result.partial = len(delivered), delivered
                raise result
            delivered.append(result)
        return delivered if self.shape is Shape.LIST else delivered[0]

    def deliver_lists(
        self,
        results: Iterator[list[Result] | OpenBlipError],
        on_error: OnError = "raise",
        progress: Progress = False,
        timeout: float | None = None,
        stop: Stop | None = None,
    ) -> Output[Result] | Output[list[Result]]:
        """Return lists of results in the shape of the inputs: whole if `nested`, otherwise the only result of each.

        Args:
            results: One list of results, or error, per item, in order.
            on_error: See `deliver`.
            progress: See `deliver`.
            timeout: See `deliver`.
            stop: See `deliver`.

        Returns:
            One list or result, a list of them, or an iterator over them.
        """
        if self.nested:
            lists: Output[list[Result]] = self.deliver(results, on_error, progress, timeout, stop)
            return lists
        first_results: _FirstOfEach[Result] = _FirstOfEach(results)
        singles: Output[Result] = self.deliver(first_results, on_error, progress, timeout, stop)
        return singles


def _keep_partial(
    results: Iterator[Result | OpenBlipError], delivered: list[Result | OpenBlipError], shape: Shape
) -> Iterator[Result | OpenBlipError]:
    """Yield results; the error of a stopped call gets the results so far."""
    try:
        yield from results
    except StoppedError as error:
        if shape is Shape.LIST:
            error.partial = delivered
        raise


class _FirstOfEach(Iterator[Result | OpenBlipError]):
    """The only result of each image; errors stay in place."""

    def __init__(self, results: Iterator[list[Result] | OpenBlipError]) -> None:
        self._results = results

    def __next__(self) -> Result | OpenBlipError:
        result = next(self._results)
        return result if isinstance(result, OpenBlipError) else result[0]


def shape_of(inputs: object) -> Shape:
    """Return the shape of images or texts.

    Args:
        inputs: The images or texts. A string, bytes, path, file object, PIL image or 3-d array is one input; a
            sequence, a 4-d array or another iterable is a list; an iterator is a stream.

    Returns:
        The shape.

    Raises:
        InputError: The inputs are a mapping or a set, which have no order for the results.
    """
    if isinstance(inputs, Mapping | Set):
        raise InputError(f"images and texts must be in a list or an iterator, got a {type(inputs).__name__}")
    if isinstance(inputs, str | bytes | bytearray | memoryview | os.PathLike) or hasattr(inputs, "read"):
        return Shape.ONE
    if hasattr(inputs, "ndim") and hasattr(inputs, "shape"):
        return Shape.LIST if inputs.ndim == 4 else Shape.ONE
    if isinstance(inputs, Sequence):
        return Shape.LIST
    if isinstance(inputs, Iterator):
        return Shape.STREAM
    return Shape.LIST if isinstance(inputs, Iterable) and not hasattr(inputs, "convert") else Shape.ONE


def single_inputs(images: ImageInputs) -> Inputs[ImageInput]:
    """Return images as items without texts.

    Args:
        images: One image, a list or an iterator.

    Returns:
        The inputs.
    """
    shape = shape_of(images)
    if shape is Shape.ONE:
        return Inputs([cast(ImageInput, images)], shape, 1)
    listed = cast("Iterable[ImageInput]", images)
    return Inputs(listed, shape, len(cast("Sequence[ImageInput]", images)) if hasattr(images, "__len__") else None)


def paired_inputs(
    images: ImageInputs, texts: str | Iterable[str | None] | None, noun: str
) -> Inputs[tuple[ImageInput, str | None]]:
    """Return each image with its text: one text for all images, or one text per image.

    Args:
        images: One image, a list or an iterator.
        texts: One text (or `None`) for all images, or one text for each.
        noun: The kind of text, for errors.

    Raises:
        InputError: A list of texts for one image, or lists of different lengths.
    """
    shape = shape_of(images)
    listed: Iterable[Any] = [images] if shape is Shape.ONE else cast("Iterable[ImageInput]", images)
    total = len(cast("Sequence[ImageInput]", listed)) if hasattr(listed, "__len__") else None
    if texts is None or isinstance(texts, str):
        return Inputs(zip(listed, repeat(texts)), shape, total)
    if shape is Shape.ONE:
        raise InputError(f"one image takes one {noun}, got {type(texts).__name__}; pass a string")
    if not isinstance(texts, Iterable):
        raise InputError(f"{noun}s must be a string or a list of strings, got {type(texts).__name__}")
    count = len(texts) if isinstance(texts, Sized) else None
    if shape is Shape.LIST and count is not None and total is not None and count != total:
        raise InputError(
            f"{total} images need {total} {noun}s, got {count}; pass a string to use one {noun} for all images"
        )
    return Inputs(_zip_equal(listed, texts, f"{noun}s"), shape, total)


def grouped_inputs(
    images: ImageInputs, texts: str | Iterable[str] | None, noun: str
) -> Inputs[tuple[ImageInput, list[str]]]:
    """Return each image with a list of its texts.

    One image takes one text or a list of texts; several images take one text for all, or one text each.

    Args:
        images: One image, a list or an iterator.
        texts: One text or several.
        noun: The kind of text, for errors.
    """
    if texts is not None and not isinstance(texts, str) and shape_of(images) is Shape.ONE:
        return Inputs([(cast(ImageInput, images), list(texts))], Shape.ONE, 1, nested=True)
    pairs = paired_inputs(images, texts, noun)
    return Inputs(((image, [cast(str, text)]) for image, text in pairs.items), pairs.shape, pairs.total)


def add_right_images(
    inputs: Inputs[tuple[ImageInput, list[str]]], right: ImageInputs
) -> Iterator[tuple[ImageInput, ImageInput, list[str]]]:
    """Return the items of left images with the right image of each pair.

    Args:
        inputs: The left images with their statements.
        right: The right images, in the shape of the left ones.

    Raises:
        InputError: The shapes or the numbers of left and right images differ.
    """
    right_inputs = single_inputs(right)
    if right_inputs.shape is not inputs.shape or right_inputs.total != inputs.total:
        raise InputError(
            "left and right must be two images, or lists or iterators with equally many images: "
            f"got {inputs.total or 'an iterator of'} left and {right_inputs.total or 'an iterator of'} right images"
        )
    pairs = _zip_equal(inputs.items, right_inputs.items, "right images")
    return ((left, right_image, statements) for (left, statements), right_image in pairs)


def _zip_equal(images: Iterable[Item], partners: Iterable[Result], noun: str) -> Iterator[tuple[Item, Result]]:
    """Yield pairs, and raise an `InputError` if one of the iterables ends before the other."""
    missing: Any = object()
    for image, partner in zip_longest(images, partners, fillvalue=missing):
        if image is missing or partner is missing:
            shorter = "images" if image is missing else noun
            raise InputError(f"the number of {noun} must be the number of images, got fewer {shorter}")
        yield image, partner


def report_progress(results: Iterator[Result], total: int | None, progress: Progress) -> Iterator[Result]:
    """Yield `results` and report each one to a progress bar (`True`) or to the function `progress`."""
    if not callable(progress):
        with bar(total=total) as progress_bar:
            for result in results:
                progress_bar.advance()
                yield result
        return
    for done, result in enumerate(results, 1):
        progress(done, total)
        yield result


def _raise_errors(results: Iterator[Result | OpenBlipError]) -> Iterator[Result]:
    for index, result in enumerate(results):
        if isinstance(result, OpenBlipError):
            result.index = index
            raise result
        yield result

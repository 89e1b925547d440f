"""The pipeline base class and the model that pipelines run.

Shapes: I images or videos, F frames, S side of the model's image, M image tokens, D width, B texts, T tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from openblip import defaults
from openblip.checkpoints.read import LoadedModel
from openblip.engine.protocols import Engine, TorchModel
from openblip.errors import InputError, OpenBlipError, UnsupportedTaskError
from openblip.io import limits
from openblip.pipelines.inputs import EncodedImage, ImageInput, ImagePreview
from openblip.preprocess.image import ImageSource, load_resized, resize, to_tensor
from openblip.preprocess.text import FirstToken, Tokenizer
from openblip.preprocess.video import is_video, load_frames

Item = TypeVar("Item")
Text = TypeVar("Text")
Raw = TypeVar("Raw")
Result = TypeVar("Result")
T = TypeVar("T")

TEXT_ROWS = 64  # maximum number of texts or questions in one forward pass
FRAME_ROWS = 64  # maximum number of video frames in one pass of the image encoder


@dataclass
class Batching:
    """The number of images per batch, and the number of threads that load images."""

    batch_size: int = 8
    num_workers: int = defaults.NUM_WORKERS

    def __post_init__(self) -> None:
        for name, minimum in (("batch_size", 1), ("num_workers", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < minimum:
                raise InputError(f"{name} must be an integer of at least {minimum}, got {value!r}")


@dataclass(eq=False)
class OpenedImage:
    """An image, or a video's frames, ready for the image encoder.

    Attributes:
        data: Pixels (S, S, 3) or (F, S, S, 3), or the states (M, D) or (F, M, D) of an encoded image.
        frames: Number of frames of a video; 0 for an image.
        size: Width and height of the image in pixels; `None` for videos and if unknown.
        preview: Loads a copy of the image, for drawings; `None` for images in memory.
    """

    data: NDArray[np.uint8] | Tensor
    frames: int = 0
    size: tuple[int, int] | None = None
    preview: ImagePreview | None = None


@dataclass(eq=False)
class Prepared(Generic[Text]):
    """An item after `preprocess`: its opened image, its token ids and the number of its texts."""

    image: OpenedImage
    text: Text
    num_texts: int = 1


class TaskModel:
    """A loaded checkpoint on its engine. Pipelines of one checkpoint share one `TaskModel`.

    Attributes:
        config: Model configuration.
        engine: The engine that runs the model.
        image_settings: Image size and normalization of the checkpoint.
        tokenizer: Tokenizer of the checkpoint. Its use raises `InputError` if the checkpoint has no vocabulary.
        prompt: The checkpoint's own caption prompt; empty if it has none.
        temperature: Learned temperature of the contrastive loss (ITC).
        confidence: Calibration of the captions; `None` without one.
        generation: Decoding options of captions that apply where the caller leaves them out.
        batching: Batch size and number of threads.
        target_size: Size that large JPEG files are decoded near; `None` decodes them in full.
        source: Path of the checkpoint.
    """

    def __init__(
        self, loaded: LoadedModel, engine: Engine, *, batching: Batching | None = None, exact_decode: bool = False
    ) -> None:
        self.config = loaded.config
        self.engine = engine
        self.image_settings = loaded.image
        self.prompt = loaded.prompt or ""
        self.confidence = loaded.confidence
        self.generation = loaded.generation
        self.temperature = float(getattr(loaded.model, "temperature", 1.0))
        self.batching = batching or Batching()
        self.target_size = None if exact_decode else loaded.image.size
        self.source = loaded.source
        self.tokenizer = loaded.tokenizer or _MissingTokenizer()

    @property
    def module(self) -> Any:
        """The PyTorch model.

        Raises:
            InputError: Another engine runs the model.
        """
        return self.engine.require(TorchModel).model

    def open_image(self, image: ImageInput, *, videos: bool = True) -> OpenedImage:
        """Decode and resize an image or video, or take the states of an encoded image.

        Args:
            image: The image.
            videos: Whether videos are allowed.

        Returns:
            Pixels of the size that the model reads, or the states of an encoded image.

        Raises:
            ImageError: The image cannot be read.
            InputError: The image was encoded by another model.
            UnsupportedTaskError: It is a video, and `videos` is false.
        """
        if isinstance(image, EncodedImage):
            if id(self.engine) not in image.states:
                raise InputError(
                    f"the image must be encoded for {self.config.task} by this model: call encode_images again"
                )
            states = image.states[id(self.engine)]
            frames = len(states) if states.ndim == 3 else 0
            opened = OpenedImage(states, frames, image.size, image.preview)
        elif is_video(image):
            if not videos:
                raise UnsupportedTaskError(_VIDEO_ERROR)
            loaded_frames = load_frames(image, target_size=self.target_size)
            pixels = [resize(frame, self.image_settings.size) for frame in loaded_frames]
            opened = OpenedImage(np.stack(pixels), len(pixels))
        else:
            pixels_and_size = load_resized(
                cast(ImageSource, image), self.image_settings.size, target_size=self.target_size
            )
            opened = OpenedImage(pixels_and_size[0], size=pixels_and_size[1])
        if opened.frames and not videos:
            raise UnsupportedTaskError(_VIDEO_ERROR)
        return opened

    def encode_images(self, images: Sequence[OpenedImage], *, join_frames: bool = False) -> Tensor:
        """Return the states of opened images; only pixels pass through the image encoder.

        Args:
            images: Images, or videos with the same number of frames.
            join_frames: Whether to return the frames of a video as one sequence, as cross-attention sees them: without
                positions of the frames (Li et al. 2022, section 5.6).

        Returns:
            States (I, M, D) of images; (I, F, M, D) of videos, or (I, F * M, D) with `join_frames`.
        """
        pixels = [image.data for image in images if isinstance(image.data, np.ndarray)]
        states: Sequence[Tensor] | Tensor = ()
        if pixels and not images[0].frames:
            states = self.engine.encode_images(to_tensor(np.stack(pixels), self.image_settings))
        elif pixels:
            frames = to_tensor(np.concatenate(pixels), self.image_settings)  # (I * F, 3, S, S)
            encoded = torch.cat([self.engine.encode_images(rows) for rows in torch.split(frames, FRAME_ROWS)])
            states = encoded.view(len(pixels), -1, *encoded.shape[1:])  # (I, F, M, D)
        if len(states) < len(images) or not isinstance(states, Tensor):
            remaining = iter(states)
            states = torch.stack([next(remaining) if isinstance(i.data, np.ndarray) else i.data for i in images])
        return states.flatten(1, 2) if join_frames and states.ndim == 4 else states

    def preview(self, image: ImageInput, opened: OpenedImage) -> ImagePreview | None:
        """Return the preview of an image, for drawings.

        Args:
            image: The image.
            opened: The same image after [`open_image`][openblip.pipelines.base.TaskModel.open_image].

        Returns:
            The preview; `None` for videos, and for encoded images without one.
        """
        if opened.size is None or not isinstance(opened.data, np.ndarray):
            return opened.preview
        return ImagePreview.of(cast("ImageSource", image), opened.data, opened.size)

    def token_ids(self, text: str, first: FirstToken, max_length: int | None = None) -> list[int]:
        """Return the token ids of a cleaned text, from the `first` token to [SEP].

        Args:
            text: The text.
            first: The first token: "cls", "enc" or "dec".
            max_length: Most tokens, the first token and [SEP] included; longer texts are cut.

        Returns:
            The token ids.

        Raises:
            InputError: The text is not a string, or the checkpoint has no vocabulary.
        """
        ids: list[int] = self.tokenizer.encode([text], first, max_length=max_length).ids[0].tolist()
        return ids

    def check_length(self, ids: list[int]) -> list[int]:
        """Return token ids unchanged if the model has a position for each.

        Args:
            ids: The token ids of a text.

        Returns:
            The token ids.

        Raises:
            InputError: There are too many tokens.
        """
        limit = self.config.text.max_positions
        if len(ids) >= limit:
            raise InputError(f"a text must have fewer than {limit} tokens, got {len(ids)}; shorten it")
        return ids

    def pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Pad rows of token ids on the right.

        Args:
            rows: B rows of token ids.

        Returns:
            Token ids (B, T), and a mask (B, T) that is 1 on tokens and 0 on padding.
        """
        ids = torch.full((len(rows), max(map(len, rows))), self.tokenizer.pad_id)
        mask = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            ids[index, : len(row)] = torch.tensor(row)
            mask[index, : len(row)] = 1
        return ids, mask


class Pipeline(ABC, Generic[Item, Text, Raw, Result]):
    """One task of a model: items in, results out.

    A subclass defines three steps: `preprocess` for one item, `forward` and `postprocess` for a batch
    of prepared items. Options belong to the pipeline, so a pipeline is created for each call; that is cheap.

    Attributes:
        model: The model, shared with other pipelines of the same checkpoint.
    """

    def __init__(self, model: TaskModel) -> None:
        self.model = model

    def __repr__(self) -> str:
        """Return the pipeline's class and the task of its model."""
        return f"{type(self).__name__}(task={self.model.config.task!r})"

    @abstractmethod
    def preprocess(self, item: Item) -> Prepared[Text]:
        """Open the image of an item and tokenize its texts. Runs on a worker thread.

        Args:
            item: The item.

        Returns:
            Pixels and token ids.

        Raises:
            OpenBlipError: The item cannot be processed; `run` yields the error in its place.
        """

    @abstractmethod
    def forward(self, batch: list[Prepared[Text]]) -> Raw:
        """Run the model on a batch.

        Args:
            batch: Prepared items with the same number of frames and the same number of texts.

        Returns:
            The output of the model.
        """

    @abstractmethod
    def postprocess(self, raw: Raw, batch: list[Prepared[Text]]) -> Sequence[Result | OpenBlipError]:
        """Turn the output of the model into results.

        Args:
            raw: The output of `forward`.
            batch: The same batch.

        Returns:
            One result, or error, for each item.
        """

    def run(self, items: Iterable[Item]) -> Iterator[Result | OpenBlipError]:
        """Yield one result for each item, in order.

        Items are opened by threads ahead of the model and run in batches. A result does not depend on the other items
        of its batch. The error of an item that cannot be processed is yielded in place of its result.

        Args:
            items: The items. An iterator is read as the results are consumed.

        Yields:
            Results and errors, one per item.
        """
        batching = self.model.batching
        prepared = prefetch(self.preprocess, items, batching.num_workers, 2 * batching.batch_size)
        for group in group_batches(prepared, batching.batch_size):
            limits.check()
            batch = [item for item in group if not isinstance(item, OpenBlipError)]
            results = iter(self.postprocess(self.forward(batch), batch) if batch else ())
            for item in group:
                yield item if isinstance(item, OpenBlipError) else next(results)


def group_batches(
    prepared: Iterable[Prepared[Text] | OpenBlipError], size: int
) -> Iterator[list[Prepared[Text] | OpenBlipError]]:
    """Group consecutive items that can run together: with the same number of frames and the same number of texts.

    Args:
        prepared: Prepared items, and errors of items.
        size: Most images, or frames of videos, in a group; a group has at least one video.

    Yields:
        Groups of items, with errors in place.
    """
    group: list[Prepared[Text] | OpenBlipError] = []
    shape, count, limit = (0, 0), 0, size
    for item in prepared:
        if not isinstance(item, OpenBlipError):
            frames = item.image.frames
            if count and (frames, item.num_texts) != shape:
                yield group
                group, count = [], 0
            shape, count, limit = (frames, item.num_texts), count + 1, max(1, size // max(1, frames))
        group.append(item)
        if count >= limit or len(group) >= size:
            yield group
            group, count = [], 0
    if group:
        yield group


def prefetch(
    function: Callable[[Item], T], items: Iterable[Item], workers: int, window: int
) -> Iterator[T | OpenBlipError]:
    """Yield `function(item)` for each item, in order, computed by threads at most `window` items ahead.

    Args:
        function: The function of one item.
        items: The items.
        workers: Number of threads; 0 computes in the calling thread.
        window: Most items to compute ahead.

    Yields:
        Results; an `OpenBlipError` is yielded in place of its item, with the item as its `item`. Other
        exceptions are raised.
    """
    source = iter(items)
    if workers < 1:
        for item in source:
            yield _call(function, item)
        return
    pending: deque[Future[T | OpenBlipError]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="openblip-open") as pool:
        try:
            for item in islice(source, window):
                pending.append(pool.submit(_call, function, item))
            while pending:
                result = pending.popleft().result()
                for following in islice(source, 1):
                    pending.append(pool.submit(_call, function, following))
                yield result
        finally:
            for future in pending:
                future.cancel()


def _call(function: Callable[[Item], T], item: Item) -> T | OpenBlipError:
    """Return `function(item)`, or its error."""
    try:
        return function(item)
    except OpenBlipError as error:
        return _with_item(error, item)


def _with_item(error: OpenBlipError, item: object) -> OpenBlipError:
    """Return the error with its `item`: an image without its texts, or the two images of a pair.

    The tracebacks are dropped, because their frames would keep decoded images in memory.
    """
    cause: BaseException | None = error
    while cause is not None and cause.__traceback__ is not None:
        cause.__traceback__ = None
        cause = cause.__cause__ or cause.__context__
    if isinstance(item, tuple):
        item = item[:2] if len(item) > 2 else item[0]
    error.item = item
    return error


def iter_chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Split items into lists.

    Args:
        items: The items.
        size: Length of every list but the last.

    Yields:
        Lists of consecutive items.
    """
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


def iter_similar_lengths(rows: Sequence[Sequence[int]], size: int) -> Iterator[list[int]]:
    """Group rows of similar length, so that little is computed for padding.

    Args:
        rows: The rows.
        size: Most rows in a group.

    Yields:
        Indices of rows, from the shortest to the longest.
    """
    return iter_chunks(sorted(range(len(rows)), key=lambda index: len(rows[index])), size)


def iter_row_batches(rows: Sequence[Sequence[T]], max_rows: int) -> Iterator[tuple[slice, slice, list[T]]]:
    """Yield the rows of several images in batches that are as large as possible.

    Args:
        rows: Rows of each image, `rows[image][text]`; all images have the same number.
        max_rows: Most rows of a batch.

    Yields:
        The slice of images, the slice of texts, and their rows, image by image.
    """
    count = len(rows[0])
    images_at_once = max(1, max_rows // max(1, count))
    texts_at_once = max(1, min(count, max_rows))
    for image in range(0, len(rows), images_at_once):
        images = slice(image, image + images_at_once)
        for text in range(0, count, texts_at_once):
            texts = slice(text, text + texts_at_once)
            batch: list[T] = []
            for image_rows in rows[images]:
                batch += image_rows[texts]
            yield images, texts, batch


def check_text(text: str, noun: str) -> str:
    """Return a text unchanged if it is a string.

    Args:
        text: The text.
        noun: The kind of text, for the error.

    Returns:
        The text.

    Raises:
        InputError: The text is not a string.
    """
    if not isinstance(text, str):
        raise InputError(f"{noun} must be a string, got {type(text).__name__}")
    return text


class _MissingTokenizer(Tokenizer):
    """A tokenizer that raises an error on any use."""

    def __init__(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        raise InputError("the checkpoint has no vocabulary: load it with tokenizer=...")


_VIDEO_ERROR = "the input must be an image, got a video; caption, ask, match and embed_images accept videos"

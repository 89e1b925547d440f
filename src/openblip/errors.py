"""The exceptions that OpenBLIP raises on purpose.

```text
OpenBlipError
├── InputError             (ValueError)  a wrong argument
├── ImageError             (ValueError)  an unreadable image
│   └── VideoError                       an unreadable video
├── ConfigError            (ValueError)  an impossible model configuration
├── CheckpointError                      weights or files that do not fit the model
│   └── UnknownModelError  (InputError)  a name that is no file, published model or hub id
├── DownloadError                        a failed or damaged download
├── UnsupportedTaskError                 a task that the loaded model does not support
├── StoppedError                         a call that was stopped before its end
│   └── TimeLimitError     (TimeoutError) a call that took longer than its time limit
├── JobError                             a job that cannot continue
├── SearchError                          an index that cannot be used
├── TrainingError                        training that cannot continue
└── EvaluationError        (ValueError)  predictions that do not fit the references
```

Every message states the requirement, the value and the remedy. Errors about a wrong argument are also `ValueError`,
so that code written against other libraries catches them.

Examples:
    >>> try:  # doctest: +SKIP
    ...     captions = blip.caption(["a.jpg", "damaged.jpg", "c.jpg"])
    ... except openblip.ImageError as error:
    ...     print(error.index, error.item, error.partial)
    1 damaged.jpg [Caption(text='a cat on a bed', logprob=-3.1, score=-0.52)]
"""

from __future__ import annotations

import os
from collections.abc import Sequence


class OpenBlipError(Exception):
    """Base class of every error that OpenBLIP raises on purpose.

    Attributes:
        index: Index of the failing item in a list or iterator. `None` for a single input, and for errors that
            `on_error="return"` returns.
        item: The failing input: an image, or a text to embed. `None` if the error is not about one input.
        partial: Results of the items before the failing one, if the inputs were a list.
    """

    index: int | None = None
    item: object = None
    partial: Sequence[object] | None = None

    def __str__(self) -> str:
        """Return the message, with the index and the item in front if the error was raised for one item of many."""
        message = super().__str__()
        if self.index is None:
            return message
        name = os.fspath(self.item) if isinstance(self.item, str | os.PathLike) else ""
        return f"item {self.index}{f' ({name})' if name and str(name) not in message else ''}: {message}"


class InputError(OpenBlipError, ValueError):
    """An argument has the wrong type, shape or value."""


class ImageError(OpenBlipError, ValueError):
    """An image cannot be read: the file is missing, truncated, too large or not an image."""


class VideoError(ImageError):
    """A video cannot be read: the file is missing, damaged or has no frames."""


class ConfigError(OpenBlipError, ValueError):
    """A model configuration contradicts itself or describes a model that cannot work."""


class CheckpointError(OpenBlipError):
    """Weights, configuration or vocabulary do not fit the model: names or shapes are missing, unknown or wrong."""


class UnknownModelError(CheckpointError, InputError):
    """The name of a model is neither a file, a published name nor a hub id. The message suggests the nearest names."""


class DownloadError(OpenBlipError):
    """A checkpoint cannot be downloaded, or the download differs from the published file."""


class UnsupportedTaskError(OpenBlipError):
    """The loaded checkpoint does not support the task. The message names a checkpoint that does."""


class StoppedError(OpenBlipError):
    """A call was stopped by its `stop` function. For lists, `partial` has the results so far."""


class TimeLimitError(StoppedError, TimeoutError):
    """A call took longer than its `timeout`. For lists, `partial` has the results so far."""


class JobError(OpenBlipError):
    """A job cannot continue: its output cannot be written, belongs to another job, or would be shared by two images."""


class SearchError(OpenBlipError):
    """An index of images cannot be used: it is missing or damaged, or another model made it."""


class TrainingError(OpenBlipError):
    """Training cannot continue: the loss is not finite, or there is no training data."""


class EvaluationError(OpenBlipError, ValueError):
    """Predictions do not fit the references, or a file of predictions is damaged. The message names the record."""

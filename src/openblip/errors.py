"""The one family of errors that OpenBLIP raises on purpose.

Each says what is wrong and what to do. Those that stand for a wrong argument are also ``ValueError``, so that code
written against other libraries keeps catching them.
"""

from __future__ import annotations


class OpenBlipError(Exception):
    """Base of every error that OpenBLIP raises on purpose."""


class InputError(OpenBlipError, ValueError):
    """An argument has the wrong type, shape or value."""


class ImageError(OpenBlipError, ValueError):
    """A picture cannot be read: missing, truncated, too large, or not a picture at all."""


class VideoError(ImageError):
    """A video cannot be read: missing, damaged, or without pictures."""


class ConfigError(OpenBlipError, ValueError):
    """A model configuration contradicts itself or asks for something that cannot work."""


class CheckpointError(OpenBlipError):
    """Weights, configuration or vocabulary do not fit the model: names or shapes are missing, unknown or wrong."""


class DownloadError(OpenBlipError):
    """A checkpoint could not be fetched, or what came is not what was published."""


class JobError(OpenBlipError):
    """A job cannot go on: its output cannot be written, belongs to another job, or two pictures would share it."""


class TrainingError(OpenBlipError):
    """Training cannot go on: the loss is no longer a number, or there is nothing to train on."""


class EvaluationError(OpenBlipError, ValueError):
    """Predictions and references do not fit together, or a file of them is broken; the message names the record."""


class UnsupportedTask(OpenBlipError):  # noqa: N818 (the name the design gave it)
    """The loaded checkpoint cannot serve the call; the message names one that can."""

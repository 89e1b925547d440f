"""The exceptions that the package raises on purpose."""

from __future__ import annotations


class PortableError(Exception):
    """Base class of every error that the package raises on purpose."""


class InputError(PortableError, ValueError):
    """An argument has the wrong type, shape or value."""


class ImageError(PortableError, ValueError):
    """An image cannot be read."""


class ExportError(PortableError):
    """A folder is not a complete export, has another format version, or lacks the task."""

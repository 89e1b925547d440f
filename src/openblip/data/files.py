"""Files on disk or at any address that fsspec supports, and optional dependencies (no torch)."""

from __future__ import annotations

import functools
import os
from importlib import import_module
from pathlib import Path
from typing import Any

from openblip.errors import InputError
from openblip.extras import install_hint


def is_local(address: str) -> bool:
    """Whether an address is a path and not ``scheme://...``."""
    return "://" not in address


def read_bytes(address: str) -> bytes:
    """All of a file, local or at any address that fsspec knows; ``OSError`` if it cannot be had."""
    if is_local(address):
        return Path(address).read_bytes()
    with remote(address) as file:
        data: bytes = file.read()
        return data


def remote(address: str) -> Any:
    """An open file at an fsspec address; whatever goes wrong is an ``OSError`` or an :class:`InputError`."""
    fsspec = require("fsspec", f"reading {address}")
    try:
        return fsspec.open(address, "rb").open()
    except OSError:
        raise
    except ImportError as error:  # the scheme's own library, such as s3fs, is missing
        raise InputError(f"cannot read {address}: {error}") from error
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@functools.cache
def require(module: str, purpose: str) -> Any:
    """An optional dependency, or an error that says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise InputError(f"{purpose} needs {library}, which is not installed: {install_hint('data')}") from error


def join(root: str, name: str) -> str:
    """``name`` below ``root``; an absolute path or an address of its own stays what it is."""
    if not is_local(name):
        return name.removeprefix("file://")
    if not root or os.path.isabs(name):  # noqa: PTH117 (str in, str out: names may hold undecodable bytes)
        return name
    return f"{root.rstrip('/')}/{name}" if not is_local(root) else os.path.join(root, name)  # noqa: PTH118


def parent(address: str) -> str:
    """The folder that a file, local or remote, lies in."""
    return os.path.dirname(address) if is_local(address) else address.rpartition("/")[0]  # noqa: PTH120

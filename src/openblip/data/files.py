"""Files on disk or at any address that fsspec supports, and optional dependencies (no torch)."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from types import ModuleType
from typing import IO, cast
from urllib.parse import unquote

from openblip import extras
from openblip.errors import InputError


def is_local(address: str) -> bool:
    """Return whether an address is a path rather than `scheme://...`."""
    return "://" not in address


def read_bytes(address: str) -> bytes:
    """Read a file, local or remote; raises `OSError` if it cannot be read."""
    if is_local(address):
        return Path(address).read_bytes()
    with open_remote(address) as file:
        return file.read()


def open_remote(address: str) -> IO[bytes]:
    """Open a file at an fsspec address for reading bytes.

    Raises:
        OSError: If the file cannot be opened.
        InputError: If fsspec, or the library of the address's scheme, is missing.
    """
    fsspec = require("fsspec", f"reading {address}")
    try:
        return cast(IO[bytes], fsspec.open(address, "rb").open())
    except OSError:
        raise
    except ImportError as error:  # the library of the scheme, such as s3fs
        raise InputError(f"cannot read {address}: {error}") from error
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


@functools.cache
def require(module: str, purpose: str) -> ModuleType:
    """Import an optional dependency; raises `InputError` with the install command if it is missing."""
    return extras.require(module, purpose, "data")


def join(root: str, name: str) -> str:
    """Return `name` below `root`; an absolute path or an address is returned unchanged."""
    if name.startswith("file://"):
        return unquote(name.removeprefix("file://").removeprefix("localhost"))
    if not is_local(name):
        return name
    if not root or os.path.isabs(name):  # noqa: PTH117 (str in, str out: names may hold undecodable bytes)
        return name
    return f"{root.rstrip('/')}/{name}" if not is_local(root) else os.path.join(root, name)  # noqa: PTH118


def parent(address: str) -> str:
    """Return the folder of a file, local or remote."""
    return os.path.dirname(address) if is_local(address) else address.rpartition("/")[0]  # noqa: PTH120

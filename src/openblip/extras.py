"""The optional dependencies of the package: its extras, and the hint that errors and `openblip doctor` give."""

from __future__ import annotations

import importlib.metadata
import re
from importlib import import_module
from types import ModuleType

from openblip.errors import InputError

_FOR_CONTRIBUTORS = ("dev", "docs")


def install_hint(extra: str) -> str:
    """Return the command that installs an extra, for the end of an error message.

    Args:
        extra: Name of the extra, as in `pyproject.toml`.

    Returns:
        The command.
    """
    return f"pip install 'openblip[{extra}]'"


def require(module: str, purpose: str, extra: str) -> ModuleType:
    """Import a module of an optional dependency.

    Args:
        module: Name of the module.
        purpose: What needs it, for the error.
        extra: Name of the extra that installs it.

    Returns:
        The module.

    Raises:
        InputError: If it is not installed. The message has the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        library = module.partition(".")[0]
        raise InputError(f"{purpose} needs {library}, which is not installed: {install_hint(extra)}") from error


def user_extras() -> dict[str, tuple[str, ...]]:
    """Return the distributions that each extra installs, as the metadata of the installed package lists them.

    Returns:
        The names of the distributions by extra, without the extras for contributors. Nothing if the package is not
        installed.
    """
    try:
        requirements = importlib.metadata.requires("openblip") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    extras: dict[str, tuple[str, ...]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", requirement)
        if name and extra and extra[1] not in _FOR_CONTRIBUTORS:
            extras[extra[1]] = (*extras.get(extra[1], ()), name[0])
    return extras

"""Import of the libraries of the extras `export` and `openvino`, each with a hint if it is missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from openblip.engine.openvino.compiled import import_extra
from openblip.errors import InputError
from openblip.extras import install_hint


def import_onnx(module: str) -> ModuleType:
    """Import a module of the extra `export`.

    Args:
        module: Name of the module, such as `onnx`.

    Returns:
        The module.

    Raises:
        InputError: It is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(f"export needs {module}, which is not installed: {install_hint('export')}") from error


__all__ = ["import_extra", "import_onnx"]

"""Import of the libraries of the extras `export` and `openvino`, each with a hint if it is missing."""

from __future__ import annotations

from types import ModuleType

from openblip.engine.openvino.compiled import import_extra
from openblip.extras import require


def import_onnx(module: str) -> ModuleType:
    """Import a module of the extra `export`.

    Args:
        module: Name of the module, such as `onnx`.

    Returns:
        The module.

    Raises:
        InputError: The module is not installed.
    """
    return require(module, "export", "export")


__all__ = ["import_extra", "import_onnx"]

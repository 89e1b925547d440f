"""Running notebooks without a kernel."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any


def read_cells(path: Path) -> list[dict[str, Any]]:
    """Return the cells of a notebook."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return cells


def execute(path: Path, parameters: dict[str, object]) -> tuple[dict[str, Any], list[Any]]:
    """Run the code cells in one namespace, with other values in the cell of parameters: the names, and what each shows.

    A kernel would start for ten seconds and do the same; nothing in our notebooks is beyond plain Python.
    """
    names: dict[str, Any] = {}
    shown: list[Any] = []
    for cell in read_cells(path):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body[-1] if isinstance(tree.body[-1], ast.Expr) else None
        tree.body = tree.body[:-1] if last is not None else tree.body
        exec(compile(tree, path.name, "exec"), names)
        if (
            last is not None
            and (value := eval(compile(ast.Expression(last.value), path.name, "eval"), names)) is not None
        ):
            shown.append(value)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert parameters.keys() <= names.keys(), "the cell of parameters names them all"
            names |= parameters
    return names, shown

"""Optional dependencies: one list, which `pyproject.toml` is, and one hint."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

import openblip
from openblip.extras import install_hint, user_extras

SOURCE = Path(openblip.__file__).parent


def test_the_hint_is_written_in_one_place() -> None:
    assert install_hint("data") == "pip install 'openblip[data]'"
    code = {path: path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    writers = [path.name for path, text in code.items() if "pip install 'openblip[" in text]
    assert set(writers) <= {"extras.py", "video.py", "__init__.py"}, "docstrings may name it; errors use install_hint"


def test_hints_name_extras_that_exist() -> None:
    names = set()
    patterns = (
        r"install_hint\(['\"](\w+)['\"]\)",
        r"\brequire\((?:[^,()]+, ){2}['\"](\w+)['\"]\)",
        r"openblip\[(\w+)\]'",
    )
    for path in SOURCE.rglob("*.py"):
        for pattern in patterns:
            names |= set(re.findall(pattern, path.read_text(encoding="utf-8")))
    assert {"data", "export", "fetch", "heif", "java", "openvino", "ray", "train", "video"} <= names
    assert names - {"data"} <= set(user_extras())


def test_extras_are_those_of_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "torch>=2",
        'openvino>=2026.1; extra == "openvino"',
        "nncf; extra == 'openvino'",
        'mypy>=1; extra == "dev"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    assert user_extras() == {"openvino": ("openvino", "nncf")}


def test_a_package_that_is_not_installed_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> list[str]:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", missing)
    assert user_extras() == {}

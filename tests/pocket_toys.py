"""Helpers for tests of the scripts that make `pocket`."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

SCRIPTS = Path(__file__).parents[1] / "scripts"


def load_script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a script as Python does when it runs one: with its folder on the path."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return import_module(name)


def run_script(module: ModuleType, arguments: Sequence[object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call the `main` of a script with command-line arguments."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    module.main()


def write_tar(path: Path, photos: Sequence[tuple[Image.Image, Mapping[str, object]]]) -> None:
    """Write photos and their JSON as a WebDataset tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, (image, info) in enumerate(photos):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=95)
            for suffix, content in (("jpg", buffer.getvalue()), ("json", json.dumps(info).encode())):
                member = tarfile.TarInfo(f"{path.stem}_{number:06d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))

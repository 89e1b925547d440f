"""Folders of toy photos to index."""

from __future__ import annotations

from pathlib import Path

from openblip import Blip
from openblip.search import Index
from tests.toys import toy_image


def write_photos(folder: Path, seeds: range, *, suffix: str = ".png") -> list[Path]:
    """Write one photo per seed, each with its own colors."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{seed:03}{suffix}" for seed in seeds]
    for seed, path in zip(seeds, paths, strict=True):
        toy_image(seed, 40, 30).save(path)
    return paths


def make_index(folder: Path, blip: Blip, photos: Path, **options: str) -> Index:
    """Return an index of a folder of photos."""
    index = Index.create(folder, blip, **options)  # type: ignore[arg-type]
    index.add([str(photos)], blip, recursive=True)
    return index


def no_model() -> Blip:
    """Fail: a model must not be loaded."""
    raise AssertionError("a model was loaded")

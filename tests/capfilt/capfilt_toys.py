"""Toy data and toy models for CapFilt."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from openblip.capfilt import rows
from openblip.capfilt.folder import CapFiltFolder
from openblip.capfilt.run import CapFiltJob, ModelOptions
from openblip.capfilt.scoring import Sampling

WORDS = ["a man", "a dog on the street", "cat", "people sitting at a table", "two birds in the water"]


def picture(seed: int) -> bytes:
    """A small JPEG of coarse noise."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(noise).resize((40, 30), Image.Resampling.NEAREST).save(encoded, "JPEG")
    return encoded.getvalue()


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    """Write a tar with these members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def web_tar(path: Path, count: int, start: int = 0) -> Path:
    """Write a tar in the layout of img2dataset: `000000012.jpg`, `.txt` and `.json`."""
    members: list[tuple[str, bytes]] = []
    for number in range(start, start + count):
        text = f"{WORDS[number % len(WORDS)]}"
        info = {"key": f"{number:09d}", "url": f"https://x.org/{number}.jpg", "caption": text, "status": "success"}
        members += [
            (f"{number:09d}.jpg", picture(number)),
            (f"{number:09d}.txt", text.encode()),
            (f"{number:09d}.json", json.dumps(info).encode()),
        ]
    return write_tar(path, members)


def web_folder(folder: Path, count: int) -> Path:
    """Write images `000.jpg` and texts `000.txt` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        (folder / f"{number:03d}.jpg").write_bytes(picture(number))
        (folder / f"{number:03d}.txt").write_text(WORDS[number % len(WORDS)] + "\n")
    return folder


def write_jsonl(path: Path, values: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows as JSON Lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in values))
    return path


def make_job(models: Path, out: Path, *, num: int = 1, seed: int = 0, batch_size: int = 4, **kwargs: Any) -> CapFiltJob:
    """A job with the toy models of a bundle."""
    loaded = ModelOptions(str(models), str(models), "cpu", "torch", "fp32", batch_size, 0)
    sampling = Sampling(num=num, seed=seed, min_new_tokens=1, max_new_tokens=6, repetition_penalty=1.0)
    return CapFiltJob(str(out), loaded, sampling, **kwargs)


def read_rows(out: Path) -> dict[str, dict[str, Any]]:
    """Return all rows of an output by key, with their verdicts."""
    folder = CapFiltFolder(out)
    found: dict[str, dict[str, Any]] = {}
    for shard in folder.shards():
        for row in rows.read_table(folder.rows_path(shard)).to_pylist():
            assert row["key"] not in found
            found[row["key"]] = row
    return found

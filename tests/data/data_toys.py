"""Images that differ in color, and files with them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 8  # side of the square that tests train on


def colour(number: int) -> tuple[int, int, int]:
    """Return the color of image `number`: evenly spread multiples of 4, which survive JPEG."""
    return 4 * (number % 60), 4 * (number // 60), 128


def picture(number: int, width: int = 12, height: int = 10) -> Image.Image:
    """One color all over."""
    return Image.new("RGB", (width, height), colour(number))


def png(number: int, width: int = 12, height: int = 10) -> bytes:
    """A PNG file of image `number`."""
    buffer = io.BytesIO()
    picture(number, width, height).save(buffer, "PNG")
    return buffer.getvalue()


def numbers_of(pixels: Any) -> list[int]:
    """Return the numbers of the images in a batch (B, S, S, 3), if they are unchanged."""
    red_values = np.asarray(pixels)[:, 0, 0].astype(int)
    return [int(red // 4 + 60 * (green // 4)) for red, green, _ in red_values]


def write_images(folder: Path, count: int, suffix: str = ".png") -> list[Path]:
    """`0000.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}{suffix}" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(png(number))
    return paths


def write_tar(path: Path, members: Mapping[str, bytes], mode: str = "w") -> Path:
    """A tar of these members, in this order."""
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def members(numbers: Sequence[int], **fields: Any) -> dict[str, bytes]:
    """Records `KEY.png` and `KEY.json` of a tar, with a caption or the given fields."""
    files: dict[str, bytes] = {}
    for number in numbers:
        files[f"{number:04d}.png"] = png(number)
        files[f"{number:04d}.json"] = json.dumps({"captions": [f"number {number}"], **fields}).encode()
    return files


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """One JSON value for each line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rows(count: int, folder: Path | None = None) -> list[dict[str, Any]]:
    """Rows that name `0000.png` and so on, written to `folder`, if given."""
    if folder is not None:
        write_images(folder, count)
    return [{"image": f"{number:04d}.png", "caption": f"number {number}"} for number in range(count)]

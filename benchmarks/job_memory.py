"""Measure the memory of a job over a folder of good, bad and huge images, above that of a job over one small image.

    python -m benchmarks.job_memory [--good 1000] [--huge 16] [--side 8000]

The folder has `--good` small images, every kind of odd file of the tests, and of each kind `--huge` images of `--side`
x `--side` pixels: truncated PNGs, PNGs with transparency, and progressive JPEGs. The goal is at most 1 GB.
"""

from __future__ import annotations

import argparse
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from tests.cli.odd_files import write_odd_folder

ROOT = Path(__file__).parents[1]

GOAL = 1e9
"""Bytes above the memory of a job over one image."""


def write_png(path: Path, side: int, *, channels: int, keep: float = 1.0) -> None:
    """Write a PNG of equal pixels, or its first part, without holding the image in memory."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    compressor = zlib.compressobj(1)
    row = b"\0" + bytes([64, 128, 192, 128][:channels]) * side
    data = b"".join(compressor.compress(row) for _ in range(side)) + compressor.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2 if channels == 3 else 6, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    path.write_bytes(content[: int(len(content) * keep)])


def write_folder(folder: Path, *, good: int, huge: int, side: int) -> None:
    """Write the images of the job."""
    write_odd_folder(folder)
    for number in range(good):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"good{number:05}.jpg")
    if huge:
        write_png(folder / "cut00.png", side, channels=3, keep=0.9)
        write_png(folder / "clear00.png", side, channels=4)
        Image.new("RGB", (side, side), (90, 120, 150)).save(folder / "slow00.jpg", progressive=True, quality=50)
    for number in range(1, huge):
        for name in ("cut{:02}.png", "clear{:02}.png", "slow{:02}.jpg"):
            shutil.copy(folder / name.format(0), folder / name.format(number))


def peak_of(folder: Path, *options: str) -> tuple[int, float]:
    """Return the exit code of `openblip caption FOLDER --to sidecar`, and its largest memory in bytes."""
    code = (
        "import resource, subprocess, sys\n"
        "call = [sys.executable, '-c', 'from openblip.cli import main; main()', *sys.argv[1:]]\n"
        "code = subprocess.run(call).returncode\n"
        "print(code, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]))
    arguments = ["caption", str(folder), "--recursive", "--to", "sidecar", "--quiet", *options]
    call = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(
        call, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True
    )
    exit_code, kilobytes = map(int, done.stdout.split()[-2:])
    return exit_code, kilobytes * (1 if sys.platform == "darwin" else 1024)


def measure(good: int, huge: int, side: int, *options: str) -> tuple[int, float, float]:
    """Return the exit code of the job, its largest memory, and that of a job over one image."""
    with tempfile.TemporaryDirectory() as scratch:
        one, folder = Path(scratch, "one"), Path(scratch, "all")
        one.mkdir()
        Image.new("RGB", (32, 32)).save(one / "a.png")
        write_folder(folder, good=good, huge=huge, side=side)
        _, base = peak_of(one, *options)
        exit_code, peak = peak_of(folder, *options)
    return exit_code, peak, base


def main() -> None:
    """Measure, and exit with 1 if the goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--good", type=int, default=1000)
    parser.add_argument("--huge", type=int, default=16)
    parser.add_argument("--side", type=int, default=8000)
    arguments = parser.parse_args()
    exit_code, peak, base = measure(arguments.good, arguments.huge, arguments.side)
    above = (peak - base) / 1e9
    print(f"exit code {exit_code}, peak {peak / 1e9:.2f} GB, {above:.2f} GB more than for one image")
    sys.exit(exit_code != 3 or peak - base > GOAL)


if __name__ == "__main__":
    main()

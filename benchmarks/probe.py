"""One contestant in a new process, for start-up time and peak memory. `benchmarks.inference` runs it as

    python -m benchmarks.probe FOLDER SCALE DEVICE ENTRY IMAGES BEAMS

It captions images, and prints a line of JSON: seconds since the start of the interpreter, and peak memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

START = time.perf_counter()


def measure(folder: Path, scale: str, device: str, word: str, images: int, beams: int) -> dict[str, float]:
    """Caption images in a new process.

    Args:
        folder: Folder of models and inputs.
        scale: Name of the scale.
        device: Device to run on.
        word: The contestant, as on the command line.
        images: Number of images.
        beams: Number of beams.

    Returns:
        Wall seconds of the process, seconds until loaded and until the captions, and peak bytes.

    Raises:
        RuntimeError: The process failed.
    """
    command = [sys.executable, "-m", "benchmarks.probe", str(folder), scale, device, word, str(images), str(beams)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the probe failed")
    report: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**report, "wall_seconds": wall}


def main(folder: str, scale: str, device: str, word: str, images: str, beams: str) -> None:
    """Caption images, and print seconds and peak memory."""
    from benchmarks.contestants import parse
    from benchmarks.machine import peak_memory
    from benchmarks.materials import SCALES, Materials

    materials = Materials(Path(folder), SCALES[scale])
    (entry,) = parse([word], device)
    contestant = entry.make(materials.model("caption"), "caption", materials.scale)
    loaded = time.perf_counter() - START
    contestant.caption(materials.photos(int(images)), int(beams), materials.scale.new_tokens)
    done = time.perf_counter() - START
    print(json.dumps({"load_seconds": loaded, "first_seconds": done, "peak_bytes": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

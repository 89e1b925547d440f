"""One contestant in a process of its own, for start-up time and peak memory. Run by ``benchmarks.inference``.

    python -m benchmarks.probe FOLDER SCALE DEVICE ENTRY PICTURES BEAMS

captions pictures and prints a line of JSON: seconds since the interpreter began its work, and the peak of memory.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

BEGAN = time.perf_counter()


def measure(folder: Path, scale: str, device: str, word: str, pictures: int, beams: int) -> dict[str, float]:
    """What a fresh process takes to caption ``pictures``: wall seconds from its start to its end, and peak bytes."""
    command = [sys.executable, "-m", "benchmarks.probe", str(folder), scale, device, word, str(pictures), str(beams)]
    start = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the probe failed")
    told: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return {**told, "wall_seconds": wall}


def main(folder: str, scale: str, device: str, word: str, pictures: str, beams: str) -> None:
    from benchmarks.contestants import parse
    from benchmarks.machine import peak_memory
    from benchmarks.materials import SCALES, Materials

    materials = Materials(Path(folder), SCALES[scale])
    (entry,) = parse([word], device)
    contestant = entry.make(materials.model("caption"), "caption", materials.scale)
    loaded = time.perf_counter() - BEGAN
    contestant.caption(materials.photos(int(pictures)), int(beams), materials.scale.new_tokens)
    done = time.perf_counter() - BEGAN
    print(json.dumps({"load_seconds": loaded, "first_seconds": done, "peak_bytes": peak_memory()}))


if __name__ == "__main__":
    main(*sys.argv[1:])

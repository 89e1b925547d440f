"""Kills a captioning job of many pictures again and again, and proves that nothing was lost, nothing done twice.

    python scripts/kill_jobs.py --pictures 20000 --kills 10

The ``openblip`` command runs in processes of its own and is killed with SIGKILL while some, but not all, is done. After
each kill every text that is there must be whole; at the end each picture must have been computed once and have its
text, and nothing else may be left. The last line says what came of it.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "pictures"
        make(folder, arguments.pictures)
        check(folder, arguments.pictures, arguments.kills, random.Random(arguments.seed))


def make(folder: Path, count: int) -> None:
    """Small pictures, a hundred in a folder."""
    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"{number // 100:04}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(place / f"{number:06}.png")


def check(folder: Path, count: int, kills: int, draw: random.Random) -> None:
    program = "import sys; from openblip.cli import main; sys.argv[0] = 'openblip'; main()"
    options = ["--recursive", "--to", "sidecar", "--num-beams", "1", "--max-new-tokens", "1", "--batch-size", "32"]
    command = [sys.executable, "-c", program, "caption", str(folder), *options]
    journal = folder / ".openblip-caption.journal"
    began = time.monotonic()
    for kill in range(kills):
        before, wanted = items(journal), draw.randrange(1, max(2, count // (2 * kills)))
        running = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while items(journal) < before + wanted and running.poll() is None:
            time.sleep(0.1)
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, "it was done before it could be killed"
        done = items(journal)
        assert 0 < done < count
        torn = [path for path in folder.rglob("*.txt") if not path.read_text().strip() or path.read_text()[-1] != "\n"]
        assert not torn, torn
        print(f"kill {kill + 1}: {done} of {count} done", flush=True)
    subprocess.run(command, check=True)
    took = time.monotonic() - began
    told = [json.loads(line) for line in journal.read_text().splitlines()]
    names = [line["item"] for line in told if "item" in line]
    texts = {str(path.relative_to(folder).with_suffix(".png")): path.read_text() for path in folder.rglob("*.txt")}
    assert len(names) == len(set(names)) == count, "each picture was computed once"
    assert texts == {line["item"]: line["records"][0]["text"] + "\n" for line in told if "item" in line}
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2 * count + 1, "and nothing else is left"
    began = time.monotonic()
    subprocess.run(command, check=True)
    again = time.monotonic() - began
    print(
        f"{count} pictures, {kills} kills, {took:.0f} s: nothing lost, nothing twice, nothing torn; run again, the "
        f"finished job returns in {again:.1f} s"
    )


def items(journal: Path) -> int:
    return journal.read_bytes().count(b'{"item"') if journal.exists() else 0


if __name__ == "__main__":
    main()

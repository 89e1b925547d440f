"""Kill a captioning job of many images repeatedly, and check that nothing is lost and nothing is computed twice.

    python scripts/kill_jobs.py --images 20000 --kills 10

The `openblip` command runs in processes that are killed with SIGKILL while the job is partly done. After each kill
every text file must be complete. At the end every image must have been computed once and have its text, and no other
file may remain. The last line summarizes the result.
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
    parser.add_argument("--images", type=int, default=20_000, help="number of images")
    parser.add_argument("--kills", type=int, default=10, help="number of kills")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times of the kills")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "images"
        write_images(folder, arguments.images)
        kill_and_check(folder, arguments.images, arguments.kills, random.Random(arguments.seed))


def write_images(folder: Path, count: int) -> None:
    """Write small images, a hundred per folder."""
    rng = np.random.default_rng(0)
    for number in range(count):
        subfolder = folder / f"{number // 100:04}"
        subfolder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(subfolder / f"{number:06}.png")


def kill_and_check(folder: Path, count: int, kills: int, rng: random.Random) -> None:
    """Run the job, kill it at random times, and check its files."""
    program = "import sys; from openblip.cli import main; sys.argv[0] = 'openblip'; main()"
    options = ["--recursive", "--to", "sidecar", "--num-beams", "1", "--max-new-tokens", "1", "--batch-size", "32"]
    command = [sys.executable, "-c", program, "caption", str(folder), *options]
    journal = folder / ".openblip-caption.journal"
    start = time.monotonic()
    for kill in range(kills):
        target = count_items(journal) + rng.randrange(1, max(2, count // (2 * kills)))
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while count_items(journal) < target and process.poll() is None:
            time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "the job ended before it could be killed"
        done = count_items(journal)
        assert 0 < done < count
        partial = [
            path for path in folder.rglob("*.txt") if not path.read_text().strip() or path.read_text()[-1] != "\n"
        ]
        assert not partial, partial
        print(f"kill {kill + 1}: {done} of {count} done", flush=True)
    subprocess.run(command, check=True)
    seconds = time.monotonic() - start
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    names = [line["item"] for line in lines if "item" in line]
    texts = {str(path.relative_to(folder).with_suffix(".png")): path.read_text() for path in folder.rglob("*.txt")}
    assert len(names) == len(set(names)) == count, "each image is computed once"
    assert texts == {line["item"]: line["records"][0]["text"] + "\n" for line in lines if "item" in line}
    assert len([path for path in folder.rglob("*") if path.is_file()]) == 2 * count + 1, "no other file remains"
    start = time.monotonic()
    subprocess.run(command, check=True)
    idle_seconds = time.monotonic() - start
    print(
        f"{count} images, {kills} kills, {seconds:.0f} s: nothing lost, nothing twice, nothing partial; run again, the "
        f"finished job returns in {idle_seconds:.1f} s"
    )


def count_items(journal: Path) -> int:
    """Return the number of items in a journal."""
    return journal.read_bytes().count(b'{"item"') if journal.exists() else 0


if __name__ == "__main__":
    main()

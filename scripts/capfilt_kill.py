"""Kill CapFilt again and again: the rows must equal those of a run that nobody killed.

    python scripts/capfilt_kill.py --images 2000 --kills 20
    python scripts/capfilt_kill.py --images 2000 --kills 20 --ray

Runs `openblip capfilt run` with the bundled model over copies of the example photos, each with a key of its own, and
sends SIGKILL at random moments: to the command with all its processes or, with --ray, in turn to one of its actors and
to the command. Then the command runs to its end.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from openblip.capfilt.folder import CapFiltFolder, digest_rows
from openblip.io import jsonlines

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
COMMAND = "import sys; from openblip.cli import main; main(sys.argv[1:])"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, kill and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--shard-rows", type=int, default=50)
    parser.add_argument("--model", default="pocket", help="captioner and filter")
    parser.add_argument("--ray", action="store_true", help="run on Ray with two actors")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        listing = write_list(work, options.images)
        shared = ["--captioner", options.model, "--filter", options.model, "--threads", "1", "--seed", "3"]
        base = [sys.executable, "-c", COMMAND, "capfilt", "run", str(listing), "--shard-rows", str(options.shard_rows)]
        subprocess.run([*base, *shared, "--out", str(work / "whole")], check=True)
        expected = digest_rows(CapFiltFolder(work / "whole"))
        on_ray = ["--ray", "local", "--workers", "2"] if options.ray else []
        kills = run_killed([*base, *shared, *on_ray, "--out", str(work / "killed")], work / "killed", options)
        same = digest_rows(CapFiltFolder(work / "killed")) == expected
        leftovers = list((work / "killed").rglob("*.part"))
        outcome = "same rows" if same else "OTHER ROWS"
        print(f"{kills} kills, {options.images} images: {outcome}, {len(leftovers)} leftovers")
        if not same or leftovers:
            raise SystemExit(1)


def run_killed(command: Sequence[str], out: Path, options: argparse.Namespace) -> int:
    """Start the command until it ends by itself; kill it, or an actor, while kills are left. Return the kills."""
    rng, kills = random.Random(options.seed), 0
    while True:
        done = len(CapFiltFolder(out).shards())
        process = subprocess.Popen(command, start_new_session=True)
        while process.poll() is None and kills < options.kills:
            if len(CapFiltFolder(out).shards()) <= done:  # it has to get somewhere between two kills
                time.sleep(0.05)
                continue
            time.sleep(rng.random())
            kills += 1
            if options.ray and kills % 2 and kill_actor(process.pid, rng):
                done = len(CapFiltFolder(out).shards())
                continue
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.wait() == 0:
            return kills


def kill_actor(driver: int, rng: random.Random) -> bool:
    """Kill one of the actors that a command started, if there is one."""
    actors = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                name = (entry / "cmdline").read_bytes().split(b"\0")[0].decode("utf-8", "replace")
                session = int((entry / "stat").read_text().rpartition(")")[2].split()[3])
            except OSError:
                continue
            if name.startswith("ray::") and "ShardActor" in name and session == os.getsid(driver):
                actors.append(int(entry.name))
    if not actors:
        return False
    os.kill(rng.choice(actors), signal.SIGKILL)
    return True


def write_list(work: Path, count: int) -> Path:
    """Write a list of `count` images: links to the example photos."""
    photos = sorted(PHOTOS.glob("*.jpg"))
    (work / "images").mkdir()
    rows = []
    for number in range(count):
        photo = photos[number % len(photos)]
        (work / "images" / f"{number:06d}.jpg").symlink_to(photo.absolute())
        rows.append({"image": f"images/{number:06d}.jpg", "caption": f"a photo of a {photo.stem}"})
    listing = work / "web.jsonl"
    listing.write_bytes(b"".join(map(jsonlines.encode, rows)))
    return listing


if __name__ == "__main__":
    main()

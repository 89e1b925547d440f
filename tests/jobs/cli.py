"""Run the command line in processes that can be killed, and write images for it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[2]
QUICK = ("--num-beams", "1", "--max-new-tokens", "1")  # as little work per image as possible


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a call."""

    code: int
    stdout: str
    stderr: str


class Cli:
    """A server of forked processes (:mod:`tests.jobs.forks`)."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        environment = dict(os.environ, OMP_NUM_THREADS="1", PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{ROOT}")
        environment["OPENBLIP_CACHE"] = str(scratch / "cache")
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.jobs.forks"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=ROOT, env=environment,
        )  # fmt: skip

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=60)

    def __call__(
        self, *arguments: str | Path, until: Callable[[], bool] | None = None, limit: int = 0,
        by: signal.Signals = signal.SIGKILL,
    ) -> Ended:  # fmt: skip
        """Run to the end, or send the signal ``by`` once ``until`` says so; ``limit`` is the largest file in bytes."""
        out, err = self.scratch / "stdout", self.scratch / "stderr"
        out.write_text("")
        err.write_text("")
        call = {
            "arguments": list(map(str, arguments)), "stdout": str(out), "stderr": str(err), "limit": limit,
            "killed": until is not None,
        }  # fmt: skip
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(call) + "\n")
        self._server.stdin.flush()
        child = int(self._server.stdout.readline())
        if until is not None:
            while not until() and Path(f"/proc/{child}/stat").exists() and _alive(child):
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, by)
        return Ended(int(self._server.stdout.readline()), out.read_text(), err.read_text())


def _alive(child: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{child}/stat").read_text().rpartition(") ")[2][0] != "Z"
    return False


def pictures(folder: Path, count: int, *, side: int = 8) -> list[Path]:
    """Write small PNG files of noise, each different, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), dtype=np.uint8)
        paths.append(folder / f"{number:04}.png")
        Image.fromarray(noise).save(paths[-1])
    return paths


def count(journal: Path) -> int:
    """Return the number of items in a journal, without parsing it."""
    return journal.read_bytes().count(b'{"item"') if journal.exists() else 0


def recorded(journal: Path) -> list[str]:
    """Return the items of a journal's complete lines, in order."""
    if not journal.exists():
        return []
    lines = journal.read_bytes().split(b"\n")[:-1]  # what follows the last line break is torn
    return [line["item"] for line in map(json.loads, lines) if "item" in line]

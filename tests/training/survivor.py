"""A run that is killed and resumed repeatedly, as a program: `python -m tests.training.survivor FOLDER SEED`.

The parent loads everything once and forks a child for each attempt; a child trains until it is done. In FOLDER/outside
it is killed with SIGKILL at a random moment, in FOLDER/inside it kills itself in the middle of writing a checkpoint
and a line of the log.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from openblip.training.checkpointing import Checkpoints
from openblip.training.config import AdamWSettings, EvaluateSettings, RunSettings, Schedule
from openblip.training.processes import ProcessGroupInfo
from openblip.training.reporters import JsonLinesReporter
from openblip.training.strategies import SingleProcess
from openblip.training.trainer import Trainer
from tests.training.loop_toys import ToyLoader, toy_pretraining

EPOCHS, STEPS = 3, 5


def trainer(folder: Path, pause: float = 0.0) -> Trainer:
    """Three epochs of five steps of pretraining, with everything random that there is: dropout, draws, jitter."""

    class Slow(ToyLoader):
        def batch(self, epoch: int, step: int) -> Any:
            time.sleep(pause)
            return super().batch(epoch, step)

    objective = toy_pretraining(dropout=True, draw=lambda weights: torch.multinomial(weights, 1).squeeze(1))
    return Trainer(
        SingleProcess(objective, ProcessGroupInfo(torch.device("cpu"))),
        Slow("pretrain", steps_per_epoch=2 * STEPS, size=2, draws=True),
        RunSettings(save_every=2, log_every=3, keep_checkpoints=2),
        EvaluateSettings(),
        epochs=EPOCHS,
        accumulate=2,
        optimizer=AdamWSettings(clip_norm=1.0),
        schedule=Schedule(kind="cosine_per_step", lr=1e-3, warmup_steps=4),
        checkpoints=Checkpoints(folder / "checkpoints", keep=2),
        reporters=[JsonLinesReporter(folder / "log.jsonl")],
    )


def attempt(folder: Path, deadly: random.Random | None) -> None:
    """Train to the end, unless death comes first."""
    if deadly is not None:
        fatal = deadly.randrange(1, 4)
        write, written = torch.save, [0]

        def torn(content: Any, file: Any) -> None:
            written[0] += 1
            if written[0] == fatal:
                file.write(b"half of a checkpoint")
                file.flush()
                with (folder / "log.jsonl").open("a") as log:
                    log.write('{"kind": "train", "step": 99')  # half of a line
                os.kill(os.getpid(), signal.SIGKILL)
            write(content, file)

        torch.save = torn  # type: ignore[assignment]
    torch.set_num_threads(1)
    run = trainer(folder, pause=0.01)
    run.run(resume=True)
    torch.save(run.objective.state_dict(), folder / "final.pt")


def survive(folder: Path, seed: int, by_its_own_hand: bool) -> tuple[int, int]:
    """How many times the run was killed before it was done, and how many attempts found something to continue from."""
    rng = random.Random(seed)
    deaths, resumed = 0, 0
    while True:
        previous_step = last_step(folder)
        resumed += previous_step > 0
        child = os.fork()
        if child == 0:
            attempt(folder, rng if by_its_own_hand and deaths < 4 else None)
            os._exit(0)
        rng.random()  # so that the next child draws otherwise
        if not by_its_own_hand and deaths < 5:
            wait(child, folder, previous_step + (0, 2, 4, 3, 2)[deaths])
            time.sleep(rng.uniform(0.0, 0.1))
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return deaths, resumed
        if not os.WIFSIGNALED(status):
            raise SystemExit("the run failed by itself")
        deaths += 1


def wait(child: int, folder: Path, step: int) -> None:
    """Until the run has a checkpoint of this step, or is over."""
    while last_step(folder) < step and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        time.sleep(0.005)


def last_step(folder: Path) -> int:
    """The step of the newest checkpoint, or 0."""
    newest = Checkpoints(folder / "checkpoints").latest()
    return int(newest.stem.partition("-")[2]) if newest is not None else 0


if __name__ == "__main__":
    print(*survive(Path(sys.argv[1]) / "outside", int(sys.argv[2]), False))
    print(*survive(Path(sys.argv[1]) / "inside", int(sys.argv[2]), True))

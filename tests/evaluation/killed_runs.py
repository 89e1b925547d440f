"""Run an evaluation in processes that kill themselves in the middle, each resuming the previous one.

`killed_runs.py BENCHMARK BUNDLE DATA OUT LOG N...`: a process for each N, forked from this one, starts the run and
sends itself SIGKILL before the N-th call of the engine; a final process completes it. LOG gets a line for every image,
text and pair that the engine computes, and for the end of each process.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import openblip
from openblip.evaluation import protocols, run, two_stage

BATCH = 2


def main(benchmark: str, bundle: str, data: str, out: str, log: str, *kills: str) -> None:
    torch.set_num_threads(1)
    two_stage.BLOCK = BATCH
    opened = protocols.open_benchmark(benchmark, Path(data))
    blip = openblip.load(bundle, batch_size=BATCH)
    engine = blip.pipeline(opened.protocol.task).model.engine
    for kill in (*map(int, kills), 0):
        child = os.fork()
        if not child:
            with Path(log).open("a", encoding="utf-8", buffering=1) as lines:
                watch(engine, kill, partial(print, file=lines))
                run.run_benchmark(opened, blip, out=Path(out))
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with Path(log).open("a", encoding="utf-8") as lines:
            lines.write(f"end {code}\n")


def watch(engine: Any, kill: int, log: Callable[[str], object]) -> None:
    """Log the computations of the engine, and kill the process before the `kill`-th call."""
    calls, image = 0, ""

    def watch_method(name: str, describe: Callable[..., list[str]]) -> None:
        original = getattr(engine, name)

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(*arguments)
            for text in describe(*arguments):
                log(f"{name} {text}")
            return result

        setattr(engine, name, call)

    original_read = engine.project_images

    def read(states: torch.Tensor) -> Any:
        nonlocal image
        image = digest(states)
        return original_read(states)

    engine.project_images = read

    def texts(ids: torch.Tensor, mask: torch.Tensor, *_: Any) -> list[str]:
        return [str(row[row_mask.bool()].tolist()) for row, row_mask in zip(ids, mask, strict=True)]

    watch_method("encode_images", lambda pixels: [digest(image_pixels) for image_pixels in pixels])
    watch_method("embed_texts", texts)
    watch_method("match_logits", lambda *arguments: [f"{image} {text}" for text in texts(*arguments)])


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12]


if __name__ == "__main__":
    main(*sys.argv[1:])

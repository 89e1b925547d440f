"""``openblip.evaluation.run`` in processes that kill themselves amid the work, each going on where the last one was.

``killed_runs.py BENCHMARK BUNDLE DATA OUT LOG N...``: a process for each N, forked from this one, starts the run and
sends itself SIGKILL when it is about to call the engine for the N-th time; one more lets it end. LOG gets a line for
every image, text and pair that the engine computes, and for each end of a process.
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
    protocol = protocols.find(benchmark)
    blip = openblip.load(bundle, batch_size=BATCH)
    engine = blip.pipeline(protocol.task).model.engine
    for kill in (*map(int, kills), 0):
        child = os.fork()
        if not child:
            with Path(log).open("a", encoding="utf-8", buffering=1) as lines:
                watch(engine, kill, partial(print, file=lines))
                run.run(protocol, blip, Path(data), out=Path(out))
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        with Path(log).open("a", encoding="utf-8") as lines:
            lines.write(f"end {code}\n")


def watch(engine: Any, kill: int, tell: Callable[[str], object]) -> None:
    """Write down what the engine computes, and kill the process at the ``kill``-th call, before it is computed."""
    calls, image = 0, ""

    def watched(name: str, each: Callable[..., list[str]]) -> None:
        original = getattr(engine, name)

        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == kill:
                os.kill(os.getpid(), signal.SIGKILL)
            found = original(*arguments)
            for text in each(*arguments):
                tell(f"{name} {text}")
            return found

        setattr(engine, name, call)

    original_read = engine.project_images

    def read(states: torch.Tensor) -> Any:
        nonlocal image
        image = digest(states)
        return original_read(states)

    engine.project_images = read

    def texts(ids: torch.Tensor, mask: torch.Tensor, *_: Any) -> list[str]:
        return [str(row[seen.bool()].tolist()) for row, seen in zip(ids, mask, strict=True)]

    watched("encode_images", lambda pixels: [digest(one) for one in pixels])
    watched("embed_texts", texts)
    watched("match_logits", lambda *given: [f"{image} {text}" for text in texts(*given)])


def digest(tensor: torch.Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()[:12]


if __name__ == "__main__":
    main(*sys.argv[1:])

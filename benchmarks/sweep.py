"""Captions per second by batch size and number of beams: `python -m benchmarks.sweep`.

All contestants run in turn. `python -m benchmarks.plots` draws the record.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import machine
from benchmarks.contestants import Contestant, Entry, Ours, Transformers, UnavailableError, parse
from benchmarks.inference import HERE, write
from benchmarks.materials import SCALES, Materials
from benchmarks.measure import alternate

CONTESTANTS = "transformers:fp32,transformers:bf16,torch:fp32,torch:bf16,openvino:fp32,openvino:int8"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--contestants", default=CONTESTANTS, metavar="A,B")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default="sweep", help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {**machine.begin(options.threads), "cells": [], "skipped": []}
    materials = Materials(options.work, SCALES["toy" if options.toy else "base"])
    contestants: dict[str, Contestant] = {}
    for entry in parse(options.contestants.split(","), options.device):
        loaded = load(entry, materials)
        if isinstance(loaded, str):
            record["skipped"].append({"who": entry.name, "reason": loaded})
        else:
            contestants[entry.name] = loaded
    for beams in options.beams:
        for batch in options.batches:
            for contestant in contestants.values():
                set_batch_size(contestant, batch)
            photos, tokens = materials.photos(batch), materials.scale.new_tokens
            calls = {name: partial(each.caption, photos, beams, tokens) for name, each in contestants.items()}
            results = alternate(calls, dict.fromkeys(calls, 1.0), rounds=options.rounds, budget=0.0)
            for name, timed in results.items():
                rate = batch / timed.median
                record["cells"].append({"who": name, "batch": batch, "beams": beams, "per_second": rate})
                print(f"{beams} beams, {batch:3} images  {name:22} {rate:8.2f} images/s", flush=True)
            write(record, options.results / f"{options.name}.json")
    return 0


def load(entry: Entry, materials: Materials) -> Contestant | str:
    """Return a contestant, or the reason why it cannot run here."""
    try:
        return entry.make(materials.model("caption"), "caption", materials.scale)
    except UnavailableError as error:
        return str(error)


def set_batch_size(contestant: Contestant, size: int) -> None:
    """Let a contestant run so many images at once."""
    if isinstance(contestant, Ours):
        contestant.blip.batch_size = size
    elif isinstance(contestant, Transformers):
        contestant.batch_size = size


if __name__ == "__main__":
    raise SystemExit(main())

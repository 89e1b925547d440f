"""Time of a row by operator: `python -m benchmarks.operators caption_32_beams`.

PyTorch's profiler records one run of the row after a warm-up. Shares are of the time of all operators, without Python
and image decoding.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.contestants import parse
from benchmarks.inference import HERE
from benchmarks.materials import SCALES, Materials
from benchmarks.rows import ROWS

TOP = 8  # number of operators to print


def main(arguments: Sequence[str] | None = None) -> int:
    """Profile rows, and print a line of JSON for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--precision", default="fp32", help="precision of engine='torch'")
    parser.add_argument("--items", type=int, default=8, help="maximum number of items in a row")
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    materials = Materials(options.work, SCALES["toy" if options.toy else "base"])
    for row in ROWS:
        if row.name in options.rows:
            (entry,) = parse([f"torch:{options.precision}"], "cpu")
            ours = entry.make(materials.model(row.task), row.task, materials.scale)
            items = min(options.items, row.total(options.toy))
            row.run(ours, materials, min(items, 1))
            start = time.perf_counter()
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                row.run(ours, materials, items)
            seconds = time.perf_counter() - start
            print(json.dumps({"row": row.name, "items": items, **_summarize(profiler, seconds)}), flush=True)
    return 0


def _summarize(profiler: profile, wall: float) -> dict[str, object]:
    """Return the seconds of the row, and the shares of the slowest operators."""
    seconds = {event.key: event.self_cpu_time_total / 1e6 for event in profiler.key_averages()}
    total = sum(seconds.values())
    slowest = sorted(seconds, key=lambda name: -seconds[name])[:TOP]
    return {"seconds": round(wall, 3), "operators": {name: round(seconds[name] / total, 3) for name in slowest}}


if __name__ == "__main__":
    raise SystemExit(main())

"""Where a row's time goes, by operator: ``python -m benchmarks.operators caption_32_beams``.

PyTorch's own profiler watches one run of the row after a first one that is not counted. Shares are of the time that
operators took by themselves; what Python and the opening of pictures take is the rest of the row's time.
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

SHOWN = 8  # operators


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line of JSON for each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=[row.name for row in ROWS], metavar="ROW")
    parser.add_argument("--precision", default="fp32", help="of engine='torch'")
    parser.add_argument("--items", type=int, default=8, help="the most items of a row")
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
            began = time.perf_counter()
            with profile(activities=[ProfilerActivity.CPU]) as watched:
                row.run(ours, materials, items)
            print(
                json.dumps({"row": row.name, "items": items, **_told(watched, time.perf_counter() - began)}), flush=True
            )
    return 0


def _told(watched: profile, wall: float) -> dict[str, object]:
    """Seconds in all, and the shares of the operators that took most."""
    own = {event.key: event.self_cpu_time_total / 1e6 for event in watched.key_averages()}
    total = sum(own.values())
    most = sorted(own, key=lambda name: -own[name])[:SHOWN]
    return {"seconds": round(wall, 3), "operators": {name: round(own[name] / total, 3) for name in most}}


if __name__ == "__main__":
    raise SystemExit(main())

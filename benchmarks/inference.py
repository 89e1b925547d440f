"""The table of inference: ``python -m benchmarks.inference`` (``make bench``). README.md here tells how to read it.

Every row is run by all contestants in turn, round after round, in this one process; start-up and memory are taken in
processes of their own. Outputs are compared with those of the reference, `transformers` in float32.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine, probe, roofline
from benchmarks.contestants import Contestant, Entry, UnavailableError, parse
from benchmarks.materials import SCALES, TASKS, Materials
from benchmarks.measure import Timed, agreement, alternate, ratio
from benchmarks.roofline import Peaks
from benchmarks.rows import ROWS, Row

HERE = Path(__file__).parent
ALONE = ("start", "memory")  # rows that take processes of their own
SECONDS, QUICK_SECONDS = 50.0, 8.0  # of a row, after which no further round begins


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for, print the table, write the record; 1 if an output that must be equal is not."""
    options = read_options(arguments)
    materials = Materials(options.work, SCALES["toy" if options.toy else "base"])
    record: dict[str, Any] = {
        **machine.begin(options.threads),
        "scale": materials.describe(),
        "roofline": {},
        "rows": [],
        "skipped": [],
    }
    for device in options.devices:
        small: dict[str, Any] = {"side": 128, "numbers": 2**16, "seconds": 0.01} if options.toy else {}
        peaks = roofline.measure(device, **small)
        record["roofline"][device] = asdict(peaks)
        bench = Bench(materials, options, device, peaks, record)
        for task in TASKS:
            bench.run(task)
        bench.run_alone()
    show(record)
    say(f"written: {options.name}.json")
    return 0 if all(line["equal"] is not False for line in record["rows"]) else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    names = [row.name for row in ROWS] + list(ALONE)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=_words, default=None, metavar="A,B", help=f"of {', '.join(names)}")
    parser.add_argument("--ours", type=_words, default=None, metavar="ENGINE:PRECISION,...", help="OpenBLIP's ways")
    parser.add_argument("--peers", type=_words, default=None, metavar="P,...", help="transformers:[compiled:]PRECISION,"
                        " openvino-peer:auto|fp32|int8, or none")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=None, help="of every row (default: as many as its time allows)")
    parser.add_argument("--quick", action="store_true", help="fewer rows and rounds, and no OpenVINO peer")
    parser.add_argument("--toy", action="store_true", help="tiny models: does the harness work?")
    parser.add_argument("--devices", type=_words, default=None, metavar="cpu,cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="where models and pictures are kept")
    parser.add_argument("--name", default="inference", help="of the file of results")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    if unknown := set(options.rows or ()) - set(names):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    if options.rows is None:
        options.rows = [row.name for row in ROWS if row.quick or not options.quick] + list(ALONE)
    options.devices = options.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return options


def entries(options: argparse.Namespace, device: str) -> list[Entry]:
    """Who takes part on a device: the reference first."""
    fast = machine.has_fast_bf16()
    if device == "cpu":
        ours = ["torch:fp32", *(["torch:bf16"] if fast else []), "openvino:int8"]
        peers = ["transformers:fp32", *(["transformers:bf16"] if fast else [])]
        peers += [] if options.quick else ["openvino-peer:auto", "openvino-peer:int8"]
    else:
        ours = ["torch:fp16", "torch:bf16", "compiled:fp16"]
        peers = ["transformers:fp32", "transformers:fp16", "transformers:bf16"]
    ours, peers = options.ours or ours, options.peers or peers
    return parse([*([] if peers == ["none"] else peers), *ours], device)


class Bench:
    """All rows on one device."""

    def __init__(
        self, materials: Materials, options: argparse.Namespace, device: str, peaks: Peaks, record: dict[str, Any]
    ) -> None:
        self.materials, self.options, self.device, self.peaks, self.record = materials, options, device, peaks, record
        self.toy = materials.scale.name == "toy"
        self.entries = entries(options, device)

    def run(self, task: str) -> None:
        """The rows of one task, with every contestant's model loaded once."""
        rows = [row for row in ROWS if row.task == task and row.name in self.options.rows]
        rows = [row for row in rows if self.device in row.devices or self.toy]
        if not rows:
            return
        folder = self.materials.model(rows[0].task)
        present: dict[Entry, Contestant] = {}
        for entry in self.entries:
            say(f"loading {entry.name} for {task}")
            try:
                present[entry] = entry.make(folder, rows[0].task, self.materials.scale)
            except UnavailableError as error:
                self.skip(entry, task, str(error))
        for row in rows:
            self.row(row, present)
            self.keep()
        present.clear()
        gc.collect()

    def row(self, row: Row, present: dict[Entry, Contestant]) -> None:
        """Measure one row; who fails in it is left out of it, and named."""
        calls, scales = {}, {}
        for entry, contestant in present.items():
            items = row.share(entry.who != "ours", self.toy)
            call = partial(row.run, contestant, self.materials, items)
            try:
                row.run(contestant, self.materials, 1)
            except Exception as error:  # another library's failure must not end the run
                self.skip(entry, row.name, f"{type(error).__name__}: {error}")
                continue
            calls[entry.name], scales[entry.name] = call, row.total(self.toy) / items
        if not calls:
            return
        say(f"{row.name}: {row.what}")
        budget = QUICK_SECONDS if self.options.quick else SECONDS
        results = alternate(calls, scales, rounds=self.options.rounds, budget=budget)
        by_entry = {entry: results[entry.name] for entry in present if entry.name in results}
        self.report(row, by_entry, scales)

    def report(self, row: Row, results: dict[Entry, Timed], scales: dict[str, float]) -> None:
        reference = next(iter(results))
        libraries = [entry for entry in results if entry.who == "transformers"]
        best = min(libraries, key=lambda e: results[e].median) if libraries else None
        converted = [entry for entry in results if entry.who == "openvino-peer"]
        best_converted = min(converted, key=lambda e: results[e].median) if converted else None
        for entry, timed in results.items():
            agrees = agreement(timed.output, results[reference].output)
            floor = self.peaks.seconds(row.work(self.materials), _computed_in(entry))
            against = {
                name: asdict(ratio(results[other].seconds, timed.seconds))
                for name, other in (
                    ("shipped", libraries[0] if libraries else None),
                    ("best", best),
                    ("openvino", best_converted),
                )
                if other is not None
            }
            self.record["rows"].append(
                {
                    "row": row.name,
                    "what": row.what,
                    "device": self.device,
                    "who": entry.name,
                    "ours": entry.who == "ours",
                    "seconds": timed.seconds,
                    "median_seconds": timed.median,
                    "per_second": row.total(self.toy) / timed.median,
                    "unit": row.unit,
                    "measured_share": 1 / scales[entry.name],
                    "ratios": against,
                    "best_of_transformers": best.name if best else None,
                    "best_of_openvino": best_converted.name if best_converted else None,
                    "floor_seconds": floor,
                    "agreement": agrees.text,
                    "equal": agrees.same if entry.exact and not row.near and results[reference] is not timed else None,
                }
            )

    def run_alone(self) -> None:
        """Start-up time and peak memory: a fresh process each time, contestants in turn."""
        pictures = 2 if self.toy else 8
        for name, what, count, beams, key, unit in (
            ("start", "from nothing to the first caption of 1 image, greedy", 1, 1, "wall_seconds", "s"),
            ("memory", f"peak memory while captioning {pictures} images, 3 beams", pictures, 3, "peak_bytes", "bytes"),
        ):
            if name not in self.options.rows:
                continue
            say(f"{name}: {what}")
            folder, scale = self.materials.folder, self.materials.scale.name
            self.materials.model("caption")
            rounds = self.options.rounds or (1 if self.options.quick or name == "memory" else 3)
            values: dict[Entry, list[float]] = {entry: [] for entry in self.entries}
            for _ in range(rounds):
                for entry in list(values):
                    try:
                        told = probe.measure(folder, scale, self.device, _word(entry), count, beams)
                    except RuntimeError as error:
                        self.skip(entry, name, str(error))
                        del values[entry]
                        continue
                    values[entry].append(told[key])
            self.report_alone(name, what, unit, values)
            self.keep()

    def report_alone(self, name: str, what: str, unit: str, values: dict[Entry, list[float]]) -> None:
        shipped = next((entry for entry in values if entry.who == "transformers"), None)
        for entry, own in values.items():
            timed = Timed(own)
            self.record["rows"].append(
                {
                    "row": name,
                    "what": what,
                    "device": self.device,
                    "who": entry.name,
                    "ours": entry.who == "ours",
                    "values": own,
                    "median": timed.median,
                    "unit": unit,
                    "ratios": {"shipped": asdict(ratio(values[shipped], own))} if shipped else {},
                    "equal": None,
                }
            )

    def keep(self) -> None:
        """Write what there is: a run that is interrupted has not been for nothing."""
        write(self.record, self.options.results / f"{self.options.name}.json")

    def skip(self, entry: Entry, where: str, reason: str) -> None:
        """Say and record who does not take part, and why."""
        reason = reason.splitlines()[0] if reason else "no reason given"
        say(f"skipped {entry.name} in {where}: {reason}")
        self.record["skipped"].append({"who": entry.name, "where": where, "reason": reason})


def show(record: dict[str, Any]) -> None:
    """One table for everything."""
    described = record["machine"]
    table = Table(title=f"{described['processor']}, {described['threads']} threads, {described.get('gpu', 'no GPU')}")
    for column, side in (
        ("row", "left"), ("who", "left"), ("median", "right"), ("per s", "right"),
        ("x transformers", "right"), ("x its best", "right"), ("x OpenVINO", "right"),
        ("floor", "right"), ("outputs", "left"),
    ):  # fmt: skip
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    last = None
    for line in record["rows"]:
        if last not in (None, (line["device"], line["row"])):
            table.add_section()
        cells = _cells(line)
        table.add_row("" if last == (line["device"], line["row"]) else line["row"], line["who"], *cells)
        last = (line["device"], line["row"])
    console = Console(width=170 if not sys.stdout.isatty() else None)
    console.print(table)
    for line in _notes(record):
        console.print(line, highlight=False)


def _notes(record: dict[str, Any]) -> list[str]:
    lines = ["* measured on a part of the row, which is so many equal batches, and multiplied"]
    for device, peaks in record["roofline"].items():
        reached = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peaks["operations"].items())
        memory = f"{peaks['bandwidth'] / 1e9:.1f} GB/s"
        lines.append(f"roofline of {device}: {reached} billion operations a second; memory {memory}")
    return lines + [f"skipped {one['who']} in {one['where']}: {one['reason']}" for one in record["skipped"]]


def _cells(line: dict[str, Any]) -> list[str]:
    def times(name: str) -> str:
        found = line["ratios"].get(name)
        return f"{found['median']:.2f} [{found['low']:.2f}-{found['high']:.2f}]" if found else ""

    if "values" in line:
        value = f"{line['median'] / 2**20:.0f} MiB" if line["unit"] == "bytes" else f"{line['median']:.2f} s"
        return [value, "", times("shipped"), "", "", "", ""]
    floor = line["floor_seconds"]
    outputs = line["agreement"] if line["equal"] is not False else f"NOT EQUAL: {line['agreement']}"
    return [
        _seconds(line["median_seconds"]) + ("" if line["measured_share"] == 1 else " *"),
        f"{line['per_second']:.3g}",
        times("shipped"),
        times("best"),
        times("openvino"),
        "" if floor is None else f"{_seconds(floor)} ({floor / line['median_seconds']:.0%})",
        outputs,
    ]


def write(record: dict[str, Any], path: Path) -> None:
    """The record as JSON, numbers rounded to what they are good for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_rounded(record), indent=1) + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def _computed_in(entry: Entry) -> str:
    if entry.precision == "auto":
        return "bf16" if machine.has_fast_bf16() else "fp32"
    return entry.precision


def _word(entry: Entry) -> str:
    return ":".join([*([] if entry.who == "ours" else [entry.who]), *_way(entry), entry.precision])


def _way(entry: Entry) -> list[str]:
    return [] if entry.who == "openvino-peer" else [entry.way]


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def say(text: str) -> None:
    """Progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""Inference benchmark: `python -m benchmarks.inference` (`make bench`). See README.md for how to read the table.

All contestants run each row in turn, round after round, in one process; start-up time and memory are measured in new
processes. Outputs are compared with the reference, `transformers` in float32.
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
PROCESS_ROWS = ("start", "memory")  # rows that need a new process for each measurement
SECONDS, QUICK_SECONDS = 50.0, 8.0  # time of a row, after which no further round starts


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print the table, and write the record; return 1 if an output is not equal but must be."""
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
        sizes: dict[str, Any] = {"side": 128, "numbers": 2**16, "seconds": 0.01} if options.toy else {}
        peaks = roofline.measure(device, **sizes)
        record["roofline"][device] = asdict(peaks)
        bench = Bench(materials, options, device, peaks, record)
        for task in TASKS:
            bench.run(task)
        bench.run_processes()
    show(record)
    say(f"written: {options.name}.json")
    return 0 if all(line["equal"] is not False for line in record["rows"]) else 1


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    names = [row.name for row in ROWS] + list(PROCESS_ROWS)
    parser = argparse.ArgumentParser(prog="python -m benchmarks.inference", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=_words, default=None, metavar="A,B", help=f"rows to run: {', '.join(names)}")
    parser.add_argument(
        "--ours", type=_words, default=None, metavar="ENGINE:PRECISION,...", help="settings of OpenBLIP to run"
    )
    peers = "peers: transformers:[compiled:]PRECISION, openvino-peer:auto|fp32|int8, or none"
    parser.add_argument("--peers", type=_words, default=None, metavar="PEER,...", help=peers)
    parser.add_argument("--rounds", type=int, default=None, help="rounds of each row (default: as its time allows)")
    parser.add_argument("--quick", action="store_true", help="run fewer rows and rounds, without the OpenVINO peer")
    parser.add_argument("--toy", action="store_true", help="use tiny models, to test the benchmark itself")
    parser.add_argument("--devices", type=_words, default=None, metavar="cpu,cuda")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default="inference", help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    unknown = set(options.rows or ()) - set(names)
    if unknown:
        parser.error(f"rows must be among {', '.join(names)}, got {', '.join(sorted(unknown))}")
    if options.rows is None:
        options.rows = [row.name for row in ROWS if row.quick or not options.quick] + list(PROCESS_ROWS)
    options.devices = options.devices or ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return options


def entries(options: argparse.Namespace, device: str) -> list[Entry]:
    """Return the contestants on a device, the reference first."""
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
    """Runs all rows on one device."""

    def __init__(
        self, materials: Materials, options: argparse.Namespace, device: str, peaks: Peaks, record: dict[str, Any]
    ) -> None:
        self.materials, self.options, self.device, self.peaks, self.record = materials, options, device, peaks, record
        self.toy = materials.scale.name == "toy"
        self.entries = entries(options, device)

    def run(self, task: str) -> None:
        """Run the rows of one task, loading the model of each contestant once."""
        rows = [row for row in ROWS if row.task == task and row.name in self.options.rows]
        rows = [row for row in rows if self.device in row.devices or self.toy]
        if not rows:
            return
        folder = self.materials.model(rows[0].task)
        contestants: dict[Entry, Contestant] = {}
        for entry in self.entries:
            say(f"loading {entry.name} for {task}")
            try:
                contestants[entry] = entry.make(folder, rows[0].task, self.materials.scale)
            except UnavailableError as error:
                self.skip(entry, task, str(error))
        for row in rows:
            self.run_row(row, contestants)
            self.save()
        contestants.clear()
        gc.collect()

    def run_row(self, row: Row, contestants: dict[Entry, Contestant]) -> None:
        """Measure one row. Contestants that fail are skipped and listed."""
        calls, scales = {}, {}
        for entry, contestant in contestants.items():
            items = row.share(entry.who != "ours", self.toy)
            call = partial(row.run, contestant, self.materials, items)
            try:
                row.run(contestant, self.materials, 1)
            except Exception as error:  # a failure of another library must not end the run
                self.skip(entry, row.name, f"{type(error).__name__}: {error}")
                continue
            calls[entry.name], scales[entry.name] = call, row.total(self.toy) / items
        if not calls:
            return
        say(f"{row.name}: {row.what}")
        budget = QUICK_SECONDS if self.options.quick else SECONDS
        results = alternate(calls, scales, rounds=self.options.rounds, budget=budget)
        by_entry = {entry: results[entry.name] for entry in contestants if entry.name in results}
        self.report(row, by_entry, scales)

    def report(self, row: Row, results: dict[Entry, Timed], scales: dict[str, float]) -> None:
        """Record the times, ratios and outputs of a row."""
        reference = next(iter(results))
        libraries = [entry for entry in results if entry.who == "transformers"]
        best = min(libraries, key=lambda e: results[e].median) if libraries else None
        converted = [entry for entry in results if entry.who == "openvino-peer"]
        best_converted = min(converted, key=lambda e: results[e].median) if converted else None
        for entry, timed in results.items():
            agrees = agreement(timed.output, results[reference].output)
            floor = self.peaks.seconds(row.work(self.materials), _compute_precision(entry))
            rivals = {"shipped": libraries[0] if libraries else None, "best": best, "openvino": best_converted}
            ratios = {}
            for name, rival in rivals.items():
                if rival is not None:
                    ratios[name] = asdict(ratio(results[rival].seconds, timed.seconds))
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
                    "ratios": ratios,
                    "best_of_transformers": best.name if best else None,
                    "best_of_openvino": best_converted.name if best_converted else None,
                    "floor_seconds": floor,
                    "agreement": agrees.text,
                    "equal": agrees.same if entry.exact and not row.near and results[reference] is not timed else None,
                }
            )

    def run_processes(self) -> None:
        """Measure start-up time and peak memory in new processes, contestants in turn."""
        images = 2 if self.toy else 8
        for name, what, count, beams, key, unit in (
            ("start", "from process start to the caption of 1 image, greedy", 1, 1, "wall_seconds", "s"),
            ("memory", f"peak memory while captioning {images} images, 3 beams", images, 3, "peak_bytes", "bytes"),
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
                        report = probe.measure(folder, scale, self.device, _word(entry), count, beams)
                    except RuntimeError as error:
                        self.skip(entry, name, str(error))
                        del values[entry]
                        continue
                    values[entry].append(report[key])
            self.report_processes(name, what, unit, values)
            self.save()

    def report_processes(self, name: str, what: str, unit: str, values: dict[Entry, list[float]]) -> None:
        """Record the values of a row that ran in new processes."""
        shipped = next((entry for entry in values if entry.who == "transformers"), None)
        for entry, entry_values in values.items():
            timed = Timed(entry_values)
            self.record["rows"].append(
                {
                    "row": name,
                    "what": what,
                    "device": self.device,
                    "who": entry.name,
                    "ours": entry.who == "ours",
                    "values": entry_values,
                    "median": timed.median,
                    "unit": unit,
                    "ratios": {"shipped": asdict(ratio(values[shipped], entry_values))} if shipped else {},
                    "equal": None,
                }
            )

    def save(self) -> None:
        """Write the record so far, so that an interrupted run is not lost."""
        write(self.record, self.options.results / f"{self.options.name}.json")

    def skip(self, entry: Entry, where: str, reason: str) -> None:
        """Print and record that a contestant is skipped, and the reason."""
        reason = reason.splitlines()[0] if reason else "no reason given"
        say(f"skipped {entry.name} in {where}: {reason}")
        self.record["skipped"].append({"who": entry.name, "where": where, "reason": reason})


def show(record: dict[str, Any]) -> None:
    """Print the table."""
    machine_info = record["machine"]
    title = f"{machine_info['processor']}, {machine_info['threads']} threads, {machine_info.get('gpu', 'no GPU')}"
    table = Table(title=title)
    for column, side in (
        ("row", "left"), ("who", "left"), ("median", "right"), ("per s", "right"),
        ("x transformers", "right"), ("x its best", "right"), ("x OpenVINO", "right"),
        ("floor", "right"), ("outputs", "left"),
    ):  # fmt: skip
        table.add_column(column, justify=side, overflow="fold")  # type: ignore[arg-type]
    previous = None
    for line in record["rows"]:
        if previous not in (None, (line["device"], line["row"])):
            table.add_section()
        cells = _cells(line)
        table.add_row("" if previous == (line["device"], line["row"]) else line["row"], line["who"], *cells)
        previous = (line["device"], line["row"])
    console = Console(width=170 if not sys.stdout.isatty() else None)
    console.print(table)
    for line in _notes(record):
        console.print(line, highlight=False)


def _notes(record: dict[str, Any]) -> list[str]:
    lines = ["* measured on a part of the row, and multiplied: peers process equal batches one after another"]
    for device, peaks in record["roofline"].items():
        peak_rates = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peaks["operations"].items())
        memory = f"{peaks['bandwidth'] / 1e9:.1f} GB/s"
        lines.append(f"roofline of {device}: {peak_rates} billion operations per second; memory {memory}")
    return lines + [f"skipped {entry['who']} in {entry['where']}: {entry['reason']}" for entry in record["skipped"]]


def _cells(line: dict[str, Any]) -> list[str]:
    def times(name: str) -> str:
        speedup = line["ratios"].get(name)
        return f"{speedup['median']:.2f} [{speedup['low']:.2f}-{speedup['high']:.2f}]" if speedup else ""

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
    """Write a record as JSON, with numbers rounded to 4 digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_round(record), indent=1) + "\n", encoding="utf-8")


def _round(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _round(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_round(entry) for entry in value]
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else value


def _compute_precision(entry: Entry) -> str:
    if entry.precision == "auto":
        return "bf16" if machine.has_fast_bf16() else "fp32"
    return entry.precision


def _word(entry: Entry) -> str:
    """Return the contestant as on the command line."""
    who = [] if entry.who == "ours" else [entry.who]
    way = [] if entry.who == "openvino-peer" else [entry.way]
    return ":".join([*who, *way, entry.precision])


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def say(text: str) -> None:
    """Print progress to stderr."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

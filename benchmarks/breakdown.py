"""Time of a caption by part: `python -m benchmarks.breakdown`.

The parts are those of one batch of captions: open and resize, image encoder, projection to cross-attention keys and
values, first step of the decoder, later steps, and bookkeeping of the beams. For each part the table shows the minimum
time on this machine (`roofline.py`) and the share of it that is reached, and for a later step the time by operator.
Settings take turns, and times are medians of CPU time and of wall time: on a busy machine trust the former.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks import machine, roofline
from benchmarks.contestants import Entry, Ours, parse
from benchmarks.inference import HERE, write
from benchmarks.materials import SCALES, Materials
from benchmarks.roofline import Peaks
from openblip.decoding import Decoding, Session, SessionFactory, generate_grouped
from openblip.engine.openvino.session import OpenVinoSession
from openblip.engine.protocols import Captions
from openblip.pipelines.base import TaskModel

PARTS = ("open", "encoder", "projection", "first step", "later steps", "bookkeeping")

# Operators of PyTorch and nodes of OpenVINO by kind; all others are "other".
KINDS = {
    "products": ("addmm", "mm", "_int_mm", "mkldnn", "mkl_linear", "linear", "FullyConnected", "MatMul", "packed"),
    "attention": ("bmm", "baddbmm", "softmax", "scaled_dot_product", "flash", "ScaledDotProduct", "Softmax"),
    "norm": ("layer_norm", "MVN", "RMSNorm"),
    "activation": ("gelu", "Gelu"),
    "copies": ("copy_", "clone", "cat", "index", "Reorder", "Concatenation", "Transpose", "Gather", "Convert"),
}


@dataclass
class Seconds:
    """Wall and CPU seconds of each part in each round."""

    wall: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    cpu: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    def add(self, part: str, wall: float, cpu: float) -> None:
        """Record a part of one round."""
        self.wall[part].append(wall)
        self.cpu[part].append(cpu)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table per setting and number of images, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.breakdown", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ours", default="torch:fp32,openvino:fp32,openvino:int8", metavar="ENGINE:PRECISION,...")
    parser.add_argument("--images", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--beams", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default="breakdown", help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    record: dict[str, Any] = {**machine.begin(options.threads), "beams": options.beams, "settings": []}
    materials = Materials(options.work, SCALES["toy" if options.toy else "base"])
    sizes: dict[str, Any] = {"side": 128, "numbers": 2**16, "seconds": 0.01} if options.toy else {}
    peaks = roofline.measure("cpu", **sizes)
    record["roofline"] = asdict(peaks)
    folder = materials.model("caption")
    models = {entry: _load(entry, folder, materials) for entry in parse(options.ours.split(","), "cpu")}
    for images in options.images:
        times = {entry: Seconds() for entry in models}
        for number in range(options.rounds + 1):
            for entry, model in models.items():
                run = caption(model, materials, images, options.beams)
                if number:  # the first round compiles and allocates
                    for part, (wall, cpu) in run.items():
                        times[entry].add(part, wall, cpu)
        for entry, model in models.items():
            floors = _floors(peaks, materials, images, options.beams, entry.precision)
            operators = step_operators(model, materials, images, options.beams)
            line = _summarize(entry.name, images, times[entry], floors, operators)
            record["settings"].append(line)
            _print(line)
    write(record, options.results / f"{options.name}.json")
    return 0


def caption(model: TaskModel, materials: Materials, images: int, beams: int) -> dict[str, tuple[float, float]]:
    """Caption images, and return the wall and CPU seconds of each part."""
    clock = Clock()
    opened = [model.open_image(photo) for photo in clock.untimed(lambda: materials.photos(images))]
    clock.lap("open")
    states = model.encode_images(opened)
    clock.lap("encoder")
    engine = model.engine.require(Captions)
    decoding = _decoding(model, materials, beams)
    prompt = model.tokenizer.encode_prompt("")
    start = engine.prepare_captions(states, decoding.capacity(len(prompt)))
    clock.lap("projection")
    generate_grouped(_timed(start, clock), [prompt] * images, decoding)
    clock.lap("bookkeeping")
    return clock.seconds


class Clock:
    """Adds wall and CPU time to parts."""

    def __init__(self) -> None:
        self.seconds: dict[str, tuple[float, float]] = dict.fromkeys(PARTS, (0.0, 0.0))
        self._last = _now()

    def lap(self, part: str) -> None:
        """Add the time since the last call to a part."""
        wall, cpu = _now()
        total_wall, total_cpu = self.seconds[part]
        self.seconds[part] = (total_wall + wall - self._last[0], total_cpu + cpu - self._last[1])
        self._last = _now()

    def untimed(self, call: Callable[[], Any]) -> Any:
        """Return the result of a call whose time belongs to no part."""
        result = call()
        self._last = _now()
        return result


class TimedSession:
    """A session whose steps are timed; all time between them is bookkeeping, and so is the order of beams."""

    def __init__(self, session: Session, clock: Clock) -> None:
        self.session, self.clock, self.steps = session, clock, 0
        self.widen, self.reorder, self.keep = session.widen, session.reorder, session.keep

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens to all rows; return the logits of the next token."""
        self.clock.lap("bookkeeping")
        logits = self.session.step(ids)
        self.clock.lap("later steps" if self.steps else "first step")
        self.steps += 1
        return logits


@torch.inference_mode()
def step_operators(model: TaskModel, materials: Materials, images: int, beams: int) -> dict[str, float]:
    """Return the milliseconds of one later step by kind of operator, and the rest as "Python"."""
    engine = model.engine.require(Captions)
    states = model.encode_images([model.open_image(photo) for photo in materials.photos(images)])
    session = engine.prepare_captions(states, materials.scale.new_tokens)(list(range(images)))
    session.step(torch.full((images, 1), 2))
    session.widen(beams)
    ids = torch.full((images * beams, 1), 5)
    session.step(ids)
    if isinstance(session, OpenVinoSession):
        return _openvino_operators(session, ids)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        session.step(ids)
        wall = time.perf_counter() - start
    times = {event.key: event.self_cpu_time_total / 1e3 for event in profiler.key_averages()}
    return _by_kind(times) | {"Python": max(0.0, wall * 1e3 - sum(times.values()))}


def _openvino_operators(session: OpenVinoSession, ids: Tensor) -> dict[str, float]:
    """Run a step of a copy that counts the time of its nodes."""
    part = copy.copy(session.part)  # compiled again, with counters
    part.settings, part._compiled, part._idle_requests = {**part.settings, "PERF_COUNT": True}, None, []
    session.part = part
    for _ in range(2):
        start = time.perf_counter()
        session.step(ids)
        wall = time.perf_counter() - start
    times: dict[str, float] = {}
    for node in part._idle_requests[0].get_profiling_info():
        times[node.node_type] = times.get(node.node_type, 0.0) + node.real_time.total_seconds() * 1e3
    return _by_kind(times) | {"Python": max(0.0, wall * 1e3 - sum(times.values()))}


def _by_kind(times: dict[str, float]) -> dict[str, float]:
    kinds = dict.fromkeys([*KINDS, "other"], 0.0)
    for name, milliseconds in times.items():
        kind = next((kind for kind, words in KINDS.items() if any(word in name for word in words)), "other")
        kinds[kind] += milliseconds
    return kinds


def _floors(peaks: Peaks, materials: Materials, images: int, beams: int, precision: str) -> dict[str, float | None]:
    """Return the minimum seconds of each part; `None` where it does no product."""
    config = materials.scale.config("caption")
    memory, tokens = config.vision.tokens, materials.scale.new_tokens

    later = roofline.count_steps(config, steps=tokens - 1, items=images, beams=beams, memory=memory)
    works = {
        "encoder": roofline.count_encoding(config, images),
        "projection": roofline.count_projection(config, images, memory),
        "first step": roofline.count_steps(config, steps=1, items=images, beams=1, memory=memory),
        "later steps": later,
    }
    return {part: peaks.seconds([works[part]], precision) if part in works else None for part in PARTS}


def _summarize(
    name: str, images: int, times: Seconds, floors: dict[str, float | None], operators: dict[str, float]
) -> dict[str, Any]:
    parts = {}
    for part in PARTS:
        wall, cpu, floor = statistics.median(times.wall[part]), statistics.median(times.cpu[part]), floors[part]
        parts[part] = {"wall": wall, "cpu": cpu, "floor": floor, "share": None if floor is None else floor / wall}
    wall = sum(part["wall"] or 0.0 for part in parts.values())
    floor = sum(part["floor"] or 0.0 for part in parts.values())
    parts["total"] = {
        "wall": wall, "cpu": sum(part["cpu"] or 0.0 for part in parts.values()), "floor": floor, "share": floor / wall,
    }  # fmt: skip
    return {"who": name, "images": images, "parts": parts, "step_milliseconds": operators}


def _print(line: dict[str, Any]) -> None:
    table = Table(title=f"{line['who']}, {line['images']} images")
    for column in ("part", "wall ms", "CPU ms", "floor ms", "share of the floor"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, values in line["parts"].items():
        floor, share = values["floor"], values["share"]
        table.add_row(
            part, f"{values['wall'] * 1e3:.1f}", f"{values['cpu'] * 1e3:.1f}",
            "" if floor is None else f"{floor * 1e3:.1f}", "" if share is None else f"{share:.0%}",
        )  # fmt: skip
    console = Console()
    console.print(table)
    operators = ", ".join(f"{kind} {value:.2f}" for kind, value in line["step_milliseconds"].items())
    console.print(f"one later step by operator (ms): {operators}", highlight=False)


def _load(entry: Entry, folder: Path, materials: Materials) -> TaskModel:
    ours = entry.make(folder, "caption", materials.scale)
    assert isinstance(ours, Ours)
    return ours.blip.pipeline("caption").model


def _decoding(model: TaskModel, materials: Materials, beams: int) -> Decoding:
    tokens = materials.scale.new_tokens
    tokenizer = model.tokenizer
    return Decoding(
        num_beams=beams, max_new_tokens=tokens, min_new_tokens=tokens, eos_id=tokenizer.sep_id, pad_id=tokenizer.pad_id
    )


def _timed(start: SessionFactory, clock: Clock) -> SessionFactory:
    return lambda items: TimedSession(start(items), clock)


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


if __name__ == "__main__":
    raise SystemExit(main())

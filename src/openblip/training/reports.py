"""What a run tells of itself: a JSON line per report, TensorBoard, a loss curve, and a bar for whoever watches."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openblip.errors import InputError
from openblip.extras import install_hint
from openblip.io import atomic

Record = Mapping[str, Any]
Sample = Mapping[str, str]
LOSSES_OF_NO_INTEREST = ("step", "epoch", "lr", "images_per_second", "eta_seconds", "kind")


class Reporter:
    """Listens to a run, on its first process. Every method may be left out."""

    def begin(self, step: int, steps: int, steps_per_epoch: int) -> None:
        """The run starts, or goes on, after ``step`` of its ``steps``."""

    def tick(self, step: int) -> None:
        """A step is done."""

    def train(self, record: Record) -> None:
        """The averages since the last such record: step, epoch, lr, loss, its parts, images_per_second, eta_seconds."""

    def evaluation(self, record: Record, samples: Sequence[Sample]) -> None:
        """Figures of an evaluation, and things to look at."""

    def close(self) -> None:
        """The run is at its end."""


class JsonLines(Reporter):
    """Every report as one object on one line: ``kind`` is "train" or "evaluation".

    A run that goes on from a checkpoint first drops what the killed one wrote after it, a torn last line included.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, step: int, steps: int, steps_per_epoch: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(self.path) if line["step"] <= step] if step else []
        atomic.write_text(self.path, "".join(_line(record) for record in kept))

    def train(self, record: Record) -> None:
        self._write({"kind": "train", **record})

    def evaluation(self, record: Record, samples: Sequence[Sample]) -> None:
        self._write({"kind": "evaluation", **record, "samples": [dict(sample) for sample in samples]})

    def _write(self, record: Record) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_line(record))


def _line(record: Record) -> str:
    return json.dumps(record, ensure_ascii=False) + "\n"


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, without a last line that was torn off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


class TensorBoard(Reporter):
    """The same for TensorBoard: a curve per figure, the samples as text."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(f"TensorBoard logs need tensorboard: {install_hint('train')}") from error
        self.folder = folder
        self._writer_class = SummaryWriter

    def begin(self, step: int, steps: int, steps_per_epoch: int) -> None:
        self.writer: Any = self._writer_class(str(self.folder), purge_step=step + 1 if step else None)

    def train(self, record: Record) -> None:
        for name, value in record.items():
            if name not in ("step", "epoch", "eta_seconds"):
                self.writer.add_scalar(f"train/{name}", value, record["step"])

    def evaluation(self, record: Record, samples: Sequence[Sample]) -> None:
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.writer.add_scalar(f"evaluation/{name}", value, record["step"])
        if samples:
            text = "\n\n".join(" | ".join(sample.values()) for sample in samples)
            self.writer.add_text("samples", text, record["step"])

    def close(self) -> None:
        self.writer.close()


class LossCurve(Reporter):
    """A picture of the losses, drawn from the log when the run is at its end."""

    def __init__(self, log: Path, picture: Path) -> None:
        _figure_class()  # now, not after hours
        self.log, self.picture = log, picture

    def close(self) -> None:
        draw_losses(read_log(self.log), self.picture)


def draw_losses(records: Sequence[Record], path: Path) -> None:
    """Losses and learning rate over the steps, and below them what evaluations measured, as a PNG."""
    train = [record for record in records if record.get("kind") == "train"]
    measured = [record for record in records if record.get("kind") == "evaluation"]
    figures = sorted({name for r in measured for name, v in r.items() if _is_figure(name, v)})
    panels = 1 + bool(figures)
    figure = _figure_class()(figsize=(8, 4 * panels))
    figure.subplots_adjust(left=0.09, right=0.9, bottom=0.13 / panels, top=1 - 0.05 / panels)
    above = figure.add_subplot(panels, 1, 1, xlabel="step", ylabel="loss")
    for name in sorted({name for r in train for name, v in r.items() if _is_figure(name, v)}):
        points = [(r["step"], r[name]) for r in train if name in r]
        above.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "loss" else 1)
    rates = above.twinx()
    rates.plot([r["step"] for r in train], [r["lr"] for r in train], color="0.8", linewidth=1)
    rates.set_ylabel("learning rate")
    if train:
        above.legend()
    if figures:
        below = figure.add_subplot(panels, 1, 2, xlabel="step")
        for name in figures:
            points = [(r["step"], r[name]) for r in measured if name in r]
            below.plot(*zip(*points, strict=True), marker="o", label=name)
        below.legend()
    for axes in figure.axes:
        axes.xaxis.get_major_locator().set_params(integer=True)
    with atomic.replace_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _figure_class() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"the loss curve needs matplotlib: {install_hint('train')}") from error
    return Figure


def _is_figure(name: str, value: object) -> bool:
    return name not in LOSSES_OF_NO_INTEREST and isinstance(value, int | float)


class Bar(Reporter):
    """A progress bar with loss, images per second and remaining time; plain lines where nobody watches a terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)

    def begin(self, step: int, steps: int, steps_per_epoch: int) -> None:
        self.steps = steps
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.task = self.bar.add_task("", total=steps, completed=step, epoch=step // max(steps_per_epoch, 1), said="")
        self.bar.start()

    def tick(self, step: int) -> None:
        self.bar.update(self.task, completed=step)

    def train(self, record: Record) -> None:
        said = f"loss {record['loss']:.4g}  {record['images_per_second']:.3g} images/s"
        self.bar.update(self.task, epoch=record["epoch"] + 1, said=said)
        if not self.console.is_terminal:
            left = timedelta(seconds=record["eta_seconds"])
            self._print(f"step {record['step']}/{self.steps}  {said}  lr {record['lr']:.3g}  {left} left")

    def evaluation(self, record: Record, samples: Sequence[Sample]) -> None:
        figures = [f"{name} {value:.4g}" for name, value in record.items() if _is_figure(name, value)]
        self._print(f"epoch {record['epoch']}, step {record['step']}: {'  '.join(figures) or 'evaluated'}")
        for sample in samples:
            self._print("  " + " | ".join(sample.values()))

    def close(self) -> None:
        self.bar.stop()

    def note(self, text: str) -> None:
        """Say something, above the bar."""
        self._print(text)

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

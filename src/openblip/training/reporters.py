"""Reports of a run: a JSON line per report, TensorBoard, a loss curve, and a progress bar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

from openblip.errors import InputError
from openblip.extras import install_hint
from openblip.io import atomic, jsonlines, progress

LogRecord: TypeAlias = Mapping[str, Any]
SampleRow: TypeAlias = Mapping[str, str]
_NOT_METRICS = ("step", "epoch", "lr", "images_per_second", "eta_seconds", "kind")


class Reporter:
    """Receives the events of a run on its main process. A subclass overrides the methods it needs."""

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Handle the start of a run, or its continuation after `step` steps."""

    def on_step(self, step: int) -> None:
        """Handle the end of a step."""

    def on_losses(self, record: LogRecord) -> None:
        """Handle the averages since the last report.

        Args:
            record: `step`, `epoch`, `lr`, `loss`, the single losses, `images_per_second` and `eta_seconds`.
        """

    def on_evaluation(self, record: LogRecord, samples: Sequence[SampleRow]) -> None:
        """Handle the result of an evaluation.

        Args:
            record: `step`, `epoch`, and metrics.
            samples: Rows to look at, such as captions of some images.
        """

    def on_end(self) -> None:
        """Handle the end of the run."""


class JsonLinesReporter(Reporter):
    """Writes every report as a line of JSON, whose `kind` is "train" or "evaluation".

    A resumed run first removes the lines that the killed run wrote after the checkpoint, including a partial last line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Create the log, or remove the records after `step`."""
        records = [record for record in read_log(self.path) if record["step"] <= step] if step else []
        atomic.write_bytes(self.path, b"".join(map(jsonlines.encode, records)))

    def on_losses(self, record: LogRecord) -> None:
        """Append the record."""
        self._append({"kind": "train", **record})

    def on_evaluation(self, record: LogRecord, samples: Sequence[SampleRow]) -> None:
        """Append the record with its samples."""
        self._append({"kind": "evaluation", **record, "samples": [dict(sample) for sample in samples]})

    def _append(self, record: LogRecord) -> None:
        with self.path.open("ab") as file:
            jsonlines.append(file, [record])


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the records of a log, without a partial last line; a missing log is empty."""
    return list(jsonlines.read(path, skip_partial=True)) if path.is_file() else []


class TensorBoardReporter(Reporter):
    """Writes a curve per loss and metric, and samples as text, for TensorBoard.

    Args:
        folder: Folder of the logs.

    Raises:
        InputError: If TensorBoard is missing.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(f"TensorBoard logs need tensorboard: {install_hint('train')}") from error
        self.folder = folder
        self._writer_class = SummaryWriter

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Open the logs, and remove the events after `step`."""
        self.writer: Any = self._writer_class(str(self.folder), purge_step=step + 1 if step else None)

    def on_losses(self, record: LogRecord) -> None:
        """Add the losses to their curves."""
        for name, value in record.items():
            if name not in ("step", "epoch", "eta_seconds"):
                self.writer.add_scalar(f"train/{name}", value, record["step"])

    def on_evaluation(self, record: LogRecord, samples: Sequence[SampleRow]) -> None:
        """Add the metrics to their curves, and the samples as text."""
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self.writer.add_scalar(f"evaluation/{name}", value, record["step"])
        if samples:
            text = "\n\n".join(" | ".join(sample.values()) for sample in samples)
            self.writer.add_text("samples", text, record["step"])

    def on_end(self) -> None:
        """Close the logs."""
        self.writer.close()


class LossCurveReporter(Reporter):
    """Draws the losses of a log at the end of the run.

    Args:
        log: The log of a `JsonLinesReporter`.
        image: PNG file to write.

    Raises:
        InputError: If Matplotlib is missing.
    """

    def __init__(self, log: Path, image: Path) -> None:
        _import_figure()  # now, rather than after hours of training
        self.log, self.image = log, image

    def on_end(self) -> None:
        """Draw the curve."""
        draw_losses(read_log(self.log), self.image)


def draw_losses(records: Sequence[LogRecord], path: Path) -> None:
    """Draw losses and learning rate over the steps, and the metrics of evaluations below them.

    Args:
        records: Records of a log.
        path: PNG file to write.

    Raises:
        InputError: If Matplotlib is missing.
    """
    train = [record for record in records if record.get("kind") == "train"]
    evaluations = [record for record in records if record.get("kind") == "evaluation"]
    metrics = _metric_names(evaluations)
    num_panels = 1 + bool(metrics)
    figure = _import_figure()(figsize=(8, 4 * num_panels), layout="constrained")  # room for every label
    loss_axes = figure.add_subplot(num_panels, 1, 1, xlabel="step", ylabel="loss")
    for name in _metric_names(train):
        points = [(record["step"], record[name]) for record in train if name in record]
        loss_axes.plot(*zip(*points, strict=True), label=name, linewidth=2 if name == "loss" else 1)
    lr_axes = loss_axes.twinx()
    lr_axes.plot([record["step"] for record in train], [record["lr"] for record in train], color="0.8", linewidth=1)
    lr_axes.set_ylabel("learning rate")
    if train:
        loss_axes.legend()
    if metrics:
        metric_axes = figure.add_subplot(num_panels, 1, 2, xlabel="step")
        for name in metrics:
            points = [(record["step"], record[name]) for record in evaluations if name in record]
            metric_axes.plot(*zip(*points, strict=True), marker="o", label=name)
        metric_axes.legend()
    for axes in figure.axes:
        axes.xaxis.get_major_locator().set_params(integer=True)
    with atomic.replace_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def _import_figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(f"the loss curve needs matplotlib: {install_hint('train')}") from error
    return Figure


def _metric_names(records: Sequence[LogRecord]) -> list[str]:
    return sorted({name for record in records for name, value in record.items() if _is_metric(name, value)})


def _is_metric(name: str, value: object) -> bool:
    return name not in _NOT_METRICS and isinstance(value, int | float)


class BarReporter(Reporter):
    """Shows a progress bar with loss and images per second; prints lines if standard error is no terminal."""

    def __init__(self, visible: bool | None = None) -> None:
        self._visible = visible
        self._stack = ExitStack()
        self._bar: progress.Bar | None = None

    def on_start(self, step: int, total_steps: int, steps_per_epoch: int) -> None:
        """Show the bar."""
        self.total_steps = total_steps
        description = f"epoch {step // max(steps_per_epoch, 1)}"
        self._bar = self._stack.enter_context(
            progress.bar(description, total_steps, done=step, transient=False, visible=self._visible)
        )

    def on_step(self, step: int) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(step)

    def on_losses(self, record: LogRecord) -> None:
        """Show the loss, or print a line without a terminal."""
        status = f"loss {record['loss']:.4g}  {record['images_per_second']:.3g} images/s"
        if self._bar is not None and self._bar.visible:
            self._bar.update(description=f"epoch {record['epoch'] + 1}", status=status)
        else:
            remaining = timedelta(seconds=record["eta_seconds"])
            step = f"step {record['step']}/{self.total_steps}"
            self.print(f"{step}  {status}  lr {record['lr']:.3g}  {remaining} left")

    def on_evaluation(self, record: LogRecord, samples: Sequence[SampleRow]) -> None:
        """Print metrics and samples."""
        metrics = [f"{name} {value:.4g}" for name, value in record.items() if _is_metric(name, value)]
        self.print(f"epoch {record['epoch']}, step {record['step']}: {'  '.join(metrics) or 'evaluated'}")
        for sample in samples:
            self.print("  " + " | ".join(sample.values()))

    def on_end(self) -> None:
        """Remove the bar."""
        self._stack.close()
        self._bar = None

    def print(self, text: str) -> None:
        """Print a line above the bar, or on standard error if there is no bar."""
        bar = self._bar or progress.Bar(None, "", 0, None)
        bar.print(text)

"""Reports of a run: the log and its repair, TensorBoard, the loss curve, the bar."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from openblip.errors import InputError
from openblip.training.reporters import (
    BarReporter,
    JsonLinesReporter,
    LossCurveReporter,
    Reporter,
    TensorBoardReporter,
    draw_losses,
    read_log,
)


def record(step: int, loss: float = 2.0) -> dict[str, Any]:
    return {
        "step": step, "epoch": 0, "lr": 1e-4, "loss": loss, "lm": loss, "images_per_second": 12.34, "eta_seconds": 75,
    }  # fmt: skip


def send_reports(reporter: Reporter, start: int = 0, stop: int = 4) -> None:
    """A run of `stop` steps, evaluated after the last."""
    reporter.on_start(start, 4, 2)
    for step in range(start + 1, stop + 1):
        reporter.on_step(step)
        reporter.on_losses(record(step, 4.0 / step))
    reporter.on_evaluation({"step": stop, "epoch": 2, "val_loss": 1.5}, [{"image": "a.jpg", "caption": "a [red] dog"}])


def test_the_log_has_every_report(tmp_path: Path) -> None:
    log = JsonLinesReporter(tmp_path / "runs" / "log.jsonl")
    send_reports(log)
    records = read_log(log.path)
    assert records[:4] == [{"kind": "train", **record(step, 4.0 / step)} for step in (1, 2, 3, 4)]
    assert records[4]["samples"] == [{"image": "a.jpg", "caption": "a [red] dog"}]


def test_a_resumed_log_forgets_what_came_after(tmp_path: Path) -> None:
    log = JsonLinesReporter(tmp_path / "log.jsonl")
    send_reports(log)
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')
    log.on_start(2, 4, 2)
    assert [line["step"] for line in read_log(log.path)] == [1, 2]
    log.on_start(0, 4, 2)
    assert read_log(log.path) == []


def test_tensorboard_has_the_curves_and_the_samples(tmp_path: Path) -> None:
    board = TensorBoardReporter(tmp_path)
    send_reports(board)
    board.on_end()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, pytest.approx(4.0 / step)) for step in (1, 2, 3, 4)
    ]
    assert events.Scalars("evaluation/val_loss")[0].value == 1.5
    assert set(events.Tags()["scalars"]) == {
        "train/lr", "train/loss", "train/lm", "train/images_per_second", "evaluation/val_loss",
    }  # fmt: skip
    (text,) = events.Tensors("samples/text_summary")
    assert b"a [red] dog" in text.tensor_proto.string_val[0]


def test_the_curve_is_drawn_from_the_log(tmp_path: Path) -> None:
    log = JsonLinesReporter(tmp_path / "log.jsonl")
    send_reports(log)
    LossCurveReporter(log.path, tmp_path / "loss.png").on_end()
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
        tall = picture.height
    draw_losses([{"kind": "train", **record(1)}], tmp_path / "short.png")
    with Image.open(tmp_path / "short.png") as picture:
        assert picture.height < tall, "no panel for evaluations that were not"
    draw_losses([], tmp_path / "empty.png")
    large = [{"kind": "train", **record(step), "loss": 1234567.8 * step} for step in (1, 20)]
    draw_losses(
        [*large, {"kind": "evaluation", "step": 20, "epoch": 1, "val_loss": 98765432.1}], tmp_path / "large.png"
    )
    with Image.open(tmp_path / "large.png") as image:
        pixels = np.asarray(image.convert("L"))
    edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
    assert all((edge == 255).all() for edge in edges), "no label is clipped"
    assert (tmp_path / "loss.png").read_bytes() != (tmp_path / "short.png").read_bytes()


def test_the_bar_prints_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    bar = BarReporter(visible=False)
    send_reports(bar)
    bar.print("done [well]")
    bar.on_end()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "step 1/4  loss 4  12.3 images/s  lr 0.0001  0:01:15 left"
    assert lines[-3:] == ["epoch 2, step 4: val_loss 1.5", "  a.jpg | a [red] dog", "done [well]"]


def test_the_bar_is_a_bar_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    bar = BarReporter(visible=True)
    send_reports(bar, start=1, stop=3)
    bar.on_end()
    output = capsys.readouterr().err
    assert "3/4" in output
    assert "loss 1.33" in output
    assert "images/s" in output
    assert "step 2/4" not in output


@pytest.mark.parametrize(("module", "make"), [("tensorboard", TensorBoardReporter), ("matplotlib", None)])
def test_a_missing_library_is_reported_before_the_run(
    module: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if module in name:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"openblip\[train\]"):
        _ = make(tmp_path) if make else LossCurveReporter(tmp_path / "log.jsonl", tmp_path / "loss.png")

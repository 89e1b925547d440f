"""What a run tells of itself: the log and its repair, TensorBoard, the loss curve, the bar."""

from __future__ import annotations

import builtins
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
    EventAccumulator,
)

from openblip.errors import InputError
from openblip.training.reports import Bar, JsonLines, LossCurve, Reporter, TensorBoard, draw_losses, read_log


def record(step: int, loss: float = 2.0) -> dict[str, Any]:
    return {
        "step": step, "epoch": 0, "lr": 1e-4, "loss": loss, "lm": loss, "images_per_second": 12.34, "eta_seconds": 75,
    }  # fmt: skip


def tell(reporter: Reporter, start: int = 0, stop: int = 4) -> None:
    """A run of ``stop`` steps, evaluated after the last."""
    reporter.begin(start, 4, 2)
    for step in range(start + 1, stop + 1):
        reporter.tick(step)
        reporter.train(record(step, 4.0 / step))
    reporter.evaluation({"step": stop, "epoch": 2, "val_loss": 1.5}, [{"image": "a.jpg", "caption": "a [red] dog"}])


def test_the_log_has_every_report(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "runs" / "log.jsonl")
    tell(log)
    found = read_log(log.path)
    assert found[:4] == [{"kind": "train", **record(step, 4.0 / step)} for step in (1, 2, 3, 4)]
    assert found[4]["samples"] == [{"image": "a.jpg", "caption": "a [red] dog"}]


def test_a_resumed_log_forgets_what_came_after(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    tell(log)
    with log.path.open("a") as file:
        file.write('{"kind": "train", "st')
    log.begin(2, 4, 2)
    assert [line["step"] for line in read_log(log.path)] == [1, 2]
    log.begin(0, 4, 2)
    assert read_log(log.path) == []


def test_tensorboard_has_the_curves_and_the_samples(tmp_path: Path) -> None:
    board = TensorBoard(tmp_path)
    tell(board)
    board.close()
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


def test_the_curve_is_a_picture_that_follows_the_log(tmp_path: Path) -> None:
    log = JsonLines(tmp_path / "log.jsonl")
    tell(log)
    LossCurve(log.path, tmp_path / "loss.png").close()
    with Image.open(tmp_path / "loss.png") as picture:
        assert picture.format == "PNG"
        tall = picture.height
    draw_losses([{"kind": "train", **record(1)}], tmp_path / "short.png")
    with Image.open(tmp_path / "short.png") as picture:
        assert picture.height < tall, "no panel for evaluations that were not"
    draw_losses([], tmp_path / "empty.png")
    assert (tmp_path / "loss.png").read_bytes() != (tmp_path / "short.png").read_bytes()


def test_the_bar_prints_lines_where_there_is_no_terminal() -> None:
    out = io.StringIO()
    bar = Bar(Console(file=out, width=200))
    tell(bar)
    bar.note("done [well]")
    bar.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "step 1/4  loss 4  12.3 images/s  lr 0.0001  0:01:15 left"
    assert lines[-3:] == ["epoch 2, step 4: val_loss 1.5", "  a.jpg | a [red] dog", "done [well]"]


def test_the_bar_is_a_bar_on_a_terminal() -> None:
    out = io.StringIO()
    bar = Bar(Console(file=out, width=100, force_terminal=True))
    tell(bar, start=1, stop=3)
    bar.close()
    shown = out.getvalue()
    assert "3/4" in shown
    assert "loss 1.33" in shown
    assert "images/s" in shown
    assert "step 2/4" not in shown


@pytest.mark.parametrize(("module", "make"), [("tensorboard", TensorBoard), ("matplotlib", None)])
def test_a_missing_library_is_said_before_the_run(
    module: str, make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if module in name:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match=r"openblip\[train\]"):
        _ = make(tmp_path) if make else LossCurve(tmp_path / "log.jsonl", tmp_path / "loss.png")

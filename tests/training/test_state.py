"""Checkpoints that survive, runs that continue bit for bit, random states, and averages of checkpoints."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from openblip.errors import CheckpointError, TrainingError
from openblip.training.checkpointing import Checkpoints, average_weights, read_state
from openblip.training.config import AdamWSettings, EvaluateSettings, RunSettings, Schedule
from openblip.training.config.run import Precision
from openblip.training.processes import ProcessGroupInfo
from openblip.training.random_state import get_random_state, preserve_random_state, seed_everything, set_random_state
from openblip.training.reporters import JsonLinesReporter, LogRecord, SampleRow, read_log
from openblip.training.strategies import SingleProcess
from openblip.training.trainer import Evaluation, Progress, Trainer
from tests.training import survivor
from tests.training.loop_toys import ToyLoader, toy_captioning, weights

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
GROUP = ProcessGroupInfo(CPU)
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, torch.Tensor], list[dict[str, object]]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("uninterrupted")
    run = survivor.trainer(folder)
    run.run()
    torch.set_num_threads(threads)
    return weights(run.objective), without_clocks(folder / "log.jsonl")


def without_clocks(log: Path) -> list[dict[str, object]]:
    clocks = ("images_per_second", "eta_seconds")
    return [{k: v for k, v in record.items() if k not in clocks} for record in read_log(log)]


@pytest.fixture(scope="module")
def survived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[int, ...]]]:
    """The folder of the runs that were killed, and for each how often it died and how often it went on."""
    folder = tmp_path_factory.mktemp("survived")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.survivor", str(folder), "11"]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, [tuple(map(int, line.split())) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("killed", ["outside", "inside"])
def test_a_run_killed_again_and_again_ends_as_if_it_never_was(
    uninterrupted: tuple[dict[str, torch.Tensor], list[dict[str, object]]],
    survived: tuple[Path, list[tuple[int, ...]]],
    killed: str,
) -> None:
    """Killed from outside at random times, or by itself while it writes a checkpoint and its log."""
    folder, (outside, inside) = survived[0] / killed, survived[1]
    deaths, resumed = outside if killed == "outside" else inside
    assert deaths == (5 if killed == "outside" else 4)
    assert resumed >= 3
    expected, log = uninterrupted
    final = torch.load(folder / "final.pt")
    assert final.keys() == expected.keys()
    for name in expected:
        assert torch.equal(final[name], expected[name]), name
    assert without_clocks(folder / "log.jsonl") == log
    assert [record["step"] for record in log] == [3, 5, 6, 9, 10, 12, 15]
    file_names = sorted(path.name for path in (folder / "checkpoints").iterdir())
    assert file_names == ["step-000000014.pt", "step-000000015.pt"], "two whole ones are kept, and no halves"


def test_checkpoints_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (1, 2, 10):
        checkpoints.save({"step": step}, step)
    assert [path.name for path in checkpoints.files()] == ["step-000000002.pt", "step-000000010.pt"]
    newest = checkpoints.latest()
    assert newest is not None
    assert read_state(newest) == {"step": 10}
    monkeypatch.setattr("openblip.training.checkpointing.torch.save", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoints.save({"step": 11}, 11)
    assert checkpoints.latest() == newest
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step-000000001.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError, match="step-000000001"):
        read_state(path)


def test_averages_are_means_of_the_model_alone(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in range(1, 4):
        state = {"model.w": torch.full((2,), float(step)), "model.n": torch.tensor(step), "twin.w": torch.zeros(2)}
        checkpoints.save({"objective": state}, step)
    results = average_weights(checkpoints.files()[-2:], "model.")
    assert results.keys() == {"w", "n"}
    assert results["w"].tolist() == [2.5, 2.5]
    assert results["n"].dtype == torch.int64
    with pytest.raises(CheckpointError, match="at least one checkpoint"):
        average_weights([], "model.")


def draws() -> list[float]:
    return [
        random.random(),
        random.gauss(0, 1),
        float(np.random.rand()),
        float(np.random.randn()),
        float(torch.rand(())),
    ]


def test_random_states_come_back_through_a_file(tmp_path: Path) -> None:
    seed_everything(3)
    draws()  # leaves a second gaussian number waiting in python and numpy
    path = Checkpoints(tmp_path).save({"random": get_random_state(CPU)}, 1)
    expected = draws()
    draws()
    set_random_state(read_state(path)["random"], CPU)
    assert draws() == expected


def test_a_block_that_draws_leaves_no_trace() -> None:
    seed_everything(4)
    expected = draws()
    seed_everything(4)
    with preserve_random_state(CPU):
        draws()
    assert draws() == expected


def trainer(
    folder: Path,
    run: RunSettings | None = None,
    evaluation: EvaluateSettings | None = None,
    loader: ToyLoader | None = None,
    **options: Any,
) -> Trainer:
    defaults: dict[str, Any] = {"schedule": Schedule(kind="constant", lr=1e-3), "optimizer": AdamWSettings()}
    return Trainer(
        SingleProcess(toy_captioning(dropout=True), GROUP),
        loader or ToyLoader(),
        run or RunSettings(),
        evaluation or EvaluateSettings(),
        checkpoints=Checkpoints(folder),
        **(defaults | options),
    )


def test_accumulated_batches_are_one_large_step(tmp_path: Path) -> None:
    """Without dropout, two batches of equally many tokens make the step that one of twice the size makes."""

    class Equal(ToyLoader):
        def batch(self, epoch: int, step: int) -> Any:
            built = super().batch(epoch, step)
            return dataclasses.replace(built, mask=torch.ones_like(built.mask))

    class Joined(Equal):
        def batch(self, epoch: int, step: int) -> Any:
            two = [super(Joined, self).batch(epoch, 2 * step + i) for i in range(2)]
            fields = {
                name: torch.cat([getattr(batch_part, name) for batch_part in two]) for name in ("pixels", "ids", "mask")
            }
            return dataclasses.replace(two[0], **fields)

    results = []
    for loader, accumulate in ((Equal(steps_per_epoch=3), 2), (Joined(steps_per_epoch=2), 1)):
        built = Trainer(
            SingleProcess(toy_captioning(), GROUP),
            loader,
            RunSettings(),
            EvaluateSettings(),
            accumulate=accumulate,
            checkpoints=Checkpoints(tmp_path / str(accumulate)),
            optimizer=AdamWSettings(),
            schedule=Schedule(kind="constant", lr=1e-3),
        )
        assert built.steps_per_epoch == 2
        built._train_step([loader.batch(0, i) for i in range(accumulate)])
        results.append(weights(built.objective))
        assert built.run().step == 2, "the last step of an epoch makes do with fewer batches"
    for name in results[0]:
        torch.testing.assert_close(results[0][name], results[1][name], atol=2e-5, rtol=0)


def test_precisions_train_nearly_the_same(tmp_path: Path) -> None:
    losses = {}
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    for precision in precisions:
        settings = RunSettings(log_every=8, precision=precision)
        log = tmp_path / precision / "log.jsonl"
        built = trainer(tmp_path / precision, settings, epochs=2, reporters=[JsonLinesReporter(log)])
        assert built.scaler.is_enabled() is (precision == "fp16")
        built.run()
        assert {p.dtype for p in built.objective.parameters()} == {torch.float32}
        losses[precision] = [record["loss"] for record in read_log(log)]
        state = read_state(built.checkpoints.files()[-1])
        assert bool(state["scaler"]) is (precision == "fp16")
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["fp16"] == pytest.approx(losses["fp32"], rel=0.02)
    assert losses["bf16"] != losses["fp32"]


def test_evaluation_keeps_the_best_and_stops_early(tmp_path: Path) -> None:
    values = iter([0.2, 0.5, 0.4, 0.3, 0.9])
    scores_seen: list[float] = []
    calls: list[tuple[int, bool]] = []

    def evaluate(model: torch.nn.Module, progress: Progress) -> Evaluation:
        calls.append((progress.step, model.training))
        scores_seen.append(0.0)
        return Evaluation({"score": next(values)}, [{"image": "a.jpg", "caption": "a dog"}])

    settings = EvaluateSettings(metric="score", patience=2)
    best: list[int] = []
    log = tmp_path / "log.jsonl"
    built = trainer(
        tmp_path,
        evaluation=settings,
        epochs=9,
        evaluate=evaluate,
        keep_best=lambda model: best.append(len(scores_seen)),
        reporters=[JsonLinesReporter(log)],
    )
    progress = built.run()
    assert calls == [(4, False), (8, False), (12, False), (16, False)]
    assert best == [1, 2]
    assert (progress.best, progress.stopped, progress.epoch) == (0.5, True, 4)
    evaluations = [record for record in read_log(log) if record["kind"] == "evaluation"]
    assert [record["score"] for record in evaluations] == [0.2, 0.5, 0.4, 0.3]
    assert evaluations[0]["samples"] == [{"image": "a.jpg", "caption": "a dog"}]
    resumed = trainer(tmp_path, evaluation=settings, epochs=9, evaluate=evaluate)
    assert resumed.run(resume=True) == progress, "a run that has stopped stays so"


def test_the_least_can_be_the_best(tmp_path: Path) -> None:
    values = iter([3.0, 1.0, 2.0])
    settings = EvaluateSettings(metric="loss", goal="min")
    built = trainer(
        tmp_path,
        evaluation=settings,
        epochs=3,
        evaluate=lambda model, progress: Evaluation({"loss": next(values)}),
    )
    assert built.run().best == 1.0


def test_evaluations_within_an_epoch(tmp_path: Path) -> None:
    calls: list[int] = []

    def evaluate(model: torch.nn.Module, progress: Progress) -> Evaluation:
        calls.append(progress.step)
        return Evaluation()

    settings = EvaluateSettings(every_epochs=0, every_steps=3)
    trainer(tmp_path, evaluation=settings, epochs=2, evaluate=evaluate).run()
    assert calls == [3, 6]


def test_death_between_the_last_report_of_an_epoch_and_its_checkpoint(tmp_path: Path) -> None:
    """Where a checkpoint within epochs would fall on an epoch's end, nothing is reported twice."""

    class Deadly(JsonLinesReporter):
        def on_evaluation(self, record: LogRecord, samples: Sequence[SampleRow]) -> None:
            raise KeyboardInterrupt

    settings = RunSettings(log_every=4, save_every=2)
    options: dict[str, Any] = {
        "evaluation": EvaluateSettings(every_steps=4),
        "epochs": 2,
        "evaluate": lambda model, progress: Evaluation(),
    }
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, settings, reporters=[Deadly(tmp_path / "log.jsonl")], **options).run()
    trainer(tmp_path, settings, reporters=[JsonLinesReporter(tmp_path / "log.jsonl")], **options).run(resume=True)
    log = [(record["kind"], record["step"]) for record in read_log(tmp_path / "log.jsonl")]
    assert log == [("train", 4), ("evaluation", 4), ("train", 8), ("evaluation", 8)]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    class Broken(ToyLoader):
        def batch(self, epoch: int, step: int) -> object:
            built = super().batch(epoch, step)
            return dataclasses.replace(built, pixels=built.pixels * (float("nan") if step == 2 else 1.0))

    with pytest.raises(TrainingError, match=r"must be finite, got .* at step 3"):
        trainer(tmp_path, RunSettings(log_every=1), loader=Broken()).run()


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    built = trainer(tmp_path, RunSettings())
    built.run()
    state = read_state(built.checkpoints.files()[-1])
    state["objective"]["model.vision.norm.weight"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"vision\.norm\.weight must have the shape"):
        built.restore(state)
    with pytest.raises(CheckpointError, match="another model"):
        built.restore({**state, "objective": {}})
    with pytest.raises(CheckpointError, match="format"):
        built.restore({})


def test_another_number_of_processes_continues_only_between_epochs(tmp_path: Path) -> None:
    built = trainer(tmp_path, RunSettings(save_every=3, keep_checkpoints=9))
    built.run()
    within, end = (read_state(path) for path in built.checkpoints.files())
    with pytest.raises(CheckpointError, match="on 2 processes"):
        built.restore({**within, "world_size": 2})
    built.restore({**end, "world_size": 2})
    assert built.progress.epoch == 1

"""`openblip train`: recipes with overrides, own data, LoRA, resuming, and errors of wrong usage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from click.testing import CliRunner, Result

import openblip
from openblip.checkpoints import read, write
from openblip.checkpoints.folder import write_bundle
from openblip.cli import app
from openblip.preprocess.settings import ImageSettings
from openblip.training.config import read_recipe
from openblip.training.config.run import Precision
from openblip.training.reporters import read_log
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = ("data.num_workers=0", "run.charts=false", "evaluate.num_samples=1")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["train", *map(str, arguments)])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a toy captioner, four captioned images, and one that is missing."""
    home = tmp_path_factory.mktemp("home")
    write.save(toy_model("caption"), home / "caption", tokenizer=toy_tokenizer(), image=ImageSettings(SIZE))
    write_bundle(home, {"caption": home / "caption"})
    rows = [{"image": f"{i}.png", "caption": "a dog"} for i in range(5)]
    for i in range(4):
        toy_image(i).save(home / f"{i}.png")
    (home / "my.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return home


def test_own_data_with_lora_and_from_a_bundle(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(
        "caption", "--data", home / "my.jsonl", "--from", home, "--val", home / "my.jsonl", "--lora",
        "r=2,target_modules=qkv+value", "--epochs", "2", "--batch-size", "2", "--out", out, *QUIET, "run.log_every=1",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == str(out / "model")
    log_text = result.stderr
    assert log_text.startswith(f"starts from the caption model ({home / 'caption'}): all weights\n")
    assert "DataLoader" not in log_text
    assert "step 1/4  loss" in log_text
    assert "val_loss" in log_text
    assert f"{home / '0.png'} | " in log_text
    assert "4.png" in log_text, "the record that is bad is named"
    recipe = read_recipe(out / "recipe.yaml")
    assert recipe.schedule.lr == pytest.approx(1e-4)
    assert (recipe.epochs, recipe.batch_size) == (2, 2)
    assert recipe.lora is not None
    assert (recipe.lora.r, recipe.lora.target_modules) == (2, ("qkv", "value"))
    assert {path.name for path in out.iterdir()} == {
        "adapter", "checkpoints", "log.jsonl", "model", "recipe.yaml",
    }  # fmt: skip
    assert read.load(out / "model").config.task == "caption"


def test_the_python_call_does_what_the_command_does(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings: dict[str, Any] = {"data.num_workers": 0, "run.charts": False, "evaluate.num_samples": 1}
    data, options = home / "my.jsonl", {"--batch-size": 2, "--epochs": 1}
    result = openblip.train(
        "caption", data, start=home, lora=2, batch_size=2, epochs=1, out=tmp_path / "call", settings=settings,
        progress=False,
    )  # fmt: skip
    assert capsys.readouterr().err == ""
    flags = [str(word) for pair in options.items() for word in pair]
    command = run("caption", "--data", data, "--from", home, "--lora", "r=2", *flags, "--out", tmp_path / "run", *QUIET)
    assert command.exit_code == 0, command.output
    one, two = (read.load(path / "model").model.state_dict() for path in (result.model.parent, tmp_path / "run"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert openblip.load(result.model).caption(toy_image(0)).text
    with pytest.raises(openblip.ConfigError, match="already holds a run"):
        openblip.train("caption", data, start=home, lora=2, out=tmp_path / "call", settings=settings, progress=False)
    with pytest.raises(openblip.InputError, match="did you mean caption"):
        openblip.train("captions", data)  # type: ignore[arg-type]


def test_patience_ends_the_run_and_keeps_the_best_model(home: Path, tmp_path: Path) -> None:
    arguments = ("caption", "--data", home / "my.jsonl", "--from", home, "--batch-size", "2", "--epochs", "9", *QUIET)
    refused = run(*arguments, "--patience", "2")
    assert (refused.exit_code, "patience needs validation data" in refused.stderr) == (2, True)
    out, val = tmp_path / "out", home / "val.jsonl"  # texts that training makes ever less probable
    val.write_text(json.dumps({"image": "0.png", "caption": "two cats on a bed"}))
    done = run(*arguments, "--patience", "2", "--val", val, "--lr", "0.01", "--out", out)
    assert done.exit_code == 0, done.output
    losses = [line["val_loss"] for line in read_log(out / "log.jsonl") if line["kind"] == "evaluation"]
    assert len(losses) < 9, "the loss got worse"
    assert losses.index(min(losses)) == len(losses) - 3
    best, last = (read.load(out / name).model.state_dict() for name in ("best", "model"))
    assert all(torch.equal(best[name], last[name]) for name in best)


def test_a_student_learns_from_a_teacher(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    data = ("--data", home / "my.jsonl", "--from", home, "--epochs", "1", "--batch-size", "2", "--out", out)
    result = run("caption", *data, "--teacher", home, *QUIET, "run.log_every=1", "distill.lm=1")
    assert result.exit_code == 0, result.output
    recipe = read_recipe(out / "recipe.yaml")
    assert recipe.distill is not None
    assert (recipe.distill.teacher, recipe.distill.lm) == (str(home), 1.0)
    steps = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [step for step in steps if step["kind"] == "train"]
    assert losses
    assert all(step["distill_features"] > 0 and "distill_lm" in step for step in losses)
    assert read.load(out).config == read.load(out / "model").config, "the folder of a run stands for its model"


def test_a_recipe_with_overrides_and_going_on(home: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "recipe.yaml"
    file.write_text(
        f"task: caption\nstart: {home / 'caption'}\nbatch_size: 2\nepochs: 7\nschedule: {{kind: constant, lr: 1e-3}}\n"
        f"data: {{train: {home / 'my.jsonl'}}}\n"
    )
    initial = run("run", file, "epochs=1", f"out={out}", *QUIET)
    assert initial.exit_code == 0, initial.output
    repeated = run("run", file, "epochs=1", f"out={out}", *QUIET)
    assert repeated.exit_code == 1
    assert "already holds a run" in repeated.stderr
    more = run("run", file, "epochs=2", f"out={out}", *QUIET, "--resume")
    assert more.exit_code == 0, more.output
    assert [line["epoch"] for line in read_log(out / "log.jsonl") if line["kind"] == "evaluation"] == [1, 2]
    straight = run("run", file, "epochs=2", f"out={tmp_path / 'straight'}", *QUIET)
    assert straight.exit_code == 0, straight.output
    resumed_weights, straight_weights = (
        read.load(folder / "model").model.state_dict() for folder in (out, tmp_path / "straight")
    )
    assert all(torch.equal(resumed_weights[name], straight_weights[name]) for name in resumed_weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("caption", "--data", "x.jsonl", "--lora", "16"), "must look like r=16"),
        (("caption", "--data", "x.jsonl", "--lora", "rank=16"), "no setting lora.rank; settings are r, alpha"),
        (("caption", "--data", "x.jsonl", "schedule.rate=1"), "no setting schedule.rate"),
        (("vqa", "--data", "x.jsonl", "--precision", "int8"), "precision must be one of fp32"),
        (("run", "missing.yaml"), "missing.yaml cannot be read"),
    ],
)
def test_wrong_usage_is_one_line(arguments: tuple[str, ...], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_help_lists_the_tasks_and_torchrun() -> None:
    text = run("--help").output
    for word in ("run", "caption", "vqa", "retrieval", "nlvr", "grounding", "torchrun"):
        assert word in text
    assert "openblip train vqa --data" in run("vqa", "--help").output


def test_help_lists_the_precisions_of_training() -> None:
    text = " ".join(run("caption", "--help").stdout.split())
    assert "--precision PRECISION Precision of the arithmetic: fp32, bf16 or fp16." in text
    assert set(get_args(Precision)) == {"fp32", "bf16", "fp16"}

"""The whole bootstrap at toy size: killed in every step it ends with the same texts and data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from openblip import bootstrap
from openblip.bootstrap import STEPS, Bootstrap, BootstrapRecipe, CapFiltSettings
from openblip.capfilt.folder import CapFiltFolder, digest_rows
from openblip.capfilt.run import ShardComputer
from openblip.checkpoints import write
from openblip.cli import app
from openblip.errors import ConfigError, JobError
from openblip.io.hashing import compute_sha256
from openblip.preprocess.settings import ImageSettings
from openblip.training.config import parsing
from openblip.training.trainer import Trainer
from tests.capfilt.capfilt_toys import picture, web_folder
from tests.toys import SIZE, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")


class KilledError(BaseException):
    """Stands for kill -9: nothing catches it."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bootstrap")
    web_folder(folder / "human", 8)
    web_folder(folder / "web", 6)
    for number in range(6):
        (folder / f"web/{number:03d}.jpg").write_bytes(picture(100 + number))
    write.save(toy_model("pretrain"), folder / "start", tokenizer=toy_tokenizer(), image=ImageSettings(SIZE))
    return folder


def make_recipe(data: Path, out: Path, **changes: Any) -> BootstrapRecipe:
    shared = {
        "epochs": 2,
        "batch_size": 4,
        "data": {"num_workers": 0},
        "schedule": {"lr": 1e-3},
        "run": {"device": "cpu", "charts": False, "save_every": 1},
    }
    values: dict[str, Any] = {
        "out": str(out),
        "human": (str(data / "human"),),
        "web": (str(data / "web"),),
        "pretrain": {**shared, "start": str(data / "start"), "loss": {"queue_size": 16}},
        "captioner": {**shared, "data": {"num_workers": 0, "prompt": ""}},
        "filter": {**shared, "loss": {"queue_size": 16}},
        "capfilt": CapFiltSettings(
            device="cpu",
            engine="torch",
            num_workers=0,
            shard_rows=2,
            min_new_tokens=1,
            max_new_tokens=5,
            itm_threshold=0.3,
        ),
    }
    return BootstrapRecipe(**values | changes)


def digest(out: Path) -> dict[str, str]:
    """Identify the texts and the final weights."""
    return {
        "texts": digest_rows(CapFiltFolder(out / "capfilt")),
        "final": compute_sha256(out / "final/model/model.safetensors"),
    }


def kill_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> Callable[[], None]:
    """Let a method raise `KilledError` after some calls; return a function that repairs it."""
    method = getattr(owner, name)
    count = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count > calls:
            raise KilledError
        return method(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return lambda: monkeypatch.setattr(owner, name, method)


def test_killed_in_every_step(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(parsing.write_yaml(parsing.as_table(make_recipe(data, tmp_path / "other"))))
    result = CliRunner().invoke(app, ["bootstrap", str(file), f"out={tmp_path / 'whole'}"])
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{tmp_path}/whole/final/model\n"
    expected = digest(tmp_path / "whole")
    recipe, lines = make_recipe(data, tmp_path / "killed"), list[str]()
    for step in STEPS:
        victim = (ShardComputer, "__call__", 1) if step == "capfilt" else (Trainer, "_train_step", 2)
        repair = kill_after(monkeypatch, *victim)
        with pytest.raises(KilledError):
            Bootstrap(recipe, lines.append).run()
        repair()
        assert json.loads((tmp_path / f"killed/{step}.json").read_text())["done"] is False
        finish = kill_after(monkeypatch, Bootstrap, "_run_step", STEPS.index(step) + 1)
        if step != STEPS[-1]:
            with pytest.raises(KilledError):
                Bootstrap(recipe, lines.append).run()
        finish()
    model = Bootstrap(recipe, lines.append).run()
    assert model == tmp_path / "killed/final/model"
    assert digest(tmp_path / "killed") == expected


def test_a_changed_input_redoes_what_depends_on_it(data: Path, tmp_path: Path) -> None:
    out, lines = tmp_path / "out", list[str]()
    recipe = make_recipe(data, out)
    Bootstrap(recipe, lines.append).run()
    assert [line for line in lines if line.endswith("running")] == [f"{step}: running" for step in STEPS]

    def steps_run(recipe: BootstrapRecipe) -> list[str]:
        lines.clear()
        Bootstrap(recipe, lines.append).run()
        return [line.partition(":")[0] for line in lines if line.endswith("running")]

    assert steps_run(recipe) == []
    changed = make_recipe(data, out, filter={**recipe.filter, "seed": 7})
    assert steps_run(changed) == ["filter", "capfilt", "final"]
    final = make_recipe(data, out, filter=changed.filter, final={**recipe.pretrain, "seed": 9})
    assert steps_run(final) == ["final"]
    text = data / "web/000.txt"
    previous = text.read_text()
    text.write_text("cat\n")
    try:
        assert steps_run(final)[:1] == ["pretrain"]
    finally:
        text.write_text(previous)


def test_recipes_and_folders_are_checked(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="web must be set"):
        make_recipe(data, tmp_path / "out", web=())
    (tmp_path / "other/pretrain").mkdir(parents=True)
    with pytest.raises(JobError, match="was not made by this bootstrap"):
        Bootstrap(make_recipe(data, tmp_path / "other")).run()
    path = tmp_path / "recipe.yaml"
    path.write_text("out: runs/b\nhuman: [human]\nweb: [web]\ncapfilt: {num: 2}\npretrain: {epochs: 3}\n")
    recipe = bootstrap.read_bootstrap(path, ["capfilt.top_p=0.8"])
    assert (recipe.capfilt.num, recipe.capfilt.top_p, recipe.pretrain["epochs"]) == (2, 0.8, 3)
    with pytest.raises(ConfigError, match="capfilt"):
        bootstrap.read_bootstrap(path, ["capfilt.threshold=0.8"])

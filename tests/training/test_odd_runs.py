"""Whole runs on what real data brings along, runs with compiled layers, and their models in another library's hands."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from openblip.checkpoints.read import load
from openblip.checkpoints.write import save
from openblip.model.config import ModelKind
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from openblip.training import run as runs
from openblip.training.config import Recipe, recipe_from_table
from openblip.training.reporters import read_log
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

Theirs: Any = transformers
LONG = "a brown dog runs on the green grass with a red ball " * 46  # 506 words
STARTS: dict[str, ModelKind] = {
    "caption": "caption",
    "pretrain": "pretrain",
    "retrieval": "retrieval",
    "vqa": "pretrain",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for task in set(STARTS.values()):
        save(toy_model(task), folder / task, tokenizer=toy_tokenizer(), image=ImageSettings(SIZE), prompt="")
    return folder


def dataset(folder: Path, captions: list[list[str]]) -> Path:
    """Write an image for each list of captions, with a question."""
    rows = []
    for i, texts in enumerate(captions):
        toy_image(i).save(folder / f"{i}.png")
        qa = [{"question": LONG if i % 2 else "what is it?", "answers": ["a dog", "dog"]}]
        rows.append({"image": f"{i}.png", "captions": texts, "qa": qa})
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def recipe(name: TaskName, data: Path, out: Path, models: Path, **values: Any) -> Recipe:
    table: dict[str, Any] = {
        "task": name,
        "start": str(models / STARTS[name]),
        "out": str(out),
        "epochs": 1,
        "batch_size": 4,
        "data": {"train": str(data), "val": str(data), "num_workers": 0},
        "schedule": {"lr": 1e-3},
        "run": {"device": "cpu", "log_every": 1, "charts": False},
        "evaluate": {"num_samples": 1},
    }
    if name in ("pretrain", "retrieval"):
        table["loss"] = {"queue_size": 8}
    return recipe_from_table(table | values)


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in read_log(out / "log.jsonl") if record["kind"] == "train"]


@pytest.mark.parametrize("name", ["caption", "pretrain", "retrieval", "vqa"])
def test_texts_of_500_words_are_cut_and_empty_ones_are_reported(name: TaskName, models: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, [[LONG], ["a dog"], ["..."], ["a cat on a table"], ["", "a dog in the snow"]])
    result = runs.run(recipe(name, data, tmp_path / "out", models, batch_size=2))
    assert losses(tmp_path / "out"), "steps were taken"
    assert all(value == value and abs(value) < 1e4 for value in losses(tmp_path / "out"))
    if name == "vqa":  # captions are not its concern
        assert len(result.report) == 0
    else:  # "..." is no caption, and an empty one is as if it were not there
        assert len(result.report) == 1
        assert "empty after cleaning" in str(result.report)


@pytest.mark.parametrize("name", ["caption", "pretrain", "retrieval", "vqa"])
@pytest.mark.parametrize("size", [1, 4])
def test_a_dataset_of_one_image(name: TaskName, size: int, models: Path, tmp_path: Path) -> None:
    """A batch of one, and a batch larger than the data: ITM has no negative, and the run continues."""
    data = dataset(tmp_path, [["a dog"]])
    result = runs.run(recipe(name, data, tmp_path / "out", models, epochs=2, batch_size=size))
    assert result.progress.step == 2
    assert all(value == value for value in losses(tmp_path / "out"))


def test_all_texts_of_a_batch_may_be_of_one_image(models: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, [["a dog", "a brown dog", "the dog", "one dog"]])
    runs.run(recipe("retrieval", data, tmp_path / "out", models))
    (record,) = (line for line in read_log(tmp_path / "out" / "log.jsonl") if line["kind"] == "train")
    assert record["loss"] == record["loss"]
    assert record["itc"] >= 0


def test_what_does_not_fill_a_last_batch_waits_for_the_next_epoch(models: Path, tmp_path: Path) -> None:
    """Training batches are all of one size; validation leaves nothing out."""
    data = dataset(tmp_path, [["a dog"]] * 5)
    result = runs.run(recipe("caption", data, tmp_path / "out", models, epochs=3, batch_size=2))
    assert result.progress.step == 3 * 2
    single_batches = runs.run(
        recipe("caption", data, tmp_path / "whole", models, epochs=1, batch_size=1, schedule={"lr": 1e-12})
    )
    uneven = runs.run(recipe("caption", data, tmp_path / "uneven", models, epochs=1, schedule={"lr": 1e-12}))
    assert (single_batches.progress.step, uneven.progress.step) == (5, 1)
    loss_a, loss_b = (read_log(tmp_path / out / "log.jsonl")[-1]["val_loss"] for out in ("whole", "uneven"))
    assert loss_a == pytest.approx(loss_b, rel=1e-5), "of the same five, in batches of 1 and of 4 and 1"


def test_a_run_compiles_its_layers_if_the_recipe_says_so(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another test compares the results of compiled layers; this one checks the option."""
    compiled: list[str] = []
    monkeypatch.setattr(runs, "compile_layers", lambda model: compiled.append(type(model).__name__))
    data = dataset(tmp_path, [["a dog"], ["a cat"]])
    settings = {"device": "cpu", "log_every": 1, "charts": False}
    for compile_ in (False, True):
        run_recipe = recipe("caption", data, tmp_path / str(compile_), models, run={**settings, "compile": compile_})
        runs.run(run_recipe)
        assert compiled == ["Captioner"] * compile_


@pytest.mark.parametrize(
    ("name", "theirs"),
    [
        ("caption", "BlipForConditionalGeneration"),
        ("vqa", "BlipForQuestionAnswering"),
        ("retrieval", "BlipForImageTextRetrieval"),
    ],
)
def test_transformers_loads_what_was_trained_and_computes_the_same(
    name: TaskName, theirs: str, models: Path, tmp_path: Path
) -> None:
    data = dataset(tmp_path, [["a dog"], ["a cat"], ["a man"], ["a car"]])
    folder = runs.run(recipe(name, data, tmp_path / "out", models, epochs=2)).model
    ours: Any = load(folder).model
    loss_b, loading_info = getattr(Theirs, theirs).from_pretrained(folder, output_loading_info=True)
    loss_b.eval()
    assert not loading_info["missing_keys"]
    assert not loading_info["unexpected_keys"]
    pixels = torch.randn(2, 3, SIZE, SIZE)
    ids = torch.tensor([[599, 20, 30, 3], [599, 40, 21, 3]])
    with torch.inference_mode():
        states = ours.encode_image(pixels)
        torch.testing.assert_close(loss_b.vision_model(pixels).last_hidden_state, states, atol=1e-4, rtol=1e-4)
        if name == "retrieval":
            scores = loss_b(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).itm_score
            torch.testing.assert_close(
                scores, ours.match_logits(ids, torch.ones_like(ids), states), atol=1e-4, rtol=1e-4
            )
            return
        memory = ours.encode_question(ids, torch.ones_like(ids), states) if name == "vqa" else states
        start = torch.full_like(ids, 598)
        start[:, 1:] = ids[:, 1:]
        logits = loss_b.text_decoder(input_ids=start, encoder_hidden_states=memory, is_decoder=True).logits
        torch.testing.assert_close(logits, ours.logits(start, None, memory), atol=1e-4, rtol=1e-4)


def test_bfloat16_trains_on_a_cpu_and_leaves_full_precision_behind(models: Path, tmp_path: Path) -> None:
    data = dataset(tmp_path, [["a dog"], ["a cat"]])
    settings = {"device": "cpu", "log_every": 1, "charts": False, "precision": "bf16"}
    run_recipe = recipe(
        "caption", data, tmp_path / "out", models, batch_size=2, epochs=3, run=settings,
        schedule={"kind": "constant", "lr": 3e-3}, loss={"smoothing": 0.0}, evaluate={"every_epochs": 0},
        augment={"min_scale": 1.0, "flip": 0.0, "randaugment": False},
    )  # fmt: skip
    run_recipe = dataclasses.replace(run_recipe, data=dataclasses.replace(run_recipe.data, train=(str(data),) * 10))
    result = runs.run(run_recipe)
    values = losses(tmp_path / "out")
    assert values[-1] < 0.3 * values[0]
    assert {tensor.dtype for tensor in load(result.model).model.state_dict().values()} == {torch.float32}

"""Whole runs at toy size: every task from its recipe to a hub folder; resumed, with LoRA, averaged, the best kept."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from openblip.checkpoints.adapter import load_adapter
from openblip.checkpoints.read import load
from openblip.checkpoints.write import save
from openblip.errors import CheckpointError, ConfigError, InputError
from openblip.model.config import ModelKind
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TASK_NAMES, TASKS, TaskName
from openblip.training.checkpointing import Checkpoints, read_state
from openblip.training.config import Recipe, recipe_from_table
from openblip.training.reporters import LogRecord, Reporter, SampleRow, read_log
from openblip.training.run import run
from openblip.training.trainer import Evaluation, Progress
from tests.toys import SIZE, VOCABULARY, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

WORDS = ("grass", "street", "table", "beach", "snow", "sofa")
METRICS = {
    "caption": {"val_loss"},
    "vqa": {"val_loss"},
    "nlvr": {"val_loss", "accuracy"},
    "grounding": {"val_loss", "accuracy"},
    "visdial": {"val_loss", "accuracy"},
    "retrieval": {"t2i_r1", "t2i_r5", "t2i_r10", "i2t_r1", "i2t_r5", "i2t_r10", "r_mean"},
}
METRICS["pretrain"] = METRICS["retrieval"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images with captions, questions, boxes, and statements about pairs of them."""
    folder = tmp_path_factory.mktemp("data")
    rows, pairs = [], []
    for i, word in enumerate(WORDS):
        toy_image(i).save(folder / f"{i}.png")
        rows.append(
            {
                "image": f"{i}.png",
                "captions": [f"a dog on the {word}", f"the {word} and a dog"],
                "qa": [{"question": "where is the dog?", "answers": [word, word, "dog"], "wrong": ["cat"]}],
                "refs": [{"expression": "the dog", "bbox": [2 + i, 3, 20, 15]}],
            }
        )
        pairs.append(
            {"images": [f"{i}.png", f"{(i + 1) % 6}.png"], "sentence": "a dog is left", "label": str(i % 2 == 0)}
        )
    (folder / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder for each kind of toy model."""
    folder = tmp_path_factory.mktemp("models")
    tasks: tuple[ModelKind, ...] = ("caption", "pretrain", "retrieval")
    for task in tasks:
        prompt = "a dog " if task == "caption" else None
        save(toy_model(task), folder / task, tokenizer=toy_tokenizer(), image=ImageSettings(SIZE), prompt=prompt)
    return folder


def recipe(name: TaskName, photos: Path, out: Path, **values: Any) -> Recipe:
    """Return a recipe for toys; `values` replace the values of its sections."""
    file = str(photos / ("pairs.jsonl" if name == "nlvr" else "data.jsonl"))
    table: dict[str, Any] = {
        "task": name,
        "out": str(out),
        "epochs": 2,
        "batch_size": 3,
        "data": {"train": file, "val": file, "num_workers": 0},
        "schedule": {"lr": 1e-3},
        "run": {"device": "cpu", "log_every": 2, "charts": False},
        "evaluate": {"num_samples": 2},
    }
    if name in ("pretrain", "retrieval"):
        table["loss"] = {"queue_size": 24}
    for key, value in values.items():
        table[key] = {**table[key], **value} if isinstance(table.get(key), dict) else value
    return recipe_from_table(table)


@pytest.mark.parametrize("name", TASK_NAMES)
def test_every_task_goes_from_a_start_to_a_model(name: TaskName, data: Path, models: Path, tmp_path: Path) -> None:
    extra = {"extra": {"box_start_id": 400, "box_bins": 50}} if name == "grounding" else {}
    notes: list[str] = []
    run_recipe = recipe(name, data, tmp_path / "out", start=str(models / "pretrain"), model=extra, epochs=1)
    result = run(run_recipe, notify=notes.append)
    assert "starts from the" in notes[0]
    loaded = load(result.model)
    assert loaded.config.task == TASKS[name].networks[0]
    assert loaded.image.size == SIZE
    assert loaded.prompt == ("a picture of " if name == "caption" else None)
    assert loaded.config.vision.drop_path == (0.1 if name in ("vqa", "nlvr") else 0.0)
    start_weight = load(models / "pretrain").model.get_parameter("vision.blocks.0.mlp.fc1.weight")
    assert not torch.equal(loaded.model.get_parameter("vision.blocks.0.mlp.fc1.weight"), start_weight)
    log = read_log(tmp_path / "out" / "log.jsonl")
    assert [record["kind"] for record in log][-2:] == ["train", "evaluation"]
    measured = {key for key in log[-1] if key not in ("kind", "step", "epoch", "samples")}
    assert measured == METRICS[name]
    keys = {"caption": {"image", "caption"}, "pretrain": {"image", "caption"}, "vqa": {"image", "question", "answer"}}
    assert len(log[-1]["samples"]) == (2 if name in keys else 0)
    assert all(sample.keys() == keys[name] for sample in log[-1]["samples"])
    assert len(result.report) == 0


def test_a_model_without_a_start_has_the_sizes_and_vocabulary_of_the_recipe(data: Path, tmp_path: Path) -> None:
    sizes = {
        "size": "base",
        "image_size": 32,
        "vision": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 32},
        "text": {"width": 32, "depth": 1, "heads": 2, "mlp_width": 32, "max_positions": 48},
        "extra": {"embed_width": 8},
    }
    run_recipe = recipe("pretrain", data, tmp_path / "out", model=sizes, tokenizer=str(VOCABULARY), epochs=1)
    loaded = load(run(run_recipe).model)
    assert (loaded.config.vision.depth, loaded.config.text.vocab_size, loaded.config.text.dec_id) == (1, 600, 598)
    assert loaded.config.embed_width == 8


def test_the_start_lends_its_prompt_and_takes_another_size(data: Path, models: Path, tmp_path: Path) -> None:
    run_recipe = recipe(
        "caption", data, tmp_path / "a", start=str(models / "caption"), model={"image_size": 48}, epochs=1
    )
    loaded = load(run(run_recipe).model)
    assert (loaded.prompt, loaded.config.vision.image_size, loaded.image.size) == ("a dog ", 48, 48)


def test_a_handful_of_images_is_memorized(data: Path, models: Path, tmp_path: Path) -> None:
    run_recipe = recipe(
        "caption", data, tmp_path / "out", start=str(models / "caption"), epochs=10, batch_size=6,
        data={"train": [str(data / "data.jsonl")] * 9, "prompt": "", "texts_per_image": 2}, loss={"smoothing": 0.0},
        schedule={"kind": "cosine_per_step", "lr": 5e-3}, evaluate={"num_samples": 6, "every_epochs": 10},
        augment={"min_scale": 1.0, "flip": 0.0, "randaugment": False},
    )  # fmt: skip
    result = run(run_recipe)
    assert result.progress.step == 90
    log = read_log(tmp_path / "out" / "log.jsonl")
    assert log[0]["loss"] > 3.0
    assert [record for record in log if record["kind"] == "train"][-1]["loss"] < 0.5  # each image has two captions
    outputs = {Path(sample["image"]).stem: sample["caption"] for sample in log[-1]["samples"]}
    right = sum(outputs[str(i)] in (f"a dog on the {word}", f"the {word} and a dog") for i, word in enumerate(WORDS))
    assert right == 6, outputs


class StopAt(Reporter):
    """Ends a run before it is done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, step: int) -> None:
        if step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("name", ["retrieval", "vqa"])
def test_a_run_resumes_bit_for_bit(name: TaskName, data: Path, models: Path, tmp_path: Path) -> None:
    def run_recipe(out: str) -> Recipe:
        text = {"dropout": 0.1, "attention_dropout": 0.1}
        start = str(models / "pretrain")
        return recipe(name, data, tmp_path / out, start=start, run={"save_every": 2}, model={"text": text}, epochs=3)

    straight = run(run_recipe("straight"))
    with pytest.raises(KeyboardInterrupt):
        run(run_recipe("stopped"), reporters=[StopAt(straight.progress.step - 2)])
    with pytest.raises(ConfigError, match="pass --resume"):
        run(run_recipe("stopped"))
    run(run_recipe("stopped"), resume=True)
    states = [
        read_state(Checkpoints(tmp_path / out / "checkpoints").files()[-1])["objective"]
        for out in ("straight", "stopped")
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    repeated = run(run_recipe("stopped"), resume=True)
    assert repeated.progress == straight.progress, "a run that is over stays so, and leaves its model once more"
    assert load(repeated.model).config.task == TASKS[name].networks[0]


def test_a_run_resumes_only_with_its_settings(data: Path, models: Path, tmp_path: Path) -> None:
    out, start = tmp_path / "out", str(models / "caption")
    run(recipe("caption", data, out, start=start, epochs=1))
    with pytest.raises(ConfigError, match=r"batch_size"):
        run(recipe("caption", data, out, start=start, epochs=1, batch_size=2), resume=True)
    longer = run(recipe("caption", data, out, start=start, epochs=2), resume=True)
    assert longer.progress.epoch == 2


def test_lora_leaves_a_merged_model_and_an_adapter(data: Path, models: Path, tmp_path: Path) -> None:
    start = models / "caption"
    result = run(recipe("caption", data, tmp_path / "out", start=str(start), lora={"r": 2}, schedule={"lr": 1e-2}))
    merged, base = load(result.model), load(start)
    changed = {
        name.rsplit(".", 2)[1]
        for name, tensor in merged.model.state_dict().items()
        if not torch.equal(tensor, base.model.get_parameter(name))
    }
    assert changed == {"query", "key", "value", "qkv", "proj"}
    load_adapter(base.model, tmp_path / "out" / "adapter")
    pixels, ids = torch.randn(1, 3, SIZE, SIZE), torch.tensor([[598, 20, 30]])
    both: list[Any] = [merged.model, base.model.eval()]
    outputs = [model.logits(ids, None, model.encode_image(pixels)) for model in both]
    torch.testing.assert_close(outputs[0], outputs[1])


def test_lora_trains_new_heads_whole(data: Path, models: Path, tmp_path: Path) -> None:
    result = run(recipe("nlvr", data, tmp_path / "out", start=str(models / "retrieval"), lora={"r": 2}, epochs=1))
    trained = read_state(Checkpoints(tmp_path / "out" / "checkpoints").files()[-1])["optimizer"]
    full_parameters = {name for name in trained if "lora" not in name}
    assert full_parameters == {
        f"model.head.{layer}.{kind}" for layer in ("dense", "out") for kind in ("weight", "bias")
    }
    assert load(result.model).config.task == "nlvr"


def test_the_average_of_the_last_checkpoints(data: Path, models: Path, tmp_path: Path) -> None:
    start = str(models / "caption")
    run_recipe = recipe(
        "caption",
        data,
        tmp_path / "out",
        start=start,
        epochs=3,
        evaluate={"final": "average", "average_checkpoints": 2},
    )
    result = run(run_recipe)
    states = [read_state(path)["objective"] for path in Checkpoints(tmp_path / "out" / "checkpoints").files()]
    assert len(states) == 3
    name = "vision.patch_embed.weight"
    expected = (states[-1][f"model.{name}"] + states[-2][f"model.{name}"]) / 2
    torch.testing.assert_close(load(result.model).model.get_parameter(name), expected)


def test_the_best_by_a_metric_that_is_handed_in(data: Path, models: Path, tmp_path: Path) -> None:
    evaluated: list[torch.Tensor] = []

    def evaluate(model: nn.Module, progress: Progress) -> Evaluation:
        evaluated.append(model.get_parameter("vision.norm.weight").clone())
        return Evaluation({"cider": -abs(progress.epoch - 2.0)}, [{"image": "x", "caption": "y"}])

    run_recipe = recipe(
        "caption", data, tmp_path / "out", start=str(models / "caption"), epochs=6,
        evaluate={"metric": "cider", "final": "best", "patience": 2},
    )  # fmt: skip
    result = run(run_recipe, evaluate=evaluate)
    assert len(evaluated) == 4
    assert torch.equal(load(result.model).model.get_parameter("vision.norm.weight"), evaluated[1])
    final_record = read_log(tmp_path / "out" / "log.jsonl")[-1]
    assert {"cider", "val_loss"} < final_record.keys()
    assert final_record["samples"][-1] == {"image": "x", "caption": "y"}


def test_a_metric_that_is_not_measured_is_an_error(data: Path, models: Path, tmp_path: Path) -> None:
    run_recipe = recipe("caption", data, tmp_path, start=str(models / "caption"), evaluate={"metric": "bleu"})
    with pytest.raises(ConfigError, match=r"must be one of val_loss, got 'bleu'"):
        run(run_recipe)


def test_everything_at_once(data: Path, models: Path, tmp_path: Path) -> None:
    """Half precision, recomputed blocks, clipping, accumulation, jitter, rotating sources, chosen previews."""
    file = str(data / "data.jsonl")
    run_recipe = recipe(
        "pretrain", data, tmp_path / "out", start=str(models / "pretrain"), batch_size=2, total_batch_size=4,
        data={"rotate": [file, file], "texts_per_image": 2}, augment={"jitter": 0.3}, optimizer={"clip_norm": 1.0},
        run={"precision": "bf16", "recompute_blocks": 1, "charts": True}, evaluate={"images": [str(data / "5.png")]},
    )  # fmt: skip
    reports: list[tuple[LogRecord, Sequence[SampleRow]]] = []

    class Listen(Reporter):
        def on_evaluation(self, record: LogRecord, samples: Sequence[SampleRow]) -> None:
            reports.append((record, samples))

    result = run(run_recipe, reporters=[Listen()])
    assert [samples[0]["image"] for _, samples in reports] == [str(data / "5.png")] * 2
    assert result.progress.step == 2 * 3  # six images and six in turn, two batches of two per step
    assert load(result.model).model.get_parameter("vision.norm.weight").dtype == torch.float32
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "checkpoints", "log.jsonl", "loss.png", "model", "recipe.yaml", "tensorboard",
    }  # fmt: skip


def test_bad_records_are_reported_and_do_not_end_the_run(data: Path, models: Path, tmp_path: Path) -> None:
    lines = (data / "data.jsonl").read_text().splitlines()
    lines.insert(2, json.dumps({"image": "missing.png", "captions": ["a cat"]}))
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    run_recipe = recipe(
        "caption", data, tmp_path / "out", start=str(models / "caption"), epochs=1,
        data={"train": str(tmp_path / "data.jsonl"), "images": str(data)},
    )  # fmt: skip
    result = run(run_recipe)
    assert len(result.report) == 1
    assert "missing.png" in str(result.report)


def test_wrong_beginnings_are_refused(data: Path, models: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="start must be one checkpoint"):
        run(recipe("caption", data, tmp_path / "a"))
    with pytest.raises(ConfigError, match=r"data\.train must name"):
        run(recipe("caption", data, tmp_path / "b", start=str(models / "caption"), data={"train": []}))
    with pytest.raises(CheckpointError, match="no rule leads"):
        run(recipe("vqa", data, tmp_path / "c", start=str(models / "caption")))
    with pytest.raises(ConfigError, match=r"data\.texts_per_image does not apply to nlvr"):
        run(recipe("nlvr", data, tmp_path / "d", start=str(models / "pretrain"), data={"texts_per_image": 2}))
    with pytest.raises(InputError, match="no file or folder"):
        run(recipe("caption", data, tmp_path / "e", start=str(models / "caption"), data={"train": "missing.jsonl"}))

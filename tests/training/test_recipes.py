"""Every recipe: read, built without memory, and held to the published numbers; and how settings are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from openblip.checkpoints import read
from openblip.checkpoints.folder import POCKET, Bundle
from openblip.errors import ConfigError
from openblip.model.build import build_model, count_parameters
from openblip.model.config import ModelConfig
from openblip.tasks import TASK_NAMES, TASKS, TaskName
from openblip.training.config import (
    CaptionLoss,
    DataSettings,
    LoraSettings,
    Recipe,
    check_same_run,
    fine_tuning_recipe,
    parsing,
    read_recipe,
    recipe_from_table,
    write_recipe,
)


def config_of(recipe: Recipe, start: ModelConfig | None = None) -> ModelConfig:
    kind = TASKS[recipe.task].networks[0]
    return recipe.model.build_config(kind, recipe.loss.published.drop_path, start)


RECIPES = Path(__file__).parents[2] / "recipes"


class Published(NamedTuple):
    """One row of the published hyper-parameters."""

    task: TaskName
    lr: float
    min_lr: float
    epochs: int
    batch: int  # per process
    total: int
    decay: float
    image: int
    drop_path: float
    width: int
    recompute: int
    start: tuple[str, ...]
    millions: float  # parameters


DEIT = ("timm/deit_base_patch16_224.fb_in1k", "google-bert/bert-base-uncased")
CAPFILT, LARGE = ("model_base_capfilt_large",), ("model_large",)
VQA = ("model_base_vqa_capfilt_large",)
VIT_L = ("timm/vit_large_patch16_224.augreg_in21k", "google-bert/bert-base-uncased")
TABLE = {
    "pretrain_14m_base": Published("pretrain", 3e-4, 1e-6, 20, 90, 2880, 0.05, 224, 0.0, 768, 0, DEIT, 252),
    "pretrain_14m_large": Published("pretrain", 2e-4, 1e-6, 20, 75, 2400, 0.05, 224, 0.1, 1024, 5, VIT_L, 475),
    "caption_coco_base": Published("caption", 1e-5, 0, 5, 32, 256, 0.05, 384, 0.0, 768, 0, CAPFILT, 224),
    "caption_coco_large": Published("caption", 2e-6, 0, 5, 16, 256, 0.05, 384, 0.1, 1024, 5, LARGE, 446),
    "retrieval_coco_base": Published("retrieval", 1e-5, 0, 6, 32, 256, 0.05, 384, 0.0, 768, 4, ("model_base",), 224),
    "retrieval_coco_large": Published("retrieval", 5e-6, 0, 6, 16, 256, 0.05, 384, 0.1, 1024, 12, LARGE, 446),
    "retrieval_flickr_base": Published("retrieval", 1e-5, 0, 6, 32, 256, 0.05, 384, 0.0, 768, 4, ("model_base",), 224),
    "retrieval_flickr_large": Published("retrieval", 5e-6, 0, 6, 16, 256, 0.05, 384, 0.1, 1024, 10, LARGE, 446),
    "vqa_v2_base": Published("vqa", 2e-5, 0, 10, 16, 256, 0.05, 480, 0.1, 768, 0, CAPFILT, 361),
    "vqa_okvqa_base": Published("vqa", 3e-5, 1e-5, 7, 16, 256, 0.02, 480, 0.1, 768, 0, VQA, 361),
    "vqa_aokvqa_base": Published("vqa", 2e-5, 1e-5, 7, 16, 128, 0.02, 480, 0.1, 768, 0, VQA, 361),
    "nlvr2_base": Published("nlvr", 3e-5, 0, 15, 16, 256, 0.05, 384, 0.1, 768, 0, ("model_base",), 259),
    "visdial_base": Published("visdial", 2e-5, 0, 20, 15, 240, 0.05, 384, 0.0, 768, 0, ("model_base",), 224),
    "refcoco_base": Published("grounding", 1.5e-5, 0, 120, 16, 128, 0.02, 384, 0.0, 768, 0, CAPFILT, 498.49),
}  # fmt: skip


def test_no_recipe_is_without_its_row() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == {*TABLE, "distill_base_to_small"}


def test_the_distilled_student_has_40_million_parameters_and_its_teacher_s_texts() -> None:
    recipe = read_recipe(RECIPES / "distill_base_to_small.yaml")
    model = build_model(recipe.model.build_config("caption", recipe.loss.published.drop_path), device="meta")
    assert 38e6 < count_parameters(model) < 42e6
    assert recipe.distill is not None
    assert (recipe.distill.teacher, recipe.tokenizer) == ("base", "Salesforce/blip-image-captioning-base")


@pytest.mark.parametrize("name", TABLE)
def test_a_recipe_has_the_published_numbers_and_builds(name: str) -> None:
    recipe, published = read_recipe(RECIPES / f"{name}.yaml"), TABLE[name]
    config = config_of(recipe)
    model = build_model(config, device="meta")
    actual = Published(
        recipe.task,
        recipe.schedule.lr,
        recipe.schedule.min_lr,
        recipe.epochs,
        recipe.batch_size,
        recipe.batch_size * recipe.accumulation(1),
        recipe.optimizer.weight_decay,
        config.vision.image_size,
        config.vision.drop_path,
        config.vision.width,
        recipe.run.recompute_blocks,
        recipe.start,
        published.millions,
    )
    assert actual == published
    digits = 2 if published.millions % 1 else 0
    assert round(count_parameters(model) / 1e6, digits) == published.millions
    assert (config.text.depth, config.text.width, config.text.vocab_size, config.text.dropout) == (12, 768, 30524, 0.1)
    assert recipe.schedule.kind == ("step" if recipe.task == "pretrain" else "cosine")
    assert (recipe.optimizer.beta1, recipe.optimizer.beta2, recipe.optimizer.eps) == (0.9, 0.999, 1e-8)
    assert recipe.optimizer.clip_norm is None
    assert recipe.run.precision == "fp32"
    assert recipe.augment.min_scale == (0.2 if recipe.task == "pretrain" else 0.5)
    assert recipe.augment.randaugment
    assert recipe.seed == 42


@pytest.mark.parametrize("name", ["pretrain", "caption_cider", "retrieval", "vqa_more", "grounding"])
def test_the_recipes_of_pocket_make_what_is_bundled(name: str) -> None:
    """From the sizes of its pretraining, each recipe gives the sizes of the model that the package ships."""
    recipe = read_recipe(RECIPES / "pocket" / f"{name}.yaml")
    pocket = Bundle.find(POCKET)
    assert pocket is not None
    shipped = {task: read.load(path).config for task, path in pocket.models.items()}
    start = dataclasses.replace(shipped["retrieval"], task="pretrain")
    actual = config_of(recipe, start)
    if actual.task not in shipped:  # pretraining, and tasks that are not bundled
        assert count_parameters(build_model(actual, device="meta")) > 5e6
        return
    expected = shipped[actual.task]
    expected_config = dataclasses.replace(
        actual, vision=dataclasses.replace(actual.vision, drop_path=expected.vision.drop_path)
    )
    for stored in (expected_config, expected):
        assert count_parameters(build_model(stored, device="meta")) == count_parameters(
            build_model(expected, device="meta")
        )
    assert (expected_config.vision, expected_config.text, expected_config.box_bins) == (
        expected.vision,
        expected.text,
        expected.box_bins,
    )
    if actual.task == "grounding":
        assert actual.box_start_id + 1 + actual.box_bins < actual.text.vocab_size


def test_values_of_single_recipes() -> None:
    recipes = {name: read_recipe(RECIPES / f"{name}.yaml") for name in TABLE}
    losses: dict[str, Any] = {name: recipe.loss for name, recipe in recipes.items()}
    for size in ("base", "large"):
        schedule = recipes[f"pretrain_14m_{size}"].schedule
        assert (schedule.warmup_steps, schedule.warmup_lr, schedule.decay_rate) == (3000, 1e-6, 0.85)
        assert losses[f"retrieval_coco_{size}"].negatives == "all"
        assert losses[f"retrieval_flickr_{size}"].negatives == "rank"
        assert recipes[f"caption_coco_{size}"].data.prompt == "a picture of "
    contrastive = [loss for loss in losses.values() if loss.task in ("pretrain", "retrieval")]
    assert {(loss.queue_size, loss.momentum, loss.alpha) for loss in contrastive} == {(57600, 0.995, 0.4)}
    assert {loss.task: loss.alpha_epochs for loss in contrastive} == {"pretrain": 2.0, "retrieval": 1.0}
    smoothed = [loss for loss in losses.values() if loss.task in ("pretrain", "caption", "vqa")]
    assert {loss.smoothing for loss in smoothed} == {0.1}
    assert recipes["vqa_v2_base"].data.vg_weight == 0.2
    assert len(recipes["vqa_v2_base"].data.train) == 3
    limits = {r.task: (r.data.max_words, r.data.max_tokens) for r in recipes.values()}
    assert limits == {
        "pretrain": (30, 30), "caption": (30, 40), "retrieval": (30, 35), "vqa": (50, 35), "nlvr": (40, None),
        "grounding": (None, 128), "visdial": (None, 256),
    }  # fmt: skip
    groups = {name for name, recipe in recipes.items() if recipe.optimizer.groups == "lavis"}
    assert groups == {"vqa_okvqa_base", "vqa_aokvqa_base"}


def test_a_recipe_comes_back_from_its_file(tmp_path: Path) -> None:
    table: dict[str, Any] = {
        "task": "retrieval",
        "start": ["a", "b"],
        "model": {"size": "large", "text": {"depth": 2}},
        "lora": {"r": 4},
        "loss": {"queue_size": 64},
        "data": {"train": "x.jsonl", "columns": {"caption": "title"}, "texts_per_image": 1},
    }
    recipe = recipe_from_table(table)
    write_recipe(recipe, tmp_path / "recipe.yaml")
    assert read_recipe(tmp_path / "recipe.yaml") == recipe
    assert recipe.data.train == ("x.jsonl",)
    assert recipe.lora == LoraSettings(r=4)


def test_overrides_are_yaml_and_reach_inside(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("task: caption\nschedule: {lr: 1e-5}\nlora: {r: 8}\n")
    recipe = read_recipe(
        path, ["schedule.lr=2e-6", "data.train=[a.jsonl, b.jsonl]", "lora=", "run.compile=true", "loss.smoothing=0"]
    )
    assert recipe.schedule.lr == 2e-6
    assert recipe.data.train == ("a.jsonl", "b.jsonl")
    assert recipe.lora is None
    assert recipe.run.compile is True
    assert recipe.loss == CaptionLoss(smoothing=0.0)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"task": "captions"}, "task must be one of caption, vqa"),
        ({}, "task must be one of"),
        ({"task": "caption", "epoch": 3}, "no setting epoch; did you mean epochs"),
        ({"task": "caption", "run": {"precison": "bf16"}}, r"run\.precison; did you mean precision"),
        ({"task": "caption", "run": {"precision": "int4"}}, r"run\.precision must be one of fp32, bf16, fp16"),
        ({"task": "caption", "loss": {"alpha": 0.4}}, r"no setting loss\.alpha"),
        ({"task": "caption", "epochs": 2.5}, "epochs must be a whole number"),
        ({"task": "caption", "epochs": True}, "epochs must be a whole number"),
        ({"task": "caption", "epochs": 0}, "epochs must be at least 1"),
        ({"task": "caption", "schedule": {"lr": "quick"}}, r"schedule\.lr must be a number"),
        ({"task": "caption", "schedule": 3}, "schedule must be a table"),
        ({"task": "caption", "schedule": {"lr": -1}}, "lr must be positive"),
        ({"task": "caption", "data": {"train": {"a": 1}}}, r"data\.train must be a list"),
        ({"task": "caption", "run": {"compile": 1}}, "true or false"),
        ({"task": "caption", "out": 7}, "out must be a text"),
        ({"task": "caption", "model": {"size": "base", "vision": {"dept": 3}}}, "vision has no dept"),
        ({"task": "caption", "run": {"strategy": "fsdp", "precision": "fp16"}}, "fp32 or bf16"),
        ({"task": "caption", "evaluate": {"final": "best"}}, "needs a metric"),
        (
            {"task": "caption", "evaluate": {"final": "average", "average_checkpoints": 9}},
            "keep_checkpoints must be at least",
        ),
        ({"task": "caption", "evaluate": {"patience": 2}}, "needs a metric"),
        ({"task": "caption", "batch_size": 0}, "batch_size must be at least 1"),
        ({"task": "caption", "lora": {"r": 0}}, "r must be at least 1"),
    ],
)
def test_a_wrong_setting_is_named(table: dict[str, Any], message: str) -> None:
    def read() -> None:
        recipe = recipe_from_table(table)
        config_of(recipe)

    with pytest.raises(ConfigError, match=message):
        read()


@pytest.mark.parametrize("assignment", ["schedule.lr", "=3", "schedule..lr=3", "seed.x=3", "data.train=[a"])
def test_a_wrong_override_is_named(assignment: str) -> None:
    with pytest.raises(ConfigError):
        parsing.override({"task": "caption", "seed": 42}, [assignment])


def test_a_file_that_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "missing.yaml")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(ConfigError, match="must hold a table"):
        read_recipe(tmp_path / "list.yaml")
    (tmp_path / "torn.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not YAML"):
        read_recipe(tmp_path / "torn.yaml")


def test_total_batches_are_made_on_any_number_of_processes() -> None:
    recipe = recipe_from_table({"task": "caption", "batch_size": 32, "total_batch_size": 256})
    assert [recipe.accumulation(processes) for processes in (1, 2, 8)] == [8, 4, 1]
    with pytest.raises(ConfigError, match="3 processes"):
        recipe.accumulation(3)
    assert recipe_from_table({"task": "caption"}).accumulation(5) == 1


def test_a_run_resumes_only_with_its_own_settings() -> None:
    original = recipe_from_table({"task": "caption", "data": {"train": "a"}})
    check_same_run(
        original, dataclasses.replace(original, epochs=9, run=dataclasses.replace(original.run, keep_checkpoints=9))
    )
    with pytest.raises(ConfigError, match=r"schedule\.lr differ"):
        check_same_run(
            original, recipe_from_table({"task": "caption", "data": {"train": "a"}, "schedule": {"lr": 1e-3}})
        )


@pytest.mark.parametrize("name", TASK_NAMES)
def test_own_data_needs_no_recipe(name: TaskName) -> None:
    recipe = fine_tuning_recipe(name, start=("base",), data=DataSettings(train=("my.jsonl",)))
    assert isinstance(recipe, Recipe)
    assert (recipe.task, recipe.start, recipe.data.train) == (name, ("base",), ("my.jsonl",))
    published = {row.task: row.lr for row in TABLE.values() if row.width == 768 and row.min_lr == 0}
    if name != "pretrain":
        assert recipe.schedule.lr == published[name]

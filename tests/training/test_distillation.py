"""Distillation: the student of a toy teacher gets close to it, by each of the four ways."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from openblip.checkpoints.write import save
from openblip.data.collate import pack_texts
from openblip.errors import ConfigError
from openblip.model.answerer import Answerer
from openblip.model.base import ImageTextModel
from openblip.model.build import build_model
from openblip.model.captioner import Captioner
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from openblip.training.config import DistillSettings, Recipe, recipe_from_table
from openblip.training.distillation import (
    Distillation,
    divergence,
    feature_loss,
    fit_grid,
    lm_logits,
    match_logits,
    similarities,
)
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.pretrain import PretrainBatch, PretrainObjective
from openblip.training.objectives.retrieval import RetrievalBatch
from openblip.training.objectives.vqa import VqaBatch, VqaObjective
from openblip.training.reporters import JsonLinesReporter, read_log
from openblip.training.run import run
from openblip.training.teachers import FeatureStore, Teacher, load_teacher, resize_pixels
from tests.toys import SIZE, toy_config, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

LARGE = ImageSettings(2 * SIZE, (0.4, 0.5, 0.6), (0.3, 0.3, 0.3))
SMALL = ImageSettings(SIZE)
TEXTS = ["a dog on the grass", "a cat", "two people walk on the beach", "a red car"]


def toy_network() -> tuple[nn.Module, ImageSettings]:
    """An image network with a grid of 4 x 4 cells, named as `module:function` below."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Conv2d(3, 12, 16, stride=16), nn.ReLU()), LARGE


def toy_teacher(task: TaskName) -> Teacher:
    model = cast(ImageTextModel, toy_model(task, seed=1, image_size=LARGE.size).requires_grad_(False))
    return Teacher(LARGE, model.vision, model.config.vision.width, model, toy_tokenizer())


def toy_student(task: TaskName, *, dropout: float = 0.0) -> ImageTextModel:
    """One layer of half the width in each tower."""
    config = toy_config(task)
    vision = replace(config.vision, width=16, depth=1, mlp_width=32)
    text = replace(config.text, width=16, depth=1, mlp_width=32, memory_width=16, dropout=dropout)
    torch.manual_seed(2)
    return cast(ImageTextModel, build_model(replace(config, vision=vision, text=text)))


def caption_batch(size: int = LARGE.size) -> CaptionBatch:
    rows = toy_tokenizer().encode(TEXTS, "dec", 12)
    pixels = torch.randn(len(TEXTS), 3, size, size, generator=torch.Generator().manual_seed(0))
    return CaptionBatch(pixels=pixels, ids=rows.ids, mask=rows.mask)


def match_batch() -> RetrievalBatch:
    rows = toy_tokenizer().encode(TEXTS, "cls", 12)
    return RetrievalBatch(
        pixels=caption_batch().pixels, ids=rows.ids, mask=rows.mask, image_ids=torch.arange(len(TEXTS))
    )


def distillation(teacher: Teacher, student: ImageTextModel, **settings: Any) -> Distillation:
    made = DistillSettings(teacher="toy", **settings)
    return Distillation(teacher, made, image=SMALL, student=student, tokenizer=toy_tokenizer(), prompt_length=1).train()


def train(module: Distillation, student: ImageTextModel, batch: Any, steps: int = 150) -> tuple[float, float]:
    """Learn from the teacher alone; the sum of the losses at the first and at the last step."""
    parameters = [*student.parameters(), *module.parameters()]
    optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=5e-3)
    pixels = resize_pixels(batch.pixels, LARGE, SMALL)
    totals = []
    for _ in range(steps):
        loss = torch.stack(list(module.losses(batch, student.encode_image(pixels)).values())).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        totals.append(loss.item())
    return totals[0], totals[-1]


@pytest.mark.parametrize("kind", ["cosine", "smooth_l1"])
def test_a_student_gets_close_to_its_teacher_s_features(kind: str) -> None:
    teacher, student = toy_teacher("caption"), toy_student("caption")
    before, after = train(distillation(teacher, student, feature_loss=kind), student, caption_batch())
    assert after < 0.3 * before


@pytest.mark.parametrize(("task", "loss"), [("caption", "lm"), ("retrieval", "itc"), ("retrieval", "itm")])
def test_a_student_gets_close_to_what_its_teacher_says(task: TaskName, loss: str) -> None:
    teacher, student = toy_teacher(task), toy_student(task)
    batch = caption_batch() if task == "caption" else match_batch()
    before, after = train(distillation(teacher, student, features=0.0, **{loss: 1.0}), student, batch)
    assert after < 0.1 * before
    model = cast(ImageTextModel, teacher.model)
    tokens = student.encode_image(resize_pixels(batch.pixels, LARGE, SMALL)), teacher.features(batch.pixels)
    if loss == "lm":
        own, target = (lm_logits(m, batch, t, 1) for m, t in zip((student, model), tokens, strict=True))
        assert (own.argmax(-1) == target.argmax(-1)).float().mean() > 0.8
    elif loss == "itm":
        own, target = (match_logits(cast(Matcher, m), batch, t) for m, t in zip((student, model), tokens, strict=True))
        torch.testing.assert_close(own.softmax(-1), target.softmax(-1), atol=0.1, rtol=0)
    else:
        own, target = (similarities(cast(Matcher, m), batch, t) for m, t in zip((student, model), tokens, strict=True))
        torch.testing.assert_close(own.softmax(-1), target.softmax(-1), atol=0.2, rtol=0)


def test_an_image_network_named_as_a_function_teaches_features() -> None:
    teacher = load_teacher(f"{__name__}:toy_network", "caption")
    assert (teacher.width, teacher.model) == (12, None)
    features = teacher.features(caption_batch().pixels)
    assert features.shape == (4, 17, 12)
    torch.testing.assert_close(features[:, 0], features[:, 1:].mean(1))
    student = toy_student("caption")
    before, after = train(distillation(teacher, student), student, caption_batch())
    assert after < 0.5 * before


def test_teacher_logits_are_those_of_the_plain_forward_pass() -> None:
    model = cast(Captioner, toy_model("caption"))
    batch = caption_batch(SIZE)
    tokens = model.encode_image(batch.pixels)
    plain = model.logits(batch.ids, batch.mask, tokens)[:, :-1][batch.mask[:, 1:] == 1]
    torch.testing.assert_close(lm_logits(model, batch, tokens, 1), plain)
    packed = replace(batch, **pack_texts(batch.ids, batch.mask, [1] * 4, 0))
    totals = [logits.sum(0) for logits in (plain, lm_logits(model, packed, tokens, 1))]
    torch.testing.assert_close(*totals)  # the order of packed rows is by length


def test_the_objective_trains_at_the_student_s_size_and_adds_the_losses() -> None:
    teacher, student = toy_teacher("caption"), toy_student("caption")
    objective = CaptionObjective(cast(Captioner, student), prompt_length=1)
    alone = objective(replace(caption_batch(), pixels=resize_pixels(caption_batch().pixels, LARGE, SMALL)))["lm"]
    distillation(teacher, student, lm=0.5).attach(objective)
    losses = objective.train()(caption_batch())
    assert losses.keys() == {"lm", "distill_features", "distill_lm"}
    torch.testing.assert_close(losses["lm"], alone)
    assert not any("teacher" in name or "peers" in name for name in objective.state_dict())
    assert sum(p.numel() for p in objective.parameters()) == sum(p.numel() for p in student.parameters()) + 17 * 32
    assert objective.eval()(caption_batch(SIZE)).keys() == {"lm"}


def test_distillation_joins_the_objective_of_answers() -> None:
    teacher, student = toy_teacher("vqa"), toy_student("vqa")
    questions, answers = toy_tokenizer().encode(TEXTS, "enc", 12), toy_tokenizer().encode(TEXTS[::-1], "dec", 12)
    batch = VqaBatch(
        pixels=caption_batch().pixels, ids=questions.ids, mask=questions.mask, answer_ids=answers.ids,
        answer_mask=answers.mask, question_index=torch.arange(4), weights=torch.ones(4),
    )  # fmt: skip
    objective = VqaObjective(cast(Answerer, student))
    distillation(teacher, student, lm=1.0).attach(objective)
    check_losses(objective, batch, {"vqa", "distill_features", "distill_lm"})


def test_distillation_joins_the_three_losses_of_pretraining() -> None:
    teacher, student = toy_teacher("pretrain"), toy_student("pretrain")
    pairs = match_batch()
    batch = PretrainBatch(pixels=pairs.pixels, ids=pairs.ids, mask=pairs.mask)
    objective = PretrainObjective(cast(Pretrainer, student), queue_size=4)
    distillation(teacher, student, itc=1.0, itm=1.0, lm=1.0).attach(objective)
    names = {"itc", "itm", "lm"}
    check_losses(objective, batch, names | {f"distill_{name}" for name in names} | {"distill_features"})


def check_losses(objective: nn.Module, batch: Any, names: set[str]) -> None:
    losses = objective.train()(batch)
    assert losses.keys() == names
    for name, loss in losses.items():
        assert loss.isfinite(), name
        if name.startswith("distill"):
            assert loss > 0, name
            parameters = [parameter for parameter in objective.parameters() if parameter.requires_grad]
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
            assert any(gradient is not None and gradient.any() for gradient in gradients), name


def test_pixels_for_another_network_are_those_of_its_own_preparation() -> None:
    raw = torch.rand(2, 3, LARGE.size, LARGE.size)

    def normalize(pixels: Tensor, settings: ImageSettings) -> Tensor:
        mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    expected = F.interpolate(raw, (SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
    torch.testing.assert_close(resize_pixels(normalize(raw, LARGE), LARGE, SMALL), normalize(expected, SMALL))


def test_a_finer_grid_is_averaged() -> None:
    tokens = torch.randn(2, 17, 3)
    fitted = fit_grid(tokens, 4)
    torch.testing.assert_close(fitted[:, 0], tokens[:, 0])
    assert fitted.shape == (2, 5, 3)
    constant = torch.cat([tokens[:, :1], torch.full((2, 16, 3), 7.0)], 1)
    torch.testing.assert_close(fit_grid(constant, 4)[:, 1:], torch.full((2, 4, 3), 7.0))


def test_losses_are_zero_only_at_the_teacher() -> None:
    logits = torch.randn(5, 7)
    assert divergence(logits + 3.0, logits).abs() < 1e-6
    assert divergence(logits.flip(0), logits) > 0.1
    peers = logits.softmax(-1), logits.flip(0).softmax(-1)
    by_hand = (peers[0] * (peers[0] / peers[1]).log()).sum(-1).mean()
    torch.testing.assert_close(divergence(logits.flip(0), logits), by_hand)
    tokens = torch.randn(2, 5, 8)
    for kind in ("cosine", "smooth_l1"):
        assert feature_loss(F.layer_norm(tokens, (8,)), tokens, kind).abs() < 1e-6


def test_stored_features_are_computed_once(tmp_path: Path) -> None:
    teacher = toy_teacher("caption")
    store = FeatureStore(tmp_path, teacher)
    pixels = caption_batch().pixels
    first = store.features(pixels[:2])
    torch.testing.assert_close(first, teacher.features(pixels[:2]), rtol=1e-2, atol=1e-2)
    calls: list[int] = []
    teacher.network.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    again = store.features(pixels[[1, 3, 0]])
    assert calls == [1]
    torch.testing.assert_close(again[[2, 0]], first)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"itc": 1.0}, "distill.itc does not apply to a caption model"),
        ({"itm": 1.0}, "distill.itm does not apply to a caption model"),
    ],
)
def test_a_loss_without_counterpart_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distillation(toy_teacher("caption"), toy_student("caption"), **settings)


def test_texts_need_a_blip_teacher_with_the_student_s_vocabulary() -> None:
    with pytest.raises(ConfigError, match=r"distill\.lm needs a BLIP teacher"):
        distillation(load_teacher(f"{__name__}:toy_network", "caption"), toy_student("caption"), lm=1.0)
    with pytest.raises(ConfigError, match="with the teacher's vocabulary"):
        distillation(replace(toy_teacher("caption"), tokenizer=None), toy_student("caption"), lm=1.0)


@pytest.mark.parametrize(
    "settings", [{"teacher": ""}, {"features": 0.0}, {"itc": -1.0}, {"temperature": 0.0}, {"views": 0}]
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="distill"):
        DistillSettings(**{"teacher": "base", **settings})


class Deadly(JsonLinesReporter):
    """Ends the run within its second epoch."""

    def on_step(self, step: int) -> None:
        if step == 4:
            raise KeyboardInterrupt


def make_recipe(home: Path, out: str, task: TaskName, distill: dict[str, Any], **data: Any) -> Recipe:
    """A student with dropout, half the width and half the image size of its teacher, on four images in two batches."""
    rows = []
    for number, text in enumerate(TEXTS):
        toy_image(number).save(home / f"{number}.png")
        rows.append(json.dumps({"image": f"{number}.png", "captions": [text, "a photo"]}))
    (home / "data.jsonl").write_text("\n".join(rows))
    teacher, student = home / "teacher", home / "student"
    if not teacher.exists():
        save(toy_model(task, image_size=LARGE.size), teacher, tokenizer=toy_tokenizer())
        save(toy_student(task, dropout=0.1), student, tokenizer=toy_tokenizer())
    source = str(home / "data.jsonl")
    return recipe_from_table(
        {
            "task": task, "start": str(student), "out": str(home / out), "epochs": 3, "batch_size": 2,
            "data": {"train": source, "val": source, "num_workers": 0, **data},
            "loss": {"queue_size": 4} if task == "retrieval" else {},
            "distill": {"teacher": str(teacher), **distill},
            "run": {"device": "cpu", "charts": False, "log_every": 1, "save_every": 1},
        }
    )  # fmt: skip


def read_losses(folder: Path) -> list[dict[str, Any]]:
    clocks = ("images_per_second", "eta_seconds")
    return [{k: v for k, v in record.items() if k not in clocks} for record in read_log(folder / "log.jsonl")]


@pytest.mark.parametrize(
    ("task", "distill", "data"),
    [
        ("caption", {"lm": 1.0, "views": 2}, {"prompt": "", "texts_per_image": 2, "packed": True}),
        ("retrieval", {"features": 0.5, "itc": 1.0, "itm": 1.0, "views": 1}, {}),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    task: TaskName, distill: dict[str, Any], data: dict[str, Any], tmp_path: Path
) -> None:
    """Recurring views, cached teacher features, and the projection of features: the same weights and losses."""
    recipe = make_recipe(tmp_path, "whole", task, {**distill, "cache": str(tmp_path / "cache")}, **data)
    run(recipe)
    losses = [record for record in read_losses(tmp_path / "whole") if record["kind"] == "train"]
    names = [f"distill_{name}" for name in distill if name != "views"] + ["distill_features"]
    assert all(record[name] > 0 for record in losses for name in names)
    samples = len(TEXTS) * (2 if task == "retrieval" else 1)  # retrieval crops an image anew for each of its texts
    assert 0 < len(list((tmp_path / "cache").rglob("*.npy"))) <= samples * distill["views"], "views recur"
    broken = make_recipe(tmp_path, "broken", task, {**distill, "cache": str(tmp_path / "other")}, **data)
    with pytest.raises(KeyboardInterrupt):
        run(broken, reporters=[Deadly(tmp_path / "deadly.jsonl")])
    assert not (tmp_path / "broken" / "model").exists()
    run(broken, resume=True)
    assert read_losses(tmp_path / "broken") == read_losses(tmp_path / "whole")
    weights, resumed = (load_file(tmp_path / out / "model" / "model.safetensors") for out in ("whole", "broken"))
    assert weights.keys() == resumed.keys()
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)

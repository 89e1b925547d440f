"""Members of a bundle become complete folders. Plain ViTs load in transformers; hybrid ViTs are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import transformers as hf
from torch import nn

import openblip
from openblip.checkpoints import read, write
from openblip.checkpoints.folder import POCKET, write_bundle
from openblip.checkpoints.shared import share_tensors
from openblip.errors import CheckpointError
from openblip.model.base import ImageTextModel
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from tests.checkpoints.test_round_trip import CLASSES, agree
from tests.cli.test_cli import run
from tests.pipelines.pipeline_toys import assert_close
from tests.toys import toy_hybrid, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "grounding", "nlvr")
CALLS: dict[TaskName, Any] = {
    "caption": lambda blip, image: blip.caption(image, n=3),
    "vqa": lambda blip, image: blip.ask(image, "what is it?", n=3),
    "retrieval": lambda blip, image: (blip.match(image, "a dog"), blip.embed_images([image])[0].tolist()),
    "grounding": lambda blip, image: blip.ground(image, "a dog").to_dict(),
    "nlvr": lambda blip, image: blip.compare(image, toy_image(2), "both show a dog"),
}


def make_bundle(folder: Path, kind: str) -> Path:
    """Write a bundle whose members share their image encoder, in half precision."""
    models: dict[TaskName, nn.Module] = {}
    for seed, task in enumerate(TASKS):
        models[task] = toy_hybrid(task, seed=seed) if kind == "hybrid" else toy_model(task, seed=seed, image_size=48)
        encoder = cast(ImageTextModel, models[task]).vision
        encoder.load_state_dict(cast(ImageTextModel, models["caption"]).vision.state_dict())
    for task, model in models.items():
        image = ImageSettings(64 if kind == "hybrid" else 48)
        prompt = "" if task == "caption" else None
        write.save(model, folder / task, tokenizer=toy_tokenizer(), image=image, prompt=prompt, dtype=torch.float16)
    share_tensors([folder / task for task in TASKS])
    write_bundle(folder, {task: folder / task for task in TASKS})
    return folder


@pytest.fixture(scope="module", params=["plain", "hybrid"])
def toys(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("plain"), "plain")


@pytest.mark.parametrize("task", TASKS)
def test_a_member_converts_to_a_complete_folder(toys: Path, task: TaskName, tmp_path: Path) -> None:
    out = tmp_path / "alone"
    result = run("convert", toys, out, "--task", task, "--to", "hub")
    assert result.exit_code == 0, result.output
    files = {path.name for path in out.iterdir()}
    assert files >= {"config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "vocab.txt"}
    assert "shared.json" not in files
    before, after = read.load(toys / task), read.load(out)
    assert (after.config, after.image, after.prompt) == (before.config, before.image, before.prompt)
    state = after.model.state_dict()
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    call = CALLS[task]
    assert_close(call(openblip.load(out), toy_image(1)), call(openblip.load(toys), toy_image(1)))


@pytest.mark.parametrize("task", [task for task in TASKS if task in CLASSES])
def test_a_converted_plain_vit_loads_in_transformers(plain: Path, task: TaskName, tmp_path: Path) -> None:
    run("convert", plain, tmp_path / "alone", "--task", task)
    theirs, report = CLASSES[task].from_pretrained(tmp_path / "alone", output_loading_info=True)
    assert not any(report.values()), report
    agree(task, read.load(plain / task).model, theirs.float().eval())
    assert hf.BlipProcessor.from_pretrained(tmp_path / "alone").image_processor.size == {"height": 48, "width": 48}


# What cannot hold the stem of a hybrid ViT refuses it by name.


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("hybrid")
    for task in ("caption", "vqa", "retrieval"):
        write.save(toy_hybrid(task), home / task, tokenizer=toy_tokenizer())
    write.save(cast(ImageTextModel, toy_hybrid("caption")).vision, home / "vision")
    return home


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("caption", "BlipForConditionalGeneration"), ("vqa", "BlipForQuestionAnswering"),
        ("retrieval", "BlipForImageTextRetrieval"), ("retrieval", "BlipModel"), ("caption", "BlipVisionModel"),
        ("vision", "BlipVisionModel"),
    ],
)  # fmt: skip
def test_classes_of_transformers_refuse_a_stem(hybrid: Path, task: str, name: str) -> None:
    with pytest.raises(CheckpointError, match="transformers has no place for the CNN stem of the hybrid ViT"):
        getattr(openblip, name).from_pretrained(hybrid / task)
    if (task, name) != ("caption", "BlipVisionModel"):  # takes the part of the configuration that is not ours
        with pytest.raises(Exception, match="projection_dim"):
            getattr(hf, name).from_pretrained(hybrid / task)
        assert json.loads((hybrid / task / "config.json").read_text())["model_type"] == "openblip"


@pytest.mark.parametrize("family", ["salesforce", "lavis", "mmpretrain"])
@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval"])
def test_conversion_to_other_families_refuses_a_stem(hybrid: Path, task: str, family: str, tmp_path: Path) -> None:
    result = run("convert", hybrid / task, tmp_path / "model.pth", "--to", family)
    assert result.exit_code == 1
    assert f"the {family} family has no place for the CNN stem of this hybrid ViT" in result.stderr
    assert not (tmp_path / "model.pth").exists()


def test_a_bare_hybrid_image_encoder_survives_a_folder(hybrid: Path) -> None:
    expected = cast(ImageTextModel, toy_hybrid("caption")).vision.state_dict()
    state = read.load(hybrid / "vision").model.state_dict()
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval", "grounding"])
def test_the_bundled_model_converts_to_complete_folders(task: TaskName, tmp_path: Path) -> None:
    result = run("convert", "pocket", tmp_path / "alone", "--task", task, "--to", "hub")
    assert result.exit_code == 0, result.output
    before, after = read.load(POCKET, task=task), read.load(tmp_path / "alone")
    fields = ("config", "image", "prompt", "confidence")
    assert [getattr(after, name) for name in fields] == [getattr(before, name) for name in fields]
    state = after.model.state_dict()
    for name, tensor in before.model.state_dict().items():
        assert torch.equal(state[name], tensor), name
    assert after.tokenizer is not None
    assert before.tokenizer is not None
    assert after.tokenizer.vocab_pieces == before.tokenizer.vocab_pieces
    if before.config.vision.stem is None and task in CLASSES:
        _, report = CLASSES[task].from_pretrained(tmp_path / "alone", output_loading_info=True)
        assert not any(report.values()), report

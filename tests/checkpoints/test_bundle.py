"""Bundles: read, written, moved and found by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import openblip
from openblip.checkpoints.folder import Bundle, write_bundle
from openblip.checkpoints.resolve import resolve
from openblip.errors import CheckpointError, DownloadError, UnsupportedTaskError
from tests.toys import toy_tokenizer


def add_model(folder: Path) -> Path:
    """A model folder, as far as a bundle reads it: a configuration and weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").write_text("[PAD]")
    save_file({"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float16)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle of two local models, one nested, and a published one."""
    home = tmp_path / "mine"
    add_model(home / "models" / "captioner")
    (home / "answers.pth").write_bytes(b"PK weights")
    entries = {"caption": "models/captioner", "vqa": "answers.pth", "retrieval": "Salesforce/blip-itm-base-coco"}
    (home / "bundle.json").write_text(json.dumps(entries))
    return home


def test_paths_are_relative_to_the_bundle(folder: Path, tmp_path: Path) -> None:
    for name in (folder, folder / "bundle.json", str(folder)):
        result = Bundle.find(name)
        assert result is not None
        assert result.models["caption"] == folder / "models" / "captioner"
        assert result.models["vqa"] == folder / "answers.pth"
        assert result.models["retrieval"] == "Salesforce/blip-itm-base-coco"
    shutil.move(folder, tmp_path / "elsewhere")
    moved = Bundle.find(tmp_path / "elsewhere")
    assert moved is not None
    assert moved.models["caption"] == tmp_path / "elsewhere" / "models" / "captioner"


def test_a_relative_path_works_from_any_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    result = Bundle.find("mine")
    monkeypatch.chdir(folder)
    assert result is not None
    assert result.models["caption"] == folder / "models" / "captioner"


def test_a_task_that_is_not_there_names_a_model_that_is(folder: Path) -> None:
    with pytest.raises(UnsupportedTaskError, match=r"only for caption, vqa, retrieval; load model_base_nlvr"):
        resolve(folder, "nlvr")
    with pytest.raises(UnsupportedTaskError, match=r"no model for 'vision'"):
        resolve(folder, "vision")


def test_published_names_are_fetched_only_when_they_are_used(folder: Path) -> None:
    assert resolve(folder, "caption", offline=True) == folder / "models" / "captioner"
    with pytest.raises(DownloadError, match="Salesforce/blip-itm-base-coco is not on this machine"):
        resolve(folder, "retrieval", offline=True)


@pytest.mark.usefixtures("cache")
def test_loading_offline_checks_that_models_are_here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DownloadError, match=r"base cannot be used: Salesforce/blip-image-captioning-base is not on"):
        openblip.load("base", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="large cannot be used"):
        openblip.load("large")
    assert openblip.load("base", offline=False).tasks[0] == "caption", "loaded when it is used"
    blip = openblip.load(folder)
    assert blip.tasks == ("caption", "vqa")
    with pytest.raises(DownloadError, match="Salesforce/blip-itm-base-coco is not on this machine and offline mode"):
        blip.match("photo.jpg", "a cat")
    with pytest.raises(UnsupportedTaskError):
        blip.ground("photo.jpg", "a cat")


def test_what_is_written_is_read_again(tmp_path: Path, folder: Path) -> None:
    target = tmp_path / "new"
    add_model(target / "cap")
    file = write_bundle(target, {"caption": target / "cap", "vqa": folder / "answers.pth", "nlvr": "model_base_nlvr"})
    assert file == target / "bundle.json"
    assert json.loads(file.read_text()) == {
        "caption": "cap",
        "vqa": str(folder / "answers.pth"),
        "nlvr": "model_base_nlvr",
    }
    assert resolve(file, "caption") == target / "cap"


def test_a_bundle_that_cannot_be_read_is_not_written(tmp_path: Path) -> None:
    add_model(tmp_path / "cap")
    write_bundle(tmp_path, {"caption": "cap"})
    with pytest.raises(CheckpointError, match="did you mean model_vqa"):
        write_bundle(tmp_path, {"caption": "model_vqaa"})
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["bundle.json"]
    assert json.loads((tmp_path / "bundle.json").read_text()) == {"caption": "cap"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot read the bundle .*bundle.json: Expecting property name"),
        ("[]", "must map tasks to models"),
        ("{}", "must map tasks to models"),
        ('{"captions": "a"}', "task must be one of .* got 'captions'; did you mean caption"),
        ('{"caption": 3}', "the model of 'caption' must be a name or path, got 3"),
        ('{"caption": "gone"}', "'caption' must be a file or folder next to it, or a published name, got 'gone'"),
        ('{"caption": "./gone/model"}', "must be a file or folder next to it"),
    ],
)
def test_what_is_wrong_is_told(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "bundle.json").write_text(text)
    with pytest.raises(CheckpointError, match=says):
        Bundle.find(tmp_path)


def test_a_bundle_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot read the bundle"):
        Bundle.find(tmp_path / "bundle.json")
    assert Bundle.find(tmp_path) is None
    assert Bundle.find("Salesforce/blip-vqa-base") is None


def test_the_named_bundles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("base", "large"):
        result = Bundle.find(name)
        assert result is not None
        assert result.name == name
        assert set(result.models) == {"caption", "vqa", "retrieval", "nlvr", "grounding"}
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    assert Bundle.find("base") is None, "a folder here comes before the name"


def test_pocket_is_the_folder_in_the_package(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openblip.checkpoints.folder.POCKET", folder)
    result = Bundle.find("pocket")
    assert result is not None
    assert result.name == "pocket"
    assert result.models["caption"] == folder / "models" / "captioner"
    monkeypatch.setattr("openblip.checkpoints.folder.POCKET", tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"cannot read the bundle .*missing.*; install openblip again"):
        Bundle.find("pocket")


DAMAGED = "model.safetensors: Error while deserializing header"


def write_header(file: Path, header: str) -> None:
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode())


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("break_it", "says"),
    [
        (lambda model: (model / "config.json").unlink(), "captioner: .* must have config.json"),
        (lambda model: (model / "config.json").write_text("{"), "must hold a JSON object: Expecting property name"),
        (lambda model: (model / "config.json").write_text("[]"), r"config.json must hold a JSON object, got \[\]"),
        (lambda model: (model / "model.safetensors").unlink(), "and model.safetensors or pytorch_model.bin"),
        (lambda model: (model / "model.safetensors").write_bytes(b""), DAMAGED),
        (lambda model: (model / "model.safetensors").write_text("version https://git-lfs.github.com"), DAMAGED),
        (lambda model: write_header(model / "model.safetensors", "[]"), DAMAGED),
        (lambda model: write_header(model / "model.safetensors", '{"a": 1}'), DAMAGED),
        (lambda model: write_header(model / "model.safetensors", '{"a": {"shape": [1]}}'), DAMAGED),
        (lambda model: write_header(model / "model.safetensors", "[" * 100_000), DAMAGED),
        (lambda model: cut(model / "model.safetensors"), "model.safetensors: .*incomplete"),
        (lambda model: (model / "pytorch_model.bin").touch(), "pytorch_model.bin: not a file of torch.save"),
    ],
)
def test_a_member_that_cannot_be_read_is_named_at_load(
    folder: Path, break_it: Callable[[Path], None], says: str
) -> None:
    assert openblip.load(folder, offline=False).tasks == ("caption", "vqa", "retrieval")
    break_it(folder / "models" / "captioner")
    with pytest.raises(CheckpointError, match=f"bundle.json: the model of 'caption' cannot be read: .*{says}"):
        openblip.load(folder)


@pytest.mark.parametrize("content", [b"", b"a text", b"<html>"])
def test_a_file_that_torch_did_not_save_is_named_at_load(folder: Path, content: bytes) -> None:
    (folder / "answers.pth").write_bytes(content)
    says = r"the model of 'vqa' cannot be read: answers\.pth: not a file of torch.save"
    with pytest.raises(CheckpointError, match=says):
        openblip.load(folder)


def test_a_member_without_vocabulary_is_named_at_load(folder: Path) -> None:
    """A `.pth` member has the vocabulary of BERT, and a published one is not here yet."""
    openblip.load(folder)
    (folder / "models" / "captioner" / "vocab.txt").unlink()
    with pytest.raises(
        CheckpointError, match=r"model of 'caption' .* must have a vocabulary \(tokenizer\.json or vocab\.txt\)"
    ):
        openblip.load(folder)
    with pytest.raises(CheckpointError, match="model of 'caption'"):
        openblip.load(folder, task="caption")
    openblip.load(folder, task="vqa")
    openblip.load(folder, tokenizer=toy_tokenizer())


def test_a_member_can_be_the_folder_of_a_run(folder: Path) -> None:
    add_model(folder / "runs" / "mine" / "model")
    (folder / "runs" / "mine" / "recipe.yaml").write_text("task: caption")
    (folder / "bundle.json").write_text(json.dumps({"caption": "runs/mine"}))
    result = Bundle.find(folder)
    assert result is not None
    assert result.models["caption"] == folder / "runs" / "mine" / "model"


def test_an_unknown_task_of_a_bundle_suggests_the_nearest(folder: Path) -> None:
    with pytest.raises(UnsupportedTaskError, match=r"no model for 'capton', .*; did you mean caption\?"):
        openblip.load(folder, task="capton")  # type: ignore[arg-type]

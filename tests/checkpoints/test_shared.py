"""Hybrid models in hub folders, and tensors that members of a bundle store once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import openblip
from openblip.checkpoints import read, write
from openblip.checkpoints.containers import read_checkpoint, weights_digest, write_safetensors
from openblip.checkpoints.fingerprint import fingerprint
from openblip.checkpoints.folder import write_bundle
from openblip.checkpoints.shared import share_tensors
from openblip.errors import CheckpointError, InputError
from openblip.tasks import TaskName
from tests.toys import TOY_STEM, toy_hybrid, toy_tokenizer

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "nlvr", "grounding", "pretrain")


def save(model: nn.Module, folder: Path) -> Path:
    return write.save(model, folder, tokenizer=toy_tokenizer())


@pytest.mark.parametrize("task", TASKS)
def test_a_hybrid_model_survives_a_hub_folder(task: TaskName, tmp_path: Path) -> None:
    model = toy_hybrid(task)
    loaded = read.load(save(model, tmp_path / "model"))
    assert loaded.config.vision.stem == TOY_STEM
    state = loaded.model.state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(state[name], tensor, rtol=0, atol=0)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "openblip"


@pytest.mark.parametrize("family", ["salesforce", "lavis", "mmpretrain"])
def test_other_families_refuse_a_stem_by_name(family: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"the {family} family has no place for the CNN stem"):
        write.save(toy_hybrid("caption"), tmp_path / "model.pth", to=family)  # type: ignore[arg-type]


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_the_stem_is_loaded_strictly(change: str, tmp_path: Path) -> None:
    folder = save(toy_hybrid("caption"), tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    name = "vision_model.embeddings.stem.blocks.1.project.bias"
    tensor = tensors.pop(name)
    if change == "unknown":
        tensors |= {name: tensor, "vision_model.embeddings.stem.blocks.99.project.bias": tensor.clone()}
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(CheckpointError, match=f"1 {change}"):
        read.load(folder)


@pytest.mark.parametrize("stages", [3, [3], [[1, 3, 1, 1]], [[1, 3, 1, 1, 1.5]]])
def test_stages_of_a_stem_are_five_whole_numbers_each(stages: object, tmp_path: Path) -> None:
    path = save(toy_hybrid("caption"), tmp_path / "model") / "config.json"
    content = json.loads(path.read_text())
    content["openblip"]["stem"]["stages"] = stages
    path.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="each stage of a stem must be five whole numbers"):
        read.load(path.parent)


@pytest.fixture
def members(tmp_path: Path) -> tuple[Path, Path]:
    """A captioner and a matcher with one stem."""
    caption, match = toy_hybrid("caption", seed=1), toy_hybrid("retrieval", seed=2)
    match.vision.stem.load_state_dict(caption.vision.stem.state_dict())  # type: ignore[union-attr]
    return save(caption, tmp_path / "caption"), save(match, tmp_path / "match")


def test_what_members_share_is_stored_once(members: tuple[Path, Path], tmp_path: Path) -> None:
    before = [read_checkpoint(folder).tensors for folder in members]
    shared = load_file(share_tensors(members))
    assert shared
    assert all(".stem." in name for name in shared)
    for folder, tensors in zip(members, before, strict=True):
        assert not shared.keys() & load_file(folder / "model.safetensors").keys()
        after = read_checkpoint(folder).tensors
        assert after.keys() == tensors.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())


def test_a_bundle_with_a_shared_file_moves_as_a_whole_and_converts_to_complete_folders(
    members: tuple[Path, Path], tmp_path: Path
) -> None:
    share_tensors(members)
    write_bundle(tmp_path, {"caption": members[0], "retrieval": members[1]})
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    loaded = read.load(moved, task="retrieval")
    whole = write.save(loaded, moved / "whole")
    assert not (whole / "shared.json").exists()
    assert load_file(whole / "model.safetensors").keys() == read_checkpoint(moved / "match").tensors.keys()


def test_a_saved_folder_no_longer_refers_to_a_shared_file(members: tuple[Path, Path]) -> None:
    share_tensors(members)
    loaded = read.load(members[0])
    save(loaded.model, members[0])
    assert not (members[0] / "shared.json").exists()
    read.load(members[0])


def test_the_digest_of_a_member_covers_the_shared_file(members: tuple[Path, Path]) -> None:
    path = share_tensors(members)
    before = weights_digest(members[0]), fingerprint(str(members[0]), ["caption"])
    write_safetensors(path, {name: tensor + 1 for name, tensor in load_file(path).items()})
    assert weights_digest(members[0]) != before[0]
    assert fingerprint(str(members[0]), ["caption"]) != before[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"file": "../../secret.safetensors", "tensors": {}}, "must name a file next to its folder"),
        ({"file": "other.safetensors", "tensors": {"a": "b"}}, "other.safetensors, which does not exist"),
        (
            {"file": "shared.safetensors", "tensors": {"a": "b"}},
            "shared.safetensors must have the tensors that .* states; wrong are b",
        ),
        ({"file": "shared.safetensors", "tensors": []}, "must have a table"),
    ],
)
def test_a_wrong_reference_is_an_error(members: tuple[Path, Path], content: object, message: str) -> None:
    share_tensors(members)
    (members[0] / "shared.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read.load(members[0])


def test_members_must_lie_side_by_side(members: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must lie in one folder"):
        share_tensors([members[0], tmp_path])


def test_a_bundle_without_its_shared_file_is_refused_at_once(members: tuple[Path, Path], tmp_path: Path) -> None:
    shared = share_tensors(members)
    write_bundle(tmp_path, {"caption": members[0], "retrieval": members[1]})
    openblip.load(tmp_path)
    shared.write_bytes(shared.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"shared\.safetensors: .*incomplete"):
        openblip.load(tmp_path)
    shared.unlink()
    with pytest.raises(CheckpointError, match=r"shared\.safetensors"):
        openblip.load(tmp_path)

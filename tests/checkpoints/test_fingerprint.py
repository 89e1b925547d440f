"""A model is identified by the content of its files, and large files are read once only."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from openblip.checkpoints.fingerprint import fingerprint
from openblip.errors import UnsupportedTaskError
from openblip.io import hashing


@pytest.fixture
def files_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Return the list to which the names of hashed files are added. The cache is empty."""
    names: list[str] = []
    compute = hashing.compute_sha256

    def record(file: Path) -> str:
        names.append(file.name)
        return compute(file)

    monkeypatch.setattr(hashing, "compute_sha256", record)
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    return names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(hashing.MEMO_MIN_BYTES + 1))
    return folder


def test_large_files_are_read_once_and_again_if_they_change(model: Path, tmp_path: Path, files_read: list[str]) -> None:
    original = fingerprint(str(model), ["caption"])
    assert files_read == ["config.json", "model.safetensors"]
    assert fingerprint(str(model), ["caption"]) == original
    assert files_read[2:] == ["config.json"], "a small file is read each time"
    (memo,) = (tmp_path / "cache" / "hashes").iterdir()
    weights = model / "model.safetensors"
    assert json.loads(memo.read_text())["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_bytes(os.urandom(hashing.MEMO_MIN_BYTES + 1))  # the same size
    os.utime(weights, ns=(1, 10**18))
    changed = fingerprint(str(model), ["caption"])
    assert changed != original
    assert files_read[3:] == ["config.json", "model.safetensors"]
    assert fingerprint(str(model), ["caption"]) == changed
    assert files_read[5:] == ["config.json"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": "x"}'])
def test_a_broken_memo_is_replaced(model: Path, tmp_path: Path, files_read: list[str], content: str) -> None:
    original = fingerprint(str(model), ["caption"])
    (memo,) = (tmp_path / "cache" / "hashes").iterdir()
    valid = memo.read_text()
    memo.write_text(content)
    assert fingerprint(str(model), ["caption"]) == original
    assert files_read.count("model.safetensors") == 2
    assert memo.read_text() == valid


def test_a_cache_that_cannot_be_written_is_not_needed(model: Path, tmp_path: Path, files_read: list[str]) -> None:
    (tmp_path / "cache").write_text("a file, not a folder")
    assert fingerprint(str(model), ["caption"]) == fingerprint(str(model), ["caption"])
    assert files_read.count("model.safetensors") == 2


def test_names_and_contents_decide_and_folders_do_not(model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    original = fingerprint(str(model), ["caption"])
    assert fingerprint(str(copy), ["caption"]) == original
    (copy / "config.json").rename(copy / "settings.json")
    assert fingerprint(str(copy), ["caption"]) != original


def test_a_bundle_needs_only_the_first_task(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "captioner.pth")
    (tmp_path / "bundle.json").write_text(json.dumps({"caption": "captioner.pth"}))
    assert set(fingerprint(str(tmp_path), ["caption", "vqa"])) == {"caption"}
    with pytest.raises(UnsupportedTaskError):
        fingerprint(str(tmp_path), ["vqa", "caption"])


def test_a_recorded_hash_is_used_without_reading_the_file(model: Path, files_read: list[str]) -> None:
    weights = model / "model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    original = fingerprint(str(model), ["caption"])
    files_read.clear()
    (model / "model.safetensors.sha256").write_text(f"{digest}  model.safetensors\n")
    assert fingerprint(str(model), ["caption"]) == original
    assert files_read == ["config.json"]

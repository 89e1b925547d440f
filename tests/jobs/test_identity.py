"""Which model a job uses is told by its files, and large ones are read once only."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from openblip.jobs import identity
from openblip.jobs.identity import fingerprint


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the files that are read to be hashed; the cache is empty."""
    names: list[str] = []
    digest = identity._digest

    def counted(file: Path) -> str:
        names.append(file.name)
        return digest(file)

    monkeypatch.setattr(identity, "_digest", counted)
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    return names


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(identity._SMALL + 1))
    return folder


def test_large_files_are_read_once_and_again_when_they_change(model: Path, tmp_path: Path, read: list[str]) -> None:
    first = fingerprint(str(model), ["caption"])
    assert read == ["config.json", "model.safetensors"]
    assert fingerprint(str(model), ["caption"]) == first
    assert read[2:] == ["config.json"], "what is small is read each time"
    (noted,) = (tmp_path / "cache" / "hashes").iterdir()
    weights = model / "model.safetensors"
    assert json.loads(noted.read_text())["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.write_bytes(os.urandom(identity._SMALL + 1))  # as large as before
    os.utime(weights, ns=(1, 10**18))
    changed = fingerprint(str(model), ["caption"])
    assert changed != first
    assert read[3:] == ["config.json", "model.safetensors"]
    assert fingerprint(str(model), ["caption"]) == changed
    assert read[5:] == ["config.json"]


@pytest.mark.parametrize("told", ["", "[]", "{}", '{"sha256": "x"}'])
def test_a_note_that_makes_no_sense_is_written_anew(model: Path, tmp_path: Path, read: list[str], told: str) -> None:
    first = fingerprint(str(model), ["caption"])
    (noted,) = (tmp_path / "cache" / "hashes").iterdir()
    good = noted.read_text()
    noted.write_text(told)
    assert fingerprint(str(model), ["caption"]) == first
    assert read.count("model.safetensors") == 2
    assert noted.read_text() == good


def test_a_cache_that_cannot_be_written_is_done_without(model: Path, tmp_path: Path, read: list[str]) -> None:
    (tmp_path / "cache").write_text("in the way")
    assert fingerprint(str(model), ["caption"]) == fingerprint(str(model), ["caption"])
    assert read.count("model.safetensors") == 2

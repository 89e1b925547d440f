"""Hashes are those of `hashlib`, and a large file is read once."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from openblip.io import hashing
from openblip.io.cache import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are hashed."""
    names: list[str] = []
    compute = hashing.compute_sha256

    def record(path: Path) -> str:
        names.append(path.name)
        return compute(path)

    monkeypatch.setattr(hashing, "compute_sha256", record)
    return names


@pytest.mark.parametrize("size", [0, 5, (1 << 20) - 1, 1 << 20, (3 << 20) + 7])
def test_it_is_the_hash_of_the_content(tmp_path: Path, size: int) -> None:
    content = os.urandom(size)
    (tmp_path / "file").write_bytes(content)
    for function in (hashing.sha256, hashing.sha256, hashing.compute_sha256):
        assert function(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_large_file_is_read_again_only_if_it_changed(tmp_path: Path, cache: Path, reads: list[str]) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    first = hashing.sha256(file)
    (tmp_path / "link").symlink_to(file)
    assert hashing.sha256(tmp_path / "link") == first
    assert reads == ["file"]
    os.utime(file, ns=(0, 0))
    assert hashing.sha256(file) == first
    file.write_bytes(b"x" * (1 << 20))
    assert hashing.sha256(file) != first
    assert reads == ["file"] * 3
    assert len(list((cache / "hashes").iterdir())) == 1


def test_a_stored_hash_is_not_computed(tmp_path: Path, reads: list[str]) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    hashing.store_sha256(file, "0" * 64)
    assert hashing.sha256(file) == "0" * 64
    assert reads == []


def test_a_small_file_is_not_remembered(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    hashing.sha256(tmp_path / "file")
    hashing.store_sha256(tmp_path / "file", "0" * 64)
    assert not cache.exists()


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"sha256": 5}', "\udcff"])
def test_a_damaged_memo_is_replaced(tmp_path: Path, cache: Path, content: str) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    expected = hashing.sha256(file)
    (entry,) = (cache / "hashes").iterdir()
    whole = entry.read_bytes()
    entry.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert hashing.sha256(file) == expected
    assert entry.read_bytes() == whole


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1 << 20))
    cache.write_text("not a folder")
    assert hashing.sha256(file) == hashlib.sha256(bytes(1 << 20)).hexdigest()


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hashing.sha256(tmp_path / "none")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", "~/mine")
    assert cache_folder() == Path.home() / "mine"
    monkeypatch.delenv("OPENBLIP_CACHE")
    monkeypatch.setenv("HF_HOME", "/hub")
    assert cache_folder() == Path("/hub/openblip")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_folder() == Path("/caches/huggingface/openblip")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/huggingface/openblip"

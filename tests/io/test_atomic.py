"""Atomic writes: a reader finds the old content or the new content, whatever fails and whenever a writer dies."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO

import pytest

from openblip.io import atomic

WRITERS: dict[str, Callable[[Path], None]] = {
    "bytes": lambda path: atomic.write_bytes(path, b"new"),
    "text": lambda path: atomic.write_text(path, "new"),
    "json": lambda path: atomic.write_json(path, "new"),
    "sync": lambda path: atomic.write_bytes(path, b"new", sync=True),
}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_half(target: AbstractContextManager[Path | IO[bytes]]) -> None:
    with target as temporary:
        if not isinstance(temporary, Path):
            temporary.write(b"half")
        elif temporary.is_dir():
            (temporary / "a").write_text("half")
        else:
            temporary.write_text("half")
        raise KeyError


@pytest.mark.parametrize("name", WRITERS)
def test_writers_create_folders_and_leave_nothing_else(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a" / "b" / "file.txt"
    for _ in range(2):
        WRITERS[name](path)
        assert path.read_text().strip().strip('"') == "new"
        assert names_in(path.parent) == ["file.txt"]


def test_text_is_written_as_it_is(tmp_path: Path) -> None:
    text = "one\r\ntwo\u2028three \U0001f600\n"
    atomic.write_text(tmp_path / "t", text)
    assert (tmp_path / "t").read_bytes() == text.encode()


def test_json_is_readable_and_ends_its_last_line(tmp_path: Path) -> None:
    atomic.write_json(tmp_path / "t", {"b": "é", "a": [1]}, sort_keys=True)
    assert (tmp_path / "t").read_text(encoding="utf-8") == '{\n  "a": [\n    1\n  ],\n  "b": "é"\n}\n'
    atomic.write_json(tmp_path / "t", {"b": "é", "a": [1]}, indent=None)
    assert (tmp_path / "t").read_text(encoding="utf-8") == '{"b": "é", "a": [1]}\n'


@pytest.mark.parametrize("fixed_name", [False, True])
def test_a_failing_block_leaves_the_old_file(tmp_path: Path, fixed_name: bool) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError):
        write_half(atomic.replace_file(path, fixed_name=fixed_name))
    with pytest.raises(KeyError):
        write_half(atomic.replace_path(path, fixed_name=fixed_name))
    with pytest.raises(KeyError), atomic.replace_path(path, fixed_name=fixed_name):
        raise KeyError  # before anything was written
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file"]


@pytest.fixture
def small_files() -> Iterator[None]:
    """The system lets no file grow beyond 64 KiB: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("small_files")
def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="too large"):
        atomic.write_bytes(path, bytes(1 << 20))
    with pytest.raises(OSError, match="too large"):
        atomic.write_json(path, "x" * (1 << 20))
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file"]


def test_a_value_that_json_cannot_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError):
        atomic.write_json(path, {"a": {1}})
    with pytest.raises(UnicodeEncodeError):
        atomic.write_text(path, "\udcff")
    assert path.read_text() == "old"
    assert names_in(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from openblip.io import atomic
with atomic.replace_file(sys.argv[1], fixed_name=sys.argv[2] == "fixed") as file:
    file.write(b"half")
    file.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(("name", "files"), [("fixed", 2), ("random", 4)])
def test_a_killed_writer_leaves_the_old_file(tmp_path: Path, name: str, files: int) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", KILLED, path, name], check=False)
        assert done.returncode == -signal.SIGKILL
        assert path.read_text() == "old"
    assert len(names_in(tmp_path)) == files, "a fixed name leaves one file, however many writers were killed"
    with atomic.replace_file(path, fixed_name=True) as file:
        file.write(b"new")
    assert path.read_text() == "new"


def test_permissions_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    for mode in (0o600, 0o640, 0o444):
        path.chmod(mode)
        atomic.write_text(path, "new")
        assert stat.S_IMODE(path.stat().st_mode) == mode


def test_the_modification_time_can_be_set(tmp_path: Path) -> None:
    with atomic.replace_file(
        tmp_path / "file", times_ns=(1_500_000_000_000_000_000, 1_600_000_000_123_456_789)
    ) as file:
        file.write(b"x")
    assert (tmp_path / "file").stat().st_mtime_ns == 1_600_000_000_123_456_789


@pytest.mark.parametrize("name", ["n" * 255, os.fsdecode(b"caf\xe9.txt"), "-", " "])
@pytest.mark.parametrize("fixed_name", [False, True])
def test_any_file_name_works(tmp_path: Path, name: str, fixed_name: bool) -> None:
    with atomic.replace_file(tmp_path / name, fixed_name=fixed_name) as file:
        file.write(b"x")
    assert names_in(tmp_path) == [name]


def test_sync_flushes_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    rename = Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: events.append(f"sync of {os.fstat(file).st_size} bytes"))

    def replace(path: Path, target: Path) -> Path:
        events.append("rename")
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    atomic.write_bytes(tmp_path / "file", b"abc", sync=True)
    assert events == ["sync of 3 bytes", "rename"]
    atomic.write_bytes(tmp_path / "file", b"abc")
    assert events[2:] == ["rename"]


def test_a_new_folder_appears_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    with atomic.replace_folder(path, final_file="z") as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
    assert names_in(path) == ["a"]
    assert names_in(path.parent) == ["folder"]
    with pytest.raises(KeyError):
        write_half(atomic.replace_folder(tmp_path / "other"))
    assert names_in(tmp_path) == ["a"]


def test_an_existing_folder_is_incomplete_while_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("config", "weights", "stale", "mine"):
        (folder / name).write_text("old")
    seen: list[set[str]] = []
    rename = Path.replace

    def replace(path: Path, target: Path) -> Path:
        seen.append(set(names_in(folder)))
        return rename(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    with atomic.replace_folder(folder, final_file="config", stale=["stale", "absent"]) as temporary:
        for name in ("config", "weights", "tokens"):
            (temporary / name).write_text("new")
    assert len(seen) == 3
    assert all("config" not in names and "stale" not in names for names in seen)
    assert seen[-1] == {"weights", "tokens", "mine"}, "the last file comes when all others are there"
    assert {name: (folder / name).read_text() for name in names_in(folder)} == {
        "config": "new",
        "weights": "new",
        "tokens": "new",
        "mine": "old",
    }


def test_the_first_of_two_created_folders_stays(tmp_path: Path) -> None:
    path = tmp_path / "cache"
    with atomic.create_folder(path) as outer:
        (outer / "who").write_text("second")
        with atomic.create_folder(path) as inner:
            (inner / "who").write_text("first")
    assert (path / "who").read_text() == "first"
    assert names_in(tmp_path) == ["cache"]
    (tmp_path / "file").write_text("x")
    with pytest.raises(OSError, match="file"), atomic.create_folder(tmp_path / "file"):
        pass
    assert json.loads('"x"') == (tmp_path / "file").read_text()


def test_a_replacement_keeps_the_mode_the_attributes_and_the_links(tmp_path: Path) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to("file")
    has_attributes = hasattr(os, "setxattr")
    if has_attributes:
        try:
            os.setxattr(path, "user.rating", b"5")
        except OSError:
            has_attributes = False
    with atomic.replace_file(link, strict=True) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o640
    if has_attributes:
        assert os.getxattr(path, "user.rating") == b"5"


@pytest.mark.skipif(not hasattr(os, "chown") or os.geteuid() != 0, reason="only root can give files away")
def test_a_replacement_keeps_the_owner(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 1234, 2345)
    atomic.write_text(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 2345)


def test_a_file_with_hard_links_is_not_replaced_if_it_must_keep_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    (tmp_path / "twin").hardlink_to(path)
    with pytest.raises(OSError, match="2 hard links"), atomic.replace_file(path, strict=True) as file:
        file.write(b"new")
    assert path.read_text() == "old"
    assert path.stat().st_nlink == 2
    assert len(list(tmp_path.iterdir())) == 2

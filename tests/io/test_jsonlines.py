"""JSON Lines: what is written is what is read, for any text, and an interrupted writer costs its last line only."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openblip.io import jsonlines

# Any text without a lone surrogate, with line ends of every kind more often than chance would have them.
TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.text('a\n\r\u2028\u2029\x85\x0b\x0c\ufeff"\\ ')
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=10,
)


def read(content: bytes) -> list[Any]:
    return [jsonlines.decode(line.content) for line in jsonlines.iter_lines(content)]


@given(st.lists(VALUES, max_size=5))
def test_what_is_written_is_read(values: list[Any]) -> None:
    content = b"".join(jsonlines.encode(value) for value in values)
    assert content.count(b"\n") == len(values)
    assert read(content) == values
    assert read(b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n\r\n")) == values


@given(st.lists(st.dictionaries(TEXTS, TEXTS, max_size=2), min_size=1, max_size=4), st.data())
def test_a_torn_last_line_is_marked(values: list[dict[str, str]], data: st.DataObject) -> None:
    content = b"".join(jsonlines.encode(value) for value in values)
    size = data.draw(st.integers(0, len(content)))
    lines = list(jsonlines.iter_lines(content[:size]))
    complete = [line for line in lines if line.complete]
    assert [jsonlines.decode(line.content) for line in complete] == values[: len(complete)]
    assert len(lines) - len(complete) <= 1
    assert len(complete) == content[:size].count(b"\n")
    assert (complete[-1].end if complete else 0) == content[:size].rfind(b"\n") + 1


def test_text_that_is_not_ascii_stays_readable() -> None:
    assert jsonlines.encode({"text": "é \u2028 \U0001f600"}) == '{"text": "é \u2028 \U0001f600"}\n'.encode()


def test_undecodable_file_names_come_back() -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    line = jsonlines.encode({"path": name, "text": "é"})
    assert line == '{"path": "caf\\udce9.jpg", "text": "é"}\n'.encode()
    assert read(line) == [{"path": name, "text": "é"}]


def test_lines_have_their_positions(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n  \n[2]\n3'
    expected = [(1, b'{"a": 1}', 13, True), (4, b"[2]", 21, True), (5, b"3", 22, False)]
    assert [tuple(line) for line in jsonlines.iter_lines(content)] == expected
    (tmp_path / "f").write_bytes(content)
    with (tmp_path / "f").open("rb") as file:
        assert [tuple(line) for line in jsonlines.iter_lines(file)] == expected
    assert list(jsonlines.read(tmp_path / "f")) == [{"a": 1}, [2], 3]
    assert list(jsonlines.read(tmp_path / "f", skip_partial=True)) == [{"a": 1}, [2]]


@pytest.mark.parametrize("line", [b'{"a": ', b"\xff", b"[" * 100_000, b"{'a': 1}"])
def test_an_error_names_file_and_line(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "f.jsonl").write_bytes(b"1\n\n" + line + b"\n4\n")
    values = jsonlines.read(tmp_path / "f.jsonl")
    assert next(values) == 1
    with pytest.raises(ValueError, match=r"f\.jsonl:3 is not JSON: "):
        next(values)


class FullDisk:
    """A file on a disk that is full after some more bytes."""

    def __init__(self, path: Path, room: int) -> None:
        self.file = path.open("ab", buffering=0)
        self.room = room

    def fileno(self) -> int:
        return self.file.fileno()

    def flush(self) -> None:
        self.file.flush()

    def write(self, content: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        count = self.file.write(content[: self.room])
        assert count is not None
        self.room -= count
        return count


def test_append(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    for buffering in (-1, 0):
        with path.open("ab", buffering=buffering) as file:
            jsonlines.append(file, [{"a": 1}, {"b": "é"}], sync=True)
            jsonlines.append(file, [])
            assert path.read_bytes().endswith('{"a": 1}\n{"b": "é"}\n'.encode())
    assert len(list(jsonlines.read(path))) == 4


@pytest.mark.parametrize("room", [0, 3, 20])
def test_a_failed_append_leaves_no_part_of_a_line(tmp_path: Path, room: int) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"old": 1}\n')
    file: Any = FullDisk(path, room)
    with pytest.raises(OSError, match="No space"):
        jsonlines.append(file, [{"new": number} for number in range(3)])
    assert path.read_bytes() == b'{"old": 1}\n'


def test_append_returns_when_the_lines_are_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    with (tmp_path / "f").open("ab") as file:
        jsonlines.append(file, [1])
        assert sizes == []
        jsonlines.append(file, [2], sync=True)
    assert sizes == [4]


def test_dumps_is_one_line() -> None:
    assert jsonlines.dumps({"text": "a\nb"}) == '{"text": "a\\nb"}'
    assert json.loads(jsonlines.dumps("\u2028")) == "\u2028"

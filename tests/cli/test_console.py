"""Tables on a terminal: file names stay whole, and long paths are shortened in the middle."""

from __future__ import annotations

import sys

import pytest

from openblip.cli.console import print_table, shorten_path

PATH = "/home/someone/pictures/2024/summer holidays/by the sea/IMG_20240817_123456.jpg"


@pytest.mark.parametrize("width", [24, 30, 40, 60, len(PATH), 200])
def test_a_shortened_path_keeps_its_file_name(width: int) -> None:
    short = shorten_path(PATH, width)
    assert len(short) <= width
    assert short.endswith("/IMG_20240817_123456.jpg") or width < 26
    assert short.startswith("/home"[: max(0, width - 26)])
    assert shorten_path(short, width) == short


def test_a_name_that_is_too_long_keeps_both_ends() -> None:
    name = "a" * 40 + "_the_end.jpeg"
    short = shorten_path(f"folder/{name}", 24)
    assert (len(short), short[:3], short[-5:]) == (24, "aaa", ".jpeg")
    assert shorten_path("short.jpg", 24) == "short.jpg"


def test_a_table_does_not_split_file_names(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[object]] = [[PATH, "a very long caption " * 8, 0.5], ["b.jpg", "short", None]]
    print_table(["image", "caption", "p"], rows)
    assert PATH in capsys.readouterr().out, "in full into a file"
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table(["image", "caption", "p"], rows)
    out = capsys.readouterr().out
    assert "…/IMG_20240817_123456.jpg  a very" in out
    assert all(len(line) <= 80 for line in out.splitlines()[1:])  # the heading has the codes of bold


def test_control_characters_of_names_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["image", "caption"], [["new\nline\x1b[31m.jpg", "a cat\ton a bed"], ["ä😀.jpg", "b"]])
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[0] for line in lines] == ["new\\nline\\x1b[31m.jpg", "ä😀.jpg"]
    assert lines[0][1] == "a cat\\ton a bed"

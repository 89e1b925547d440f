"""The contact sheet: every picture in its place, with what the model says of it; a broken one does not end it."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import openblip

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "photos"
sheet: dict[str, Any] = runpy.run_path(str(ROOT / "scripts" / "contact_sheet.py"))

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_sheet_of_the_example_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cat", "rocket"):
        (tmp_path / f"{name}.jpg").write_bytes((PHOTOS / f"{name}.jpg").read_bytes())
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    out = tmp_path / "out" / "sheet.png"
    sheet["main"]([str(tmp_path), str(out), "--columns", "2", "--text", "a cat", "--text", "a rocket"])
    assert "3 pictures" in capsys.readouterr().out
    with Image.open(out) as drawn:
        assert drawn.width == 2 * sheet["MARGIN"] + 2 * sheet["WIDTH"] + sheet["GAP"]
        left, top = sheet["MARGIN"], sheet["MARGIN"] + sheet["HEAD"]
        middle = (left + sheet["WIDTH"] + sheet["GAP"] + sheet["WIDTH"] // 2, top + sheet["HEIGHT"] // 2)
        pixel = drawn.convert("RGB").getpixel(middle)
    with Image.open(PHOTOS / "cat.jpg") as photo:  # the second by name, after the broken one
        whole = photo.convert("RGB")
        expected = whole.getpixel((whole.width // 2, whole.height // 2))
    assert isinstance(pixel, tuple)
    assert isinstance(expected, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) < 60


def test_it_tells_what_the_model_says() -> None:
    blip = openblip.load("pocket")
    texts = ("a cat", "a rocket")
    (told,) = sheet["tell"](blip, [PHOTOS / "cat.jpg"], "what is it?", texts)
    assert told.caption == blip.caption(PHOTOS / "cat.jpg").text
    assert told.answer == blip.ask(PHOTOS / "cat.jpg", "what is it?").text
    probabilities = dict(told.matches)
    assert probabilities.keys() == set(texts)
    assert [p for _, p in told.matches] == sorted(probabilities.values(), reverse=True)
    lone = openblip.load("pocket", task="caption")
    (told,) = sheet["tell"](lone, [PHOTOS / "cat.jpg"], "what is it?", texts)
    assert (told.answer, told.matches) == ("-", ())


def test_long_captions_are_wrapped_and_no_line_is_wider_than_its_cell() -> None:
    font = sheet["_font"](38)
    lines = sheet["_wrapped"]("word " * 30 + "w" * 300, font, 500)
    assert len(lines) > 3
    assert all(font.getlength(line) <= 500 for line in lines)

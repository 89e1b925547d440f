"""The contact sheet: every image in its cell, with the output of the model; a broken image is no error."""

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
    assert "3 images" in capsys.readouterr().out
    with Image.open(out) as image:
        assert image.width == 2 * sheet["MARGIN"] + 2 * sheet["WIDTH"] + sheet["GAP"]
        x, y = sheet["MARGIN"], sheet["MARGIN"] + sheet["HEAD"]
        center = (x + sheet["WIDTH"] + sheet["GAP"] + sheet["WIDTH"] // 2, y + sheet["HEIGHT"] // 2)
        pixel = image.convert("RGB").getpixel(center)
    with Image.open(PHOTOS / "cat.jpg") as photo:  # the second by name, after the broken one
        rgb = photo.convert("RGB")
        expected = rgb.getpixel((rgb.width // 2, rgb.height // 2))
    assert isinstance(pixel, tuple)
    assert isinstance(expected, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) < 60


def test_it_shows_the_output_of_the_model() -> None:
    blip = openblip.load("pocket")
    texts = ("a cat", "a rocket")
    (description,) = sheet["describe"](blip, [PHOTOS / "cat.jpg"], "what is it?", texts)
    assert description.caption == blip.caption(PHOTOS / "cat.jpg").text
    assert description.answer == blip.ask(PHOTOS / "cat.jpg", "what is it?").text
    probabilities = dict(description.matches)
    assert probabilities.keys() == set(texts)
    assert [p for _, p in description.matches] == sorted(probabilities.values(), reverse=True)
    captioner = openblip.load("pocket", task="caption")
    (description,) = sheet["describe"](captioner, [PHOTOS / "cat.jpg"], "what is it?", texts)
    assert (description.answer, description.matches) == ("-", ())


def test_long_captions_are_wrapped_to_the_width_of_a_cell() -> None:
    font = sheet["_font"](38)
    lines = sheet["_wrap"]("word " * 30 + "w" * 300, font, 500)
    assert len(lines) > 3
    assert all(font.getlength(line) <= 500 for line in lines)

"""Draw a contact sheet: pictures in a grid, each with its caption, an answer, and how well some texts match it.

    python scripts/contact_sheet.py PHOTOS sheet.png --model pocket --question "what is in the picture?" \\
        --text "a dog" --text "a person"

PHOTOS is a folder. The sheet shows the model as it is: nothing is chosen or mended.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from PIL import Image, ImageDraw, ImageFont, ImageOps

import openblip
from openblip.errors import OpenBlipError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
QUESTION = "what is in the picture?"
DASH = "-"
TEXTS = ("people", "an animal", "a room", "a street", "food")

# Pixels. A cell is a picture over its texts; everything is drawn at twice its size and halved, which smooths corners.
FINE = 2
WIDTH, HEIGHT, GAP, MARGIN = 360, 260, 28, 48
CORNER, PAD, HEAD = 14, 16, 92
TEXT, SMALL, TITLE = 19, 16, 30
LINE = 1.35
BAR = 6
PAPER, CARD, INK, SOFT, TRACK, ACCENT = "#f3f1ec", "#ffffff", "#1d1d1f", "#6e6e73", "#e8e6e1", "#2f6f62"

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Told:
    """What a model says of one picture; ``matches`` are texts with their probabilities, the best first."""

    caption: str
    answer: str
    matches: tuple[tuple[str, float], ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """From the command line to a PNG."""
    options = _arguments(arguments)
    paths = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in SUFFIXES)[: options.count]
    if not paths:
        raise SystemExit(f"{options.photos} holds no pictures ({', '.join(SUFFIXES)})")
    blip = openblip.load(options.model)
    told = list(tell(blip, paths, options.question, options.text or TEXTS))
    title = options.title or options.model
    sheet = draw(paths, told, title=title, question=options.question, columns=options.columns)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.sheet)
    print(f"{options.sheet}: {len(paths)} pictures, {sheet.width} x {sheet.height} pixels")


def tell(blip: openblip.Blip, paths: Sequence[Path], question: str, texts: Sequence[str]) -> Iterator[Told]:
    """Caption, answer and matches of each picture; a task that the model lacks, or a bad picture, is a dash."""
    for path in paths:
        caption = _heard(lambda path: blip.caption(path).text, path) if "caption" in blip.tasks else None
        answer = _heard(lambda path: blip.ask(path, question).text, path) if "vqa" in blip.tasks else None
        found = _heard(lambda path: blip.match(path, list(texts)), path) if "retrieval" in blip.tasks else None
        matches = [(text, match.probability) for text, match in zip(texts, found or (), strict=False)]
        yield Told(caption or DASH, answer or DASH, tuple(sorted(matches, key=lambda pair: -pair[1])))


def draw(paths: Sequence[Path], told: Sequence[Told], *, title: str, question: str, columns: int) -> Image.Image:
    """The whole sheet."""
    fonts = {size: _font(size * FINE) for size in (TEXT, SMALL, TITLE)}
    columns = min(columns, len(paths))
    rows = [told[at : at + columns] for at in range(0, len(told), columns)]
    heights = [max(_height(one, fonts) for one in row) for row in rows]
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP
    height = MARGIN + HEAD + sum(heights) + (len(rows) - 1) * GAP + MARGIN
    sheet = Image.new("RGB", (width * FINE, height * FINE), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN * FINE, (MARGIN - 8) * FINE), title, font=fonts[TITLE], fill=INK)
    below = f"caption  ·  {question}  ·  match"
    pen.text((MARGIN * FINE, (MARGIN + 36) * FINE), below, font=fonts[SMALL], fill=SOFT)
    top = MARGIN + HEAD
    for row, tall in enumerate(heights):
        for column, one in enumerate(rows[row]):
            left = MARGIN + column * (WIDTH + GAP)
            _cell(sheet, (left, top), tall, paths[row * columns + column], one, fonts)
        top += tall + GAP
    return sheet.resize((width, height), Image.Resampling.LANCZOS)


def _cell(
    sheet: Image.Image, place: tuple[int, int], tall: int, path: Path, told: Told, fonts: dict[int, Font]
) -> None:
    left, top = (value * FINE for value in place)
    pen = ImageDraw.Draw(sheet)
    box = (left, top, left + WIDTH * FINE - 1, top + tall * FINE - 1)
    pen.rounded_rectangle(box, CORNER * FINE, fill=CARD)
    _photo(sheet, (left, top), path)
    x, y = left + PAD * FINE, top + (HEIGHT + PAD) * FINE
    for text, size, colour in _lines(told, fonts):
        pen.text((x, y), text, font=fonts[size], fill=colour)
        y += round(size * LINE) * FINE
    y += PAD // 2 * FINE
    for text, probability in told.matches:
        _match(pen, x, y, text, probability, fonts[SMALL])
        y += (round(SMALL * LINE) + BAR + 8) * FINE


def _photo(sheet: Image.Image, place: tuple[int, int], path: Path) -> None:
    size = (WIDTH * FINE, HEIGHT * FINE)
    try:
        with Image.open(path) as opened:
            photo = ImageOps.fit(ImageOps.exif_transpose(opened).convert("RGB"), size, Image.Resampling.LANCZOS)
    except OSError:
        photo = Image.new("RGB", size, TRACK)
    mask = Image.new("L", size, 0)
    # Round above, straight below, where the texts follow.
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] + CORNER * FINE), CORNER * FINE, fill=255)
    sheet.paste(photo, place, mask)


def _match(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, probability: float, font: Font) -> None:
    """A text, its probability, and a bar below them."""
    wide = (WIDTH - 2 * PAD) * FINE
    number = f"{probability:.0%}"
    room = wide - pen.textlength(f"  {number}", font=font)
    pen.text((x, y), _shortened(text, font, room), font=font, fill=SOFT)
    pen.text((x + wide, y), number, font=font, fill=SOFT, anchor="ra")
    under = y + (round(SMALL * LINE)) * FINE
    pen.rounded_rectangle((x, under, x + wide, under + BAR * FINE), BAR * FINE // 2, fill=TRACK)
    if (length := round(wide * probability)) >= BAR * FINE:
        pen.rounded_rectangle((x, under, x + length, under + BAR * FINE), BAR * FINE // 2, fill=ACCENT)


def _lines(told: Told, fonts: dict[int, Font]) -> list[tuple[str, int, str]]:
    room = (WIDTH - 2 * PAD) * FINE
    caption = [(line, TEXT, INK) for line in _wrapped(told.caption, fonts[TEXT], room)]
    return caption + [(line, SMALL, ACCENT) for line in _wrapped(told.answer, fonts[SMALL], room)]


def _height(told: Told, fonts: dict[int, Font]) -> int:
    lines = sum(round(size * LINE) for _, size, _ in _lines(told, fonts))
    bars = len(told.matches) * (round(SMALL * LINE) + BAR + 8)
    return HEIGHT + PAD + lines + PAD // 2 + bars + PAD


def _wrapped(text: str, font: Font, room: float) -> list[str]:
    """Lines of whole words; a word wider than the cell is cut."""
    lines = [""]
    for word in text.split() or [DASH]:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room:
            lines[-1] = longer
        else:
            lines.append(_shortened(word, font, room))
    return [line for line in lines if line]


def _shortened(text: str, font: Font, room: float) -> str:
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _font(size: int) -> Font:
    return cast(Font, ImageFont.load_default(size))  # Pillow's own, the same on every machine


def _heard(ask: Callable[[Path], Any], path: Path) -> Any:
    try:
        return ask(path)
    except OpenBlipError:
        return None


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of pictures with what a model says of them.")
    parser.add_argument("photos", type=Path, help="a folder of pictures")
    parser.add_argument("sheet", type=Path, help="the PNG to write")
    parser.add_argument("--model", default="pocket", help="anything that openblip.load takes")
    parser.add_argument("--question", default=QUESTION)
    parser.add_argument("--text", action="append", help=f"to match; may be repeated (default: {', '.join(TEXTS)})")
    parser.add_argument("--title", default="", help="above the sheet (default: the model's name)")
    parser.add_argument("--columns", type=int, default=6)
    parser.add_argument("--count", type=int, default=24, help="pictures at most")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

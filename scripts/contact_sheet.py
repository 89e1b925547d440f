"""Draw a contact sheet: images in a grid, each with a caption, an answer, and the match of some texts.

    python scripts/contact_sheet.py PHOTOS sheet.png --model pocket --question "what is in the picture?" \\
        --text "a dog" --text "a person"

PHOTOS is a folder. The sheet shows the raw output of the model: nothing is selected or corrected.
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

# Pixels. A cell is an image above its texts; everything is drawn at twice its size and halved, to smooth corners.
SCALE = 2
WIDTH, HEIGHT, GAP, MARGIN = 360, 260, 28, 48
CORNER, PAD, HEAD = 14, 16, 92
TEXT, SMALL, TITLE = 19, 16, 30
LINE = 1.35
BAR = 6
PAPER, CARD, INK, SOFT, TRACK, ACCENT = "#f3f1ec", "#ffffff", "#1d1d1f", "#6e6e73", "#e8e6e1", "#2f6f62"

Font = ImageFont.FreeTypeFont


@dataclass(frozen=True)
class Description:
    """The output of a model for one image; `matches` are texts with their probabilities, the best first."""

    caption: str
    answer: str
    matches: tuple[tuple[str, float], ...]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the sheet."""
    options = _arguments(arguments)
    paths = sorted(path for path in options.photos.iterdir() if path.suffix.lower() in SUFFIXES)[: options.count]
    if not paths:
        raise SystemExit(f"{options.photos} has no images ({', '.join(SUFFIXES)})")
    blip = openblip.load(options.model)
    descriptions = list(describe(blip, paths, options.question, options.text or TEXTS))
    title = options.title or options.model
    sheet = draw(paths, descriptions, title=title, question=options.question, columns=options.columns)
    options.sheet.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.sheet)
    print(f"{options.sheet}: {len(paths)} images, {sheet.width} x {sheet.height} pixels")


def describe(blip: openblip.Blip, paths: Sequence[Path], question: str, texts: Sequence[str]) -> Iterator[Description]:
    """Yield caption, answer and matches of each image; a dash stands for a missing task or a bad image."""
    for path in paths:
        caption = _try(lambda path: blip.caption(path).text, path) if "caption" in blip.tasks else None
        answer = _try(lambda path: blip.ask(path, question).text, path) if "vqa" in blip.tasks else None
        results = _try(lambda path: blip.match(path, list(texts)), path) if "retrieval" in blip.tasks else None
        matches = [(text, match.probability) for text, match in zip(texts, results or (), strict=False)]
        yield Description(caption or DASH, answer or DASH, tuple(sorted(matches, key=lambda pair: -pair[1])))


def draw(
    paths: Sequence[Path], descriptions: Sequence[Description], *, title: str, question: str, columns: int
) -> Image.Image:
    """Return the sheet."""
    fonts = {size: _font(size * SCALE) for size in (TEXT, SMALL, TITLE)}
    columns = min(columns, len(paths))
    rows = [descriptions[i : i + columns] for i in range(0, len(descriptions), columns)]
    heights = [max(_height(description, fonts) for description in row) for row in rows]
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP
    height = MARGIN + HEAD + sum(heights) + (len(rows) - 1) * GAP + MARGIN
    sheet = Image.new("RGB", (width * SCALE, height * SCALE), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN * SCALE, (MARGIN - 8) * SCALE), title, font=fonts[TITLE], fill=INK)
    subtitle = f"caption  ·  {question}  ·  match"
    pen.text((MARGIN * SCALE, (MARGIN + 36) * SCALE), subtitle, font=fonts[SMALL], fill=SOFT)
    y = MARGIN + HEAD
    for row, row_height in enumerate(heights):
        for column, description in enumerate(rows[row]):
            x = MARGIN + column * (WIDTH + GAP)
            _draw_cell(sheet, (x, y), row_height, paths[row * columns + column], description, fonts)
        y += row_height + GAP
    return sheet.resize((width, height), Image.Resampling.LANCZOS)


def _draw_cell(
    sheet: Image.Image,
    position: tuple[int, int],
    height: int,
    path: Path,
    description: Description,
    fonts: dict[int, Font],
) -> None:
    x0, y0 = (value * SCALE for value in position)
    pen = ImageDraw.Draw(sheet)
    box = (x0, y0, x0 + WIDTH * SCALE - 1, y0 + height * SCALE - 1)
    pen.rounded_rectangle(box, CORNER * SCALE, fill=CARD)
    _draw_image(sheet, (x0, y0), path)
    x, y = x0 + PAD * SCALE, y0 + (HEIGHT + PAD) * SCALE
    for text, size, color in _lines(description, fonts):
        pen.text((x, y), text, font=fonts[size], fill=color)
        y += round(size * LINE) * SCALE
    y += PAD // 2 * SCALE
    for text, probability in description.matches:
        _draw_match(pen, x, y, text, probability, fonts[SMALL])
        y += (round(SMALL * LINE) + BAR + 8) * SCALE


def _draw_image(sheet: Image.Image, position: tuple[int, int], path: Path) -> None:
    size = (WIDTH * SCALE, HEIGHT * SCALE)
    try:
        with Image.open(path) as file:
            image = ImageOps.fit(ImageOps.exif_transpose(file).convert("RGB"), size, Image.Resampling.LANCZOS)
    except OSError:
        image = Image.new("RGB", size, TRACK)
    mask = Image.new("L", size, 0)
    # Round corners at the top; straight ones at the bottom, above the texts.
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] + CORNER * SCALE), CORNER * SCALE, fill=255)
    sheet.paste(image, position, mask)


def _draw_match(pen: ImageDraw.ImageDraw, x: int, y: int, text: str, probability: float, font: Font) -> None:
    """Draw a text, its probability, and a bar below them."""
    width = (WIDTH - 2 * PAD) * SCALE
    number = f"{probability:.0%}"
    text_width = width - pen.textlength(f"  {number}", font=font)
    pen.text((x, y), _shorten(text, font, text_width), font=font, fill=SOFT)
    pen.text((x + width, y), number, font=font, fill=SOFT, anchor="ra")
    bar_y = y + (round(SMALL * LINE)) * SCALE
    pen.rounded_rectangle((x, bar_y, x + width, bar_y + BAR * SCALE), BAR * SCALE // 2, fill=TRACK)
    if (length := round(width * probability)) >= BAR * SCALE:
        pen.rounded_rectangle((x, bar_y, x + length, bar_y + BAR * SCALE), BAR * SCALE // 2, fill=ACCENT)


def _lines(description: Description, fonts: dict[int, Font]) -> list[tuple[str, int, str]]:
    width = (WIDTH - 2 * PAD) * SCALE
    caption = [(line, TEXT, INK) for line in _wrap(description.caption, fonts[TEXT], width)]
    return caption + [(line, SMALL, ACCENT) for line in _wrap(description.answer, fonts[SMALL], width)]


def _height(description: Description, fonts: dict[int, Font]) -> int:
    lines = sum(round(size * LINE) for _, size, _ in _lines(description, fonts))
    bars = len(description.matches) * (round(SMALL * LINE) + BAR + 8)
    return HEIGHT + PAD + lines + PAD // 2 + bars + PAD


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """Return lines of complete words; a word wider than the cell is cut."""
    lines = [""]
    for word in text.split() or [DASH]:
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_shorten(word, font, width))
    return [line for line in lines if line]


def _shorten(text: str, font: Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text.rstrip()}…"


def _font(size: int) -> Font:
    return cast(Font, ImageFont.load_default(size))  # the font of Pillow, equal on every machine


def _try(predict: Callable[[Path], Any], path: Path) -> Any:
    """Return a prediction, or `None` for an image that cannot be used."""
    try:
        return predict(path)
    except OpenBlipError:
        return None


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw a contact sheet of images with the output of a model.")
    parser.add_argument("photos", type=Path, help="folder of images")
    parser.add_argument("sheet", type=Path, help="PNG to write")
    parser.add_argument("--model", default="pocket", help="model, as openblip.load accepts it")
    parser.add_argument("--question", default=QUESTION, help="question to answer about every image")
    parser.add_argument(
        "--text", action="append", help=f"text to match; repeat the option for more (default: {', '.join(TEXTS)})"
    )
    parser.add_argument("--title", default="", help="title of the sheet (default: the name of the model)")
    parser.add_argument("--columns", type=int, default=6, help="images per row")
    parser.add_argument("--count", type=int, default=24, help="largest number of images")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()

"""Results as pictures: boxes drawn in, heat laid over.

Nothing here changes the picture it is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Edges: TypeAlias = tuple[float, float, float, float]  # left, top, right, bottom in pixels

_COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_TILE = 320  # pixels: the side that a tile of a sheet fits in
_COLUMNS = 4


class HeatMaps(Protocol):
    """The part of an `Explanation` that is drawn."""

    @property
    def text(self) -> str: ...
    @property
    def words(self) -> tuple[str, ...]: ...
    @property
    def maps(self) -> NDArray[np.float32]: ...
    @property
    def overall(self) -> NDArray[np.float32]: ...
    @property
    def probability(self) -> float: ...
    @property
    def answer(self) -> str | None: ...


def draw_boxes(
    picture: Image.Image,
    boxes: Sequence[Edges],
    names: Sequence[str],
    *,
    colours: Sequence[Any] = _COLOURS,
    width: int | None = None,
) -> Image.Image:
    """The picture with every box, under its name, in the next of the `colours`; lines `width` pixels wide.

    A box on the edges of earlier ones is drawn inside them, and a name that would cover another stands below it.
    """
    drawn = picture.convert("RGB")
    canvas = ImageDraw.Draw(drawn)
    line = width or max(2, round(max(picture.size) / 250))
    font = ImageFont.load_default(max(12, round(max(picture.size) / 40)))
    for number, box in enumerate(boxes):
        inset = line * sum(_alike(box, other, line) for other in boxes[:number])
        left, top, right, bottom = box[0] + inset, box[1] + inset, box[2] - inset - 1, box[3] - inset - 1
        colour = colours[number % len(colours)]
        canvas.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=line)
    taken: list[Edges] = []
    for number, (box, name) in enumerate(zip(boxes, names, strict=True)):  # last: no line goes through a name
        taken.append(_label(canvas, box[:2], name, font, colours[number % len(colours)], picture.size, taken))
    return drawn


def overlay(picture: Image.Image, heat: NDArray[Any]) -> Image.Image:
    """The picture under a heat map (H, W) of any size: blue where there is least, red where there is most.

    Heat counts from the least in the map to its greatest. Where it is low the picture shows through, as in LAVIS (jet
    colours, opacity heat^0.7).
    """
    least, span = float(heat.min()), float(heat.max() - heat.min())
    shares = (np.asarray(heat, np.float32) - least) / span if span > 0 else np.zeros(heat.shape, np.float32)
    smooth = Image.fromarray(shares).resize(picture.size, Image.Resampling.BICUBIC)
    level = np.asarray(smooth).clip(0, 1)[..., None]
    colours = (1.5 - abs(4 * level - np.array([3.0, 2.0, 1.0]))).clip(0, 1) * 255
    opacity = level**0.7
    mixed = np.asarray(picture.convert("RGB")) * (1 - opacity) + colours * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw_explanation(picture: Image.Image, explanation: HeatMaps) -> Image.Image:
    """A sheet: the picture, where all words looked, and a tile for every word, each on a scale of its own.

    The percentage is a word's share of the heat of all.
    """
    small = picture.convert("RGB")
    small.thumbnail((_TILE, _TILE))
    total = float(explanation.maps.sum())
    tiles = [(small, f"probability {explanation.probability:.3g}"), (overlay(small, explanation.overall), "all words")]
    for word, heat in zip(explanation.words, explanation.maps, strict=True):
        share = float(heat.sum()) / total if total else 0.0
        tiles.append((overlay(small, heat), f"{word} ({share:.0%})"))
    said = explanation.text if explanation.answer is None else f"{explanation.text} - {explanation.answer}"
    return _sheet(tiles, said)


def titled(picture: Image.Image, lines: Sequence[str]) -> Image.Image:
    """The picture over lines of text, on white; long ones are broken where they are too long."""
    font, gap, line = ImageFont.load_default(15), 6, 22
    broken = [part for text in lines for part in _broken(text, font, max(picture.width, 120))]
    width = max(picture.width, 120) + 2 * gap
    drawn = Image.new("RGB", (width, picture.height + 2 * gap + line * len(broken)), "white")
    drawn.paste(picture, (gap, gap))
    canvas = ImageDraw.Draw(drawn)
    for number, text in enumerate(broken):
        canvas.text((gap, picture.height + gap + number * line + 2), text, "black", font)
    return drawn


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """Pictures in a row, each as high as the first."""
    high = pictures[0].height
    row = [picture.resize((max(1, round(picture.width * high / picture.height)), high)) for picture in pictures]
    drawn = Image.new("RGB", (sum(picture.width for picture in row) + 6 * (len(row) - 1), high), "white")
    left = 0
    for picture in row:
        drawn.paste(picture, (left, 0))
        left += picture.width + 6
    return drawn


def gallery(pictures: Sequence[Image.Image], names: Sequence[str]) -> Image.Image:
    """Pictures in a row, each over its name."""
    tiles = []
    for picture, name in zip(pictures, names, strict=True):
        small = picture.convert("RGB")
        small.thumbnail((_TILE, _TILE))
        tiles.append(titled(small, [name]))
    return beside(tiles)


def _sheet(tiles: Sequence[tuple[Image.Image, str]], title: str) -> Image.Image:
    """Pictures of one size in rows, each over a line of text, under a title."""
    font, gap, line = ImageFont.load_default(15), 6, 22
    width, height = tiles[0][0].size
    columns = min(_COLUMNS, len(tiles))
    across, down = width + gap, height + line + gap
    sheet = Image.new("RGB", (columns * across + gap, line + math.ceil(len(tiles) / columns) * down + gap), "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((gap, gap), _fitting(title, font, sheet.width - 2 * gap), "black", font)
    for number, (tile, text) in enumerate(tiles):
        left, top = gap + number % columns * across, line + gap + number // columns * down
        sheet.paste(tile, (left, top))
        canvas.text((left, top + height + 2), _fitting(text, font, width), "black", font)
    return sheet


def _fitting(text: str, font: Any, width: int) -> str:
    """The text, cut with dots if it is longer than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _broken(text: str, font: Any, width: int) -> list[str]:
    """The text in lines of up to `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_fitting(line, font, width) for line in lines] or [""]


def _alike(one: Edges, other: Edges, within: float) -> bool:
    return all(abs(a - b) <= within for a, b in zip(one, other, strict=True))


def _label(
    canvas: ImageDraw.ImageDraw, corner: tuple[float, float], text: str, font: Any, colour: Any,
    size: tuple[int, int], taken: Sequence[Edges],
) -> Edges:  # fmt: skip
    """White text on a coloured ground, always inside the picture; the place that it took.

    Above the corner if there is room, else below it; below names that it would cover, as long as the picture lasts.
    """
    text = _fitting(text, font, size[0] - 4)
    wide, high = font.getlength(text) + 4, font.size + 4
    left = max(0.0, min(corner[0], size[0] - wide))
    top = first = corner[1] - high if corner[1] >= high else min(corner[1], size[1] - high)
    while any(left < x1 and x0 < left + wide and top < y1 and y0 < top + high for x0, y0, x1, y1 in taken):
        top += high
    top = top if top + high <= size[1] else first
    canvas.rectangle((left, top, left + wide, top + high), fill=colour)
    canvas.text((left + 2, top + 1), text, "white", font)
    return left, top, left + wide, top + high

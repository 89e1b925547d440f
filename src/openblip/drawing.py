"""Drawings of results: boxes in an image, and heat maps over it. The input image is never modified.

Shapes: H and W height and width of a heat map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Edges: TypeAlias = tuple[float, float, float, float]
"""Left, top, right and bottom edge in pixels."""
Color: TypeAlias = str | tuple[int, ...]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_COLORS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
_TILE_SIZE = 320  # pixels: tiles are at most this wide and high
_COLUMNS = 4
_FONT_SIZE = 15
_LINE_HEIGHT = 22
_GAP = 6


class HeatMaps(Protocol):
    """The fields of an [`Explanation`][openblip.Explanation] that are drawn."""

    @property
    def text(self) -> str:
        """The explained text."""

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the text."""

    @property
    def maps(self) -> NDArray[np.float32]:
        """A map per word."""

    @property
    def overall(self) -> NDArray[np.float32]:
        """The map of the whole text."""

    @property
    def probability(self) -> float:
        """The probability of the text."""

    @property
    def answer(self) -> str | None:
        """The explained answer, if the text is a question."""


def draw_boxes(
    image: Image.Image,
    boxes: Sequence[Edges],
    names: Sequence[str],
    *,
    colors: Sequence[Color] = _COLORS,
    width: int | None = None,
) -> Image.Image:
    """Draw boxes and their names into a copy of an image.

    A box that coincides with earlier ones is drawn inside them, and a name that would cover another one is moved below
    it.

    Args:
        image: The image.
        boxes: The edges of each box.
        names: The name of each box.
        colors: Colors of the boxes, used in turn.
        width: Line width in pixels; by default it follows the size of the image.

    Returns:
        An RGB image of the same size.
    """
    drawing = image.convert("RGB")
    canvas = ImageDraw.Draw(drawing)
    line = width or max(2, round(max(image.size) / 250))
    font = ImageFont.load_default(max(12, round(max(image.size) / 40)))
    for index, box in enumerate(boxes):
        inset = 0
        for earlier in boxes[:index]:
            if all(abs(a - b) <= line for a, b in zip(box, earlier, strict=True)):
                inset += line
        x0, y0, x1, y1 = box[0] + inset, box[1] + inset, box[2] - inset - 1, box[3] - inset - 1
        canvas.rectangle((x0, y0, max(x0, x1), max(y0, y1)), outline=colors[index % len(colors)], width=line)
    labels: list[Edges] = []
    for index, (box, name) in enumerate(zip(boxes, names, strict=True)):  # after all boxes: no line crosses a name
        labels.append(_draw_label(canvas, box[:2], name, font, colors[index % len(colors)], image.size, labels))
    return drawing


def overlay(image: Image.Image, heat: NDArray[np.floating]) -> Image.Image:
    """Draw a heat map over a copy of an image, as LAVIS does: jet colors with opacity heat^0.7.

    The minimum of the map is transparent, its maximum is red.

    Args:
        image: The image.
        heat: Heat (H, W); it is resized to the image.

    Returns:
        An RGB image of the same size.
    """
    minimum, span = float(heat.min()), float(heat.max() - heat.min())
    relative = (np.asarray(heat, np.float32) - minimum) / span if span > 0 else np.zeros(heat.shape, np.float32)
    smooth = Image.fromarray(relative).resize(image.size, Image.Resampling.BICUBIC)
    level = np.asarray(smooth).clip(0, 1)[..., None]
    colors = (1.5 - abs(4 * level - np.array([3.0, 2.0, 1.0]))).clip(0, 1) * 255
    opacity = level**0.7
    mixed = np.asarray(image.convert("RGB")) * (1 - opacity) + colors * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def draw_explanation(image: Image.Image, explanation: HeatMaps) -> Image.Image:
    """Draw a sheet of heat maps: the image, all words together, and one tile per word with its share of the heat.

    Args:
        image: The image that was explained.
        explanation: The explanation.

    Returns:
        An RGB image. Each tile has its own color scale.
    """
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((_TILE_SIZE, _TILE_SIZE))
    total = float(explanation.maps.sum())
    tiles = [(thumbnail, f"probability {explanation.probability:.3g}")]
    tiles.append((overlay(thumbnail, explanation.overall), "all words"))
    for word, heat in zip(explanation.words, explanation.maps, strict=True):
        share = float(heat.sum()) / total if total else 0.0
        tiles.append((overlay(thumbnail, heat), f"{word} ({share:.0%})"))
    title = explanation.text if explanation.answer is None else f"{explanation.text} - {explanation.answer}"
    return _draw_sheet(tiles, title)


def add_lines(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Draw an image above lines of text on a white ground; lines that are too long are wrapped.

    Args:
        image: The image.
        lines: The lines of text.

    Returns:
        A larger RGB image.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    text_width = max(image.width, 120)
    wrapped: list[str] = []
    for text in lines:
        wrapped += _wrap(text, font, text_width)
    size = (text_width + 2 * _GAP, image.height + 2 * _GAP + _LINE_HEIGHT * len(wrapped))
    drawing = Image.new("RGB", size, "white")
    drawing.paste(image, (_GAP, _GAP))
    canvas = ImageDraw.Draw(drawing)
    for index, text in enumerate(wrapped):
        canvas.text((_GAP, image.height + _GAP + index * _LINE_HEIGHT + 2), text, "black", font)
    return drawing


def draw_row(images: Sequence[Image.Image]) -> Image.Image:
    """Draw images in a row, each resized to the height of the first one."""
    height = images[0].height
    row = [image.resize((max(1, round(image.width * height / image.height)), height)) for image in images]
    drawing = Image.new("RGB", (sum(image.width for image in row) + _GAP * (len(row) - 1), height), "white")
    x = 0
    for image in row:
        drawing.paste(image, (x, 0))
        x += image.width + _GAP
    return drawing


def draw_gallery(images: Sequence[Image.Image], names: Sequence[str]) -> Image.Image:
    """Draw thumbnails of images in a row, each above its name."""
    tiles = []
    for image, name in zip(images, names, strict=True):
        thumbnail = image.convert("RGB")
        thumbnail.thumbnail((_TILE_SIZE, _TILE_SIZE))
        tiles.append(add_lines(thumbnail, [name]))
    return draw_row(tiles)


def _draw_sheet(tiles: Sequence[tuple[Image.Image, str]], title: str) -> Image.Image:
    """Draw images of one size in rows, each above its text, under a title."""
    font = ImageFont.load_default(_FONT_SIZE)
    width, height = tiles[0][0].size
    columns = min(_COLUMNS, len(tiles))
    step_x, step_y = width + _GAP, height + _LINE_HEIGHT + _GAP
    size = (columns * step_x + _GAP, _LINE_HEIGHT + math.ceil(len(tiles) / columns) * step_y + _GAP)
    sheet = Image.new("RGB", size, "white")
    canvas = ImageDraw.Draw(sheet)
    canvas.text((_GAP, _GAP), _shorten(title, font, sheet.width - 2 * _GAP), "black", font)
    for index, (tile, text) in enumerate(tiles):
        x, y = _GAP + index % columns * step_x, _LINE_HEIGHT + _GAP + index // columns * step_y
        sheet.paste(tile, (x, y))
        canvas.text((x, y + height + 2), _shorten(text, font, width), "black", font)
    return sheet


def _shorten(text: str, font: Font, width: int) -> str:
    """Return the text, cut with dots if it is wider than `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def _wrap(text: str, font: Font, width: int) -> list[str]:
    """Return the text as lines of at most `width` pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return [_shorten(line, font, width) for line in lines] or [""]


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    font: Font,
    color: Color,
    image_size: tuple[int, int],
    labels: Sequence[Edges],
) -> Edges:
    """Draw white text on a colored ground inside the image, and return the edges of the ground.

    The label is above the corner if there is room, otherwise below it, and below earlier labels that it would cover.
    """
    text = _shorten(text, font, image_size[0] - 4)
    width, height = font.getlength(text) + 4, font.size + 4  # type: ignore[union-attr]  # the default font is scalable
    x0 = max(0.0, min(corner[0], image_size[0] - width))
    start = corner[1] - height if corner[1] >= height else min(corner[1], image_size[1] - height)
    y0 = start
    while any(
        x0 < right and left < x0 + width and y0 < bottom and top < y0 + height for left, top, right, bottom in labels
    ):
        y0 += height
    if y0 + height > image_size[1]:
        y0 = start
    canvas.rectangle((x0, y0, x0 + width, y0 + height), fill=color)
    canvas.text((x0 + 2, y0 + 1), text, "white", font)
    return x0, y0, x0 + width, y0 + height

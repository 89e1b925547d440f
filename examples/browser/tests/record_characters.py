"""Write `lib/characters.js`: the character classes of the `tokenizers` library, which are those of an old Unicode.

    python examples/browser/tests/record_characters.py

The classes of JavaScript differ: they follow the Unicode version of each browser.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import tokenizers
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer

TARGET = Path(__file__).parents[1] / "lib" / "characters.js"

_CODE_POINTS = [i for i in range(0x110000) if not 0xD800 <= i < 0xE000]
_OFF = {"clean_text": False, "handle_chinese_chars": False, "strip_accents": False, "lowercase": False}
_CLEAN = BertNormalizer(**{**_OFF, "clean_text": True})
_CHINESE = BertNormalizer(**{**_OFF, "handle_chinese_chars": True})
_ACCENTS = BertNormalizer(**{**_OFF, "strip_accents": True})
_SPLITTER = BertPreTokenizer()

_CLASSES: dict[str, tuple[str, Callable[[str], bool]]] = {
    "isRemoved": (
        "characters that are dropped: control and format characters, and U+FFFD",
        lambda c: _CLEAN.normalize_str(f"a{c}a") == "aa",
    ),
    "isChinese": (
        "ideographs, each of which is a word",
        lambda c: _CHINESE.normalize_str(c) != c,
    ),
    "isAccent": (
        "marks that are dropped from letters",
        lambda c: _ACCENTS.normalize_str(c) == "",
    ),
    "isPunctuation": (
        "marks, each of which is a word",
        lambda c: [piece for piece, _ in _SPLITTER.pre_tokenize_str(f"a{c}a")] == ["a", c, "a"],
    ),
}


def main() -> None:
    """Write the file."""
    lines = [
        f"// Character classes of tokenizers {tokenizers.__version__}. Written by tests/record_characters.py.",
        "",
        "/** Read starts and ends of ranges of code points, in turn: distances from the previous one, in base 36. */",
        "function readRanges(text) {",
        "  let point = 0;",
        '  return text.split(" ").map((distance) => (point += parseInt(distance, 36)));',
        "}",
        "",
        "/** Return whether a sorted list of starts and ends has a range with a code point. */",
        "function contains(bounds, point) {",
        "  let low = 0;",
        "  let high = bounds.length;",
        "  while (low < high) {",
        "    const middle = (low + high) >> 1;",
        "    if (bounds[middle] <= point) low = middle + 1;",
        "    else high = middle;",
        "  }",
        "  return low % 2 === 1;",
        "}",
    ]
    for name, (description, belongs) in _CLASSES.items():
        constant = name.removeprefix("is").upper()
        bounds = find_bounds(belongs)
        distances = [bound - previous for bound, previous in zip(bounds, [0, *bounds], strict=False)]
        lines += [
            "",
            f"// {description[0].upper()}{description[1:]}.",
            f'const {constant} = readRanges("{" ".join(map(to_base_36, distances))}");',
            "",
            f"/** @param {{number}} point @returns {{boolean}} Whether a code point is one of the {description}. */",
            f"export const {name} = (point) => contains({constant}, point);",
        ]
    TARGET.write_text("\n".join(lines) + "\n", encoding="utf-8")


def find_bounds(belongs: Callable[[str], bool]) -> list[int]:
    """Return the starts and (exclusive) ends of the ranges of code points that belong to a class, in turn."""
    bounds: list[int] = []
    inside = False
    for point in _CODE_POINTS:
        if belongs(chr(point)) != inside:
            inside = not inside
            bounds.append(point)
    return bounds + [0x110000] * inside


def to_base_36(number: int) -> str:
    """Return a number in base 36."""
    digits = ""
    while number or not digits:
        number, digit = divmod(number, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits


if __name__ == "__main__":
    main()

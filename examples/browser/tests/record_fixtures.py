"""Record what OpenBLIP computes, for the tests of the JavaScript modules.

    python examples/browser/tests/record_fixtures.py

The files in `fixtures/` state the versions that computed them. Large images are not stored: both sides make them from
the same formula, and the file has the hash of the resized image.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import random
import struct
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import PIL
import tokenizers
import torch
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from openblip.decoding import Decoding, generate
from openblip.preprocess.image import load_image, resize
from openblip.preprocess.text import Tokenizer, clean_caption, clean_question

FIXTURES = Path(__file__).parent / "fixtures"
POCKET = Path(__file__).parents[3] / "src" / "openblip" / "pocket" / "caption"

_SHAPES = [  # width, height, formula, side of the square
    (224, 224, "noise", 224),
    (1, 1, "noise", 224),
    (1, 500, "noise", 224),
    (500, 1, "noise", 224),
    (3, 2, "checks", 224),
    (16, 16, "gray", 224),
    (7, 900, "noise", 224),
    (2000, 30, "noise", 224),
    (300, 4000, "gradient", 224),
    (224, 3000, "noise", 224),
    (3000, 224, "noise", 224),
    (640, 480, "checks", 224),
    (480, 640, "gray", 224),
    (673, 449, "noise", 224),
    (449, 673, "noise", 224),
    (449, 674, "noise", 224),
    (449, 675, "noise", 224),
    (1000, 1000, "gradient", 384),
    (1200, 1800, "noise", 384),
    (4000, 3000, "noise", 224),
    (1500, 6000, "checks", 224),
    (5, 7, "noise", 3),
]


def main() -> None:
    """Write all fixtures."""
    FIXTURES.mkdir(exist_ok=True)
    _write("resize", {"pillow": PIL.__version__, "cases": [record_resize(*shape) for shape in _SHAPES]})
    _write("png", {"pillow": PIL.__version__, "cases": record_png()})
    _write("text", {"tokenizers": tokenizers.__version__, **record_text()})
    _write("tokenizer", describe_tokenizer())
    _write("decoding", {"torch": torch.__version__, **record_decoding()})


def _write(name: str, content: dict[str, Any]) -> None:
    lines = json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace('},{"', '},\n{"')
    (FIXTURES / f"{name}.json").write_text(lines + "\n", encoding="utf-8")


# Resize.


def make_pixels(width: int, height: int, formula: str) -> NDArray[np.uint8]:
    """Return the pixels (H, W, 3) of a formula; `pixels.js` computes the same."""
    x = np.arange(width, dtype=np.uint32)[None, :, None]
    y = np.arange(height, dtype=np.uint32)[:, None, None]
    channel = np.arange(3, dtype=np.uint32)[None, None]
    if formula == "gradient":
        values = (x * 255 // max(1, width - 1) + y * 255 // max(1, height - 1) + channel * 85) & 255
    elif formula == "checks":
        values = ((x >> 2) ^ (y >> 3) ^ channel) & 1
        values = values * 255
    else:
        mixed = (x + 1) * np.uint32(0x9E3779B1) ^ (y + 1) * np.uint32(0x85EBCA77)
        if formula == "noise":
            mixed = mixed ^ (channel + 1) * np.uint32(0xC2B2AE3D)
        mixed ^= mixed >> np.uint32(15)
        mixed = mixed * np.uint32(0x2C1B3C6D)
        values = (mixed ^ (mixed >> np.uint32(12))) & 255
    return np.broadcast_to(values, (height, width, 3)).astype(np.uint8)


def record_resize(width: int, height: int, formula: str, size: int) -> dict[str, Any]:
    """Return the hash of a resized image."""
    pixels = resize(Image.fromarray(make_pixels(width, height, formula)), size)
    digest = hashlib.sha256(pixels.tobytes()).hexdigest()
    return {"width": width, "height": height, "formula": formula, "size": size, "sha256": digest}


# PNG.

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def record_png() -> list[dict[str, Any]]:
    """Return files of every kind with their upright RGB."""
    files: dict[str, bytes] = {}
    for color, depths in _DEPTHS.items():
        for depth in depths:
            for interlaced in (False, True):
                name = f"color {color}, {depth} bits{', interlaced' if interlaced else ''}"
                files[name] = encode_png(13, 9, color, depth, interlaced=interlaced)
            if color in (0, 2, 3):
                files[f"color {color}, {depth} bits, tRNS"] = encode_png(13, 9, color, depth, transparent=True)
    files["every pixel transparent"] = encode_png(5, 4, 6, 8, alpha=0)
    files["every pixel transparent, gray"] = encode_png(5, 4, 4, 16, alpha=0)
    files["palette of two colors"] = encode_png(9, 3, 3, 8, colors=2)
    files["one pixel"] = encode_png(1, 1, 2, 8)
    files["two parts"] = encode_png(13, 9, 2, 8, parts=2)
    for orientation in range(10):
        files[f"orientation {orientation}"] = _save(orientation=orientation)
    for orientation in (3, 6):
        files[f"orientation {orientation} in XMP"] = _save(xmp=f'<x tiff:Orientation="{orientation}"/>')
        files[f"orientation {orientation} in a raw profile"] = _save(profile=orientation)
    files["orientation 1, another in XMP"] = _save(orientation=1, xmp='<x tiff:Orientation="6"/>')
    return [_describe_png(name, data) for name, data in files.items()]


def _describe_png(name: str, data: bytes) -> dict[str, Any]:
    image = load_image(data)
    return {
        "name": name,
        "file": base64.b64encode(data).decode(),
        "width": image.width,
        "height": image.height,
        "rgb": base64.b64encode(image.tobytes()).decode(),
    }


def encode_png(
    width: int,
    height: int,
    color: int,
    depth: int,
    *,
    interlaced: bool = False,
    transparent: bool = False,
    alpha: int | None = None,
    colors: int = 256,
    parts: int = 1,
) -> bytes:
    """Return a PNG file of random samples, with a random filter in each row."""
    rng = random.Random(f"{width} {height} {color} {depth} {interlaced} {transparent}")
    channels, top = _CHANNELS[color], 2**depth - 1
    values = [rng.randint(0, top) for _ in range(4)]  # few values, so that a transparent color occurs
    samples = [[[rng.choice(values) for _ in range(channels)] for _ in range(width)] for _ in range(height)]
    if color in (4, 6):
        for row in samples:
            for pixel in row:
                pixel[-1] = (
                    alpha if alpha is not None else rng.choice([0, top, rng.randint(0, top), rng.randint(0, top)])
                )
    stream = b""
    for start_x, start_y, step_x, step_y in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        rows = [row[start_x::step_x] for row in samples[start_y::step_y]]
        if rows and rows[0]:
            stream += _filter_rows(
                [_pack([v for pixel in row for v in pixel], depth) for row in rows], channels * depth, rng
            )
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced)))]
    if color == 3:
        chunks.append((b"PLTE", bytes(rng.randrange(256) for _ in range(3 * min(colors, top + 1)))))
    if transparent:
        first = samples[0][0]
        if color == 3:
            chunks.append((b"tRNS", bytes(rng.choice([0, 100, 255]) for _ in range(min(100, top + 1)))))
        else:
            chunks.append((b"tRNS", b"".join(struct.pack(">H", value) for value in first)))
    compressed = zlib.compress(stream)
    step = math.ceil(len(compressed) / parts)
    chunks += [(b"IDAT", compressed[start : start + step]) for start in range(0, len(compressed), step)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in [*chunks, (b"IEND", b"")])


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _pack(values: list[int], depth: int) -> bytes:
    if depth == 16:
        return b"".join(struct.pack(">H", value) for value in values)
    bits = "".join(f"{value:0{depth}b}" for value in values)
    return bytes(int(bits[start : start + 8].ljust(8, "0"), 2) for start in range(0, len(bits), 8))


def _filter_rows(rows: list[bytes], pixel_bits: int, rng: random.Random) -> bytes:
    step = max(1, pixel_bits // 8)
    previous, stream = bytes(len(rows[0])), b""
    for row in rows:
        kind = rng.randrange(5)
        filtered = bytearray()
        for i, value in enumerate(row):
            left, up = row[i - step] if i >= step else 0, previous[i]
            corner = previous[i - step] if i >= step else 0
            nearest = min((left, up, corner), key=lambda near: abs(left + up - corner - near))
            filtered.append((value - (0, left, up, (left + up) // 2, nearest)[kind]) % 256)
        stream += bytes([kind]) + filtered
        previous = row
    return stream


def _save(orientation: int | None = None, xmp: str | None = None, profile: int | None = None) -> bytes:
    """Return a PNG file that says how its camera was turned: in EXIF data, in XMP, or as old programs write it."""
    info = PngImagePlugin.PngInfo()
    if xmp is not None:
        info.add_itxt("XML:com.adobe.xmp", xmp)
    if profile is not None:
        exif = Image.Exif()
        exif[0x0112] = profile
        info.add_text("Raw profile type exif", f"\nexif\n{len(exif.tobytes()):8}\n{exif.tobytes().hex()}\n", zip=True)
    options: dict[str, Any] = {}
    if orientation:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(make_pixels(4, 3, "noise")).save(file, "PNG", pnginfo=info, **options)
    return file.getvalue()


# Texts.

_TEXTS = [
    "a dog runs on the beach",
    "A Dog (brown) runs.  It's fast!",
    "what time is it: 3:30?",
    "",
    "   ",
    "don't stop -- it's 3.5 o'clock, isn't it? we've \"gone\" & they're here; he'd go",
    "Caf\u00e9 na\u00efve \u00c5ngstr\u00f6m \u0130stanbul \u00df \u1e9e \u03a3\u03a4\u0399\u03a3",
    "\u732b on a mat \u3042\u3044 \ud55c\uad6d\uc5b4 \U00020000",
    "tab\tnew\nline\r\x0b\x0c\x85\xa0\u2003end\u200b\ufeff\u00ad",
    "nul\x00 \ufffd \x1c\x1f \u061c \u202e",
    "emoji \U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \u2764\ufe0f",
    "antidisestablishmentarianism skateboarding snowboarders " + "x" * 99 + " " + "y" * 101,
    "[SEP] in [CLS]the[MASK] text [DEC][ENC] [UNK] [PAD]s [sep]",
    "a_b c-d e/f g\\h i|j k`l m^n o~p {q} <r> $5 100% #1 @home x+y=z",
    "\u2018quoted\u2019 \u201cdouble\u201d \u2026 \u2014 \u00bf\u00a1 \u3001\u3002 \u066a \u2e43",
    "e\u0301 o\u0308 \u1100\u1161 \ufb01 \u2460 \u212b \U0001d400",
    "\ud800 lone \udc00surrogates",
    "the  man   with . spaces ; and : marks ~",
    "word " * 60,
]
_PROMPTS = ["", "a photo of", "  A photo of snow ", "it's"]


def describe_tokenizer() -> dict[str, Any]:
    """Return the content of the `tokenizer.json` that an export of `pocket` has."""
    with TemporaryDirectory() as folder:
        Tokenizer.load(POCKET).save(folder)
        content: dict[str, Any] = json.loads((Path(folder) / "tokenizer.json").read_text(encoding="utf-8"))
    return content


def record_text() -> dict[str, Any]:
    """Return texts with their ids and cleaned forms, and ids with their texts."""
    tokenizer = Tokenizer.load(POCKET)
    rng = random.Random(0)
    texts = list(_TEXTS)
    for _ in range(60):
        points = [rng.choice([rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0xD800)]) for _ in range(20)]
        texts.append("".join(f"{chr(point)}{rng.choice(['', ' ', 'a', 'the '])}" for point in points))
    sequences = [[*tokenizer.spell(text), tokenizer.sep_id, 0] for text in _TEXTS]
    sequences += [[rng.randrange(tokenizer.vocab_size + 3) for _ in range(12)] for _ in range(30)]
    names = ("pad", "unk", "cls", "sep", "dec", "enc")
    return {
        "special_ids": {name: getattr(tokenizer, f"{name}_id") for name in names},
        "texts": [
            {
                "text": text,
                "ids": tokenizer.spell(text),
                "caption": clean_caption(text, 30),
                "question": clean_question(text, 50),
            }
            for text in texts
        ],
        "sequences": [
            {"ids": ids, "text": tokenizer.decode(ids), "after": [tokenizer.decode_after(p, ids) for p in _PROMPTS]}
            for ids in sequences
        ],
        "prompts": _PROMPTS,
    }


# Decoding.

_VOCAB, _EOS, _PAD = 23, 2, 0
_OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 1},
    {"num_beams": 1, "repetition_penalty": 1.5},
    {"num_beams": 1, "no_repeat_ngram_size": 2, "max_new_tokens": 12},
    {"num_beams": 1, "min_new_tokens": 6},
    {"num_beams": 2},
    {"num_beams": 3},
    {"num_beams": 3, "n": 3},
    {"num_beams": 3, "n": 3, "max_new_tokens": 4},
    {"num_beams": 3, "max_new_tokens": 1, "n": 2},
    {"num_beams": 3, "min_new_tokens": 5},
    {"num_beams": 4, "length_penalty": 0.0, "n": 4},
    {"num_beams": 4, "length_penalty": -1.0},
    {"num_beams": 4, "length_penalty": 2.5, "n": 2},
    {"num_beams": 5, "repetition_penalty": 1.25, "n": 5},
    {"num_beams": 3, "no_repeat_ngram_size": 1, "n": 3},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "n": 3, "max_new_tokens": 14},
    {"num_beams": 3, "early_stopping": True, "n": 3},
    {"num_beams": 13, "n": 13, "max_new_tokens": 5},
]


class TableSession:
    """A session whose logits depend on the final two tokens: entries of a table, in steps of 2 ** -14."""

    def __init__(self, table: NDArray[np.int64], prompt: list[int]) -> None:
        self.table = torch.tensor(table, dtype=torch.float32) / 2**14
        self.rows = [prompt[:-1]]

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Append tokens to all rows; return the logits (rows, V) of the next token."""
        self.rows = [row + [int(i) for i in new[-1:]] for row, new in zip(self.rows, ids, strict=True)]
        return torch.stack(
            [self.table[0, row[-1]] + self.table[1, row[-2] if len(row) > 1 else 0] for row in self.rows]
        )

    def widen(self, width: int) -> None:
        """Repeat the row."""
        self.rows = self.rows * width

    def reorder(self, rows: torch.Tensor) -> None:
        """Replace the rows."""
        self.rows = [self.rows[i] for i in rows.tolist()]

    def keep(self, items: torch.Tensor) -> None:
        """Keep the only item."""


def record_decoding() -> dict[str, Any]:
    """Return tables of logits, and the hypotheses of each table, prompt and set of options."""
    rng = np.random.default_rng(0)
    tables = []
    for i in range(6):
        table = rng.integers(-(2**16), 2**16, (2, _VOCAB, _VOCAB))
        table[:, :, _EOS] += 2**8 * (120, 60, 0, 200, 90, 150)[i]  # texts of different lengths
        tables.append(table)
    cases = []
    for index, table in enumerate(tables):
        for prompt in ([1], [1, 5, 9]):
            for options in _OPTIONS:
                decoding = Decoding(eos_id=_EOS, pad_id=_PAD, **options)
                hypotheses = generate(TableSession(table, prompt), torch.tensor([prompt]), decoding)[0]
                results = [
                    {"ids": h.ids, "logprob": h.logprob, "score": h.score, "finished": h.finished} for h in hypotheses
                ]
                cases.append({"table": index, "prompt": prompt, "options": options, "results": results})
    return {
        "vocab_size": _VOCAB,
        "eos_id": _EOS,
        "tables": [table.flatten().tolist() for table in tables],
        "cases": cases,
    }


if __name__ == "__main__":
    main()

"""A corpus of odd picture files, made here, each with what must come of it, worked out without Pillow's conversions."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Odd:
    """A file; ``expected`` (H, W, 3) to within ``tolerance`` grey levels, or a word of the complaint if it is bad."""

    name: str
    data: bytes
    expected: Bytes | None = None
    tolerance: int = 0
    complaint: str = ""

    def __str__(self) -> str:
        return self.name


WIDTH, HEIGHT = 26, 16


def photo() -> Bytes:
    """Four flat quarters (red, green, blue, sand), so that no mirror image or turn of it equals another."""
    picture = np.empty((HEIGHT, WIDTH, 3), np.uint8)
    top, left = HEIGHT // 2, WIDTH // 2
    picture[:top, :left], picture[:top, left:] = (200, 30, 40), (20, 180, 60)
    picture[top:, :left], picture[top:, left:] = (10, 50, 220), (230, 200, 120)
    return picture


def ramp() -> Bytes:
    """A grey ramp (H, W) from black to white."""
    return np.tile(np.linspace(0, 255, WIDTH).round().astype(np.uint8), (HEIGHT, 1))


def grey(values: Bytes) -> Bytes:
    return np.repeat(values[:, :, None], 3, 2)


def on_white(colours: Bytes, alpha: Bytes) -> Bytes:
    weight = alpha[:, :, None] / 255
    return np.rint(colours * weight + 255 * (1 - weight)).astype(np.uint8)


def encoded(picture: NDArray[Any] | Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(out, form, **options)
    return out.getvalue()


def png(
    width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes], interlaced: bool = False
) -> bytes:
    """A PNG written by hand, for what Pillow does not write. ``kind``: 0 grey, 2 RGB, 4 grey + alpha, 6 RGBA."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    more = b"".join(chunk(*c) for c in chunks)
    body = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more + body + chunk(b"IEND", b"")


def png_rows(values: NDArray[Any]) -> bytes:
    """Rows (H, ...) with PNG's filter byte before each."""
    return b"".join(b"\0" + row.tobytes() for row in values)


def interlaced_rows(values: Bytes) -> bytes:
    """The seven passes of Adam7: first column and row of each, and its steps."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    return b"".join(png_rows(values[y::down, x::right]) for x, y, right, down in passes)


def ycck(picture: Bytes) -> bytes:
    """A JPEG as Photoshop writes CMYK: inks inverted, then turned to YCC, which the Adobe marker's last byte says."""
    to_ycc = np.array([[0.299, -0.168736, 0.5], [0.587, -0.331264, -0.418688], [0.114, 0.5, -0.081312]])
    ycc = (255.0 - picture) @ to_ycc + np.array([0, 128, 128])
    planes = np.dstack([ycc.round().clip(0, 255), np.full(picture.shape[:2], 255)]).astype(np.uint8)
    data = encoded(Image.fromarray(255 - planes, "CMYK"), "JPEG", quality=100, subsampling=0)  # Pillow turns all round
    marker = data.index(b"Adobe")
    return data[: marker + 11] + b"\2" + data[marker + 12 :]


def tiff(values: NDArray[Any], bits: int, photometric: int, rows: bytes | None = None) -> bytes:
    """A little-endian grey TIFF of one strip, written by hand."""
    height, width = values.shape
    strip = values.tobytes() if rows is None else rows
    entries = [
        (256, width),
        (257, height),
        (258, bits),
        (259, 1),
        (262, photometric),
        (273, 8),
        (277, 1),
        (278, height),
    ]
    entries.append((279, len(strip)))
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    return (
        struct.pack("<2sHI", b"II", 42, 8 + len(strip)).ljust(8, b"\0")
        + strip
        + struct.pack("<H", len(entries))
        + directory
        + b"\0\0\0\0"
    )


def deep_tiff(picture: Bytes, *, planar: bool, big_endian: bool = False) -> bytes:
    """An uncompressed TIFF of RGB with 16 bits per channel: a plane for each channel, or pixel by pixel."""
    height, width = picture.shape[:2]
    order = ">" if big_endian else "<"
    values = picture.astype(f"{order}u2") * 257
    strips = [values[..., channel].tobytes() for channel in range(3)] if planar else [values.tobytes()]
    offsets = [8 + sum(map(len, strips[:number])) for number in range(len(strips))]
    directory_at = 8 + sum(map(len, strips))
    lists = {258: [16, 16, 16], 273: offsets, 279: [len(strip) for strip in strips]}
    single = {256: width, 257: height, 259: 1, 262: 2, 277: 3, 278: height, 284: 2 if planar else 1}
    entries, extra, count = b"", b"", len(lists) + len(single)
    for tag in sorted({**lists, **single}):
        numbers = lists.get(tag, [single.get(tag, 0)])
        value = numbers[0]
        if len(numbers) > 1:
            value = directory_at + 6 + 12 * count + len(extra)
            extra += struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(f"{order}HHII", tag, 4, len(numbers), value)
    header = struct.pack(f"{order}2sHI", b"MM" if big_endian else b"II", 42, directory_at)
    return b"".join([header, *strips, struct.pack(f"{order}H", count), entries, bytes(4), extra])


def plain() -> list[Odd]:
    picture, values = photo(), ramp()
    cmyk = np.dstack([255 - picture, np.zeros((HEIGHT, WIDTH, 1), np.uint8)])
    black = np.where(values > 127, 255, 0).astype(np.uint8)
    actual = [
        Odd("png RGB", encoded(picture, "PNG"), picture),
        Odd("png L", encoded(values, "PNG"), grey(values)),
        Odd("png 1", encoded(Image.fromarray(black).convert("1"), "PNG"), grey(black)),
        Odd("png P", encoded(Image.fromarray(picture).quantize(8), "PNG"), picture, 1),
        Odd("jpeg", encoded(picture, "JPEG", quality=100, subsampling=0), picture, 8),
        Odd("jpeg progressive", encoded(picture, "JPEG", quality=100, subsampling=0, progressive=True), picture, 8),
        Odd("jpeg L", encoded(values, "JPEG", quality=100), grey(values), 4),
        Odd("jpeg CMYK", encoded(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=100, subsampling=0), picture, 8),
        Odd("jpeg CMYK of Photoshop", ycck(picture), picture, 8),
        Odd("png interlaced", png(WIDTH, HEIGHT, 8, 2, interlaced_rows(picture), interlaced=True), picture),
        Odd("webp", encoded(picture, "WEBP", lossless=True), picture),
        Odd("gif", encoded(picture, "GIF"), picture, 1),
        Odd("bmp", encoded(picture, "BMP"), picture),
        Odd("tiff", encoded(picture, "TIFF"), picture),
        Odd("tiff lzw", encoded(picture, "TIFF", compression="tiff_lzw"), picture),
        Odd("tiff of 16 bits", deep_tiff(picture, planar=False), picture),
        Odd("tiff of 16 bits in planes", deep_tiff(picture, planar=True), picture),
        Odd("tiff of 16 bits in planes, big-endian", deep_tiff(picture, planar=True, big_endian=True), picture),
        Odd("tiff CMYK", encoded(Image.fromarray(cmyk, "CMYK"), "TIFF"), picture, 1),
        Odd("tiff LAB", encoded(_lab(200), "TIFF"), np.full((HEIGHT, WIDTH, 3), 193, np.uint8), 4),
        Odd("tga", encoded(picture, "TGA"), picture),
        Odd("ppm", encoded(picture, "PPM"), picture),
        Odd("ico", encoded(Image.fromarray(picture[:, :16]), "ICO", sizes=[(16, 16)]), picture[:, :16]),
        Odd("one pixel", encoded(picture[:1, :1], "PNG"), picture[:1, :1]),
        Odd("one row", encoded(picture[:1], "PNG"), picture[:1]),
        Odd("one column", encoded(picture[:, :1], "PNG"), picture[:, :1]),
        Odd("very wide", encoded(np.tile(picture[:1], (1, 400, 1)), "PNG"), np.tile(picture[:1], (1, 400, 1))),
    ]
    Image.init()
    if "JPEG2000" in Image.SAVE:
        actual.append(Odd("jpeg 2000", encoded(picture, "JPEG2000"), picture))
    if "AVIF" in Image.SAVE:
        actual.append(Odd("avif", encoded(picture, "AVIF", quality=100, subsampling="4:4:4"), picture, 8))
    return actual


def _lab(lightness: int) -> Image.Image:
    """An even grey: a* = b* = 0."""
    planes = [Image.new("L", (WIDTH, HEIGHT), value) for value in (lightness, 128, 128)]
    return Image.merge("LAB", planes)


def transparent() -> list[Odd]:
    picture, values = photo(), ramp()
    alpha = np.tile(np.linspace(0, 255, HEIGHT).round().astype(np.uint8)[:, None], (1, WIDTH))
    rgba, la = np.dstack([picture, alpha]), np.dstack([values, alpha])
    stencil = Image.fromarray(picture).quantize(4)
    index = np.asarray(stencil)
    red = index[0, 0]
    without_red = np.where((index == red)[:, :, None], 255, picture).astype(np.uint8)
    no_black = np.where(values, values, 255).astype(np.uint8)
    keyed = np.where((picture == picture[0, 0]).all(2)[:, :, None], 255, picture).astype(np.uint8)
    palette_alpha = bytes(0 if i == red else 128 for i in range(4))
    clear = int(_deep()[0, 3])
    half = on_white(picture, np.where(index == red, 0, 128).astype(np.uint8))
    return [
        Odd("png RGBA", encoded(rgba, "PNG"), on_white(picture, alpha), 1),
        Odd("png LA", encoded(Image.fromarray(la, "LA"), "PNG"), on_white(grey(values), alpha), 1),
        Odd("png P, one clear colour", encoded(stencil, "PNG", transparency=int(red)), without_red, 1),
        Odd("png P, alpha of each colour", encoded(stencil, "PNG", transparency=palette_alpha), half, 2),
        Odd("png RGB, clear colour", encoded(picture, "PNG", transparency=tuple(map(int, picture[0, 0]))), keyed),
        Odd("png L, clear grey", encoded(values, "PNG", transparency=0), grey(no_black)),
        Odd("gif, clear colour", encoded(stencil, "GIF", transparency=int(red)), without_red, 1),
        Odd("webp RGBA", encoded(rgba, "WEBP", lossless=True, exact=True), on_white(picture, alpha), 1),
        Odd("tiff RGBA", encoded(rgba, "TIFF"), on_white(picture, alpha), 1),
        Odd(
            "png 16-bit grey, clear grey",
            png(WIDTH, HEIGHT, 16, 0, png_rows(_deep().astype(">u2")), (b"tRNS", struct.pack(">H", clear))),
            _cleared(clear),
            1,
        ),
    ]  # fmt: skip


def _deep() -> NDArray[np.uint16]:
    """A 16-bit ramp whose low bytes are no copies of the high ones."""
    return np.tile(np.linspace(0, 65535, WIDTH).round().astype(np.uint16), (HEIGHT, 1))


def _cleared(value: int) -> Bytes:
    values = grey(np.rint(_deep() / 257).astype(np.uint8))
    values[_deep() == value] = 255
    return values


def deep() -> list[Odd]:
    """More than 8 bits a sample. A clipped or wrapped ramp differs by far more than one grey level."""
    values, expected = _deep(), grey(ramp())
    colours = np.dstack([values, values[:, ::-1], values // 2])
    in_colour = np.dstack([ramp(), ramp()[:, ::-1], ramp() // 2])
    twelve = (values >> 4).astype(np.uint16)
    packed = np.stack(
        [twelve[:, ::2] >> 4, (twelve[:, ::2] & 15) << 4 | twelve[:, 1::2] >> 8, twelve[:, 1::2] & 255], 2
    )
    floats = (values / 65535).astype(np.float32)
    ppm = b"P5 %d %d 1023\n" % (WIDTH, HEIGHT) + (values >> 6).astype(">u2").tobytes()
    return [
        Odd("png 16-bit grey", encoded(values, "PNG"), expected, 1),
        Odd("png 16-bit RGB", png(WIDTH, HEIGHT, 16, 2, png_rows(colours.astype(">u2"))), in_colour, 1),
        Odd("tiff 16-bit", encoded(values, "TIFF"), expected, 1),
        Odd("tiff 16-bit, white is zero", tiff(values, 16, 0), 255 - expected, 1),
        Odd("tiff 8-bit, white is zero", tiff(ramp(), 8, 0), 255 - expected),
        Odd("tiff 12-bit", tiff(values, 12, 1, packed.astype(np.uint8).tobytes()), expected, 1),
        Odd("tiff 32-bit, values of 16", encoded(values.astype(np.int32), "TIFF"), expected, 1),
        Odd("tiff 32-bit, values of 8", encoded(ramp().astype(np.int32), "TIFF"), expected),
        Odd("tiff 32-bit, negative", encoded(values.astype(np.int32) - 40000, "TIFF"), expected, 1),
        Odd("tiff float 0..1", encoded(floats, "TIFF"), expected, 1),
        Odd("tiff float 0..255", encoded(floats * 255, "TIFF"), expected, 1),
        Odd("tiff float 0..65535", encoded(floats * 65535, "TIFF"), expected, 1),
        Odd("tiff float -3..5", encoded(floats * 8 - 3, "TIFF"), expected, 1),
        Odd("tiff float, all black", encoded(floats * 0, "TIFF"), expected * 0),
        Odd("pgm 10-bit", ppm, expected, 1),
    ]


def several() -> list[Odd]:
    """More than one picture in a file: the first counts."""
    picture = photo()
    rest = [Image.fromarray(255 - picture), Image.fromarray(picture[::-1])]
    options: dict[str, Any] = {"save_all": True, "append_images": rest}
    return [
        Odd("animated gif", encoded(picture, "GIF", **options, duration=50), picture, 1),
        Odd("animated webp", encoded(picture, "WEBP", **options, lossless=True), picture),
        Odd("animated png", encoded(picture, "PNG", **options), picture),
        Odd("tiff pages", encoded(picture, "TIFF", **options), picture),
        Odd(
            "mpo",
            encoded(picture, "MPO", save_all=True, append_images=rest[:1], quality=100, subsampling=0),
            picture,
            8,
        ),
    ]


def turned(orientation: int) -> Bytes:
    """``photo()`` as a camera held that way stores it, from the words of the EXIF standard.

    The standard says which side of the scene the stored row 0 and the stored column 0 are.
    """
    row, column = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    scene = photo()
    if row in ("left", "right"):  # a stored row is a column of the scene
        scene = scene.transpose(1, 0, 2)
    if row in ("bottom", "right"):
        scene = scene[::-1]
    if column in ("bottom", "right"):
        scene = scene[:, ::-1]
    return np.ascontiguousarray(scene)


def oriented() -> list[Odd]:
    actual = []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = turned(orientation)
        rgba = np.dstack([stored, np.full(stored.shape[:2], 255, np.uint8)])
        for form, pixels, options, tolerance in (
            ("JPEG", stored, {"quality": 100, "subsampling": 0}, 8),
            ("PNG", rgba, {}, 0),
            ("WEBP", stored, {"lossless": True}, 0),
            ("TIFF", stored, {}, 0),
        ):
            name = f"{form.lower()} held as {orientation}"
            actual.append(Odd(name, encoded(pixels, form, exif=exif, **options), photo(), tolerance))
    return actual


def damaged_notes() -> list[Odd]:
    """Sound pixels beside notes that are not."""
    picture = photo()
    wrong, huge = Image.Exif(), Image.Exif()
    wrong[0x0112], huge[0x0112] = 9, 60000
    options = {"quality": 100, "subsampling": 0}
    return [
        Odd("orientation 9", encoded(picture, "JPEG", exif=wrong, **options), picture, 8),
        Odd("orientation 60000", encoded(picture, "JPEG", exif=huge, **options), picture, 8),
        Odd("exif of noise", encoded(picture, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff", **options), picture, 8),
        Odd("exif too short", encoded(picture, "JPEG", exif=b"Exif\0\0MM", **options), picture, 8),
        Odd("words after the end", encoded(picture, "PNG") + b"trailing words", picture),
    ]  # fmt: skip


def good() -> list[Odd]:
    return [*plain(), *transparent(), *deep(), *several(), *oriented(), *damaged_notes()]


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


def bad() -> list[Odd]:
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)

    def half(data: bytes) -> bytes:
        return data[: len(data) // 2]

    cut: list[Callable[[], Odd]] = [
        lambda form=form: Odd(f"half a {form.lower()}", half(encoded(noise, form)), complaint="damaged")  # type: ignore[misc]
        for form in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
    ]
    sound = encoded(noise, "PNG")
    flipped = sound[:2000] + bytes([sound[2000] ^ 255]) + sound[2001:]
    bomb = png(60000, 60000, 8, 2, b"\0" * 10)
    bmp = encoded(noise[:2, :2], "BMP")
    screen = struct.pack("<HHBBB", 65535, 65535, 0, 0, 0)
    frame = struct.pack("<cHHHHBB", b",", 0, 0, 1, 1, 0, 2)
    return [
        *(make() for make in cut),
        Odd("nothing", b"", complaint="empty"),
        Odd("one byte", b"\xff", complaint="damaged"),
        Odd("start of a jpeg", b"\xff\xd8\xff\xe0", complaint="damaged"),
        Odd("only a png signature", b"\x89PNG\r\n\x1a\n", complaint="damaged"),
        Odd("words", b"This is a text file that someone named photo.jpg.\n" * 20, complaint="it is text, not an image"),
        Odd("web page", b"\n <!DOCTYPE html><html><body>404</body></html>", complaint="web page"),
        Odd("svg", b'\xef\xbb\xbf<?xml version="1.0"?><svg/>', complaint="SVG"),
        Odd("pdf", b"%PDF-1.7\n1 0 obj", complaint="PDF"),
        Odd("heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", complaint="HEIC"),
        Odd("lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", complaint="LFS"),
        Odd("postscript", POSTSCRIPT, complaint="PostScript"),
        Odd("png with a flipped bit", flipped, complaint="damaged"),
        Odd("png of no width", png(0, 5, 8, 2, b"\0" * 5), complaint="damaged"),
        Odd("png bomb", bomb, complaint="pixels"),
        Odd("gif bomb", b"GIF89a" + screen + frame + b"\x02\x44\x01\0;", complaint="pixels"),
        Odd("bmp bomb", bmp[:18] + struct.pack("<ii", 90000, 90000) + bmp[26:], complaint="pixels"),
    ]  # fmt: skip

"""Descriptions that a person has written into an image file, or into the XMP file next to it, in any form.

| Form | Where |
| --- | --- |
| XMP | `dc:description`, `AltTextAccessibility`, `tiff:ImageDescription`, `exif:UserComment`, also extended XMP |
| IPTC | Caption-Abstract (2:120) |
| EXIF | ImageDescription, UserComment, XPComment |
| PNG | the texts Description, Caption and Comment, and the profiles that ImageMagick stores as text |
| JPEG | the comment segment |
| side-car | `photo.xmp` and `photo.jpg.xmp` |

Texts that cameras and programs write by themselves ("OLYMPUS DIGITAL CAMERA", "Created with GIMP") do not count.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

from PIL import Image

from openblip.errors import ImageError, JobError
from openblip.jobs.files import ItemFileError, read_bytes
from openblip.jobs.packets import (
    Bytes,
    detect_format,
    jpeg_segments,
    png_chunks,
    read_extended_packet,
    read_packet,
    webp_chunks,
)
from openblip.jobs.xmp import DC, IPTC, Packet

_TIFF, _EXIF = "http://ns.adobe.com/tiff/1.0/", "http://ns.adobe.com/exif/1.0/"
_XMP_PROPERTIES = (
    (DC, "description"),
    (IPTC, "AltTextAccessibility"),
    (_TIFF, "ImageDescription"),
    (_EXIF, "UserComment"),
)
_EXIF_DESCRIPTION, _EXIF_IFD, _EXIF_COMMENT, _EXIF_XP_COMMENT = 0x010E, 0x8769, 0x9286, 0x9C9C
_IPTC_RESOURCE, _IPTC_CAPTION = 0x0404, (2, 120)
_PNG_KEYWORDS = ("description", "caption", "comment")

# Texts that cameras and programs write by themselves, complete.
_PROGRAMS = (
    "gimp|imagemagick|photoshop|adobe|acdsee|jpegmini|tinypng|picasa|snapseed|vsco|polarr|pixlr|irfanview|xnview|"
    "paint|inkscape|imagej|matlab|matplotlib|gnuplot|ffmpeg|lavc|gd-jpeg|canon|nikon|sony"
)
_NOT_WORDS = re.compile(
    r"[\W_]*|[A-Z <>-]{0,24}DIGITAL (STILL )?CAMERA\W*|(KONICA )?MINOLTA.*|SONY DSC|<Digimax.*>|DCIM[\\/].*|"
    r"(?i:dsc|cof|xif|appmark.*|exif_jpeg_\w+|jpeg( image)?|jfif.*|image|image ?description|user ?comments?|"
    r"default|untitled|screenshot|hdr|picture|ascii|charset=.*|binary comment|lavc[\d.]+|cs=.*|"
    r"creator: (gd|.*jpeg).*|software: .*|file written by adobe.*|file source:.*|lead technologies.*|"
    r"intel\(r\) jpeg library.*|acd systems.*|"
    r"(created|edited|made|generated|written|saved|processed|optimi[sz]ed|compressed) (with|by|using) "
    rf"(the )?({_PROGRAMS})\b.*)",
    re.DOTALL,
)


def find_description(data: Bytes) -> str | None:
    """Return the description of an image file in the first form that has one.

    Args:
        data: Content of a JPEG, PNG or WebP file.

    Returns:
        The description, or `None`.

    Raises:
        ImageError: If the file or its XMP packet is damaged, or the file has another format.
    """
    packets = [packet for packet in (read_packet(data), read_extended_packet(data)) if packet is not None]
    texts: list[str] = []
    for packet in map(Packet, packets):
        for namespace, name in _XMP_PROPERTIES:
            text = packet.get(namespace, name)
            if text is not None and (namespace == DC or _is_words(text)):
                texts.append(text)
    if texts:
        return texts[0]
    return next(filter(_is_words, _iter_texts(data)), None)


def read_side_car(path: str) -> str | None:
    """Return the `dc:description` of an XMP file, or `None` if it has none or does not exist.

    Args:
        path: The XMP file.

    Raises:
        ItemFileError: If the file cannot be read, or is not XMP.
    """
    content = read_bytes(path)
    if content is None or not content.strip():
        return None
    try:
        packet = Packet(content)
    except ImageError as error:
        raise ItemFileError(f"cannot read {path}: {str(error).removeprefix('cannot read ')}") from error
    return packet.get(DC, "description") or packet.get(IPTC, "AltTextAccessibility")


def with_side_car_description(path: str, text: str, *, replace_alt: bool = True) -> bytes:
    """Return the content of an XMP file with another description. Everything else in an existing file is kept.

    Args:
        path: The XMP file, which may be missing.
        text: The description.
        replace_alt: Also replace an `AltTextAccessibility` that differs from the previous description.

    Raises:
        ItemFileError: If the file cannot be read, or is not XMP.
    """
    content = read_bytes(path)
    try:
        packet = Packet(content if content and content.strip() else None)
    except ImageError as error:
        raise ItemFileError(f"cannot read {path}: {str(error).removeprefix('cannot read ')}") from error
    packet.describe(text, replace_alt=replace_alt)
    return packet.to_file()


def side_cars_of(image: str) -> list[str]:
    """Return the paths where photo libraries store the XMP of an image: `photo.xmp` and `photo.jpg.xmp`."""
    stem = os.path.splitext(image)[0]  # noqa: PTH122
    return [base + suffix for base in (stem, image) for suffix in (".xmp", ".XMP")]


def described_elsewhere(image: str, *, besides: str = "") -> str | None:
    """Return the description of an image in its file or in an XMP file next to it.

    Args:
        image: The image file.
        besides: An XMP file to ignore.

    Raises:
        ItemFileError: If an XMP file cannot be read, or is not XMP.
    """
    for path in side_cars_of(image):
        if os.path.abspath(path) != os.path.abspath(besides or image):  # noqa: PTH100
            text = read_side_car(path)
            if text is not None:
                return text
    if not besides:
        return None
    with suppress(ImageError, JobError):  # the image has another format, or opening it reports the damage
        return find_description(read_bytes(image) or b"")
    return None


def _is_words(text: str) -> bool:
    """Return whether a person may have written a text; cameras and programs write their own."""
    return _NOT_WORDS.fullmatch(" ".join(text.split())) is None


def _iter_texts(data: Bytes) -> Iterator[str]:
    """Yield the texts of all forms but XMP."""
    iptc, exif, others = b"", b"", list[str]()
    form = detect_format(data)
    if form == "jpeg":
        for marker, start, end in jpeg_segments(data):
            body = bytes(data[start + 4 : end])
            if marker == 0xED and body.startswith(b"Photoshop 3.0\0"):
                iptc += body[14:]
            elif marker == 0xE1 and body.startswith(b"Exif\0"):
                exif = exif or body[6:]
            elif marker == 0xFE:
                others.append(_decode(body))
    elif form == "png":
        for name, start, end in png_chunks(data):
            body = bytes(data[start + 8 : end - 4]) if name in (b"eXIf", b"tEXt", b"zTXt", b"iTXt") else b""
            if name == b"eXIf":
                exif = body
            elif body:
                keyword, text = _read_png_text(name, body)
                profile = keyword.removeprefix("raw profile type ")
                if profile in ("exif", "app1"):
                    exif = exif or _read_raw_profile(text).removeprefix(b"Exif\0\0")
                elif profile in ("iptc", "8bim"):
                    iptc = _read_raw_profile(text)
                elif profile == "xmp" and profile != keyword:
                    with suppress(ImageError):
                        others.append(Packet(_read_raw_profile(text)).get(DC, "description") or "")
                elif keyword in _PNG_KEYWORDS:
                    others.append(_decode(text))
    else:
        for name, start, size in webp_chunks(data):
            if name == b"EXIF":
                exif = bytes(data[start + 8 : start + 8 + size]).removeprefix(b"Exif\0\0")
    yield from _iter_iptc_captions(iptc)
    yield from _iter_exif_texts(exif)
    yield from others


def _iter_iptc_captions(resources: bytes) -> Iterator[str]:
    """Yield the Caption-Abstract of the image resources of Photoshop, or of plain IPTC records."""
    records = resources if resources.startswith(b"\x1c") else b""
    position = 0
    while resources[position : position + 4] == b"8BIM":
        identifier = int.from_bytes(resources[position + 4 : position + 6], "big")
        position += 7 + resources[position + 6] if position + 6 < len(resources) else 7
        position += position % 2
        size = int.from_bytes(resources[position : position + 4], "big")
        if identifier == _IPTC_RESOURCE:
            records = resources[position + 4 : position + 4 + size]
        position += 4 + size + size % 2
    position = 0
    while records[position : position + 1] == b"\x1c" and position + 5 <= len(records):
        record, dataset, size = struct.unpack(">BBH", records[position + 1 : position + 5])
        position += 5
        if size & 0x8000:  # the size has its own size
            digits = size & 0x7FFF
            size = int.from_bytes(records[position : position + digits], "big")
            position += digits
        if (record, dataset) == _IPTC_CAPTION:
            yield _decode(records[position : position + size])
        position += size


def _iter_exif_texts(content: bytes) -> Iterator[str]:
    if not content:
        return
    exif = Image.Exif()
    with suppress(Exception):  # Pillow raises errors of many types for damaged metadata
        exif.load(b"Exif\0\0" + content)
        yield _decode(exif.get(_EXIF_DESCRIPTION, b""))
        yield _decode_comment(exif.get_ifd(_EXIF_IFD).get(_EXIF_COMMENT, b""))
        yield _decode_utf16(bytes(exif.get(_EXIF_XP_COMMENT, b"")), "utf-16-le")


def _decode_comment(comment: bytes | str) -> str:
    """Return the text of a UserComment, whose first eight bytes name its encoding."""
    content = comment.encode("latin-1", "replace") if isinstance(comment, str) else bytes(comment)
    code, text = content[:8], content[8:]
    if code.startswith(b"UNICODE"):  # programs disagree on the order of the bytes
        return _decode_utf16(text, "utf-16-be" if text[::2].count(0) > text[1::2].count(0) else "utf-16-le")
    if code.startswith(b"JIS"):
        return text.decode("iso2022_jp", "replace").strip("\0 ")
    return _decode(text if code.startswith(b"ASCII") or code == bytes(8) else content)


def _decode_utf16(content: bytes, encoding: str) -> str:
    is_marked = content[:2] in (b"\xff\xfe", b"\xfe\xff")
    return content.decode("utf-16" if is_marked else encoding, "replace").strip("\0 ")


def _decode(content: bytes | str) -> str:
    """Return a text in UTF-8 or Latin-1, without padding."""
    raw = content.encode("latin-1", "replace") if isinstance(content, str) else content
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    return text.strip("\0 \r\n\t")


def _read_png_text(name: bytes, body: bytes) -> tuple[str, bytes]:
    """Return the keyword, in lower case, and the text of a text chunk."""
    keyword, _, rest = body.partition(b"\0")
    is_compressed = name == b"zTXt"
    if name == b"iTXt":  # a flag, a method, a language and a translated keyword come before the text
        is_compressed = rest[:1] == b"\1"
        rest = rest[2:].split(b"\0", 2)[-1]
    elif is_compressed:
        rest = rest[1:]
    if is_compressed:
        try:
            rest = zlib.decompressobj().decompress(rest, 2**24)
        except zlib.error:
            rest = b""
    return keyword.decode("latin-1").strip().lower(), rest


def _read_raw_profile(text: bytes) -> bytes:
    """Return a profile that ImageMagick stored as a name, a length and hexadecimal digits."""
    digits = b"".join(text.split()[2:])
    with suppress(ValueError):
        return bytes.fromhex(digits.decode("latin-1"))
    return b""

"""The XMP packet of a picture file: read, and replaced without touching anything else in the file.

A JPEG is a run of segments, a PNG and a WebP runs of chunks. Only the segment or chunk that holds the packet is
replaced or added (and, in a WebP, the flags and the size that announce it); every other byte is copied as it stands.
Sources: Adobe's XMP specification part 3, the PNG specification, and the WebP container specification.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import TypeAlias
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from openblip.errors import ImageError

DC = "http://purl.org/dc/elements/1.1/"
IPTC = "http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/"
RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_PROPERTIES = ((DC, "dc:description"), (IPTC, "Iptc4xmpCore:AltTextAccessibility"))
_XML, _XMLNS = "http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/"

Bytes: TypeAlias = "bytes | memoryview"


def read_description(data: Bytes) -> str | None:
    """The picture's ``dc:description``, in its default language; ``None`` if it has none. Raises ``ImageError``."""
    packet = read_packet(data)
    if packet is None:
        return None
    document = _parsed(packet)
    for element in document.getElementsByTagNameNS(DC, "description"):
        item = _default(element) or next(iter(element.getElementsByTagNameNS(RDF, "li")), element)
        return _text(item)
    return None


def with_description(data: bytes, text: str) -> bytes:
    """The file with ``text`` as its ``dc:description`` and ``AltTextAccessibility``. Raises ``ImageError``."""
    packet = read_packet(data)
    document = _parsed(packet) if packet is not None else _parsed(_EMPTY)
    holder = _holder(document)
    for space, name in _PROPERTIES:
        _set(document, holder, space, name, text)
    root = document.documentElement
    assert root is not None
    body = root.toxml().encode("utf-8")
    return with_packet(data, _BEGIN + body + b"\n" + _END)


def read_packet(data: Bytes) -> bytes | None:
    """The XMP packet of a JPEG, PNG or WebP file, or ``None``."""
    kind = _kind(data)
    if kind == "jpeg":
        for marker, start, end in _segments(data):
            if marker == 0xE1 and bytes(data[start + 4 : start + 4 + len(_JPEG_XMP)]) == _JPEG_XMP:
                return bytes(data[start + 4 + len(_JPEG_XMP) : end])
        return None
    if kind == "png":
        return next((_png_packet(data, start, end) for start, end in _png_xmp(data)), None)
    return next(
        (bytes(data[start + 8 : start + 8 + size]) for name, start, size in _riff(data) if name == b"XMP "), None
    )


def with_packet(data: bytes, packet: bytes) -> bytes:
    """The file with this XMP packet in place of the one it has, if any."""
    return {"jpeg": _into_jpeg, "png": _into_png, "webp": _into_webp}[_kind(data)](data, packet)


def _kind(data: Bytes) -> str:
    start = bytes(data[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    raise ImageError("descriptions are written into JPEG, PNG and WebP files, which this is not")


# --- JPEG ---------------------------------------------------------------------------------------------------------

_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_MOST = 65533 - len(_JPEG_XMP)


def _segments(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of every segment before the compressed data."""
    at = 2
    while True:
        head = bytes(data[at : at + 4])
        if len(head) < 4 or head[0] != 0xFF:
            raise ImageError("the JPEG's segments are damaged")
        if head[1] == 0xFF:  # a fill byte
            at += 1
            continue
        if head[1] in (0xDA, 0xD9):
            return
        end = at + 2 + int.from_bytes(head[2:4], "big")
        yield head[1], at, end
        at = end


def _into_jpeg(data: bytes, packet: bytes) -> bytes:
    if len(packet) > _JPEG_MOST:
        raise ImageError(f"its XMP would have {len(packet)} bytes, more than the {_JPEG_MOST} of a JPEG segment")
    segment = b"\xff\xe1" + struct.pack(">H", len(packet) + len(_JPEG_XMP) + 2) + _JPEG_XMP + packet
    place, leading = 2, True
    for marker, start, end in _segments(data):
        if marker == 0xE1 and data[start + 4 : start + 4 + len(_JPEG_XMP)] == _JPEG_XMP:
            return data[:start] + segment + data[end:]
        leading = leading and (marker == 0xE0 or (marker == 0xE1 and data[start + 4 : start + 8] == b"Exif"))
        place = end if leading else place
    return data[:place] + segment + data[place:]


# --- PNG ----------------------------------------------------------------------------------------------------------

_PNG_XMP = b"XML:com.adobe.xmp\0"


def _png_chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    at = 8
    while at < len(data):
        head = bytes(data[at : at + 8])
        end = at + 12 + int.from_bytes(head[:4], "big")
        if len(head) < 8 or end > len(data):
            raise ImageError("the PNG's chunks are damaged")
        yield head[4:], at, end
        if head[4:] == b"IEND":
            return
        at = end


def _png_xmp(data: Bytes) -> Iterator[tuple[int, int]]:
    for name, start, end in _png_chunks(data):
        if name == b"iTXt" and bytes(data[start + 8 : start + 8 + len(_PNG_XMP)]) == _PNG_XMP:
            yield start, end


def _png_packet(data: Bytes, start: int, end: int) -> bytes:
    content = bytes(data[start + 8 + len(_PNG_XMP) : end - 4])
    parts = content[2:].split(b"\0", 2)  # language, translated keyword, text
    if len(parts) != 3:
        raise ImageError("its XMP cannot be read: the chunk is damaged")
    if content[:1] == b"\0":
        return parts[2]
    try:
        return zlib.decompress(parts[2])
    except zlib.error as error:
        raise ImageError(f"its XMP cannot be read: {error}") from error


def _into_png(data: bytes, packet: bytes) -> bytes:
    content = b"iTXt" + _PNG_XMP + b"\0\0\0\0" + packet
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    for start, end in _png_xmp(data):
        return data[:start] + chunk + data[end:]
    place = next((start for name, start, _ in _png_chunks(data) if name == b"IDAT"), None)
    if place is None:
        raise ImageError("the PNG has no image data")
    return data[:place] + chunk + data[place:]


# --- WebP ---------------------------------------------------------------------------------------------------------

_WEBP_XMP, _WEBP_ALPHA = 0x04, 0x10


def _riff(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """Name, start and content size of every chunk."""
    at, whole = 12, 8 + int.from_bytes(bytes(data[4:8]), "little")
    if whole > len(data):
        raise ImageError("the WebP is cut short")
    while at + 8 <= whole:
        size = int.from_bytes(bytes(data[at + 4 : at + 8]), "little")
        if at + 8 + size > whole:
            raise ImageError("the WebP's chunks are damaged")
        yield bytes(data[at : at + 4]), at, size
        at += 8 + size + size % 2


def _into_webp(data: bytes, packet: bytes) -> bytes:
    chunks = [(name, data[start : start + 8 + size + size % 2]) for name, start, size in _riff(data)]
    after = data[8 + int.from_bytes(data[4:8], "little") :]  # what some programs leave behind the end
    if not chunks:
        raise ImageError("the WebP has no image data")
    if chunks[0][0] != b"VP8X":
        chunks.insert(0, (b"VP8X", _extended(chunks[0][1])))
    extended = bytearray(chunks[0][1])
    extended[8] |= _WEBP_XMP
    chunks[0] = (b"VP8X", bytes(extended))
    xmp = (b"XMP ", b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2))
    where = next((i for i, (name, _) in enumerate(chunks) if name == b"XMP "), None)
    chunks = [*chunks, xmp] if where is None else [*chunks[:where], xmp, *chunks[where + 1 :]]
    body = b"WEBP" + b"".join(chunk for _, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body + after


def _extended(chunk: bytes) -> bytes:
    """The VP8X chunk that a simple WebP needs before it can hold metadata: its size, and whether it has alpha."""
    name, body = chunk[:4], chunk[8:]
    flags = 0
    if name == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (size & 0x3FFF for size in struct.unpack("<HH", body[6:10]))
    elif name == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = _WEBP_ALPHA if bits >> 28 & 1 else 0
    else:
        raise ImageError("the WebP's image data are damaged")
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size


# --- the packet ---------------------------------------------------------------------------------------------------

_BEGIN = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_END = b'<?xpacket end="w"?>'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'.encode()


def _parsed(packet: bytes) -> minidom.Document:
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:
        raise ImageError("its XMP holds XML declarations that XMP does not have: left alone")
    try:
        document = minidom.parseString(packet.strip(b"\0 \r\n\t"))
    except (ExpatError, ValueError, LookupError) as error:
        raise ImageError(f"its XMP cannot be read: {error}") from error
    if not document.getElementsByTagNameNS(RDF, "RDF"):
        raise ImageError("its XMP cannot be read: it holds no RDF")
    return document


def _holder(document: minidom.Document) -> minidom.Element:
    """The rdf:Description that new properties go into."""
    root = document.getElementsByTagNameNS(RDF, "RDF")[0]
    prefix = root.prefix or "rdf"
    for child in root.childNodes:
        if isinstance(child, minidom.Element) and child.namespaceURI == RDF and child.localName == "Description":
            return child
    holder = document.createElementNS(RDF, f"{prefix}:Description")
    holder.setAttributeNS(RDF, f"{prefix}:about", "")
    root.appendChild(holder)
    return holder


def _set(document: minidom.Document, holder: minidom.Element, space: str, name: str, text: str) -> None:
    """Give a property a text in the default language; its texts in other languages stay."""
    prefix, local = name.split(":")
    found = document.getElementsByTagNameNS(space, local)
    for element in (holder, *document.getElementsByTagNameNS(RDF, "Description")):
        if element.hasAttributeNS(space, local):  # the short form
            element.removeAttributeNS(space, local)
    rdf = document.getElementsByTagNameNS(RDF, "RDF")[0].prefix or "rdf"
    if found:
        element = found[0]
    else:
        element = document.createElementNS(space, name)
        element.setAttributeNS(_XMLNS, f"xmlns:{prefix}", space)
        holder.appendChild(element)
    alternatives = next(iter(element.getElementsByTagNameNS(RDF, "Alt")), None)
    if alternatives is None:
        for child in list(element.childNodes):
            element.removeChild(child)
        alternatives = document.createElementNS(RDF, f"{rdf}:Alt")
        element.appendChild(alternatives)
    item = _default(element)
    if item is None:
        item = document.createElementNS(RDF, f"{rdf}:li")
        item.setAttributeNS(_XML, "xml:lang", "x-default")
        alternatives.insertBefore(item, alternatives.firstChild)
    for child in list(item.childNodes):
        item.removeChild(child)
    item.appendChild(document.createTextNode(_plain(text)))


def _default(element: minidom.Element) -> minidom.Element | None:
    for item in element.getElementsByTagNameNS(RDF, "li"):
        if item.getAttributeNS(_XML, "lang") in ("x-default", ""):
            return item
    return None


def _text(element: minidom.Element) -> str:
    return "".join(child.data for child in element.childNodes if isinstance(child, minidom.Text))


def _plain(text: str) -> str:
    """What XML can hold: no control characters but tab and line breaks, no halves of surrogate pairs."""
    return "".join(
        letter for letter in text if letter in "\t\n" or (letter >= " " and not "\ud800" <= letter <= "\udfff")
    )

"""Read and replace the XMP packet of an image file without changing anything else in the file.

A JPEG consists of segments, a PNG or WebP of chunks. Only the segment or chunk with the packet is replaced or added (in
a WebP, with its flags and the file size); all other bytes are copied. Sources: the XMP specification, part 3; the PNG
specification; the WebP container specification.
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
    """Return the `dc:description` of an image file.

    Args:
        data: Content of a JPEG, PNG or WebP file.

    Returns:
        The description in its default language, or `None`.

    Raises:
        ImageError: If the file is damaged or has another format.
    """
    packet = read_packet(data)
    if packet is None:
        return None
    document = _parse_packet(packet)
    for element in document.getElementsByTagNameNS(DC, "description"):
        item = _default_item(element) or next(iter(element.getElementsByTagNameNS(RDF, "li")), element)
        return "".join(child.data for child in item.childNodes if isinstance(child, minidom.Text))
    return None


def with_description(data: bytes, text: str) -> bytes:
    """Return the file with `text` as its `dc:description` and `AltTextAccessibility`.

    Args:
        data: Content of a JPEG, PNG or WebP file.
        text: The description.

    Returns:
        The new content of the file.

    Raises:
        ImageError: If the file is damaged, has another format, or cannot hold the text.
    """
    packet = read_packet(data)
    document = _parse_packet(packet if packet is not None else _EMPTY)
    parent = _description_element(document)
    for namespace, name in _PROPERTIES:
        _set_property(document, parent, namespace, name, text)
    root = document.documentElement
    assert root is not None
    body = root.toxml().encode("utf-8")
    return with_packet(data, _BEGIN + body + b"\n" + _END)


def read_packet(data: Bytes) -> bytes | None:
    """Return the XMP packet of an image file.

    Args:
        data: Content of a JPEG, PNG or WebP file.

    Returns:
        The packet, or `None`.

    Raises:
        ImageError: If the file is damaged or has another format.
    """
    image_format = _detect_format(data)
    if image_format == "jpeg":
        for marker, start, end in _jpeg_segments(data):
            if marker == 0xE1 and bytes(data[start + 4 : start + 4 + len(_JPEG_XMP)]) == _JPEG_XMP:
                return bytes(data[start + 4 + len(_JPEG_XMP) : end])
    elif image_format == "png":
        for start, end in _png_xmp_chunks(data):
            return _decode_png_packet(data, start, end)
    else:
        for name, start, size in _webp_chunks(data):
            if name == b"XMP ":
                return bytes(data[start + 8 : start + 8 + size])
    return None


def with_packet(data: bytes, packet: bytes) -> bytes:
    """Return the file with this XMP packet instead of its own, if any.

    Args:
        data: Content of a JPEG, PNG or WebP file.
        packet: The packet.

    Returns:
        The new content of the file.

    Raises:
        ImageError: If the file is damaged, has another format, or cannot hold the packet.
    """
    insert = {"jpeg": _insert_into_jpeg, "png": _insert_into_png, "webp": _insert_into_webp}
    return insert[_detect_format(data)](data, packet)


def _detect_format(data: Bytes) -> str:
    start = bytes(data[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    raise ImageError("the image must be a JPEG, PNG or WebP file to store a description")


_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_MAX_PACKET = 65533 - len(_JPEG_XMP)


def _jpeg_segments(data: Bytes) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment before the compressed data."""
    position = 2
    while True:
        head = bytes(data[position : position + 4])
        if len(head) < 4 or head[0] != 0xFF:
            raise ImageError("the segments of the JPEG are damaged")
        if head[1] == 0xFF:  # a fill byte
            position += 1
            continue
        if head[1] in (0xDA, 0xD9):
            return
        end = position + 2 + int.from_bytes(head[2:4], "big")
        yield head[1], position, end
        position = end


def _insert_into_jpeg(data: bytes, packet: bytes) -> bytes:
    if len(packet) > _JPEG_MAX_PACKET:
        raise ImageError(f"the XMP packet of a JPEG must have at most {_JPEG_MAX_PACKET} bytes, got {len(packet)}")
    segment = b"\xff\xe1" + struct.pack(">H", len(packet) + len(_JPEG_XMP) + 2) + _JPEG_XMP + packet
    position, leading = 2, True  # insert after the leading JFIF and Exif segments
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xE1 and data[start + 4 : start + 4 + len(_JPEG_XMP)] == _JPEG_XMP:
            return data[:start] + segment + data[end:]
        leading = leading and (marker == 0xE0 or (marker == 0xE1 and data[start + 4 : start + 8] == b"Exif"))
        position = end if leading else position
    return data[:position] + segment + data[position:]


_PNG_XMP = b"XML:com.adobe.xmp\0"


def _png_chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and end of each chunk."""
    position = 8
    while position < len(data):
        head = bytes(data[position : position + 8])
        end = position + 12 + int.from_bytes(head[:4], "big")
        if len(head) < 8 or end > len(data):
            raise ImageError("the chunks of the PNG are damaged")
        yield head[4:], position, end
        if head[4:] == b"IEND":
            return
        position = end


def _png_xmp_chunks(data: Bytes) -> Iterator[tuple[int, int]]:
    for name, start, end in _png_chunks(data):
        if name == b"iTXt" and bytes(data[start + 8 : start + 8 + len(_PNG_XMP)]) == _PNG_XMP:
            yield start, end


def _decode_png_packet(data: Bytes, start: int, end: int) -> bytes:
    content = bytes(data[start + 8 + len(_PNG_XMP) : end - 4])
    fields = content[2:].split(b"\0", 2)  # language, translated keyword, text
    if len(fields) != 3:
        raise ImageError("cannot read the XMP packet: the chunk is damaged")
    if content[:1] == b"\0":
        return fields[2]
    try:
        return zlib.decompress(fields[2])
    except zlib.error as error:
        raise ImageError(f"cannot read the XMP packet: {error}") from error


def _insert_into_png(data: bytes, packet: bytes) -> bytes:
    content = b"iTXt" + _PNG_XMP + b"\0\0\0\0" + packet
    chunk = struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))
    for start, end in _png_xmp_chunks(data):
        return data[:start] + chunk + data[end:]
    for name, start, _ in _png_chunks(data):
        if name == b"IDAT":
            return data[:start] + chunk + data[start:]
    raise ImageError("the PNG has no image data")


_WEBP_XMP, _WEBP_ALPHA = 0x04, 0x10  # flags of a VP8X chunk


def _webp_chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, start and content size of each chunk."""
    position, file_end = 12, 8 + int.from_bytes(bytes(data[4:8]), "little")
    if file_end > len(data):
        raise ImageError("the WebP is truncated")
    while position + 8 <= file_end:
        size = int.from_bytes(bytes(data[position + 4 : position + 8]), "little")
        if position + 8 + size > file_end:
            raise ImageError("the chunks of the WebP are damaged")
        yield bytes(data[position : position + 4]), position, size
        position += 8 + size + size % 2


def _insert_into_webp(data: bytes, packet: bytes) -> bytes:
    chunks = [(name, data[start : start + 8 + size + size % 2]) for name, start, size in _webp_chunks(data)]
    trailer = data[8 + int.from_bytes(data[4:8], "little") :]  # some programs append data
    if not chunks:
        raise ImageError("the WebP has no image data")
    if chunks[0][0] != b"VP8X":
        chunks.insert(0, (b"VP8X", _make_vp8x_chunk(chunks[0][1])))
    extended = bytearray(chunks[0][1])
    extended[8] |= _WEBP_XMP
    chunks[0] = (b"VP8X", bytes(extended))
    xmp = (b"XMP ", b"XMP " + struct.pack("<I", len(packet)) + packet + b"\0" * (len(packet) % 2))
    names = [name for name, _ in chunks]
    if b"XMP " in names:
        chunks[names.index(b"XMP ")] = xmp
    else:
        chunks.append(xmp)
    body = b"WEBP" + b"".join(chunk for _, chunk in chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body + trailer


def _make_vp8x_chunk(chunk: bytes) -> bytes:
    """Return the VP8X chunk that a simple WebP needs for metadata: its size, and whether it has alpha."""
    name, body = chunk[:4], chunk[8:]
    flags = 0
    if name == b"VP8 " and body[3:6] == b"\x9d\x01\x2a":
        width, height = (size & 0x3FFF for size in struct.unpack("<HH", body[6:10]))
    elif name == b"VP8L" and body[:1] == b"\x2f":
        bits = int.from_bytes(body[1:5], "little")
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        flags = _WEBP_ALPHA if bits >> 28 & 1 else 0
    else:
        raise ImageError("the image data of the WebP is damaged")
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    return b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + size


_BEGIN = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n'
_END = b'<?xpacket end="w"?>'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{RDF}"/></x:xmpmeta>'.encode()


def _parse_packet(packet: bytes) -> minidom.Document:
    if b"<!DOCTYPE" in packet or b"<!ENTITY" in packet:  # entities could expand to gigabytes
        raise ImageError("the XMP packet contains a DOCTYPE or ENTITY declaration; file not modified")
    try:
        document = minidom.parseString(packet.strip(b"\0 \r\n\t"))
    except (ExpatError, ValueError, LookupError) as error:
        raise ImageError(f"cannot read the XMP packet: {error}") from error
    if not document.getElementsByTagNameNS(RDF, "RDF"):
        raise ImageError("cannot read the XMP packet: it has no RDF element")
    return document


def _description_element(document: minidom.Document) -> minidom.Element:
    """Return the rdf:Description that new properties are added to."""
    root = document.getElementsByTagNameNS(RDF, "RDF")[0]
    prefix = root.prefix or "rdf"
    for child in root.childNodes:
        if isinstance(child, minidom.Element) and child.namespaceURI == RDF and child.localName == "Description":
            return child
    description = document.createElementNS(RDF, f"{prefix}:Description")
    description.setAttributeNS(RDF, f"{prefix}:about", "")
    root.appendChild(description)
    return description


def _set_property(document: minidom.Document, parent: minidom.Element, namespace: str, name: str, text: str) -> None:
    """Set a property's text in the default language. Texts in other languages stay."""
    prefix, local_name = name.split(":")
    elements = document.getElementsByTagNameNS(namespace, local_name)
    for element in (parent, *document.getElementsByTagNameNS(RDF, "Description")):
        if element.hasAttributeNS(namespace, local_name):  # the short form of the property
            element.removeAttributeNS(namespace, local_name)
    rdf = document.getElementsByTagNameNS(RDF, "RDF")[0].prefix or "rdf"
    if elements:
        element = elements[0]
    else:
        element = document.createElementNS(namespace, name)
        element.setAttributeNS(_XMLNS, f"xmlns:{prefix}", namespace)
        parent.appendChild(element)
    alternatives = next(iter(element.getElementsByTagNameNS(RDF, "Alt")), None)
    if alternatives is None:
        for child in list(element.childNodes):
            element.removeChild(child)
        alternatives = document.createElementNS(RDF, f"{rdf}:Alt")
        element.appendChild(alternatives)
    item = _default_item(element)
    if item is None:
        item = document.createElementNS(RDF, f"{rdf}:li")
        item.setAttributeNS(_XML, "xml:lang", "x-default")
        alternatives.insertBefore(item, alternatives.firstChild)
    for child in list(item.childNodes):
        item.removeChild(child)
    # XML allows neither control characters, except tabs and line breaks, nor lone surrogates.
    valid = [char for char in text if char in "\t\n" or (char >= " " and not "\ud800" <= char <= "\udfff")]
    item.appendChild(document.createTextNode("".join(valid)))


def _default_item(element: minidom.Element) -> minidom.Element | None:
    """Return the rdf:li of the default language."""
    for item in element.getElementsByTagNameNS(RDF, "li"):
        if item.getAttributeNS(_XML, "lang") in ("x-default", ""):
            return item
    return None

"""Read and replace the XMP packet of an image file without changing anything else in the file.

A JPEG consists of segments, a PNG or WebP of chunks. Only the segment or chunk with the packet is replaced or added (in
a WebP, with its flags and the file size); all other bytes are copied. Sources: the XMP specification, part 3; the PNG
specification; the WebP container specification.
"""

from __future__ import annotations

import codecs
import re
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

Bytes: TypeAlias = "bytes | memoryview"


def read_description(data: Bytes) -> str | None:
    """Return the `dc:description` of an image file, in any form that XMP allows.

    Args:
        data: Content of a JPEG, PNG or WebP file.

    Returns:
        The description, in its default language if it has one, or `None`.

    Raises:
        ImageError: If the file is damaged or has another format.
    """
    packet = read_packet(data)
    return None if packet is None else Packet(packet).get(DC, "description")


def with_description(data: bytes, text: str, *, replace_alt: bool = True) -> bytes:
    """Return the file with `text` as its `dc:description` and `AltTextAccessibility`.

    Args:
        data: Content of a JPEG, PNG or WebP file.
        text: The description.
        replace_alt: Also replace an `AltTextAccessibility` that differs from the previous description.

    Returns:
        The new content of the file.

    Raises:
        ImageError: If the file is damaged, has another format, or cannot hold the text.
    """
    extended = read_extended_packet(data)
    if extended is not None and Packet(extended).get(DC, "description") is not None:
        raise ImageError("its description is in an extended XMP packet, which cannot be changed; file not modified")
    packet = Packet(read_packet(data))
    packet.describe(text, replace_alt=replace_alt)
    return with_packet(data, packet.to_packet())


def read_packet(data: Bytes) -> bytes | None:
    """Return the XMP packet of an image file.

    Args:
        data: Content of a JPEG, PNG or WebP file.

    Returns:
        The packet, or `None`.

    Raises:
        ImageError: If the file is damaged or has another format.
    """
    image_format = detect_format(data)
    if image_format == "jpeg":
        for marker, start, end in jpeg_segments(data):
            if marker == 0xE1 and bytes(data[start + 4 : start + 4 + len(_JPEG_XMP)]) == _JPEG_XMP:
                return bytes(data[start + 4 + len(_JPEG_XMP) : end])
    elif image_format == "png":
        for start, end in _png_xmp_chunks(data):
            return _decode_png_packet(data, start, end)
    else:
        for name, start, size in webp_chunks(data):
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
    return insert[detect_format(data)](data, packet)


def detect_format(data: Bytes) -> str:
    start = bytes(data[:12])
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"RIFF") and start[8:12] == b"WEBP":
        return "webp"
    raise ImageError("the image must be a JPEG, PNG or WebP file to store a description")


def read_extended_packet(data: Bytes) -> bytes | None:
    """Return the part of a JPEG's XMP that did not fit into its packet.

    Args:
        data: Content of a JPEG, PNG or WebP file.

    Returns:
        The part, or `None`.

    Raises:
        ImageError: If the file is damaged or has another format.
    """
    if detect_format(data) != "jpeg":
        return None
    parts: dict[int, bytes] = {}
    for marker, start, end in jpeg_segments(data):
        body = bytes(data[start + 4 : end])
        if marker == 0xE1 and body.startswith(_JPEG_EXTENDED):
            # After the signature: a checksum of 32 bytes, the length of the whole, and the position of this segment.
            position = int.from_bytes(body[len(_JPEG_EXTENDED) + 36 : len(_JPEG_EXTENDED) + 40], "big")
            parts[position] = body[len(_JPEG_EXTENDED) + 40 :]
    return b"".join(parts[position] for position in sorted(parts)) or None


_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_JPEG_EXTENDED = b"http://ns.adobe.com/xmp/extension/\0"
_MPF_ENTRIES = 0xB002
_JPEG_MAX_PACKET = 65533 - len(_JPEG_XMP)


def jpeg_segments(data: Bytes) -> Iterator[tuple[int, int, int]]:
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
    position, end, leading = 2, 2, True  # insert after the leading JFIF and Exif segments
    index: int | None = None
    for marker, start, segment_end in jpeg_segments(data):
        if marker == 0xE1 and data[start + 4 : start + 4 + len(_JPEG_XMP)] == _JPEG_XMP:
            position, end = start, segment_end
            break
        if marker == 0xE2 and data[start + 4 : start + 8] == b"MPF\0":
            index = start + 8
        leading = leading and (marker == 0xE0 or (marker == 0xE1 and data[start + 4 : start + 8] == b"Exif"))
        position = end = segment_end if leading else position
    before = data[:position]
    if index is not None and index < position:  # the positions in the index count from the index
        before = _shift_images(before, index, len(segment) - (end - position))
    return before + segment + data[end:]


def _shift_images(head: bytes, index: int, distance: int) -> bytes:
    """Return the start of a JPEG whose further images (MPF) have moved by a distance.

    Args:
        head: The file up to and including the segment of the index.
        index: Start of the index, a TIFF header.
        distance: Number of bytes.

    Raises:
        ImageError: If the index is damaged.
    """
    order = "<" if head[index : index + 2] == b"II" else ">"
    content = bytearray(head)
    try:
        directory = index + struct.unpack_from(order + "I", head, index + 4)[0]
        for entry in range(struct.unpack_from(order + "H", head, directory)[0]):
            tag, _, size, offset = struct.unpack_from(order + "HHII", head, directory + 2 + 12 * entry)
            if tag != _MPF_ENTRIES:
                continue
            for number in range(size // 16):  # attributes, size and position of each image
                field = index + offset + 16 * number + (8 if number else 4)
                struct.pack_into(
                    order + "I", content, field, struct.unpack_from(order + "I", head, field)[0] + distance
                )
    except struct.error as error:
        raise ImageError("the index of the further images in the JPEG is damaged; file not modified") from error
    return bytes(content)


_PNG_XMP = b"XML:com.adobe.xmp\0"


def png_chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
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
    for name, start, end in png_chunks(data):
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
    for name, start, _ in png_chunks(data):
        if name == b"IDAT":
            return data[:start] + chunk + data[start:]
    raise ImageError("the PNG has no image data")


_WEBP_XMP, _WEBP_ALPHA = 0x04, 0x10  # flags of a VP8X chunk


def webp_chunks(data: Bytes) -> Iterator[tuple[bytes, int, int]]:
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
    chunks = [(name, data[start : start + 8 + size + size % 2]) for name, start, size in webp_chunks(data)]
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
_XML, _XMLNS = "http://www.w3.org/XML/1998/namespace", "http://www.w3.org/2000/xmlns/"
# An attribute must not contain raw line breaks and tabs: a parser turns them into blanks. `toxml` of older versions of
# Python writes them raw, so these characters, which no text may contain, take their place until the text is complete.
_ESCAPES = {"\ufdd0": "&#10;", "\ufdd1": "&#13;", "\ufdd2": "&#9;"}
_TO_MARK = str.maketrans({"\n": "\ufdd0", "\r": "\ufdd1", "\t": "\ufdd2"})


class Packet:
    """The properties of an XMP packet or of an XMP file. Everything outside of the changed properties is kept.

    Args:
        content: The packet; a new one if `None`.

    Raises:
        ImageError: If the packet is damaged, or declares entities.
    """

    def __init__(self, content: bytes | None = None) -> None:
        content = _EMPTY if content is None else content
        text = decode_text(content).strip("\0 \r\n\t")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities could expand to gigabytes
            raise ImageError("the XMP packet contains a DOCTYPE or ENTITY declaration; file not modified")
        try:
            self._document = minidom.parseString(re.sub(r"^<\?xml[^>]*\?>", "", text).encode())
        except (ExpatError, ValueError, LookupError) as error:
            raise ImageError(f"cannot read the XMP packet: {error}") from error
        roots = self._document.getElementsByTagNameNS(RDF, "RDF")
        if not roots:
            raise ImageError("cannot read the XMP packet: it has no RDF element")
        self._rdf = roots[0]
        root = self._document.documentElement
        assert root is not None
        self._root = root
        # The text around the root element: the declaration, processing instructions, comments and padding.
        closing = max(text.rfind(f"</{root.tagName}"), text.rfind(f"<{root.tagName}"))
        self._around = text[: text.find(f"<{root.tagName}")], text[text.find(">", closing) + 1 :]

    @property
    def _nodes(self) -> list[minidom.Element]:
        """The elements that hold the properties of the image. Descriptions of other images are deeper."""
        return [child for child in self._rdf.childNodes if isinstance(child, minidom.Element)]

    def get(self, namespace: str, name: str) -> str | None:
        """Return a text property: an attribute, an element, or language alternatives, the default language first.

        Args:
            namespace: Namespace of the property.
            name: Local name of the property.

        Returns:
            The text, or `None` if it is missing or blank.
        """
        texts: list[str] = []
        for node in self._nodes:
            if node.hasAttributeNS(namespace, name):
                texts.append(node.getAttributeNS(namespace, name))
            for element in _children(node, namespace, name):
                items = element.getElementsByTagNameNS(RDF, "li")
                if not items:
                    texts.append(_text_of(element))
                elif element.getElementsByTagNameNS(RDF, "Alt"):
                    texts += [_text_of(item) for item in sorted(items, key=lambda item: not _is_default(item))]
                else:
                    texts.append("\n".join(filter(str.strip, map(_text_of, items))))
        return next((text for text in texts if text.strip()), None)

    def set(self, namespace: str, name: str, text: str) -> None:
        """Set a text property in the default language. Texts in other languages stay.

        Args:
            namespace: Namespace of the property.
            name: Name of the property with its usual prefix, such as `dc:description`.
            text: The text.
        """
        prefix, local_name = name.split(":")
        elements = []
        for node in self._nodes:
            if node.hasAttributeNS(namespace, local_name):  # the short form of the property
                node.removeAttributeNS(namespace, local_name)
            elements += _children(node, namespace, local_name)
        rdf = self._rdf.prefix or "rdf"
        element = elements[0] if elements else None
        alternatives = None
        if element is not None:
            alternatives = next(iter(element.getElementsByTagNameNS(RDF, "Alt")), None)
        if element is None or alternatives is None:
            new = self._document.createElementNS(namespace, name)
            new.setAttributeNS(_XMLNS, f"xmlns:{prefix}", namespace)
            alternatives = self._document.createElementNS(RDF, f"{rdf}:Alt")
            new.appendChild(alternatives)
            if element is None or element.parentNode is None:
                self._description_node().appendChild(new)
            else:
                element.parentNode.replaceChild(new, element)
        item = next((item for item in alternatives.getElementsByTagNameNS(RDF, "li") if _is_default(item)), None)
        if item is None:
            item = self._document.createElementNS(RDF, f"{rdf}:li")
            item.setAttributeNS(_XML, "xml:lang", "x-default")
            alternatives.insertBefore(item, alternatives.firstChild)
        for child in list(item.childNodes):
            item.removeChild(child)
        if item.hasAttributeNS(RDF, "parseType"):
            item.removeAttributeNS(RDF, "parseType")
        # XML allows neither control characters, except tabs and line breaks, nor lone surrogates.
        valid = [char for char in text if char in "\t\n" or (char >= " " and not "\ud800" <= char <= "\udfff")]
        item.appendChild(self._document.createTextNode("".join(valid)))

    def describe(self, text: str, *, replace_alt: bool = True) -> None:
        """Set `dc:description`, and `AltTextAccessibility` if it is missing or held the same text.

        Args:
            text: The text.
            replace_alt: Also replace a different `AltTextAccessibility`.
        """
        old = self.get(DC, "description")
        alt = self.get(IPTC, "AltTextAccessibility")
        self.set(DC, "dc:description", text)
        if replace_alt or alt is None or (old is not None and alt.strip() == old.strip()):
            self.set(IPTC, "Iptc4xmpCore:AltTextAccessibility", text)

    def root(self) -> str:
        """Return the root element as XML."""
        for element in (self._root, *self._root.getElementsByTagName("*")):
            for attribute in list(element.attributes.values()):
                if any(char in attribute.value for char in "\n\r\t"):
                    attribute.value = attribute.value.translate(_TO_MARK)
            for child in element.childNodes:
                if isinstance(child, minidom.Text) and "\r" in child.data:
                    child.data = child.data.replace("\r", "\ufdd1")
        xml = self._root.toxml()
        for mark, escape in _ESCAPES.items():
            xml = xml.replace(mark, escape)
        return xml

    def to_packet(self) -> bytes:
        """Return the packet as image files contain it."""
        return _BEGIN + self.root().encode() + b"\n" + _END

    def to_file(self) -> bytes:
        """Return the packet as an XMP file, with the text around it that the file had, in UTF-8."""
        before, after = self._around
        if not before.strip() and not after.strip():
            return self.to_packet() + b"\n"
        before = re.sub(r"(<\?xml[^>]*encoding=)(['\"])[^'\"]*\2", r"\1\2UTF-8\2", before)
        return (before + self.root() + after).encode() + b"\n"

    def _description_node(self) -> minidom.Element:
        """Return the rdf:Description that new properties are added to."""
        for node in self._nodes:
            if node.namespaceURI == RDF and node.localName == "Description":
                return node
        prefix = self._rdf.prefix or "rdf"
        description = self._document.createElementNS(RDF, f"{prefix}:Description")
        description.setAttributeNS(RDF, f"{prefix}:about", "")
        self._rdf.appendChild(description)
        return description


_ENCODINGS = {  # by the first bytes; the longer ones come first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}


def decode_text(content: bytes) -> str:
    """Return a text in UTF-8, or in UTF-16 or UTF-32 if a byte order mark or the first bytes show that.

    Raises:
        ImageError: If the bytes are no such text.
    """
    encoding = next((name for start, name in _ENCODINGS.items() if content.startswith(start)), "utf-8-sig")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ImageError(f"cannot read the XMP packet: it is not {encoding.removesuffix('-sig').upper()}") from error


def _children(node: minidom.Element, namespace: str, name: str) -> list[minidom.Element]:
    children = [child for child in node.childNodes if isinstance(child, minidom.Element)]
    return [child for child in children if child.namespaceURI == namespace and child.localName == name]


def _text_of(element: minidom.Element) -> str:
    """Return the text of a property or of an item, which may have qualifiers."""
    for node in (element, *element.getElementsByTagNameNS(RDF, "Description")):
        if node.hasAttributeNS(RDF, "value"):
            return node.getAttributeNS(RDF, "value")
    values = element.getElementsByTagNameNS(RDF, "value")
    children = (values[0] if values else element).childNodes
    return "".join(child.data for child in children if isinstance(child, minidom.Text))


def _is_default(item: minidom.Element) -> bool:
    return item.getAttributeNS(_XML, "lang") in ("x-default", "")

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

from openblip.errors import ImageError

Bytes: TypeAlias = "bytes | memoryview"


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
    insert = {"jpeg": insert_into_jpeg, "png": insert_into_png, "webp": insert_into_webp}
    return insert[detect_format(data)](data, packet)


def detect_format(data: Bytes) -> str:
    """Return "jpeg", "png" or "webp"; raise `ImageError` for other files."""
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


def insert_into_jpeg(data: bytes, packet: bytes) -> bytes:
    """Return a JPEG with this packet in place of its own; the offsets of further images in it are corrected."""
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


def insert_into_png(data: bytes, packet: bytes) -> bytes:
    """Return a PNG with this packet in place of its own, or before its image data."""
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


def insert_into_webp(data: bytes, packet: bytes) -> bytes:
    """Return a WebP with this packet in place of its own, or as its final chunk, and with the flag for it."""
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

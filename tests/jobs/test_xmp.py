"""Descriptions inside pictures: read by other programs, and nothing else in the file moves."""

from __future__ import annotations

import io
import struct
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms

from openblip.errors import ImageError
from openblip.jobs.packets import read_packet
from openblip.jobs.xmp import read_description, with_description
from tests.jobs.test_run import JobRunner
from tests.preprocess.odd_images import encoded, photo

TEXT = "a dog, \u201cbrown\u201d & <white>, \u72ac \U0001f415"
XMP = (
    b'<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    b'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    b'xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4" xmlns:mine="urn:mine" mine:note="kept">'
    b'<dc:description xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Alt><rdf:li xml:lang="x-default">old</rdf:li>'
    b'<rdf:li xml:lang="de">ein Hund</rdf:li></rdf:Alt></dc:description></rdf:Description></rdf:RDF></x:xmpmeta>'
    b'<?xpacket end="w"?>'
)
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0c\x1c\x02\x19\0\x07keyword"


def encode_image(form: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded(photo(), form, exif=exif, icc_profile=profile, **options)


def jpeg_with(data: bytes, marker: int, content: bytes) -> bytes:
    at = data.index(b"\xff\xdb")
    return data[:at] + bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content + data[at:]


def jpeg_parts(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Segments without XMP, and the compressed data: a reader of its own, that knows nothing of ours."""
    parts, at = [], 2
    while data[at + 1] != 0xDA:
        size = struct.unpack(">H", data[at + 2 : at + 4])[0]
        parts.append((data[at + 1], data[at + 4 : at + 2 + size]))
        at += 2 + size
    return [segment for segment in parts if not segment[1].startswith(b"http://ns.adobe.com/xap")], data[at:]


def png_parts(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    parts, at = [], 8
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        parts.append((0, data[at + 4 : at + 12 + size]))
        assert name
        at += 12 + size
    chunks = [chunk for chunk in parts if not chunk[1].startswith(b"iTXtXML:com.adobe.xmp")]
    return chunks, b"".join(chunk for _, chunk in chunks if chunk.startswith(b"IDAT"))


def webp_parts(data: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    parts, at = [], 12
    while at < len(data):
        name, size = struct.unpack("<4sI", data[at : at + 8])
        parts.append((0, name + data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    image = b"".join(chunk for _, chunk in parts if chunk[:3] in (b"VP8", b"ALP") and not chunk.startswith(b"VP8X"))
    return [chunk for chunk in parts if chunk[1][:4] not in (b"XMP ", b"VP8X")], image


CASES = {
    "jpeg": (encode_image("JPEG"), jpeg_parts),
    "jpeg with iptc": (jpeg_with(encode_image("JPEG"), 0xED, IPTC), jpeg_parts),
    "jpeg progressive": (encode_image("JPEG", progressive=True), jpeg_parts),
    "jpeg with xmp": (encode_image("JPEG", xmp=XMP), jpeg_parts),
    "png": (encode_image("PNG"), png_parts),
    "png animated": (encode_image("PNG", save_all=True, append_images=[Image.fromarray(255 - photo())]), png_parts),
    "webp": (encode_image("WEBP"), webp_parts),
    "webp with xmp": (encode_image("WEBP", xmp=XMP), webp_parts),
    "webp lossy, simple": (encoded(photo(), "WEBP"), webp_parts),
    "webp lossless, simple": (encoded(photo(), "WEBP", lossless=True), webp_parts),
    "webp with alpha, simple": (
        encoded(np.dstack([photo(), photo()[:, :, 0]]), "WEBP", lossless=True, exact=True), webp_parts,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_the_packet_changes(name: str) -> None:
    data, parts = CASES[name]
    new = with_description(data, TEXT)
    assert parts(new) == parts(data), "every other block, and the compressed image data, byte for byte"
    old_image, new_image = Image.open(io.BytesIO(data)), Image.open(io.BytesIO(new))
    assert old_image.mode == new_image.mode
    assert np.array_equal(np.asarray(old_image), np.asarray(new_image))
    assert old_image.info.get("icc_profile") == new_image.info.get("icc_profile")
    assert dict(old_image.getexif()) == dict(new_image.getexif())
    assert getattr(old_image, "n_frames", 1) == getattr(new_image, "n_frames", 1)
    assert read_description(new) == TEXT
    assert with_description(new, TEXT) == new
    assert len(with_description(new, "x")) < len(new), "replaced, not added"


@pytest.mark.parametrize("name", CASES)
def test_the_packet_is_what_others_read(name: str) -> None:
    new = with_description(CASES[name][0], TEXT)
    packet = read_packet(new)
    assert packet is not None
    pillow_packet = Image.open(io.BytesIO(new)).info.get("xmp")  # Pillow's own finding of it
    assert (
        pillow_packet is None
        or (pillow_packet if isinstance(pillow_packet, bytes) else pillow_packet.encode()).strip(b"\0") == packet
    )
    root = ET.fromstring(packet.decode("utf-8").strip("\ufeff"))
    for space, local in (
        ("http://purl.org/dc/elements/1.1/", "description"),
        ("http://iptc.org/std/Iptc4xmpCore/1.0/xmlns/", "AltTextAccessibility"),
    ):
        (element,) = root.iter(f"{{{space}}}{local}")
        items = {
            item.get("{http://www.w3.org/XML/1998/namespace}lang"): item.text
            for item in element.iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li")
        }
        assert items["x-default"] == TEXT
    if "with xmp" in name:
        assert b'xmp:Rating="4"' in packet
        assert b'mine:note="kept"' in packet
        assert "ein Hund" in packet.decode()


def test_other_formats_and_damaged_files_are_refused_by_name() -> None:
    for data in (encoded(photo(), "GIF"), encoded(photo(), "TIFF"), b"", b"words"):
        with pytest.raises(ImageError, match="JPEG, PNG or WebP"):
            with_description(data, "x")
    for form in ("JPEG", "PNG", "WEBP"):
        with pytest.raises(ImageError):
            with_description(encoded(photo(), form)[:30], "x")
    bomb = b'<!DOCTYPE x [<!ENTITY a "b">]>' + XMP
    with pytest.raises(ImageError, match="file not modified"):
        with_description(encode_image("JPEG", xmp=bomb), "x")


def test_a_job_describes_pictures_once(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    for form in ("JPEG", "PNG", "WEBP"):
        (folder / f"{form.lower()}.{form.lower()}").write_bytes(encode_image(form))
    (folder / "moving.gif").write_bytes(encoded(photo(), "GIF"))
    (folder / "told.jpg").write_bytes(with_description(encode_image("JPEG"), "told by somebody"))
    times = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    run = JobRunner(folder, "metadata")
    outcome = run()
    assert outcome == {"computed": 3, "existing": 1, "failed": 1}
    assert "JPEG, PNG or WebP" in run.errors["moving.gif"]
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name in times} == times
    second_outcome = run()
    assert second_outcome == {"done": 3, "existing": 1, "failed": 1}
    assert run.computed == []
    assert read_description((folder / "jpeg.jpeg").read_bytes()) == "jpeg v1"
    (folder / "png.png").write_bytes(with_description((folder / "png.png").read_bytes(), "edited by somebody"))
    assert (run()["edited"], run.computed) == (1, [])

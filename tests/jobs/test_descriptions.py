"""A person's own words are found in every form, and neither they nor the file that holds them are lost."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
from PIL import Image, PngImagePlugin

from openblip.errors import ImageError, InputError
from openblip.jobs.descriptions import find_description
from openblip.jobs.sinks import Existing, SinkOptions, open_sink
from openblip.jobs.xmp import DC, IPTC, Packet, read_description, with_description
from tests.jobs.test_run import JobRunner
from tests.jobs.test_xmp import encode_image, jpeg_with
from tests.preprocess.odd_images import encoded, photo

WORDS = "Oma im Garten, 1987: \u201ealles blüht\u201c"
RDF = 'xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"'
DUBLIN = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'


def packet(content: str, attributes: str = "") -> bytes:
    description = f'<rdf:Description rdf:about="" {DUBLIN} {attributes}>{content}</rdf:Description>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {RDF}>{description}</rdf:RDF></x:xmpmeta>'.encode()


def described(inside: str) -> str:
    return f"<dc:description>{inside}</dc:description>"


XMP_FORMS = {
    "attribute": packet("", f'dc:description="{WORDS}"'),
    "element": packet(described(WORDS)),
    "cdata": packet(described(f"<![CDATA[{WORDS}]]>")),
    "alternatives": packet(described(f'<rdf:Alt><rdf:li xml:lang="x-default">{WORDS}</rdf:li></rdf:Alt>')),
    "one language": packet(described(f'<rdf:Alt><rdf:li xml:lang="de-DE">{WORDS}</rdf:li></rdf:Alt>')),
    "blank default": packet(
        described(f'<rdf:Alt><rdf:li xml:lang="x-default"/><rdf:li xml:lang="de">{WORDS}</rdf:li></rdf:Alt>')
    ),
    "bag": packet(described(f"<rdf:Bag><rdf:li>{WORDS}</rdf:li></rdf:Bag>")),
    "qualified": packet(
        described(f'<rdf:Alt><rdf:li rdf:parseType="Resource"><rdf:value>{WORDS}</rdf:value></rdf:li></rdf:Alt>')
    ),
    "second node": packet("").replace(
        b"</rdf:RDF>", packet(described(WORDS)).split(b"#\">")[1].split(b"</rdf:RDF>")[0] + b"</rdf:RDF>"
    ),
    "other prefix": packet(described(WORDS)).replace(b"dc:", b"d:").replace(b"xmlns:dc", b"xmlns:d"),
    "alternative text": packet(
        f'<a:AltTextAccessibility xmlns:a="{IPTC}"><rdf:Alt><rdf:li xml:lang="x-default">{WORDS}</rdf:li></rdf:Alt>'
        "</a:AltTextAccessibility>"
    ),
    "exif in xmp": packet("", f'xmlns:e="http://ns.adobe.com/exif/1.0/" e:UserComment="{WORDS}"'),
    "tiff in xmp": packet("", f'xmlns:t="http://ns.adobe.com/tiff/1.0/" t:ImageDescription="{WORDS}"'),
    "utf-16": packet(described(WORDS)).decode().encode("utf-16"),
}  # fmt: skip


def exif_with(tag: int, value: Any, ifd: int = 0) -> Image.Exif:
    exif = Image.Exif()
    (exif.get_ifd(ifd) if ifd else exif)[tag] = value
    return exif


EXIF_FORMS = {
    "description": exif_with(0x010E, WORDS.encode()),
    "latin-1": exif_with(0x010E, "Oma im Garten blüht".encode("latin-1")),
    "comment, unmarked": exif_with(0x9286, bytes(8) + WORDS.encode(), 0x8769),
    "comment, ascii": exif_with(0x9286, b"ASCII\0\0\0Oma im Garten", 0x8769),
    "comment, big endian": exif_with(0x9286, b"UNICODE\0" + WORDS.encode("utf-16-be"), 0x8769),
    "comment, little endian": exif_with(0x9286, b"UNICODE\0" + WORDS.encode("utf-16-le"), 0x8769),
    "comment of Windows": exif_with(0x9C9C, WORDS.encode("utf-16-le") + b"\0\0"),
}


def iptc(text: bytes) -> bytes:
    records = (
        b"\x1c\x01\x5a\0\x03\x1b%G" + b"\x1c\x02\x19\0\x03key" + b"\x1c\x02\x78" + struct.pack(">H", len(text)) + text
    )
    padding = b"\0" * (len(records) % 2)
    other = b"8BIM\x03\xed\x00\x00\0\0\0\x03abc\0"
    return b"Photoshop 3.0\0" + other + b"8BIM\x04\x04\x04name\0" + struct.pack(">I", len(records)) + records + padding


def png_text(keyword: str, text: str, *, form: str = "tEXt") -> bytes:
    info = PngImagePlugin.PngInfo()
    if form == "iTXt":
        info.add_itxt(keyword, text, zip=True)
    else:
        info.add_text(keyword, text, zip=form == "zTXt")
    return encoded(photo(), "PNG", pnginfo=info)


def raw_profile(kind: str, content: bytes) -> bytes:
    return png_text(f"Raw profile type {kind}", f"\n{kind}\n{len(content):8}\n{content.hex()}\n", form="zTXt")


def late_png_text() -> bytes:
    """A text after the image data."""
    data = encoded(photo(), "PNG")
    body = b"tEXt" + b"Comment\0Oma im Garten"
    chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:-12] + chunk + data[-12:]


FILES: dict[str, tuple[str, bytes]] = {
    **{f"jpeg, xmp {name}": ("jpg", encode_image("JPEG", xmp=data)) for name, data in XMP_FORMS.items()},
    **{f"webp, xmp {name}": ("webp", encode_image("WEBP", xmp=data)) for name, data in XMP_FORMS.items()},
    **{f"jpeg, exif {name}": ("jpg", encoded(photo(), "JPEG", exif=exif)) for name, exif in EXIF_FORMS.items()},
    **{f"png, exif {name}": ("png", encoded(photo(), "PNG", exif=exif.tobytes())) for name, exif in EXIF_FORMS.items()},
    **{f"webp, exif {name}": ("webp", encoded(photo(), "WEBP", exif=exif)) for name, exif in EXIF_FORMS.items()},
    "jpeg, iptc": ("jpg", jpeg_with(encoded(photo(), "JPEG"), 0xED, iptc(WORDS.encode()))),
    "jpeg, iptc in latin-1": ("jpg", jpeg_with(encoded(photo(), "JPEG"), 0xED, iptc(b"Gr\xfc\xdfe"))),
    "jpeg, comment": ("jpg", encoded(photo(), "JPEG", comment=WORDS)),
    "png, description": ("png", png_text("Description", "Oma im Garten")),
    "png, compressed comment": ("png", png_text("Comment", "Oma im Garten", form="zTXt")),
    "png, international caption": ("png", png_text("Caption", WORDS, form="iTXt")),
    "png, iptc of ImageMagick": ("png", raw_profile("iptc", iptc(WORDS.encode())[14:])),
    "png, exif of ImageMagick": ("png", raw_profile("exif", b"Exif\0\0" + EXIF_FORMS["description"].tobytes()[6:])),
    "png, xmp of ImageMagick": ("png", raw_profile("xmp", XMP_FORMS["element"])),
    "png, text after the image": ("png", late_png_text()),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_words_in_any_form_are_an_existing_description(name: str, tmp_path: Path) -> None:
    suffix, data = FILES[name]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(data)
    words = find_description(data)
    assert words is not None
    assert JobRunner(tmp_path, "metadata")() == {"existing": 1}
    assert path.read_bytes() == data
    run = JobRunner(tmp_path, "metadata", existing="append")
    assert run() == {"computed": 1}
    assert read_description(path.read_bytes()) == f"{words}\na v1", "the words come first"
    assert run() == {"done": 1}, "and they are not added again"
    for form in ("Garten", "Gr"):
        if form in words and "xmp" not in name:
            assert find_description(data) == words


@pytest.mark.parametrize("name", XMP_FORMS)
def test_other_languages_survive_and_one_default_remains(name: str) -> None:
    new = Packet(Packet(XMP_FORMS[name]).to_packet())
    new.describe("a dog")
    text = new.root()
    assert new.get(DC, "description") == new.get(IPTC, "AltTextAccessibility") == "a dog"
    assert text.count("a dog") == 2
    assert (WORDS in text) == (name in ("one language", "blank default", "exif in xmp", "tiff in xmp"))


@pytest.mark.parametrize(
    "text",
    ["OLYMPUS DIGITAL CAMERA   ", "SONY DSC", "DCIM\\100MEDIA\\DJI_0012.JPG", "   ", "Made with GIMP", "Screenshot"],
)  # fmt: skip
def test_what_cameras_and_programs_write_is_no_description(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG", exif=exif_with(0x010E, text)))
    assert JobRunner(tmp_path, "metadata")() == {"computed": 1}
    assert Image.open(tmp_path / "a.jpg").getexif()[0x010E].strip() == text.strip()


@pytest.mark.parametrize("text", ["a digital camera", "Made in Italy, 1999", "A screenshot of the game"])
def test_words_that_resemble_such_texts_are_a_persons(text: str) -> None:
    assert find_description(encoded(photo(), "JPEG", exif=exif_with(0x010E, text))) == text


def test_descriptions_of_other_images_inside_a_packet_stay_and_do_not_count() -> None:
    inner = f'<rdf:Bag><rdf:li rdf:parseType="Resource">{described("of another image")}</rdf:li></rdf:Bag>'
    data = encode_image("JPEG", xmp=packet(f'<m:Pantry xmlns:m="http://ns.adobe.com/xap/1.0/mm/">{inner}</m:Pantry>'))
    assert find_description(data) is None
    new = with_description(data, "a dog")
    assert read_description(new) == "a dog"
    assert b"of another image" in new


def test_an_alternative_text_of_its_own_is_replaced_only_on_request(tmp_path: Path) -> None:
    content = described(f'<rdf:Alt><rdf:li xml:lang="x-default">{WORDS}</rdf:li></rdf:Alt>')
    data = packet(f'{content}<a:AltTextAccessibility xmlns:a="{IPTC}">a hand-made text</a:AltTextAccessibility>')
    for existing, alt in (("append", "a hand-made text"), ("overwrite", "a v1")):
        (tmp_path / "a.jpg").write_bytes(encode_image("JPEG", xmp=data))
        JobRunner(tmp_path, "metadata", existing=existing)(restart=True)  # type: ignore[arg-type]
        new = Image.open(tmp_path / "a.jpg").info["xmp"]
        assert Packet(new).get(IPTC, "AltTextAccessibility") == alt


def test_line_breaks_in_attributes_survive() -> None:
    data = packet("", 'xmlns:m="urn:mine" m:note="one&#10;two&#9;three"')
    new = Packet(data)
    new.describe("a dog")
    assert minidom.parseString(new.root()).documentElement is not None
    assert "one&#10;two&#9;three" in new.root()


def test_extended_xmp_counts_and_is_not_contradicted() -> None:
    part = b"http://ns.adobe.com/xmp/extension/\0" + b"A" * 32 + struct.pack(">II", 0, 0) + XMP_FORMS["element"]
    data = jpeg_with(encode_image("JPEG", xmp=packet("")), 0xE1, part)
    assert find_description(data) == WORDS
    with pytest.raises(ImageError, match="extended"):
        with_description(data, "a dog")


def test_the_second_image_of_an_mpo_stays_readable() -> None:
    first, second = Image.fromarray(photo()), Image.fromarray(255 - photo())
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second], xmp=XMP_FORMS["attribute"])
    data = buffer.getvalue()
    frames = []
    for content in (data, with_description(data, "a dog")):
        with Image.open(io.BytesIO(content)) as image:
            image.seek(1)
            frames.append(image.convert("RGB").tobytes())
    assert frames[0] == frames[1]


LIGHTROOM = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<!-- by hand -->
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 5.6.0">
 <rdf:RDF {RDF}>
  <rdf:Description rdf:about="" xmlns:crs="http://ns.adobe.com/camera-raw-settings/1.0/" crs:Exposure2012="+0.35"
    xmlns:darktable="http://darktable.sf.net/" darktable:history_end="2">
   <darktable:history>
    <rdf:Seq><rdf:li darktable:operation="exposure" darktable:params="00f1"/></rdf:Seq>
   </darktable:history>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="w"?>
"""


@pytest.mark.parametrize("existing", ["skip", "append", "prepend", "overwrite"])
def test_a_side_car_of_a_raw_developer_gains_a_description_and_keeps_the_rest(
    existing: Existing, tmp_path: Path
) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))
    side_car = tmp_path / "a.xmp"
    side_car.write_text(LIGHTROOM)
    run = JobRunner(tmp_path, "sidecar", existing=existing, ext=".xmp")
    assert run() == {"computed": 1}
    text = side_car.read_text()
    assert Packet(text.encode()).get(DC, "description") == "a v1"
    for kept in (
        "<?xpacket begin",
        "<!-- by hand -->",
        'crs:Exposure2012="+0.35"',
        'darktable:params="00f1"',
        "<?xpacket end",
    ):
        assert kept in text
    minidom.parseString(text)
    assert run() == {"done": 1}


def test_a_new_side_car_is_xmp(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))
    assert JobRunner(tmp_path, "sidecar", ext=".xmp", naming="full")() == {"computed": 1}
    assert Packet((tmp_path / "a.jpg.xmp").read_bytes()).get(DC, "description") == "a v1"


@pytest.mark.parametrize("name", ["a.xmp", "a.jpg.xmp", "a.XMP"])
@pytest.mark.parametrize("to", ["metadata", "sidecar"])
def test_words_in_a_side_car_count_for_every_place_of_xmp(name: str, to: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))
    (tmp_path / name).write_bytes(XMP_FORMS["attribute"])
    assert JobRunner(tmp_path, to, ext=".xmp")() == {"existing": 1}
    assert (tmp_path / name).read_bytes() == XMP_FORMS["attribute"]


def test_words_in_the_image_count_for_its_side_car(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(FILES["jpeg, iptc"][1])
    assert JobRunner(tmp_path, "sidecar", ext=".xmp")() == {"existing": 1}
    assert not (tmp_path / "a.xmp").exists()


@pytest.mark.parametrize(
    ("ext", "content"),
    [(".xmp", "a dog\n"), (".xmp", "<x:xmpmeta"), (".txt", "<?xml version='1.0'?><a/>"), (".note", '{"title": "a"}')],
)
def test_files_of_other_programs_are_not_touched(ext: str, content: str, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))
    (tmp_path / "b.jpg").write_bytes(encoded(photo(), "JPEG"))
    (tmp_path / f"a{ext}").write_text(content)
    run = JobRunner(tmp_path, "sidecar", existing="append", ext=ext)
    assert run() == {"failed": 1, "computed": 1}
    assert (tmp_path / f"a{ext}").read_text() == content
    assert f"a{ext}" in run.errors["a.jpg"]


def test_a_text_in_utf_16_is_not_mixed_with_utf_8(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))
    (tmp_path / "a.txt").write_bytes("mein Hund".encode("utf-16"))
    assert JobRunner(tmp_path, "sidecar", existing="append")() == {"failed": 1}
    assert (tmp_path / "a.txt").read_bytes() == "mein Hund".encode("utf-16")


def test_a_byte_order_mark_stays_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfmein Hund\r\n")
    assert JobRunner(tmp_path, "sidecar", existing="prepend")() == {"computed": 1}
    assert (tmp_path / "a.txt").read_bytes() == b"\xef\xbb\xbfa v1\nmein Hund\n"


@pytest.mark.parametrize("ext", [".cr2", ".jpg", ".jfif", ".JSON", ".pp3", ".mp4", ".heic"])
def test_suffixes_of_other_programs_are_refused(ext: str) -> None:
    with pytest.raises(InputError, match="--ext"):
        open_sink("sidecar", SinkOptions(ext=ext))


def test_the_identity_of_an_image_survives(tmp_path: Path) -> None:
    original, link = tmp_path / "originals" / "a.jpg", tmp_path / "p" / "a.jpg"
    for path in (original, link):
        path.parent.mkdir()
    original.write_bytes(encoded(photo(), "JPEG"))
    original.chmod(0o640)
    os.utime(original, ns=(1_500_000_000_000_000_000, 1_400_000_000_000_000_000))
    link.symlink_to(original)
    assert JobRunner(tmp_path / "p", "metadata")() == {"computed": 1}
    assert link.is_symlink()
    assert read_description(original.read_bytes()) == "a v1"
    status = original.stat()
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o640, 1_400_000_000_000_000_000)


def test_hard_links_are_refused_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "p" / name).write_bytes(encoded(photo(), "JPEG"))
    (tmp_path / "backup.jpg").hardlink_to(tmp_path / "p" / "a.jpg")
    before = (tmp_path / "backup.jpg").read_bytes()
    run = JobRunner(tmp_path / "p", "metadata")
    assert run() == {"failed": 1, "computed": 1}
    assert "2 hard links" in run.errors["a.jpg"]
    assert (tmp_path / "backup.jpg").read_bytes() == before
    assert (tmp_path / "backup.jpg").stat().st_nlink == 2


def test_two_names_of_one_image_are_one_image(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photo(), "JPEG"))
    (tmp_path / "b.jpg").symlink_to("a.jpg")
    assert JobRunner(tmp_path, "metadata")() == {"computed": 1, "existing": 1}
    assert read_description((tmp_path / "a.jpg").read_bytes()) == "a v1"

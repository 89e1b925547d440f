"""Kinds of files, by their suffix and by their first bytes."""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Mapping

from PIL import features

from openblip.extras import install_hint


def _suffixes(names: str) -> frozenset[str]:
    return frozenset(names.split())


IMAGE_SUFFIXES = _suffixes(
    ".jpg .jpeg .jpe .jfif .jif .jfi .mpo .png .apng .webp .gif .bmp .dib .tif .tiff .ppm .pgm .pbm .pnm .pfm "
    ".pam .avif .avifs .heic .heif .heics .heifs .hif .jp2 .j2k .j2c .jpc .jpf .jpx .jxl .tga .pcx .sgi .qoi "
    ".dds .psd"
)
"""Suffixes of the images that a folder stands for."""

RAW_SUFFIXES = _suffixes(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .gpr .iiq .k25 .kdc .mdc .mef .mos .mrw .nef .nrw .orf .pef "
    ".raf .raw .rw2 .rwl .rwz .sr2 .srf .srw .x3f"
)
VIDEO_SUFFIXES = _suffixes(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .ogv .3gp")
_OTHER_VIDEOS = _suffixes(".mts .m2ts .mxf .insv .vob .3g2")
_DRAWINGS = _suffixes(".svg .svgz .eps .ps .ai .pdf .cdr .emf .wmf")
_ICONS = _suffixes(".ico .cur .icns .xbm .xpm")
_OTHER_IMAGES = _suffixes(
    ".exr .hdr .psb .xcf .kra .clip .ora .afphoto .dcm .jxr .wdp .hdp .jng .mng .flif .bpg .ktx .ktx2 .pgx "
    ".fits .fit .blp .insp .cin .dpx .j2p .jpm .jls .ras .im .msp .rgb .rgba .bw .pct .pict .iff .lbm .ftc "
    ".ftu .vtf .xnb .vicar"
)
# Other files often found next to images. Their content is not checked.
_OTHER_FILES = _suffixes(
    ".txt .caption .json .jsonl .ndjson .csv .tsv .parquet .tar .gz .tgz .zip .7z .rar .xmp .xml .html .htm "
    ".md .rst .py .ipynb .npy .npz .pt .pth .ckpt .safetensors .pkl .db .ini .cfg .log .yaml .yml .toml .cache "
    ".journal .lock .part .doc .docx .xls .xlsx .odt .lnk .url .aae .pp3 .dop .cos .cot .arp .on1 .vrd .thm "
    ".mp3 .wav .m4a .srt .sh .bat .exe .dll .so"
)

SKIPPED_FOLDERS = re.compile(
    r"@eaDir|@__thumb|@Recycle|@Recently-Snapshot|@tmp|#recycle|#snapshot|\$RECYCLE\.BIN|RECYCLER|"
    r"System Volume Information|lost\+found|__MACOSX|.*\.lrdata|.*\.cocatalogdb",
    re.IGNORECASE,
)
"""Folders of thumbnails, deleted files and snapshots that network disks and systems add."""


def suffix_of(name: str) -> str:
    """Return the suffix of a path, in lower case."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (Path costs ten times as much)


def is_image_name(name: str) -> bool:
    """Return whether a path has the suffix of an image that can be read, at least with an extra."""
    return suffix_of(name) in IMAGE_SUFFIXES


def is_system_path(path: str) -> bool:
    """Return whether a path leads through a folder that a system or a network disk has added."""
    return any(SKIPPED_FOLDERS.fullmatch(step) for step in path.replace("\\", "/").split("/")[:-1])


def unread_kind(name: str) -> str:
    """Return the kind of image or video that a folder does not stand for, in the singular; "" for other files."""
    suffix = suffix_of(name)
    kinds = {
        "RAW photo": RAW_SUFFIXES,
        "video": VIDEO_SUFFIXES | _OTHER_VIDEOS,
        "drawing or document": _DRAWINGS,
        "icon": _ICONS,
        "image in a format that is not supported": _OTHER_IMAGES,
    }
    return next((kind for kind, suffixes in kinds.items() if suffix in suffixes), "")


def may_be_image(name: str) -> bool:
    """Return whether a file without a known suffix could be an image, as its first bytes tell."""
    return suffix_of(name) not in _OTHER_FILES and not unread_kind(name)


def starts_like_image(start: bytes) -> bool:
    """Return whether the first 16 bytes of a file belong to a common image format."""
    return _known_format(start) in ("JPEG", "PNG", "GIF", "WebP", "TIFF", "HEIC", "AVIF", "JPEG XL", "JPEG 2000")


def _known_format(start: bytes) -> str:
    """Return the name of the image format that a file starts like, or ""."""
    if start[4:8] == b"ftyp":
        return _FTYP.get(bytes(start[8:12]), "")
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    return next((name for magic, name in _FORMATS.items() if start.startswith(magic)), "")


_FORMATS: Mapping[bytes, str] = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"BM": "BMP",
    b"8BPS\0\1": "PSD",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"DDS ": "DDS",
    b"qoif": "QOI",
}
_FTYP = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC",
    b"hevc": "HEIC", b"hevx": "HEIC", b"heif": "HEIC", b"mif1": "HEIC", b"msf1": "HEIC", b"crx ": "Canon CR3",
}  # fmt: skip

# Other files that occur in place of images: where the bytes are, the bytes, and the reason.
_CONVERT = "convert it to JPEG or PNG first"
_OTHER_KINDS = (
    (0, b"\0\5\x16\7", "it is an AppleDouble file, in which macOS stores metadata; the image is the file without ._"),
    (0, b"\0\5\x16\0", "it is an AppleSingle file of macOS, not an image"),
    (0, b"FUJIFILMCCD-RAW", f"it is a RAW photo (Fujifilm RAF); {_CONVERT}"),
    (0, b"IIRO", f"it is a RAW photo (Olympus ORF); {_CONVERT}"),
    (0, b"IIRS", f"it is a RAW photo (Olympus ORF); {_CONVERT}"),
    (0, b"MMOR", f"it is a RAW photo (Olympus ORF); {_CONVERT}"),
    (0, b"IIU\0", f"it is a RAW photo (Panasonic RW2); {_CONVERT}"),
    (0, b"FOVb", f"it is a RAW photo (Sigma X3F); {_CONVERT}"),
    (0, b"\0MRM", f"it is a RAW photo (Minolta MRW); {_CONVERT}"),
    (0, b"II\xbc\1", f"it is JPEG XR, which is not supported; {_CONVERT}"),
    (0, b"II+\0", f"it is a BigTIFF, which is not supported; {_CONVERT}"),
    (0, b"MM\0+", f"it is a BigTIFF, which is not supported; {_CONVERT}"),
    (0, b"\x76\x2f\x31\x01", f"it is OpenEXR, which is not supported; {_CONVERT}"),
    (0, b"#?RADIANCE", f"it is Radiance HDR, which is not supported; {_CONVERT}"),
    (0, b"#?RGBE", f"it is Radiance HDR, which is not supported; {_CONVERT}"),
    (0, b"8BPS\0\2", f"it is a large Photoshop document (PSB), which is not supported; {_CONVERT}"),
    (0, b"gimp xcf", f"it is a GIMP document (XCF), which is not supported; {_CONVERT}"),
    (0, b"BPG\xfb", f"it is BPG, which is not supported; {_CONVERT}"),
    (0, b"FLIF", f"it is FLIF, which is not supported; {_CONVERT}"),
    (0, b"\x8aMNG", f"it is MNG, which is not supported; {_CONVERT}"),
    (0, b"\x8bJNG", f"it is JNG, which is not supported; {_CONVERT}"),
    (0, b"PG ", f"it is PGX, which is not supported; {_CONVERT}"),
    (0, b"P7", f"it is PAM of a kind that is not supported; {_CONVERT}"),
    (0, b"\xabKTX", f"it is a KTX texture, which is not supported; {_CONVERT}"),
    (128, b"DICM", f"it is DICOM, which is not supported; {_CONVERT}"),
    (0, b"SIMPLE  =", f"it is FITS of a kind that is not supported; {_CONVERT}"),
    (0, b"\x1aE\xdf\xa3", "it is a video; name it with the suffix of a video, such as .mkv"),
    (0, b"OggS", "it is a video or a sound file, not an image"),
    (8, b"AVI ", "it is a video; name it with the suffix of a video, such as .avi"),
    (4, b"ftypcrx ", f"it is a RAW photo (Canon CR3); {_CONVERT}"),
    (4, b"ftyp", "it is a video; name it with the suffix of a video, such as .mp4"),
    (4, b"moov", "it is a video; name it with the suffix of a video, such as .mov"),
    (4, b"mdat", "it is a video; name it with the suffix of a video, such as .mov"),
    (0, b"PK\3\4", "it is a ZIP archive or an office document; unpack it first"),
    (0, b"\x1f\x8b", "it is compressed by gzip; unpack it first"),
    (0, b"7z\xbc\xaf", "it is a 7z archive; unpack it first"),
    (0, b"Rar!", "it is a RAR archive; unpack it first"),
)  # fmt: skip
_TEXT_KINDS = (
    (b"<svg", "it is an SVG drawing; render it to PNG first"),
    (b"<?xml", "it is XML, such as an SVG drawing or the error message of a server"),
    (b"http/1.", "it is the response of a web server with its headers; download the image again"),
    (b"data:image/", "it is a data: address in text; decode its base64 first"),
    (b"<!doctype html", "it is a web page, not an image"),
    (b"<html", "it is a web page, not an image"),
    (b"%pdf", "it is a PDF; render its pages first"),
    (b"%!ps", "it is PostScript, a program; render it to PNG first"),
    (b"version https://git-lfs", "it is a Git LFS pointer; run `git lfs pull`"),
)


def describe_unreadable(start: bytes) -> str:
    """Describe a file that Pillow cannot identify.

    Args:
        start: The first bytes of the file, a few thousand if possible.

    Returns:
        The reason why it is no image, or why it cannot be read.
    """
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for prefix, description in _TEXT_KINDS:
        if text.startswith(prefix):
            return description
    name = _known_format(start)
    if name == "HEIC":
        return f"it is HEIC, or damaged; HEIC needs an extra: {install_hint('heif')}"
    if name == "JPEG XL":
        return f"it is JPEG XL, or damaged; JPEG XL needs an extra: {install_hint('jxl')}"
    if name == "AVIF":
        return _describe_avif(start)
    for position, magic, description in _OTHER_KINDS:
        if start[position : position + len(magic)] == magic:
            return description
    if name:
        return f"it is a damaged {name} file, or of a kind that is not supported"
    if late := _known_format(start.lstrip()):
        return f"it has blanks or line ends before the {late} data; download it again"
    if not start.strip(b"\0"):
        return "it contains nothing but zero bytes; its download or its disk has failed"
    if _is_text(start):
        return "it is text, not an image"
    return "it is damaged, or not in an image format that Pillow reads"


def _describe_avif(start: bytes) -> str:
    if not features.check("avif"):
        return "it is AVIF, which this Pillow does not support; install a newer Pillow"
    position = start.find(b"ispe")
    if position >= 0 and len(start) >= position + 16:
        width, height = struct.unpack(">II", start[position + 8 : position + 16])
        if width * height > 16384**2 or max(width, height) > 32768:  # the limits of libavif
            return f"it is too large: {width} x {height} is more than the AVIF decoder accepts; make it smaller first"
    return "it is a damaged AVIF file, or of a kind that is not supported"


def _is_text(start: bytes) -> bool:
    try:
        text = start.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(start) - 4:
            return False
        text = start[: error.start].decode("utf-8")
    return all(char.isprintable() or char in "\r\n\t\f" for char in text)

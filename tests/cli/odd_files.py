"""A folder of other people's files: images in many formats, files that are none, and what a folder passes over."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.preprocess.odd_images import encoded, photo

APPLE_DOUBLE = b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(60)


def write_odd_folder(folder: Path) -> tuple[set[str], dict[str, str]]:
    """Write the folder, and return the names of its good images, and the words of the error of each bad one."""
    folder.mkdir(parents=True, exist_ok=True)
    good = _write_good(folder)
    bad = _write_bad(folder)
    _write_skipped(folder)
    return good, bad


def _write_good(folder: Path) -> set[str]:
    rgb = Image.fromarray(photo())
    forms = {
        **dict.fromkeys(("a.jpg", "b.JPEG", "c.jfif", "d.jpe", "2023.05.01.jpg"), "JPEG"),
        **dict.fromkeys(("e.png", "with blank.png", "umlaut ä.png", "emoji 😀.png", "[1]*, '2'.png"), "PNG"),
        "f.webp": "WEBP",
        "g.gif": "GIF",
        "h.bmp": "BMP",
        "i.tif": "TIFF",
        "j.ppm": "PPM",
        "k.jp2": "JPEG2000",
        "l.tga": "TGA",
        "m.mpo": "MPO",
        "n.dib": "DIB",
        "o.pcx": "PCX",
    }
    for name, form in forms.items():
        rgb.save(folder / name, form)
    rgb.convert("CMYK").save(folder / "cmyk.jpg")
    rgb.convert("L").convert("I;16").save(folder / "deep.png")
    rgb.convert("RGBA").quantize(16).save(folder / "palette.png", transparency=3)
    (folder / "gray.pfm").write_bytes(b"Pf\n8 8\n-1.0\n" + np.full((8, 8), 0.5, "<f4").tobytes())
    (folder / "color.pfm").write_bytes(b"PF\n8 8\n1.0\n" + np.full((8, 8, 3), 0.5, ">f4").tobytes())
    (folder / "really a png.jpg").write_bytes(encoded(photo(), "PNG"))
    names = ["cmyk.jpg", "deep.png", "palette.png", "gray.pfm", "color.pfm", "really a png.jpg"]
    return {*forms, *names}


def _write_bad(folder: Path) -> dict[str, str]:
    png, jpeg = encoded(photo(), "PNG"), encoded(photo(), "JPEG")
    contents = {
        "cut.png": (png[: len(png) // 2], "damaged or truncated"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "damaged or truncated"),
        "empty.jpg": (b"", "it is empty"),
        "zeros.jpg": (bytes(500), "zero bytes"),
        "words.jpg": (b"Not an image at all.\n", "it is text"),
        "page.jpg": (b"<!DOCTYPE html><html></html>", "web page"),
        "drawing.png": (b"<svg xmlns='x'/>", "SVG"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        "resources.jpg": (APPLE_DOUBLE, "AppleDouble"),
        "new.jxl": (b"\xff\x0a\xfa\x1f\x01\x91", "JPEG XL"),
        "raw.jpg": (b"FUJIFILMCCD-RAW 0201", "RAW photo"),
        "film.jpg": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2", "it is a video"),
        "headers.jpg": (b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg, "response of a web server"),
        "late.jpg": (b"\r\n" + jpeg, "line ends before the JPEG data"),
        "inline.jpg": (b"data:image/jpeg;base64,/9j/4AAQ", "data: address"),
        "denied.jpg": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "error message of a server"),
        "archive.jpg": (b"PK\3\4" + bytes(30), "ZIP"),
        "tile.pam": (b"P7\nWIDTH 1\n", "PAM"),
        "wide.avif": (b"\0\0\0\x18ftypavif\0\0\0\0avifmif1" + _ispe(70_000, 70_000), "too large: 70000 x 70000"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.mkfifo(folder / "pipe.jpg")
    return {name: words for name, (_, words) in contents.items()} | {
        "gone.jpg": "no such file",
        "loop.jpg": "too many levels of symbolic links",
        "pipe.jpg": "not a regular file",
    }


def _ispe(width: int, height: int) -> bytes:
    box = b"ispe" + bytes(4) + width.to_bytes(4, "big") + height.to_bytes(4, "big")
    return bytes(20) + (len(box) + 4).to_bytes(4, "big") + box


SKIPPED = {
    "RAW photos (.cr2, .nef)": ("raw/a.NEF", "raw/b.cr2"),
    "1 video (.mp4)": ("clip.mp4",),
    "1 drawing or document (.svg)": ("logo.svg",),
    "1 icon (.ico)": ("favicon.ico",),
    "1 image in a format that is not supported (.exr)": ("light.exr",),
    "1 image without the suffix of an image (no suffix)": ("no suffix",),
    "1 hidden image (.hidden.jpg)": (".hidden.jpg",),
    "1 AppleDouble file (._a.jpg)": ("._a.jpg",),
    "1 hidden folder (.thumbnails)": (".thumbnails/t.jpg",),
    "4 system folders (#recycle, $RECYCLE.BIN, @eaDir, __MACOSX)": (
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.jpg",
        "#recycle/old.jpg",
        "$RECYCLE.BIN/old.jpg",
        "__MACOSX/x.jpg",
    ),
    "1 linked folder (linked)": (),
}
"""What the summary says about files that a folder passes over."""


def _write_skipped(folder: Path) -> None:
    for names in SKIPPED.values():
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(APPLE_DOUBLE if "._" in name else encoded(photo(), "JPEG"))
    (folder / "linked").symlink_to("raw")
    for name in ("notes.txt", "data.json", "Thumbs.db", ".DS_Store"):
        (folder / name).write_text("not an image")


def write_lists(folder: Path) -> list[str]:
    """Write a list of images/a.jpg ("a dog, brown") and images/b.jpg (no caption) per dialect, and return the names."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(photo()).save(folder / "images" / name)
    rows = [{"image": "images/a.jpg", "caption": "a dog, brown"}, {"image": "images/b.jpg", "caption": None}]
    table = 'image,caption\nimages/a.jpg,"a dog, brown"\nimages/b.jpg,{}\n'
    texts: dict[str, str | bytes] = {
        "plain.csv": table.format(""),
        **{f"missing {value.strip('<>#/')}.csv".replace("/", ""): table.format(value) for value in MISSING},
        "semicolons.csv": "image;caption\nimages/a.jpg;a dog, brown\nimages/b.jpg;\n",
        "bars.csv": "image_name| comment_number| comment\nimages/a.jpg| 0| a dog, brown\nimages/b.jpg| 0|\n",
        "tabs.csv": "image\tcaption\nimages/a.jpg\ta dog, brown\nimages/b.jpg\t\n",
        "tabs.tsv": "image\tcaption\nimages/a.jpg\ta dog, brown\nimages/b.jpg\t\n",
        "excel.csv": "sep=;\nimage;caption\nimages/a.jpg;a dog, brown\nimages/b.jpg;\n",
        "capitals.csv": table.format("").replace("image,caption", "Image, Caption"),
        "padded.csv": ' Image , Caption \n images/a.jpg , "a dog, brown"\nimages/b.jpg ,  \n',
        "spaced names.csv": table.format("").replace("image,", "File Name,"),
        "marked.csv": b"\xef\xbb\xbf" + table.format("").encode(),
        "wide.csv": table.format("").encode("utf-16"),
        "windows.csv": table.format("").replace("\n", "\r\n").replace("images/", "images\\"),
        "old mac.csv": table.format("").replace("\n", "\r"),
        "python list.csv": "image,captions\nimages/a.jpg,\"['a dog, brown']\"\nimages/b.jpg,[]\n",
        "json list.csv": 'image,captions\nimages/a.jpg,"[""a dog, brown""]"\nimages/b.jpg,nan\n',
        "captions.txt": table.format(""),
        "tokens.txt": "images/a.jpg#0\ta dog, brown\nimages/b.jpg#0\t\n",
        "lines.json": "\n".join(map(json.dumps, rows)),
        "array.jsonl": json.dumps(rows),
        "indented.jsonl": json.dumps(rows, indent=2),
        "lines.csv": "\n".join(map(json.dumps, rows)),
        "wide.json": json.dumps(rows).encode("utf-16"),
        "wide.jsonl": "\n".join(map(json.dumps, rows)).encode("utf-16"),
        "unmarked wide.csv": table.format("").encode("utf-16-le"),
        "unmarked wide.jsonl": "\n".join(map(json.dumps, rows)).encode("utf-16-be"),
        "coco.json": json.dumps(
            {
                "images": [{"id": 1, "file_name": "images/a.jpg"}, {"id": 2.0, "file_name": "images/b.jpg"}],
                "annotations": [{"image_id": "001", "caption": "a dog, brown"}, {"image_id": "2", "caption": "nan"}],
            }
        ),
        "drive.csv": table.format("").replace("images/", "D:\\photos\\images\\"),
        "elsewhere.jsonl": "\n".join(map(json.dumps, rows)).replace("images/", "/export/share/vg/images/"),
        "server.csv": table.format("").replace("images/", "\\\\nas\\share\\images\\"),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(texts)


def write_pair_lists(folder: Path) -> list[Path]:
    """Write a list of (images/a.jpg, images/b.jpg) with a text and the reverse without one per dialect."""
    rows: list[dict[str, str | None]] = [
        {"left": "images/a.jpg", "right": "images/b.jpg", "text": "two dogs, brown"},
        {"left": "images/b.jpg", "right": "images/a.jpg", "text": None},
    ]
    table = 'left,right,text\nimages/a.jpg,images/b.jpg,"two dogs, brown"\nimages/b.jpg,images/a.jpg,{}\n'
    plain = table.format("")
    lists = [{"image": [row["left"], row["right"]], "text": row["text"]} for row in rows]
    lines = "\n".join(map(json.dumps, rows))
    texts: dict[str, str | bytes] = {
        "plain.csv": plain,
        **{f"missing {number}.csv": table.format(value) for number, value in enumerate(MISSING)},
        "semicolons.csv": plain.replace(",", ";").replace("dogs;", "dogs,"),
        "excel.csv": "sep=;\n" + plain.replace(",", ";").replace("dogs;", "dogs,"),
        "bars.csv": plain.replace(",", "| ").replace("dogs| ", "dogs,"),
        "tabs.tsv": plain.replace(",", "\t").replace("dogs\t", "dogs,"),
        "capitals.csv": plain.replace("left,right", "Left, Right"),
        "marked.csv": b"\xef\xbb\xbf" + plain.encode(),
        "wide.csv": plain.encode("utf-16"),
        "windows.csv": plain.replace("\n", "\r\n").replace("images/", "images\\"),
        "old mac.csv": plain.replace("\n", "\r"),
        "drive.csv": plain.replace("images/", "D:\\photos\\images\\"),
        "named.csv": plain.replace("left,right", "before,after"),
        "python list.csv": "image,text\n" + "".join(f'"{row["image"]}","{row["text"] or ""}"\n' for row in lists),
        "lines.json": lines,
        "array.jsonl": json.dumps(rows),
        "indented.jsonl": json.dumps(rows, indent=2),
        "wide.jsonl": lines.encode("utf-16"),
        "lists.jsonl": "\n".join(map(json.dumps, lists)),
        "elsewhere.jsonl": lines.replace("images/", "/export/nlvr2/images/"),
    }
    for name, content in texts.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return [folder / name for name in texts]


MISSING = ("nan", "NaN", "NULL", "None", "<NA>", "#N/A", "null")


def write_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path

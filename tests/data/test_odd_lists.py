"""Lists as other people and other systems write them: addresses, names, layouts, quotes and encodings."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.sources.shards import plan_shards, read_shard
from openblip.errors import ImageError, InputError
from openblip.preprocess.image import load_image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b c.jpg", unicodedata.normalize("NFD", "café.jpg")):
        Image.new("RGB", (8, 8), "red").save(tmp_path / name)
    return tmp_path


def read(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """The name of the image and the captions of each record, which must be the same in shards."""
    source = open_source(str(path))
    assert isinstance(source, Source)
    records = [record for shard in plan_shards([str(path)]) for _, record in read_shard(shard)]
    entries = [(Path(str(record.images[0].read())).name, record.captions) for record in source]
    assert entries == [(Path(r.images[0].address).name, r.captions) for r in records if isinstance(r, Record)]
    problems = [str(problem) for problem in source.problems]
    assert problems == [str(record) for record in records if not isinstance(record, Record)]
    return entries + [(problem, ()) for problem in problems]


@pytest.mark.parametrize("name", ["a.jpg", "./a.jpg", "file://{}/a.jpg", "file://localhost{}/a.jpg", "{}/a.jpg"])
def test_addresses(name: str, folder: Path) -> None:
    (folder / "list.csv").write_text(f"image,caption\n{name.format(folder)},a cat\n")
    assert read(folder / "list.csv") == [("a.jpg", ("a cat",))]


def test_file_addresses_are_decoded(folder: Path) -> None:
    (folder / "list.csv").write_text(f"image,caption\n{(folder / 'b c.jpg').as_uri()},a cat\n")
    assert "%20" in (folder / "list.csv").read_text()
    assert read(folder / "list.csv") == [("b c.jpg", ("a cat",))]


def test_accents_in_another_unicode_form(folder: Path) -> None:
    composed = unicodedata.normalize("NFC", "café.jpg")
    (folder / "list.csv").write_text(f"image,caption\n{composed},a cat\n", "utf-8")
    ((name, _),) = read(folder / "list.csv")
    assert (folder / name).exists()
    assert name != composed
    Image.new("RGB", (8, 8)).save(folder / composed)
    assert read(folder / "list.csv") == [(composed, ("a cat",))], "the exact name comes first"


def test_a_name_in_another_case_is_suggested(folder: Path) -> None:
    with pytest.raises(ImageError, match=r"A\.JPG: no such file; there is a\.jpg, in another case"):
        load_image(folder / "A.JPG")
    Image.new("RGB", (8, 8)).save(folder / "A.jpg")
    with pytest.raises(ImageError, match=r"no such file$"):
        load_image(folder / "A.JPG")


def test_json_of_names_and_texts(folder: Path) -> None:
    path = folder / "list.json"
    path.write_text(json.dumps({"a.jpg": "a cat", "b c.jpg": ["a dog", "a pup"], "x.jpg": None}))
    assert read(path) == [("a.jpg", ("a cat",)), ("b c.jpg", ("a dog", "a pup")), ("x.jpg", ())]
    path.write_text(json.dumps({"a.jpg": {"caption": "a cat"}}, indent=1))
    assert read(path) == [("a.jpg", ("a cat",))]
    path.write_text(json.dumps({"image": "a.jpg", "caption": "a cat"}, indent=1))
    assert read(path) == [("a.jpg", ("a cat",))], "one record"
    path.write_text(json.dumps({"train": [{"image": "a.jpg"}]}))
    with pytest.raises(InputError, match="unknown layout"):
        open_source(str(path))


def test_a_quote_that_is_not_closed_is_reported(folder: Path) -> None:
    (folder / "list.csv").write_text('image,caption\nb c.jpg,"a dog,\nand a pup"\na.jpg,"a cat\nx.jpg,a\ny.jpg,b\n')
    good, bad = read(folder / "list.csv")
    assert good == ("b c.jpg", ("a dog,\nand a pup",))
    assert bad[0].endswith("list.csv:4: a quote is not closed, and takes in the 2 lines below")


def test_other_encodings_name_the_remedy(folder: Path) -> None:
    (folder / "list.csv").write_bytes("image,caption\na.jpg,a cat\nb c.jpg,un café\n".encode("cp1252"))
    good, bad = read(folder / "list.csv")
    assert good == ("a.jpg", ("a cat",))
    assert "save the file in this encoding" in bad[0]


@pytest.mark.parametrize("text", ["", "image,caption\n"])
def test_a_list_without_rows(text: str, folder: Path) -> None:
    (folder / "list.csv").write_text(text)
    with pytest.raises(InputError, match="it has no rows"):
        open_source(str(folder / "list.csv"))

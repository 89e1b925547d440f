"""Every form of data gives the same records; whatever is wrong with a file is found, named and passed over."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import fsspec  # type: ignore[import-untyped]
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from openblip.data.images import FileImage, MemoryImage, SpanImage, open_image
from openblip.data.problems import Problem, Report
from openblip.data.records import Record
from openblip.data.sources import open_source, tars
from openblip.data.sources.addresses import expand
from openblip.data.sources.base import Source, Stream
from openblip.data.sources.combined import ConcatSource, RotatingSource
from openblip.errors import ImageError, InputError
from tests.data.data_toys import colour, members, picture, png, rows, write_images, write_jsonl, write_tar

COUNT = 5


def open_indexed(data: Any, **options: Any) -> Source:
    source = open_source(data, **options)
    assert isinstance(source, Source)
    return source


def streamed(data: Any, **options: Any) -> list[Record | Problem]:
    source = open_source(data, **options)
    assert isinstance(source, Stream)
    return [record for shard in range(source.shards) for record in source.read(shard)]


def seen(record: Record | Problem) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """The captions of a record and the colors of its images."""
    assert isinstance(record, Record)
    pixels = [open_image(entry).getpixel((0, 0)) for entry in record.images]
    return record.captions, pixels  # type: ignore[return-value]


EXPECTED = [((f"number {number}",), [colour(number)]) for number in range(COUNT)]


def folder_with_sidecars(folder: Path) -> Any:
    for number, path in enumerate(write_images(folder / "in", COUNT)):
        path.with_suffix(".caption" if number % 2 else ".txt").write_text(f"number {number}\n\n")
    (folder / "in" / "notes.txt").write_text("no picture has this name")
    (folder / "in" / ".hidden.png").write_bytes(b"")
    return folder / "in"


def imagefolder(folder: Path) -> Any:
    write_images(folder / "in" / "train", COUNT)
    listed = [{"file_name": f"train/{n:04d}.png", "text": f"number {n}"} for n in range(COUNT)]
    write_jsonl(folder / "in" / "metadata.jsonl", listed)
    return folder / "in"


def jsonl(folder: Path) -> Any:
    return write_jsonl(folder / "data.jsonl", rows(COUNT, folder))


def csv_table(folder: Path) -> Any:
    write_images(folder, COUNT)
    lines = ["path,text", *(f'{n:04d}.png,"number {n}"' for n in range(COUNT))]
    (folder / "data.csv").write_text("\ufeff" + "\r\n".join(lines))
    return folder / "data.csv"


def tsv_table(folder: Path) -> Any:
    write_images(folder, COUNT)
    lines = ["image\tcaptions", *(f'{n:04d}.png\t["number {n}"]' for n in range(COUNT))]
    (folder / "data.tsv").write_text("\n".join(lines))
    return folder / "data.tsv"


def parquet_of_paths(folder: Path) -> Any:
    pq.write_table(pa.Table.from_pylist(rows(COUNT, folder)), folder / "data.parquet")
    return folder / "data.parquet"


def parquet_of_bytes(folder: Path) -> Any:
    table = pa.Table.from_pylist(
        [{"image": {"bytes": png(n), "path": None}, "text": f"number {n}"} for n in range(COUNT)]
    )
    pq.write_table(table, folder / "data.parquet", row_group_size=2)
    return folder / "data.parquet"


def folder_of_parquet(folder: Path) -> Any:
    (folder / "data").mkdir()
    table = pa.Table.from_pylist([{"image": png(n), "caption": f"number {n}"} for n in range(COUNT)])
    pq.write_table(table.slice(0, 2), folder / "data" / "train-00000-of-00002.parquet")
    pq.write_table(table.slice(2), folder / "data" / "train-00001-of-00002.parquet")
    return folder


def tar_with_json(folder: Path) -> Any:
    return write_tar(folder / "data.tar", members(range(COUNT)))


def tars_with_text(folder: Path) -> Any:
    for shard, numbers in enumerate((range(2), range(2, COUNT))):
        results: dict[str, bytes] = {}
        for n in numbers:
            results |= {f"./in/{n:04d}.txt": f"number {n}\n".encode(), f"./in/{n:04d}.PNG": png(n)}
            results |= {
                f"./in/{n:04d}.json": b'{"url": "https://x.example/1.jpg", "caption": null}',
                "./in/.junk": b"x",
            }
        write_tar(folder / f"data-{shard:03d}.tar", results)
    return str(folder / "data-{000..001}.tar")


def published_json(folder: Path) -> Any:
    (folder / "data.json").write_text(json.dumps(rows(COUNT, folder)))
    return folder / "data.json"


def karpathy_json(folder: Path) -> Any:
    write_images(folder / "val2014", COUNT)
    images = [
        {
            "split": "train" if n % 2 else "restval",
            "filepath": "val2014",
            "filename": f"{n:04d}.png",
            "imgid": n,
            "sentences": [{"raw": f"number {n}", "imgid": n, "sentid": n}],
        }
        for n in range(COUNT)
    ]
    (folder / "data.json").write_text(json.dumps({"images": [*images, {**images[0], "split": "test"}], "dataset": "x"}))
    return folder / "data.json"


def coco_json(folder: Path) -> Any:
    write_images(folder, COUNT)
    content = {
        "images": [{"id": 100 + n, "file_name": f"{n:04d}.png"} for n in range(COUNT)],
        "annotations": [{"id": n, "image_id": 100 + n, "caption": f"number {n}"} for n in reversed(range(COUNT))],
    }
    (folder / "data.json").write_text(json.dumps(content))
    return folder / "data.json"


def hub_object(folder: Path) -> Any:
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.List(datasets.Value("string"))})
    content: dict[str, list[Any]] = {"image": [{"bytes": png(n), "path": None} for n in range(COUNT)]}
    content["caption"] = [[f"number {n}"] for n in range(COUNT)]
    return datasets.Dataset.from_dict(content, features=features)


def saved_hub_object(folder: Path) -> Any:
    hub_object(folder).save_to_disk(folder / "saved")
    return folder / "saved"


def list_of_rows(folder: Path) -> Any:
    return [{"image": (png(n) if n % 2 else picture(n)), "text": f"number {n}"} for n in range(COUNT)]


FORMS: list[Callable[[Path], Any]] = [
    folder_with_sidecars, imagefolder, jsonl, csv_table, tsv_table, parquet_of_paths, parquet_of_bytes,
    folder_of_parquet, tar_with_json, tars_with_text, published_json, karpathy_json, coco_json, hub_object,
    saved_hub_object, list_of_rows,
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_records(form: Callable[[Path], Any], tmp_path: Path) -> None:
    data = form(tmp_path)
    source = open_indexed(data, split="train" if form is karpathy_json else None)
    assert not source.problems
    assert [seen(record) for record in source] == EXPECTED
    assert [record.image_id for record in source] == list(range(COUNT))
    assert len({record.address for record in source}) == COUNT
    assert source.counts["captions"].tolist() == [1] * COUNT
    assert source.counts["questions"].tolist() == [0] * COUNT
    unpickled = pickle.loads(pickle.dumps(source))  # as worker processes get it where they are not forked
    assert seen(unpickled[3]) == EXPECTED[3]


@pytest.mark.parametrize("form", [parquet_of_bytes, parquet_of_paths, folder_of_parquet, tar_with_json, tars_with_text])
def test_streams_give_the_records_of_the_index(form: Callable[[Path], Any], tmp_path: Path) -> None:
    data = form(tmp_path)
    records = streamed(data, stream=True)
    assert [seen(record) for record in records] == EXPECTED
    assert [record.address for record in records] == [record.address for record in open_indexed(data)]
    assert len({record.image_id for record in records if isinstance(record, Record)}) == COUNT


def test_streamed_hub_dataset() -> None:
    dataset = hub_object(Path()).to_iterable_dataset(num_shards=2)
    source = open_source(dataset)
    assert isinstance(source, Stream)
    assert source.shards == 2
    assert sorted(seen(record) for shard in range(2) for record in source.read(shard)) == EXPECTED


def test_hub_dataset_by_name(tmp_path: Path) -> None:
    folder_of_parquet(tmp_path)
    assert [seen(record) for record in open_indexed(f"hub:{tmp_path}", split="train")] == EXPECTED
    splits = datasets.DatasetDict({"train": hub_object(tmp_path), "test": hub_object(tmp_path).select([0])})
    assert len(open_indexed(splits, split="test")) == 1
    with pytest.raises(InputError, match=r"split must be one of train, test"):
        open_source(splits)
    with pytest.raises(InputError, match="cannot open the dataset"):
        open_source(f"hub:{tmp_path / 'absent'}")


def test_fsspec_addresses(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    tar_with_json(tmp_path)
    parquet_of_bytes(tmp_path)
    memory.pipe("/bucket/a-0.tar", (tmp_path / "data.tar").read_bytes())
    memory.pipe("/bucket/data.parquet", (tmp_path / "data.parquet").read_bytes())
    memory.pipe("/bucket/data.jsonl", jsonl(tmp_path).read_bytes())
    for number in range(COUNT):
        memory.pipe(f"/bucket/{number:04d}.png", png(number))
    for address in ("memory://bucket/a-0.tar", "memory://bucket/a-*.tar", "memory://bucket/data.parquet"):
        assert [seen(record) for record in streamed(address)] == EXPECTED
    assert [seen(record) for record in open_indexed("memory://bucket/data.parquet", stream=False)] == EXPECTED
    records = open_indexed("memory://bucket/data.jsonl")
    assert records[0].images == (FileImage("memory://bucket/0000.png"),)
    assert [seen(record) for record in records] == EXPECTED
    assert [seen(record) for record in open_indexed(tmp_path / "data.jsonl", images="memory://bucket")] == EXPECTED
    (missing,) = streamed("memory://bucket/absent.tar")
    assert isinstance(missing, Problem)
    with pytest.raises(InputError, match="only be streamed"):
        open_source("memory://bucket/a-0.tar", stream=False)


def test_addresses(tmp_path: Path) -> None:
    def table(form: Callable[[Path], Any]) -> str:
        folder = tmp_path / form.__name__
        folder.mkdir()
        return open_indexed(form(folder))[1].address.replace(str(folder), "")

    assert table(folder_with_sidecars) == "/in/0001.png"
    assert table(jsonl) == "/data.jsonl:2"
    assert table(csv_table) == "/data.csv:3"
    assert table(published_json) == "/data.json[1]"
    assert table(parquet_of_bytes) == "/data.parquet:row 1"
    assert table(tar_with_json) == "/data.tar:0001"
    assert table(list_of_rows) == "rows[1]"


def test_the_shared_layout_of_a_tar(tmp_path: Path) -> None:
    content = {
        "captions": ["a", "b"],
        "file": "elsewhere.jpg",
        "qa": [{"question": "q?", "answer": "yes", "auto": True}],
        "refs": [{"expression": "it", "bbox": [1, 2, 3, 4]}],
    }
    tar = write_tar(tmp_path / "x.tar", {"k.jpg": png(0), "k.json": json.dumps(content).encode()})
    (record,) = open_indexed(tar)
    counts = {"images": 1, "captions": 2, "questions": 1, "answered": 1, "expressions": 1, "labeled": 0, "filtered": 0}
    assert record.counts() == counts
    assert record.images == (SpanImage(str(tar), "k.jpg", 512, len(png(0))),)


def test_pairs(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    row = {"sentence": "two", "label": "False", "images": ["0001.png", "0000.png"]}
    (record,) = open_indexed(write_jsonl(tmp_path / "pairs.jsonl", [row]))
    assert seen(record) == (("two",), [colour(1), colour(0)])
    assert record.label == 0
    content = {"k.img1.png": png(1), "k.img0.png": png(0), "k.json": b'{"sentence": "two", "label": true}'}
    (record,) = open_indexed(write_tar(tmp_path / "pairs.tar", content))
    assert (seen(record), record.label) == ((("two",), [colour(0), colour(1)]), 1)
    table = pa.Table.from_pylist([{"left": png(0), "right": png(1), "sentence": "two", "label": "True"}])
    pq.write_table(table, tmp_path / "pairs.parquet")
    columns = {"image": ("left", "right")}
    (record,) = open_indexed(tmp_path / "pairs.parquet", columns=columns)
    assert seen(record) == (("two",), [colour(0), colour(1)])
    (streaming,) = streamed(tmp_path / "pairs.parquet", columns=columns, stream=True)
    assert seen(streaming) == (("two",), [colour(0), colour(1)])


def test_image_ids_are_dense_and_follow_the_image(tmp_path: Path) -> None:
    listed = [{"image": name, "caption": "c"} for name in ("b.png", "a.png", "b.png", "c.png", "a.png")]
    table = open_indexed(write_jsonl(tmp_path / "one.jsonl", listed))
    assert [record.image_id for record in table] == [0, 1, 0, 2, 1]
    second = open_indexed(write_jsonl(tmp_path / "two.jsonl", [{"image": "c.png"}, {"image": "d.png"}]))
    both = open_indexed([tmp_path / "one.jsonl", tmp_path / "two.jsonl"])
    assert [record.image_id for record in both] == [0, 1, 0, 2, 1, 2, 3]
    assert [record.address for record in both] == [record.address for number in (table, second) for record in number]
    embedded = [{"image": png(0), "image_id": 7}, {"image": png(1), "image_id": 8}, {"image": png(0), "image_id": 7}]
    assert [record.image_id for record in open_indexed(embedded)] == [0, 1, 0]


def test_concatenated_and_rotating_sources(tmp_path: Path) -> None:
    parts = [open_indexed([{"image": f"{number}-{n}.png", "caption": "c"} for n in range(2)]) for number in range(4)]
    both = ConcatSource(parts[:2])
    assert both[-1].images == parts[1][1].images
    with pytest.raises(IndexError):
        both[4]
    turning = RotatingSource(parts[1:], always=parts[:1])
    assert turning.period == 3
    assert [turning.indices(epoch).tolist() for epoch in range(4)] == [
        [0, 1, 2, 3],
        [0, 1, 4, 5],
        [0, 1, 6, 7],
        [0, 1, 2, 3],
    ]


def test_kept_columns_and_renamed_ones(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    (tmp_path / "x.csv").write_text("photo,title,prompt\n0000.png,the title,a painting of\n")
    (record,) = open_indexed(tmp_path / "x.csv", columns={"image": "photo", "caption": "title"}, keep=["prompt"])
    assert seen(record) == (("the title",), [colour(0)])
    assert record.extra == {"prompt": "a painting of"}


def problems(source: Source | list[Record | Problem], folder: Path) -> dict[str, str]:
    results = (
        source.problems if isinstance(source, Source) else [entry for entry in source if isinstance(entry, Problem)]
    )
    return {problem.address.replace(str(folder), ""): problem.reason for problem in results}


def test_bad_lines_of_jsonl(tmp_path: Path) -> None:
    lines = [
        b'{"image": "a.png", "caption": "fine"}', b"", b"{not json", b'["a list"]', b'{"caption": "no picture"}',
        b'{"image": "a.png", "caption": 5}', b'{"image": "\xff.png"}', b'{"image": {"x": 1}}', b'{"image": "a\\u0000"}',
        b"[" * 100_000, b'{"image": "b.png"}',
    ]  # fmt: skip
    (tmp_path / "x.jsonl").write_bytes(b"\n".join(lines))
    source = open_indexed(tmp_path / "x.jsonl")
    assert [record.address.rpartition(":")[2] for record in source] == ["1", "11"]
    results = problems(source, tmp_path)
    assert list(results) == [f"/x.jsonl:{line}" for line in (3, 4, 5, 6, 7, 8, 9, 10)]
    assert [reason.partition("(")[0].strip() for reason in results.values()] == [
        "the line is not JSON", "a record must be a mapping of columns to values, got a list",
        "there is no image: the columns are 'caption'; name one with --columns image=NAME",
        "caption must be a text, got a number", "the line is not UTF-8",
        "an image must be given as a path, an address, bytes or an image, got None",
        "an image must be given as a path, an address, bytes or an image, got 'a\\x00'", "the line is not JSON",
    ]  # fmt: skip


def test_bad_lines_of_csv(tmp_path: Path) -> None:
    lines = [b"image,caption", b"a.png,fine", b"a.png,one,too many", b"a.png,\xff", b",no picture", b"b.png"]
    (tmp_path / "x.csv").write_bytes(b"\n".join(lines))
    source = open_indexed(tmp_path / "x.csv")
    assert [record.captions for record in source] == [("fine",), ()]
    assert problems(source, tmp_path) == {
        "/x.csv:3": "the row has more fields than the header's 2",
        "/x.csv:4": "the row is not UTF-8: save the file in this encoding",
        "/x.csv:5": "there is no image",
    }


BAD_MEMBERS = {
    **members([0]),
    "a.json": b'{"captions": ["no picture"]}',
    "b.png": png(1), "b.json": b"{no json",
    "c.png": png(2), "c.json": b"[]",
    "d.png": png(3), "d.txt": b"\xff",
    "e.png": png(4), "e.json": b'{"captions": [1]}',
    **members([5]),
}  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_bad_members_of_a_tar(tmp_path: Path, stream: bool) -> None:
    tar = write_tar(tmp_path / "x.tar", BAD_MEMBERS)
    records = streamed(tar, stream=True) if stream else [*open_indexed(tar), *open_indexed(tar).problems]
    good = [record.captions for record in records if isinstance(record, Record)]
    assert good == [("number 0",), ("number 5",)]
    results = problems(records, tmp_path)
    ends = r" [(]| next to| for "
    assert [f"{key.partition(':')[2]}: {re.split(ends, reason)[0]}" for key, reason in results.items()] == [
        "a: there is no image", "b: its JSON cannot be read", "c: its JSON is not an object",
        "d: its text is not UTF-8", "e: caption must be a text, got a number",
    ]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["in a member", "in a header", "at a member's end", "scribbled header", "no tar"])
def test_a_damaged_tar_gives_what_is_whole(tmp_path: Path, how: str, stream: bool) -> None:
    tar = write_tar(tmp_path / "x.tar", members(range(3)))
    content = bytearray(tar.read_bytes())
    with tarfile.open(tar) as archive:
        header = archive.getmember("0002.png").offset
    if how == "scribbled header":
        content[header : header + 512] = b"\x07" * 512
    elif how == "no tar":
        content[:] = b"this is no tar" * 100
    else:
        del content[header + {"in a member": 530, "in a header": 100, "at a member's end": 0}[how] :]
    tar.write_bytes(content)
    second_tar = write_tar(tmp_path / "y.tar", members([7]))
    records = (
        streamed([tar, second_tar], stream=True)
        if stream
        else [*open_indexed([tar, second_tar]), *open_indexed([tar, second_tar]).problems]
    )
    good = [record.captions[0] for record in records if isinstance(record, Record)]
    assert good == (["number 7"] if how == "no tar" else ["number 0", "number 1", "number 7"])
    ((address, reason),) = problems(records, tmp_path).items()
    assert address == "/x.tar"
    assert "damaged or cut short" in reason


def test_a_compressed_tar_is_streamed(tmp_path: Path) -> None:
    for suffix, mode in ((".tar.gz", "w:gz"), (".tgz", "w:gz"), (".tar.bz2", "w:bz2"), (".tar.xz", "w:xz")):
        tar = write_tar(tmp_path / f"x{suffix}", members(range(COUNT)), mode)
        assert [seen(record) for record in streamed(tar)] == EXPECTED
    with pytest.raises(InputError, match="only be streamed"):
        open_source(tar, stream=False)


class Interrupted(io.BytesIO):
    """A connection that breaks once, after some bytes."""

    def __init__(self, content: bytes, after: int) -> None:
        super().__init__(content)
        self.after = after

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > self.after:
            raise OSError("connection reset")
        return super().read(size)


def test_a_broken_connection_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = write_tar(tmp_path / "x.tar", members(range(40))).read_bytes()
    breaks = [15_000, 45_000, len(content)]
    monkeypatch.setattr(tars, "open_remote", lambda address: Interrupted(content, breaks.pop(0)))
    assert [seen(record)[0] for record in streamed("memory://x.tar")] == [(f"number {n}",) for n in range(40)]
    assert breaks == []
    breaks[:] = [15_000] * 9  # it breaks at the same place each time
    records = streamed("memory://x.tar")
    assert len(breaks) == 9 - tars.MAX_RETRIES
    assert problems(records, tmp_path) == {"memory://x.tar": "the tar is damaged or cut short (connection reset)"}


def test_bad_cells_of_parquet(tmp_path: Path) -> None:
    cells = [
        {"bytes": png(0), "path": None},
        {"bytes": None, "path": None},
        {"bytes": b"no picture", "path": None},
        None,
    ]
    table = pa.Table.from_pylist([{"image": cell, "caption": "c"} for cell in cells])
    pq.write_table(table, tmp_path / "x.parquet")
    source = open_indexed(tmp_path / "x.parquet")
    assert len(source) == 4  # cells are read on demand
    assert open_image(source[0].images[0]).size == (12, 10)
    for number in (1, 2, 3):
        with pytest.raises((ImageError, InputError)):
            open_image(source[number].images[0])
    assert list(problems(streamed(tmp_path / "x.parquet", stream=True), tmp_path)) == [
        "/x.parquet:row 1",
        "/x.parquet:row 3",
    ]
    (tmp_path / "no.parquet").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="not a Parquet file"):
        open_source(tmp_path / "no.parquet")
    assert list(problems(streamed(tmp_path / "no.parquet", stream=True), tmp_path)) == ["/no.parquet"]


def test_sidecars_that_cannot_be_read(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "0000.txt").write_bytes(b"\xff\xfe\xff")
    (tmp_path / "0001.txt").mkdir()
    (tmp_path / "0002.txt").write_text("one\ntwo\n")
    source = open_indexed(tmp_path)
    assert [record.captions for record in source] == [("one", "two")]
    assert list(problems(source, tmp_path)) == ["/0000.png", "/0001.png"]


def test_names_that_are_no_text(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(name, "wb") as file:  # noqa: PTH123 (a Path is text)
            file.write(png(3))
    except OSError:
        pytest.skip("this file system takes names in UTF-8 only")
    (record,) = open_indexed(tmp_path)
    assert seen(record) == ((), [colour(3)])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("absent.jsonl", "there is no file or folder absent.jsonl"),
        ("someone/pictures", r"write hub:someone/pictures[\s\S]*WebDataset"),
        ("none-*.tar", "matches no file"),
        (7, "cannot read data from int 7. Data can be:"),
        ([], "cannot read data from list"),
        (b"bytes", "cannot read data from bytes"),
        (
            [{"caption": "c"}],
            r"rows has no record that can be used \(1 bad rows; the first: rows\[0\]: there is no image",
        ),
    ],
)
def test_what_cannot_be_data_at_all(data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_source(data)


def test_files_that_cannot_be_data(tmp_path: Path) -> None:
    def said(name: str, content: str) -> str:
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError) as caught:
            open_source(tmp_path / name)
        return str(caught.value)

    assert "cannot be guessed by its suffix" in said("data.docx", "")
    assert "is not JSON" in said("data.json", "{")
    assert "unknown layout; known layouts: a list of rows" in said("other.json", '{"a": {}}')
    assert "no record that can be used (it has no rows)" in said("empty.jsonl", "")
    assert "no record that can be used" in said("empty.csv", "")
    (tmp_path / "deep").mkdir()
    with pytest.raises(InputError, match="has no images, tars or Parquet files"):
        open_source(tmp_path / "deep")
    with pytest.raises(InputError, match="got csv and jsonl; use a list"):
        open_source(str(tmp_path / "empty.*"))
    tar = write_tar(tmp_path / "x.tar", members([0]))
    with pytest.raises(InputError, match="is a stream and"):
        open_source([open_and_zip(tar), jsonl(tmp_path)])


def open_and_zip(tar: Path) -> Path:
    """The same tar, compressed."""
    return write_tar(tar.with_suffix(".tar.gz"), members([0]), "w:gz")


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openblip import extras
    from openblip.data import files

    def absent(name: str) -> Any:
        raise ImportError(name)

    files.require.cache_clear()
    monkeypatch.setattr(extras, "import_module", absent)
    (tmp_path / "x.parquet").write_bytes(b"")
    with pytest.raises(InputError, match=r"needs pyarrow, which is not installed: pip install 'openblip\[data\]'"):
        open_source(tmp_path / "x.parquet")
    with pytest.raises(InputError, match=r"needs fsspec"):
        open_source("s3://bucket/x.jsonl")
    files.require.cache_clear()


def test_expanded_addresses(tmp_path: Path) -> None:
    for name in ("a-08", "a-09", "a-10", "b-08", "we{ird}"):
        (tmp_path / f"{name}.tar").touch()

    def names(pattern: str) -> list[str]:
        return [Path(path).stem for path in expand(str(tmp_path / pattern))]

    assert names("a-{08..10}.tar") == ["a-08", "a-09", "a-10"]
    assert names("{a,b}-08.tar") == ["a-08", "b-08"]
    assert names("?-0*.tar") == ["a-08", "a-09", "b-08"]
    assert names("we{ird}.tar") == ["we{ird}"]
    with pytest.raises(InputError, match=r"no file or folder .*a-11.tar"):
        names("a-{08..11}.tar")


def test_images_that_cannot_be_opened(tmp_path: Path) -> None:
    for bad in (
        FileImage(str(tmp_path / "absent.png")),
        FileImage("memory://nowhere/a.png"),
        MemoryImage(b"", "here"),
    ):
        with pytest.raises(ImageError):
            open_image(bad)
    with pytest.raises(ImageError, match="No such file"):
        open_image(SpanImage(str(tmp_path / "absent.tar"), "a.png", 512, 10))
    assert open_image(MemoryImage(np.zeros((2, 3, 3), np.uint8), "here")).size == (3, 2)
    assert open_image(MemoryImage(Image.new("L", (2, 2)), "here")).mode == "RGB"


def test_a_report_counts_each_record_once() -> None:
    report = Report(max_listed=2)
    assert str(report) == "no bad records"
    assert report.add(Problem("a.jsonl:1", "a.jsonl:1 is empty"))
    assert not report.add(Problem("a.jsonl:1", "again, in the next epoch"))
    report.extend([Problem("b", "b is empty"), Problem("c", "something else")])
    assert len(report) == 3
    assert [problem.address for problem in report.problems] == ["a.jsonl:1", "b"]
    assert str(report).splitlines()[0] == "3 bad records skipped: 2 x it is empty, 1 x something else"

"""Decisions about items, and the output of jobs, with an annotator that runs no model."""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.data.problems import Problem
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.sources.images import RootedSource, open_images
from openblip.errors import ImageError, InputError, JobError, OpenBlipError
from openblip.jobs.captions import prompt_fields
from openblip.jobs.decisions import Compute, Fail, Restore, Skip
from openblip.jobs.items import Item, ListFormat, open_items
from openblip.jobs.journal import Identity
from openblip.jobs.run import (
    Annotator,
    BatchAnnotator,
    Items,
    ItemStatus,
    Outcome,
    Result,
    Run,
    open_sink_run,
    plan_run,
)
from openblip.jobs.sinks import Existing, SinkOptions, open_sink
from openblip.preprocess.image import load_image
from tests.jobs.cli import pictures


class NameAnnotator:
    """Computes a text from the name of each image; files called bad... fail."""

    batch_size = 8

    def __init__(self, version: str, stop_after: int | None) -> None:
        self.version, self.stop_after = version, stop_after
        self.computed: list[str] = []

    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        for item in items:
            if len(self.computed) == self.stop_after:
                raise KeyboardInterrupt
            name = Path(item.name).name
            self.computed.append(name)
            is_bad = name.startswith("bad")
            yield ImageError(f"cannot read {name}") if is_bad else [{"text": f"{Path(name).stem} v{self.version}"}]


class JobRunner:
    """Runs a job again and again. `computed` are the names of the images that the last run computed."""

    def __init__(
        self, folder: Path, to: str, out: Path | None = None, existing: Existing = "skip", **options: Any
    ) -> None:
        self.folder, self.to, self.existing = folder, to, existing
        self.options = SinkOptions(None if out is None else str(out), str(folder), existing=existing, **options)
        self.computed: list[str] = []
        self.statuses: list[ItemStatus] = []
        self.version = "1"

    def __call__(self, *, restart: bool = False, stop_after: int | None = None) -> Counter[Outcome]:
        """Run the job, and return the number of items by outcome."""
        self.statuses = []
        sink = open_sink(self.to, self.options)
        items = open_items([str(self.folder)], base=sink.base)
        identity = Identity("caption", {"caption": "hash"}, {"existing": self.existing, "to": self.to})
        annotator = NameAnnotator(self.version, stop_after)
        self.computed = annotator.computed
        with open_sink_run(items, sink, identity, model="m", restart=restart) as run:
            for status in run.run(annotator if run.has_work else None):
                self.statuses.append(status)
        return run.counts

    @property
    def errors(self) -> dict[str, str]:
        """The errors of the last run, by file name."""
        return {Path(one.item.name).name: one.error for one in self.statuses if one.error is not None}

    @property
    def edited(self) -> list[str]:
        """The file names of the items whose output the last run kept because it was edited."""
        return [Path(one.item.name).name for one in self.statuses if one.outcome == "edited"]


def run_plainly(items: Items, annotator: Annotator) -> tuple[Counter[Outcome], list[ItemStatus]]:
    """Run a job without an output."""
    run = Run(items, "m")
    statuses = list(run.run(annotator))
    return run.counts, statuses


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    pictures(tmp_path / "p", 3)
    return tmp_path / "p"


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def change(path: Path) -> None:
    """Change the file."""
    path.write_bytes(path.read_bytes() + b"changed")


def test_done_items_are_skipped_and_changed_ones_computed_again(photos: Path) -> None:
    run = JobRunner(photos, "sidecar")
    assert run() == {"computed": 3}
    assert texts(photos) == {"0000": "0000 v1\n", "0001": "0001 v1\n", "0002": "0002 v1\n"}
    assert run() == {"done": 3}
    assert run.computed == []
    change(photos / "0001.png")
    (photos / "0002.txt").unlink()
    run.version = "2"
    assert run() == {"computed": 1, "done": 2}
    assert run.computed == ["0001.png"]
    assert texts(photos) == {"0000": "0000 v1\n", "0001": "0001 v2\n", "0002": "0002 v1\n"}, (
        "the missing text is restored"
    )


def test_a_finished_job_computes_nothing(photos: Path) -> None:
    run = JobRunner(photos, "sidecar")
    run()
    journal = (photos / ".openblip-caption.journal").read_bytes()
    assert run(stop_after=0)["done"] == 3
    assert (photos / ".openblip-caption.journal").read_bytes() == journal, "the journal is unchanged"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("skip", "mine\n"), ("overwrite", "0000 v1\n"), ("append", "mine\n0000 v1\n"), ("prepend", "0000 v1\nmine\n")],
)
def test_existing_texts(photos: Path, existing: Existing, expected: str) -> None:
    (photos / "0000.txt").write_text("mine\n")
    (photos / "0001.txt").write_text(" \n")
    run = JobRunner(photos, "sidecar", existing=existing)
    for _ in range(3):
        run()
        assert texts(photos)["0000"] == expected
    assert "0001 v1" in texts(photos)["0001"], "a blank text does not count"
    change(photos / "0000.png")
    run.version = "2"
    run()
    assert texts(photos)["0000"] == expected.replace("v1", "v2"), "the job's text is replaced, not added twice"
    run.version = "3"
    run(restart=True)
    assert texts(photos)["0000"] == expected.replace("v1", "v3")


def test_a_stopped_restart_resumes_as_a_restart(photos: Path) -> None:
    run = JobRunner(photos, "sidecar", existing="append")
    run()
    run.version = "2"
    with pytest.raises(KeyboardInterrupt):
        run(restart=True, stop_after=1)
    assert run()["computed"] == 2
    assert texts(photos) == {"0000": "0000 v2\n", "0001": "0001 v2\n", "0002": "0002 v2\n"}


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_a_text_edited_since_is_kept_and_reported(photos: Path, existing: Existing) -> None:
    run = JobRunner(photos, "sidecar", existing=existing)
    run()
    (photos / "0001.txt").write_text("better\n")
    change(photos / "0001.png")
    assert run() == {"done": 2, "edited": 1}
    assert texts(photos)["0001"] == "better\n"
    assert run.edited == ["0001.png"]


def test_bytes_that_are_not_utf8_survive_an_append(photos: Path) -> None:
    (photos / "0000.txt").write_bytes(b"caf\xe9\n")
    run = JobRunner(photos, "sidecar", existing="append")
    run()
    run()
    assert (photos / "0000.txt").read_bytes() == b"caf\xe9\n0000 v1\n"


def test_failures_are_reported_and_retried_once_they_may_work(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    run = JobRunner(photos, "jsonl", tmp_path / "out.jsonl")
    assert run() == {"computed": 3, "failed": 1}
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [("error" in row, Path(row["path"]).name) for row in rows][-1] == (True, "bad.png")
    assert run() == {"done": 3, "failed": 1}
    assert run.computed == [], "it is opened without the model, and still fails"
    assert list(run.errors) == ["bad.png"]
    (photos / "bad.png").write_bytes((photos / "0000.png").read_bytes())
    run()
    assert run.computed == ["bad.png"]


def test_results_before_an_exception_are_written(photos: Path) -> None:
    """As with --strict: the loop over the statuses ends early."""
    sink = open_sink("sidecar", SinkOptions(home=str(photos)))
    items = open_items([str(photos)], base=sink.base)

    def run_and_fail() -> None:
        with open_sink_run(items, sink, Identity("caption", {}, {}), model="m") as run:
            for _ in run.run(NameAnnotator("1", None)):
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_and_fail()
    assert texts(photos).items() >= {("0000", "0000 v1\n")}, "what a status reports is on the disk"
    assert not list(photos.glob("*.lock")), "the next job can start"


def test_images_that_would_share_a_text_fail_and_the_others_are_done(photos: Path) -> None:
    (photos / "0001.jpg").write_bytes((photos / "0001.png").read_bytes())
    for to in ("sidecar", "kohya"):
        run = JobRunner(photos, to)
        assert run() == {"computed": 2, "failed": 2}
        assert sorted(texts(photos)) == ["0000", "0002"], "neither of the two gets a text"
    assert JobRunner(photos, "jsonl", photos / "all.jsonl")()["computed"] == 4


def test_full_names_keep_the_texts_of_two_images_apart(photos: Path) -> None:
    (photos / "0001.jpg").write_bytes((photos / "0001.png").read_bytes())
    assert JobRunner(photos, "sidecar", naming="full")()["computed"] == 4
    assert {path.name for path in photos.glob("0001*.txt")} == {"0001.jpg.txt", "0001.png.txt"}


def test_another_job_on_the_same_output_is_another_job(photos: Path) -> None:
    run = JobRunner(photos, "sidecar")
    run()
    other = JobRunner(photos, "sidecar", existing="overwrite")
    other.version = "2"
    assert other()["computed"] == 3
    assert texts(photos)["0000"] == "0000 v2\n"
    assert run()["edited"] == 3, "the first job keeps the output of the second"


def test_rows_keep_their_order_and_new_rows_follow(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"path": "elsewhere.jpg", "text": "kept"}\n')
    run = JobRunner(photos, "jsonl", out)
    run()
    pictures(photos / "more", 1)
    (photos / "more" / "0000.png").rename(photos / "0000a.png")
    run()
    assert run.computed == ["0000a.png"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [Path(row["path"]).name for row in rows] == [
        "elsewhere.jpg",
        "0000.png",
        "0001.png",
        "0002.png",
        "0000a.png",
    ]
    before = out.read_bytes()
    run()
    assert out.read_bytes() == before


def test_out_of_memory_halves_the_batch_and_loses_nothing(photos: Path) -> None:
    pictures(photos, 20)
    calls: list[int] = []

    def annotate(batch: list[Item]) -> Sequence[Result]:
        calls.append(len(batch))
        if len(batch) > 2:
            raise MemoryError("no")
        return [[{"text": item.key}] for item in batch]

    items = open_items([str(photos)])
    counts, statuses = run_plainly(items, BatchAnnotator(annotate, 8))
    assert counts == {"computed": 20}
    assert [status.item.name for status in statuses] == [item.name for item in items]
    assert all(status.records[0]["text"] == status.item.key for status in statuses)
    assert calls[:3] == [8, 4, 2]


def test_a_job_with_an_output_halves_the_batch_too(photos: Path) -> None:
    """Done, failing and new items mix; each is settled once, in order."""
    JobRunner(photos, "sidecar")()
    pictures(photos / "more", 12)
    for path in (photos / "more").iterdir():
        path.rename(photos / f"{path.stem[::-1]}x.png")
    (photos / "0100x.txt").write_text("mine\n")
    (photos / "0000.txt").unlink()

    def annotate(batch: list[Item]) -> Sequence[Result]:
        if len(batch) > 1:
            raise MemoryError
        return [[{"text": Path(item.name).stem}] for item in batch]

    sink = open_sink("sidecar", SinkOptions(home=str(photos)))
    items = open_items([str(photos)], base=sink.base)
    identity = Identity("caption", {"caption": "hash"}, {"existing": "skip", "to": "sidecar"})
    with open_sink_run(items, sink, identity, model="m") as run:
        assert run.has_work
        names = [status.item.name for status in run.run(BatchAnnotator(annotate, 8))]
    assert names == [item.name for item in items]
    assert run.counts == {"done": 3, "existing": 1, "computed": 11}
    assert texts(photos)["0000"] == "0000 v1\n", "a missing text is restored"
    assert texts(photos)["1100x"] == "1100x\n"


def test_one_image_too_large_for_memory_is_one_failure(photos: Path) -> None:
    def annotate(batch: list[Item]) -> Sequence[Result]:
        if any(item.name.endswith("0001.png") for item in batch):
            raise MemoryError
        return [[{"text": "t"}] for _ in batch]

    counts, statuses = run_plainly(open_items([str(photos)]), BatchAnnotator(annotate, 1))
    assert counts == {"computed": 2, "failed": 1}
    assert "memory" in str(statuses[1].error)


def test_any_other_error_ends_the_job(photos: Path) -> None:
    def annotate(batch: list[Item]) -> Sequence[Result]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_plainly(open_items([str(photos)]), BatchAnnotator(annotate))


def test_a_plan_says_what_a_run_would_do_and_does_nothing(photos: Path) -> None:
    run = JobRunner(photos, "sidecar")
    (photos / "0000.txt").write_text("mine\n")
    (photos / "bad.png").write_bytes(b"")
    run()
    (photos / "0001.txt").unlink()
    (photos / "0002.txt").write_text("edited\n")
    pictures(photos / "more", 1)
    (photos / "more" / "0000.png").rename(photos / "new.png")
    before = {path: path.read_bytes() for path in photos.iterdir() if path.is_file()}
    sink = open_sink("sidecar", SinkOptions(home=str(photos)))
    items = open_items([str(photos)], base=sink.base)
    identity = Identity("caption", {"caption": "hash"}, {"existing": "skip", "to": "sidecar"})
    decisions = {Path(d.item.name).stem: d for d in plan_run(items, sink, identity)}
    reasons = {stem: d.reason for stem, d in decisions.items() if isinstance(d, Skip)}
    assert reasons == {"0000": "existing", "0002": "edited"}
    assert isinstance(decisions["0001"], Restore)
    assert isinstance(decisions["new"], Compute)
    assert isinstance(decisions["bad"], Fail)
    assert {path: path.read_bytes() for path in photos.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_lists_are_read_back_by_the_data_layer(photos: Path, tmp_path: Path, name: str) -> None:
    (photos / "bad.png").write_bytes(b"")
    JobRunner(photos, name.rpartition(".")[2], tmp_path / name)()
    source = open_source(str(tmp_path / name))
    assert isinstance(source, Source)
    records = list(source)
    assert [record.captions for record in records] == [("0000 v1",), ("0001 v1",), ("0002 v1",)]
    assert [Path(record.images[0].address) for record in records] == sorted(photos.glob("0*.png"))
    assert len(source.problems) == 1


def test_an_answer_is_read_back_as_an_answer(photos: Path) -> None:
    row = {"path": "a.jpg", "question": "what?", "text": "a dog", "probability": 0.5}
    source = open_source([row])
    assert isinstance(source, Source)
    (record,) = source
    assert (record.questions[0].answers, record.captions) == (("a dog",), ())


def test_a_file_that_is_no_journal_is_refused(photos: Path) -> None:
    (photos / ".openblip-caption.journal").write_text("my diary\nof today\n")
    with pytest.raises(JobError, match="is not a journal"):
        JobRunner(photos, "sidecar")()


@pytest.mark.parametrize("torn", [b'{"item": "0002.png", "pic', b"\0\0\0"])
def test_a_torn_last_line_is_dropped(photos: Path, torn: bytes) -> None:
    run = JobRunner(photos, "sidecar")
    with pytest.raises(KeyboardInterrupt):
        run(stop_after=2)
    with (photos / ".openblip-caption.journal").open("ab") as journal:
        journal.write(torn)
    assert run() == {"computed": 1, "done": 2}


def test_imagefolder_and_kohya_keep_other_fields_and_entries(photos: Path) -> None:
    (photos / "metadata.jsonl").write_text('{"file_name": "0000.png", "label": 3}\n{"file_name": "gone.png"}\n')
    (photos / "meta_cap.json").write_text('{"0001": {"tags": "dog"}}')
    JobRunner(photos, "imagefolder")()
    JobRunner(photos, "kohya")()
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    assert rows[:2] == [{"file_name": "0000.png", "label": 3, "text": "0000 v1"}, {"file_name": "gone.png"}]
    assert [row["file_name"] for row in rows] == ["0000.png", "gone.png", "0001.png", "0002.png"]
    entries = json.loads((photos / "meta_cap.json").read_text())
    assert entries["0001"] == {"tags": "dog", "caption": "0001 v1"}
    source = open_source(str(photos / "metadata.jsonl"))
    assert isinstance(source, Source)
    assert source[0].captions == ("0000 v1",)


def test_metadata_may_hold_any_character(photos: Path) -> None:
    """Only a line feed ends a line of JSON: other characters that Python takes for line ends may be in a caption."""
    text = "one\u2028two\x85three\x0bfour"
    (photos / "metadata.jsonl").write_text(json.dumps({"file_name": "gone.png", "text": text}, ensure_ascii=False))
    JobRunner(photos, "imagefolder")()
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_bytes().split(b"\n")[:-1]]
    assert rows[0] == {"file_name": "gone.png", "text": text}
    assert len(rows) == 4


def test_names_that_cannot_be_used_are_errors_and_the_rest_is_done(photos: Path, tmp_path: Path) -> None:
    (photos / "0001.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "around").symlink_to(photos)
    items = open_items([str(photos), str(tmp_path / "gone.png"), str(tmp_path / "*.nothing")])
    bad = {one.name: one.reason for one in items if not isinstance(one, Item)}
    assert bad[f"{photos}/caf\\xe9.png"] == "its name is not UTF-8: rename it"
    assert "matches no file" in bad[str(tmp_path / "*.nothing")]
    names = [Path(one.name).name for one in items if isinstance(one, Item)]
    assert names == ["0000.png", "0002.png", "loop.png", "gone.png"]


def test_sources_of_every_kind_and_each_image_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,prompt\np/0000.png,a dog\np/0000.png,a cat\np/0001.png,\n")
    mixed = open_items([str(photos), str(photos / "0000.png"), str(tmp_path / "p" / "*1.png")])
    assert [Path(item.name).name for item in mixed] == ["0000.png", "0001.png", "0002.png"]
    files = open_items([str(photos / "0001.png"), str(photos / "0000.png"), f"{photos}/./0001.png"], base=str(tmp_path))
    assert [(item.key, item.index) for item in files] == [("p/0001.png", 0), ("p/0000.png", 1)]
    listed = list(
        open_items(
            [str(tmp_path / "list.csv")],
            lists=ListFormat(columns=["prompt"], fields_of=partial(prompt_fields, "prompt")),
        )
    )
    assert [item.key.rpartition("/")[2] for item in listed] == ["0000.png: a dog", "0000.png: a cat", "0001.png"]
    assert [item.fields for item in listed if isinstance(item, Item)] == [{"prompt": "a dog"}, {"prompt": "a cat"}, {}]
    empty = tmp_path / "empty"
    (empty / "below").mkdir(parents=True)
    pictures(empty / "below", 1)
    (problem,) = open_images([str(empty)])
    assert isinstance(problem, Problem)
    assert "--recursive" in problem.reason
    (part,) = open_images([str(empty)], recursive=True)
    assert isinstance(part, RootedSource)


def test_a_text_is_never_written_outside_its_folder(photos: Path, tmp_path: Path) -> None:
    (item, *_) = open_items([str(photos)])
    assert isinstance(item, Item)
    sink = open_sink("sidecar", SinkOptions(str(tmp_path / "out")))
    for inside in ("../a.jpg", "x/../../a.jpg", "/a.jpg"):
        with pytest.raises(InputError, match="outside"):
            sink.target(replace(item, inner_path=inside))
    for ext in ("txt", ".", ".jpg", "./x"):
        with pytest.raises(OpenBlipError):
            open_sink("sidecar", SinkOptions(ext=ext))


def test_a_frame_of_an_animation(tmp_path: Path) -> None:
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    first, *rest = (Image.new("RGB", (9, 9), colour) for colour in colours)
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest)
    first.save(tmp_path / "still.png")
    moving, still = (item for item in open_items([str(tmp_path)]) if isinstance(item, Item))
    for number, colour in enumerate(colours):
        assert load_image(moving.source(number)).getpixel((4, 4)) == colour
    with pytest.raises(ImageError, match="3 frames"):
        load_image(moving.source(3))
    assert load_image(still.source(2)).getpixel((4, 4)) == colours[0], "a still image has one frame"


def test_heic_is_read_with_its_library() -> None:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 40))).save(out)
    assert load_image(out.getvalue()).size == (64, 48)

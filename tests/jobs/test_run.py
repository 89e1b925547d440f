"""What a job decides about each item, and what it leaves in its output: with a command that computes nothing."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.data.problems import Problem
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.sources.images import RootedSource, open_images
from openblip.errors import ImageError, InputError, JobError, OpenBlipError
from openblip.jobs.captions import prompts_of
from openblip.jobs.items import Item, gather
from openblip.jobs.journal import Identity
from openblip.jobs.reporting import Reporter
from openblip.jobs.run import Job, Outcome, Result, Seen, batched
from openblip.jobs.sinks import Existing, SinkOptions, open_sink
from openblip.preprocess.image import load_image
from tests.jobs.cli import pictures


class Told(Reporter):
    """What a person would have been told."""

    def __init__(self) -> None:
        self.bads: list[tuple[str, str]] = []
        self.notes: list[str] = []

    def bad(self, name: str, reason: str) -> None:
        self.bads.append((name, reason))

    def note(self, text: str) -> None:
        self.notes.append(text)


class Runner:
    """Runs a job again and again; ``computed`` are the names of the pictures that the command saw in the last run."""

    def __init__(self, folder: Path, to: str, out: Path | None = None, existing: Existing = "skip", **job: Any) -> None:
        self.folder, self.to, self.existing, self.job = folder, to, existing, job
        self.writing = SinkOptions(None if out is None else str(out), str(folder), existing=existing)
        self.computed: list[str] = []
        self.told = Told()
        self.seen: list[Seen] = []
        self.version = "1"

    def __call__(self, stop_after: int | None = None, **more: Any) -> Outcome:
        self.computed, self.told, self.seen = [], Told(), []
        sink = open_sink(self.to, self.writing)
        items = list(gather(list(open_images([str(self.folder)])), base=sink.base))

        def work(items: Iterator[Item]) -> Iterator[Result]:
            for item in items:
                if len(self.computed) == stop_after:
                    raise KeyboardInterrupt
                name = Path(item.name).name
                self.computed.append(name)
                bad = name.startswith("bad")
                yield ImageError(f"cannot read {name}") if bad else [{"text": f"{Path(name).stem} v{self.version}"}]

        identity = Identity("caption", {"caption": "hash"}, {"existing": self.existing, "to": self.to})
        job = Job(items, work, sink, identity, "m", report=self.told, see=self.seen.append, **(self.job | more))
        return job.run()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    pictures(tmp_path / "p", 3)
    return tmp_path / "p"


def texts(folder: Path) -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted(folder.glob("*.txt"))}


def change(path: Path) -> None:
    """Another picture in its place."""
    path.write_bytes(path.read_bytes() + b"changed")


def test_what_is_done_is_skipped_and_what_changed_is_done_again(photos: Path) -> None:
    run = Runner(photos, "sidecar")
    assert vars(run()) == vars(Outcome(computed=3))
    assert texts(photos) == {"0000": "0000 v1\n", "0001": "0001 v1\n", "0002": "0002 v1\n"}
    assert vars(run()) == vars(Outcome(done=3))
    assert run.computed == []
    change(photos / "0001.png")
    (photos / "0002.txt").unlink()
    run.version = "2"
    assert vars(run()) == vars(Outcome(computed=1, done=2))
    assert run.computed == ["0001.png"]
    assert texts(photos) == {"0000": "0000 v1\n", "0001": "0001 v2\n", "0002": "0002 v1\n"}, "what is lost is restored"


def test_a_finished_job_never_calls_its_command(photos: Path) -> None:
    run = Runner(photos, "sidecar")
    run()
    journal = (photos / ".openblip-caption.journal").read_bytes()
    assert run(stop_after=0).done == 3
    assert (photos / ".openblip-caption.journal").read_bytes() == journal, "and leaves its journal as it is"


@pytest.mark.parametrize(
    ("existing", "expected"),
    [("skip", "mine\n"), ("overwrite", "0000 v1\n"), ("append", "mine\n0000 v1\n"), ("prepend", "0000 v1\nmine\n")],
)
def test_texts_that_were_there_before(photos: Path, existing: Existing, expected: str) -> None:
    (photos / "0000.txt").write_text("mine\n")
    (photos / "0001.txt").write_text(" \n")
    run = Runner(photos, "sidecar", existing=existing)
    for _ in range(3):
        run()
        assert texts(photos)["0000"] == expected
    assert "0001 v1" in texts(photos)["0001"], "a blank text is none"
    change(photos / "0000.png")
    run.version = "2"
    run()
    assert texts(photos)["0000"] == expected.replace("v1", "v2"), "ours is replaced, not applied twice"
    run.version = "3"
    run(restart=True)
    assert texts(photos)["0000"] == expected.replace("v1", "v3")


def test_a_restart_that_was_stopped_goes_on_as_a_restart(photos: Path) -> None:
    run = Runner(photos, "sidecar", existing="append")
    run()
    run.version = "2"
    with pytest.raises(KeyboardInterrupt):
        run(restart=True, stop_after=1)
    assert run().computed == 2
    assert texts(photos) == {"0000": "0000 v2\n", "0001": "0001 v2\n", "0002": "0002 v2\n"}


@pytest.mark.parametrize("existing", ["skip", "overwrite", "append"])
def test_a_text_edited_since_is_left_and_told(photos: Path, existing: Existing) -> None:
    run = Runner(photos, "sidecar", existing=existing)
    run()
    (photos / "0001.txt").write_text("better\n")
    change(photos / "0001.png")
    assert vars(run()) == vars(Outcome(done=2, edited=1))
    assert texts(photos)["0001"] == "better\n"
    assert len(run.told.notes) == 1
    assert "0001.png" in run.told.notes[0]


def test_bytes_that_are_no_utf8_survive_an_append(photos: Path) -> None:
    (photos / "0000.txt").write_bytes(b"caf\xe9\n")
    run = Runner(photos, "sidecar", existing="append")
    run()
    run()
    assert (photos / "0000.txt").read_bytes() == b"caf\xe9\n0000 v1\n"


def test_failures_are_told_and_tried_again_once_they_may_work(photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    run = Runner(photos, "jsonl", tmp_path / "out.jsonl")
    assert vars(run()) == vars(Outcome(computed=3, failed=1))
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [("error" in row, Path(row["path"]).name) for row in rows][-1] == (True, "bad.png")
    assert vars(run()) == vars(Outcome(done=3, failed=1))
    assert run.computed == [], "it is opened without the model, and still bad"
    assert [Path(name).name for name, _ in run.told.bads] == ["bad.png"]
    (photos / "bad.png").write_bytes((photos / "0000.png").read_bytes())
    run()
    assert run.computed == ["bad.png"]


def test_strict_stops_at_the_first_bad_one_and_keeps_the_rest(photos: Path) -> None:
    (photos / "0000z.png").write_bytes(b"")
    (photos / "bad.png").write_bytes(b"")
    (photos / "0001.png").rename(photos / "bad1.png")
    run = Runner(photos, "sidecar", strict=True)
    with pytest.raises(JobError, match="first bad picture"):
        run()
    assert "0000" in texts(photos)


def test_two_pictures_that_would_share_a_text_are_told_before_anything_is_written(photos: Path) -> None:
    (photos / "0001.jpg").write_bytes((photos / "0001.png").read_bytes())
    for to in ("sidecar", "kohya"):
        run = Runner(photos, to)
        with pytest.raises(JobError, match=r"0001\.jpg and .*0001\.png would both be written"):
            run()
    assert {path.suffix for path in photos.iterdir()} == {".png", ".jpg"}, "no text, no journal"
    assert Runner(photos, "jsonl", photos / "all.jsonl")().computed == 4


def test_another_job_on_the_same_output_is_another_job(photos: Path) -> None:
    run = Runner(photos, "sidecar")
    run()
    other = Runner(photos, "sidecar", existing="overwrite")
    other.version = "2"
    assert other().computed == 3
    assert texts(photos)["0000"] == "0000 v2\n"
    assert run().edited == 3, "what another job wrote is left alone by the first"


def test_rows_stay_where_they_are_and_new_ones_follow(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text('{"path": "elsewhere.jpg", "text": "kept"}\n')
    run = Runner(photos, "jsonl", out)
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


def test_out_of_memory_halves_the_batch_and_loses_nothing(photos: Path, tmp_path: Path) -> None:
    pictures(photos, 20)
    size, calls = [8], list[int]()

    def function(batch: list[Item]) -> Sequence[Result]:
        calls.append(len(batch))
        if len(batch) > 2:
            raise MemoryError("no")
        return [[{"text": item.key}] for item in batch]

    def work(items: Iterator[Item]) -> Iterator[Result]:
        return batched(function, size[0])(items)

    def shrink() -> bool:
        size[0] //= 2
        return size[0] > 0

    items = list(gather(list(open_images([str(photos)]))))
    seen: list[Seen] = []
    outcome = Job(items, work, see=seen.append, shrink=shrink).run()
    assert vars(outcome) == vars(Outcome(computed=20))
    assert [one.item.name for one in seen] == [item.name for item in items]
    assert calls[:3] == [8, 4, 2]


def test_one_picture_too_large_for_memory_is_one_failure(photos: Path) -> None:
    def function(batch: list[Item]) -> Sequence[Result]:
        if any(item.name.endswith("0001.png") for item in batch):
            raise MemoryError
        return [[{"text": "t"}] for _ in batch]

    items = list(gather(list(open_images([str(photos)]))))
    told = Told()
    outcome = Job(items, batched(function, 1), report=told).run()
    assert vars(outcome) == vars(Outcome(computed=2, failed=1))
    assert "memory" in told.bads[0][1]


def test_any_other_error_ends_the_job(photos: Path) -> None:
    def work(items: Iterator[Item]) -> Iterator[Result]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        Job(list(gather(list(open_images([str(photos)])))), work).run()


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_lists_are_read_back_by_the_data_layer(photos: Path, tmp_path: Path, name: str) -> None:
    (photos / "bad.png").write_bytes(b"")
    Runner(photos, name.rpartition(".")[2], tmp_path / name)()
    source = open_source(str(tmp_path / name))
    assert isinstance(source, Source)
    records = list(source)
    assert [record.captions for record in records] == [("0000 v1",), ("0001 v1",), ("0002 v1",)]
    assert [Path(record.images[0].address) for record in records] == sorted(photos.glob("0*.png"))
    assert len(source.problems) == 1


def test_an_answer_is_read_back_as_one(photos: Path) -> None:
    row = {"path": "a.jpg", "question": "what?", "text": "a dog", "probability": 0.5}
    source = open_source([row])
    assert isinstance(source, Source)
    (record,) = source
    assert (record.questions[0].answers, record.captions) == (("a dog",), ())


def test_a_journal_that_is_none_is_refused(photos: Path) -> None:
    (photos / ".openblip-caption.journal").write_text("my diary\nof today\n")
    with pytest.raises(JobError, match="is no journal"):
        Runner(photos, "sidecar")()


@pytest.mark.parametrize("torn", [b'{"item": "0002.png", "pic', b"\0\0\0"])
def test_a_torn_last_line_is_dropped(photos: Path, torn: bytes) -> None:
    run = Runner(photos, "sidecar")
    with pytest.raises(KeyboardInterrupt):
        run(stop_after=2)
    with (photos / ".openblip-caption.journal").open("ab") as journal:
        journal.write(torn)
    assert vars(run()) == vars(Outcome(computed=1, done=2))


def test_imagefolder_and_kohya_keep_what_else_their_files_say(photos: Path) -> None:
    (photos / "metadata.jsonl").write_text('{"file_name": "0000.png", "label": 3}\n{"file_name": "gone.png"}\n')
    (photos / "meta_cap.json").write_text('{"0001": {"tags": "dog"}}')
    Runner(photos, "imagefolder")()
    Runner(photos, "kohya")()
    rows = [json.loads(line) for line in (photos / "metadata.jsonl").read_text().splitlines()]
    assert rows[:2] == [{"file_name": "0000.png", "label": 3, "text": "0000 v1"}, {"file_name": "gone.png"}]
    assert [row["file_name"] for row in rows] == ["0000.png", "gone.png", "0001.png", "0002.png"]
    told = json.loads((photos / "meta_cap.json").read_text())
    assert told["0001"] == {"tags": "dog", "caption": "0001 v1"}
    source = open_source(str(photos / "metadata.jsonl"))
    assert isinstance(source, Source)
    assert source[0].captions == ("0000 v1",)


def test_names_that_cannot_be_used_are_told_and_the_rest_is_done(photos: Path, tmp_path: Path) -> None:
    (photos / "0001.png").rename(photos / os.fsdecode(b"caf\xe9.png"))
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "around").symlink_to(photos)
    found = list(gather(list(open_images([str(photos), str(tmp_path / "gone.png"), str(tmp_path / "*.nothing")]))))
    bad = {one.name: one.reason for one in found if not isinstance(one, Item)}
    assert bad[f"{photos}/caf\\xe9.png"] == "its name is not UTF-8: rename it"
    assert "matches no file" in bad[str(tmp_path / "*.nothing")]
    names = [Path(one.name).name for one in found if isinstance(one, Item)]
    assert names == ["0000.png", "0002.png", "loop.png", "gone.png"]


def test_sources_of_every_kind_and_each_picture_once(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,prompt\np/0000.png,a dog\np/0000.png,a cat\np/0001.png,\n")
    parts = list(open_images([str(photos), str(photos / "0000.png"), str(tmp_path / "p" / "*1.png")]))
    assert [Path(one.name).name for one in gather(parts)] == ["0000.png", "0001.png", "0002.png"]
    listed = list(gather(open_images([str(tmp_path / "list.csv")], keep=["prompt"]), asked=prompts_of("prompt")))
    assert [one.key.rpartition("/")[2] for one in listed] == ["0000.png: a dog", "0000.png: a cat", "0001.png"]
    assert [one.asked for one in listed if isinstance(one, Item)] == [{"prompt": "a dog"}, {"prompt": "a cat"}, {}]
    empty = tmp_path / "empty"
    (empty / "below").mkdir(parents=True)
    pictures(empty / "below", 1)
    (problem,) = open_images([str(empty)])
    assert isinstance(problem, Problem)
    assert "--recursive" in problem.reason
    (part,) = open_images([str(empty)], recursive=True)
    assert isinstance(part, RootedSource)


def test_a_text_never_leaves_the_folder_it_is_to_go_to(photos: Path, tmp_path: Path) -> None:
    (item, *_) = gather(list(open_images([str(photos)])))
    assert isinstance(item, Item)
    sink = open_sink("sidecar", SinkOptions(str(tmp_path / "out")))
    for inside in ("../a.jpg", "x/../../a.jpg", "/a.jpg"):
        with pytest.raises(InputError, match="outside"):
            sink.target(replace(item, inside=inside))
    for ext in ("txt", ".", ".jpg", "./x"):
        with pytest.raises(OpenBlipError):
            open_sink("sidecar", SinkOptions(ext=ext))


def test_a_frame_of_an_animation(tmp_path: Path) -> None:
    colours = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
    first, *rest = (Image.new("RGB", (9, 9), colour) for colour in colours)
    first.save(tmp_path / "a.gif", save_all=True, append_images=rest)
    first.save(tmp_path / "still.png")
    moving, still = (one for one in gather(list(open_images([str(tmp_path)]))) if isinstance(one, Item))
    for number, colour in enumerate(colours):
        assert load_image(moving.source(number)).getpixel((4, 4)) == colour
    with pytest.raises(ImageError, match="3 frames"):
        load_image(moving.source(3))
    assert load_image(still.source(2)).getpixel((4, 4)) == colours[0], "what does not move is itself"


def test_heic_is_read_once_its_library_is_there() -> None:
    import pillow_heif

    out = io.BytesIO()
    pillow_heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 40))).save(out)
    assert load_image(out.getvalue()).size == (64, 48)

"""Batches: the same ones whatever the number of workers and wherever a run was killed; bad records are never fatal."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openblip.data.augment import Resize, TrainTransform
from openblip.data.loader import Loader
from openblip.data.randaugment import RandAugment
from openblip.data.records import Record
from openblip.data.sampler import SPARES
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.tasks.base import TaskData
from openblip.data.tasks.caption import CaptionData
from openblip.data.tasks.pretrain import PretrainData
from openblip.data.tasks.retrieval import RetrievalData
from openblip.data.tasks.vqa import VqaData
from openblip.errors import InputError
from openblip.preprocess.settings import ImageSettings
from tests.data.data_toys import SIZE, members, numbers_of, png, rows, write_images, write_jsonl, write_tar
from tests.toys import toy_image, toy_tokenizer

PLAIN = Resize(SIZE)
TRAIN = TrainTransform(ImageSettings(SIZE), randaugment=RandAugment())
TOKENIZER = toy_tokenizer()
CAPTIONING = CaptionData(tokenizer=TOKENIZER, transform=PLAIN, prompt="")


def digest(batch: dict[str, Tensor]) -> str:
    """All bits of a batch."""
    results = hashlib.sha256()
    for name, tensor in sorted(batch.items()):
        results.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return results.hexdigest()


def digests(loader: Loader, epoch: int = 0, start: int = 0) -> list[str]:
    return [digest(batch) for batch in loader.epoch(epoch, start)]


def loaded(loader: Loader, epoch: int = 0) -> list[list[int]]:
    """The images of every batch, by their numbers."""
    return [numbers_of(batch["pixels"]) for batch in loader.epoch(epoch)]


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-three images of noise with two captions each, in a folder and in two tars."""
    folder = tmp_path_factory.mktemp("noisy")
    for number in range(23):
        toy_image(number).save(folder / f"{number:02d}.png")
        (folder / f"{number:02d}.txt").write_text(f"number {number}\nthe image {number}\n")
    for shard in range(2):
        paths = sorted(folder.glob("*.png"))[shard::2]
        results = {
            path.with_suffix(s).name: path.with_suffix(s).read_bytes() for path in paths for s in (".png", ".txt")
        }
        write_tar(folder / f"{shard}.tar", results)
    return folder


def training(folder: Path, form: str = "folder", **options: Any) -> Loader:
    """A loader with every random draw there is."""
    task = PretrainData(tokenizer=TOKENIZER, transform=TRAIN, texts_per_image=2)
    if form == "folder":
        return Loader(open_source(folder), task, **{"batch_size": 4, **options})
    source = open_source(str(folder / "{0..1}.tar"), stream=form == "stream")
    return Loader(
        source,
        task,
        **{"batch_size": 4, "samples_per_epoch": 23 if form == "stream" else None, "shuffle_window": 6, **options},
    )


@pytest.mark.parametrize("form", ["folder", "tar", "stream"])
def test_batches_do_not_depend_on_the_workers(noisy: Path, form: str) -> None:
    alone = training(noisy, form)
    expected = [digests(alone, epoch) for epoch in range(2)]
    assert len(expected[0]) == alone.steps_per_epoch == 5
    assert len({*expected[0], *expected[1]}) == 10
    for workers, ahead in ((1, 1), (2, 5)):
        loader = training(noisy, form, num_workers=workers, prefetch=ahead)
        assert [digests(loader, epoch) for epoch in range(2)] == expected
        assert digests(loader, 0, 3) == expected[0][3:]  # anywhere else, from new workers
        loader.close()


@pytest.mark.parametrize("form", ["folder", "stream"])
def test_resuming_gives_the_same_bits(noisy: Path, form: str) -> None:
    expected = digests(training(noisy, form), 1)
    for start in range(6):
        assert digests(training(noisy, form), 1, start) == expected[start:]


def test_a_record_looks_different_each_epoch_but_not_each_time(noisy: Path) -> None:
    task = CaptionData(tokenizer=TOKENIZER, transform=TRAIN, texts_per_image=1)

    def looks(epoch: int, seed: int = 42) -> dict[str, str]:
        loader = Loader(open_source(noisy), task, batch_size=1, seed=seed)
        return {str(batch["ids"].tolist()[0][2]): digest({"p": batch["pixels"]}) for batch in loader.epoch(epoch)}

    initial, repeated, second, other_seed = looks(0), looks(0), looks(1), looks(0, seed=1)
    assert initial == repeated
    assert len(set(initial.values()) & set(second.values())) == 0
    assert len(set(initial.values()) & set(other_seed.values())) == 0


def test_the_order_of_batches_leaves_no_trace_in_samples(noisy: Path) -> None:
    """A sample depends on its record, not on its position in a batch or on the size of the batch."""
    task = CaptionData(tokenizer=TOKENIZER, transform=TRAIN)
    results = []
    for batch, shuffle in ((1, True), (5, True), (23, False)):
        loader = Loader(open_source(noisy), task, batch_size=batch, shuffle=shuffle, drop_last=False)
        results.append(sorted(digest({"p": pixels}) for batch in loader.epoch(0) for pixels in batch["pixels"]))
    assert len(results[0]) == 46
    assert results[0] == results[1] == results[2]


def test_the_global_generators_are_left_alone(noisy: Path) -> None:
    def states() -> tuple[Any, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # type: ignore[index]

    states_before = states()
    for workers in (0, 2):
        loader = training(noisy, num_workers=workers)
        digests(loader)
        loader.close()
    assert states() == states_before


def test_ranks_see_their_own_share(tmp_path: Path) -> None:
    source = open_source(write_jsonl(tmp_path / "x.jsonl", rows(21, tmp_path)))
    ranks = [loaded(Loader(source, CAPTIONING, batch_size=2, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(rank_batches) for rank_batches in ranks] == [3, 3, 3]
    together = loaded(Loader(source, CAPTIONING, batch_size=6))
    assert [[*a, *b, *c] for a, b, c in zip(*ranks, strict=True)] == together
    assert len({number for rank_batches in together for number in rank_batches}) == 18


def test_leaving_an_epoch_early_and_coming_back(noisy: Path) -> None:
    expected = digests(training(noisy))
    loader = training(noisy, num_workers=1)
    batches = loader.epoch(0)
    assert [digest(next(batches)) for _ in range(2)] == expected[:2]
    batches.close()  # type: ignore[attr-defined]  # as a loop that breaks does
    running = loader._run
    assert digests(loader, 0, 2) == expected[2:]
    assert loader._run is running  # the same workers went on
    assert digests(loader, 0, 1) == expected[1:]
    assert loader._run is not running
    loader.close()


def test_workers_go_on_into_the_next_epoch(noisy: Path) -> None:
    loader = training(noisy, num_workers=2)
    list(loader.epoch(0))
    running = loader._run
    list(loader.epoch(1))
    assert loader._run is running
    loader.close()
    assert loader._run is None


def run_and_log(folder: Path, log: Path, form: str, workers: int) -> None:
    """Continue a run where its log ends, and log every batch."""
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    initial = (done[-1]["epoch"], done[-1]["step"] + 1) if done else (0, 0)
    loader = training(folder, form, num_workers=workers)
    with log.open("a") as file:
        for epoch in range(initial[0], 3):
            start = initial[1] if epoch == initial[0] else 0
            for step, batch in enumerate(loader.epoch(epoch, start), start):
                file.write(json.dumps({"epoch": epoch, "step": step, "digest": digest(batch)}) + "\n")
                file.flush()
                os.fsync(file.fileno())
                time.sleep(0.01)
    loader.close()


@pytest.mark.parametrize("form", ["folder", "stream"])
def test_killed_and_resumed_runs_equal_one_that_was_not(noisy: Path, tmp_path: Path, form: str) -> None:
    expected = [
        {"epoch": epoch, "step": step, "digest": batch_digest}
        for epoch in range(3)
        for step, batch_digest in enumerate(digests(training(noisy, form), epoch))
    ]
    log = tmp_path / "log.jsonl"
    context = multiprocessing.get_context("fork")
    for kill_at in (3, 8, None):
        process = context.Process(target=run_and_log, args=(noisy, log, form, 2 if kill_at else 1))
        process.start()
        while kill_at and process.is_alive() and (not log.exists() or log.read_text().count("\n") < kill_at):
            time.sleep(0.002)
        if kill_at:
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        process.join()  # a timeout would wait for the killed run's workers too, who notice after some seconds
        count = log.read_text().count("\n")
        assert count < 15 if kill_at else count == 15, "the kill must come in the middle"
    assert [json.loads(line) for line in log.read_text().splitlines()] == expected


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Thirty good records and seven bad ones of every kind."""
    good = rows(30, tmp_path)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.png").write_text("this is no picture")
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:2000])
    bad: list[Any] = [
        {"image": "absent.png", "caption": "one"},
        {"image": "empty.png", "caption": "one"},
        {"image": "text.png", "caption": "one"},
        {"image": "cut.jpg", "caption": "one"},
        {"image": "0000.png", "caption": "..."},
        {"image": "0000.png"},
        {"image": "0000.png", "caption": 5},
    ]
    return write_jsonl(tmp_path / "mixed.jsonl", [*good, *bad])


def reasons_by_line(loader: Loader) -> dict[int, str]:
    """Return the reported reason of each line."""
    return {int(problem.address.rpartition(":")[2]): problem.reason for problem in loader.report.problems}


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_are_replaced_and_reported(mixed: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "openblip.data"):
        loader = Loader(open_source(mixed), CAPTIONING, batch_size=7, num_workers=workers)
        assert list(reasons_by_line(loader)) == [37, 36]  # known before any image is opened
        batches = loaded(loader)
        loader.close()
    assert [len(batch) for batch in batches] == [7] * loader.steps_per_epoch == [7] * 5
    results = reasons_by_line(loader)
    assert sorted(results) == list(range(31, 38))
    reasons = [results[line] for line in range(31, 38)]
    expected = ["no such file", "it is empty", "it is text, not an image", "truncated", "empty after cleaning"]
    expected += ["needs one image and a caption", "caption must be a text, got a number"]
    assert all(text in reason for text, reason in zip(expected, reasons, strict=True))
    for line in range(31, 36):
        assert f"mixed.jsonl:{line}" in caplog.text
    assert "2 bad records skipped" in caplog.text
    assert "after epoch 0: 7 bad records skipped" in caplog.text
    repeated = Loader(open_source(mixed), CAPTIONING, batch_size=7)
    assert loaded(repeated) == batches


def test_bad_records_are_counted_once(mixed: Path) -> None:
    loader = Loader(open_source(mixed), CAPTIONING, batch_size=7)
    for epoch in range(3):
        list(loader.epoch(epoch))
    assert len(loader.report) == 7


def test_other_records_of_the_batch_do_not_move(mixed: Path, tmp_path: Path) -> None:
    complete = write_jsonl(tmp_path / "whole.jsonl", rows(35))
    write_images(tmp_path, 35)
    lines = mixed.read_text().splitlines()[:35]
    mixed.write_text("\n".join(lines))  # 35 well-formed lines, of which 5 are bad
    bad = loaded(Loader(open_source(mixed), CAPTIONING, batch_size=7))
    good = loaded(Loader(open_source(complete), CAPTIONING, batch_size=7))
    moved = [
        (a, b) for ours, theirs in zip(bad, good, strict=True) for a, b in zip(ours, theirs, strict=True) if a != b
    ]
    assert sorted(theirs for _, theirs in moved) == [30, 31, 32, 33, 34]
    assert all(len(set(batch)) == 7 for batch in bad)  # a spare is never another record of its batch


def test_evaluation_leaves_bad_records_out(mixed: Path) -> None:
    loader = Loader(open_source(mixed), CAPTIONING, batch_size=7, shuffle=False, drop_last=False)
    batches = loaded(loader)
    assert [number for batch in batches for number in batch] == list(range(30))
    assert [len(batch) for batch in batches] == [7, 7, 7, 7, 2]
    assert len(loader.report) == 7
    only_bad = open_source([{"image": "absent.png", "caption": "c"}, {"image": png(1), "caption": "c"}])
    assert loaded(Loader(only_bad, CAPTIONING, batch_size=1, shuffle=False, drop_last=False)) == [[1]]


def test_too_many_bad_records(mixed: Path) -> None:
    with pytest.raises(InputError, match="at most 1 records may be bad, got 2 bad records skipped"):
        Loader(open_source(mixed), CAPTIONING, batch_size=7, max_bad_records=1)
    loader = Loader(open_source(mixed), CAPTIONING, batch_size=7, max_bad_records=6)
    with pytest.raises(InputError, match="at most 6 records may be bad"):
        list(loader.epoch(0))
    assert len(loaded(Loader(open_source(mixed), CAPTIONING, batch_size=7, max_bad_records=7))) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_bad_records_is_an_error(tmp_path: Path, workers: int) -> None:
    listed = [{"image": f"absent-{number}.png", "caption": "c"} for number in range(100)]
    loader = Loader(open_source(listed), CAPTIONING, batch_size=5, num_workers=workers)
    with pytest.raises(InputError, match=rf"{5 + SPARES} records in a row are bad:\n  rows\[\d+\]: .*no such file"):
        list(loader.epoch(0))
    assert len(loader.report) == 5 + SPARES
    captionless = open_source([{"image": png(0)}, {"image": png(1)}])
    with pytest.raises(InputError, match="no record of rows has one image and a caption"):
        Loader(captionless, CAPTIONING, batch_size=1)


def test_a_few_good_records_among_many_bad_fill_a_batch() -> None:
    listed = [{"image": png(0) if number == 3 else "absent.png", "caption": "c"} for number in range(8)]
    batches = loaded(Loader(open_source(listed), CAPTIONING, batch_size=4))
    assert batches == [[0] * 4] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_records_of_a_stream(tmp_path: Path, workers: int) -> None:
    results = {**members(range(20)), "a.png": b"no picture", "a.txt": b"c", "b.png": png(50), "c.txt": b"no picture"}
    results |= {"d.png": png(51), "d.json": b"{", **members(range(20, 30))}
    source = open_source(write_tar(tmp_path / "x.tar", results), stream=True)
    loader = Loader(source, CAPTIONING, batch_size=4, num_workers=workers, samples_per_epoch=32, shuffle_window=5)
    batches = loaded(loader)
    loader.close()
    assert [len(batch) for batch in batches] == [4] * 8
    assert {number for batch in batches for number in batch} <= set(range(30))
    reasons = {problem.address[-1]: problem.reason for problem in loader.report.problems}
    assert sorted(reasons) == ["a", "b", "c", "d"]
    assert "not usable for this task, which needs one image and a caption" in reasons["b"]
    assert loaded(Loader(source, CAPTIONING, batch_size=4, samples_per_epoch=32, shuffle_window=5)) == batches


def test_a_transform_that_fails_is_reported(tmp_path: Path) -> None:
    def fragile(image: Image.Image, rng: random.Random) -> Any:
        if numbers_of(np.asarray(image)[None]) == [1]:
            raise ZeroDivisionError("odd picture")
        return PLAIN(image, rng)

    task = CaptionData(tokenizer=TOKENIZER, transform=fragile)
    loader = Loader(open_source(write_jsonl(tmp_path / "x.jsonl", rows(3, tmp_path))), task, batch_size=3)
    (batch,) = loaded(loader)
    assert set(batch) == {0, 2}
    assert [str(problem).rpartition("/")[2] for problem in loader.report.problems] == [
        "x.jsonl:2: ZeroDivisionError: odd picture"
    ]


def test_every_caption_is_a_sample_and_ids_are_those_of_the_source(tmp_path: Path) -> None:
    write_images(tmp_path, 4)
    listed = [{"image": f"{number % 4:04d}.png", "caption": ["a", "b"][: 1 + number % 2]} for number in range(6)]
    source = open_source(write_jsonl(tmp_path / "x.jsonl", listed))
    task = RetrievalData(tokenizer=TOKENIZER, transform=PLAIN)
    (batch,) = Loader(source, task, batch_size=9).epoch(0)
    assert numbers_of(batch["pixels"]) == batch["image_ids"].tolist()
    assert sorted(batch["image_ids"].tolist()) == [0, 0, 1, 1, 1, 1, 2, 3, 3]


def test_questions_of_a_shared_tar(tmp_path: Path) -> None:
    qa = [{"question": "what is it?", "answer": "a dog"}, {"question": "what colour?", "answer": "red"}]
    source = open_source(write_tar(tmp_path / "x.tar", members(range(3), qa=qa)))
    task = VqaData(tokenizer=TOKENIZER, transform=PLAIN)
    loader = Loader(source, task, batch_size=2)
    assert loader.steps_per_epoch == 3
    assert sorted(number for batch in loaded(loader) for number in batch) == [0, 0, 1, 1, 2, 2]


def test_a_stream_without_a_length(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "x.tar", members(range(7))), stream=True)
    loader = Loader(source, CAPTIONING, batch_size=2)
    assert [len(batch) for batch in loaded(loader)] == [2, 2, 2]
    with pytest.raises(InputError, match="is a stream: set samples_per_epoch"):
        _ = loader.steps_per_epoch
    complete = Loader(source, CAPTIONING, batch_size=2, drop_last=False)
    assert sorted(number for batch in loaded(complete) for number in batch) == list(range(7))


def test_an_error_of_the_source_reaches_the_caller(tmp_path: Path) -> None:
    class Broken(Source):
        name = "broken"
        counts = open_source([{"image": "a.png", "caption": "c"}] * 3).counts  # type: ignore[union-attr]
        keys = np.zeros(3, np.uint64)

        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Record:
            raise RuntimeError("the disk is gone")

    for workers in (0, 1):
        with pytest.raises(RuntimeError, match="the disk is gone"):
            list(Loader(Broken(), CAPTIONING, batch_size=1, num_workers=workers).epoch(0))
    with pytest.raises(InputError, match="num_workers must be 0"):
        Loader(Broken(), CAPTIONING, batch_size=1, num_workers=-1)


def test_tasks_travel_to_spawned_workers(noisy: Path) -> None:
    import pickle

    tasks: list[TaskData[Any]] = [CAPTIONING, PretrainData(tokenizer=TOKENIZER, transform=TRAIN, texts_per_image=2)]
    for task in tasks:
        source = open_source(noisy)
        repeated, source_again = pickle.loads(pickle.dumps((task, source)))
        assert digests(Loader(source_again, repeated, batch_size=5)) == digests(Loader(source, task, batch_size=5))


def test_iterating_gives_an_iterator(noisy: Path) -> None:
    assert isinstance(training(noisy).epoch(0), Iterator)

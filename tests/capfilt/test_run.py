"""Captions and scores equal those of the plain API, and do not depend on order, batches or shards."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import openblip
from openblip import Blip
from openblip.capfilt.folder import CapFiltFolder, digest_rows
from openblip.capfilt.rows import read_table
from openblip.capfilt.rules import Rule
from openblip.capfilt.run import run
from openblip.capfilt.scoring import Sampling, Scorer
from openblip.errors import JobError
from openblip.jobs.executors import Executor, run_in_process, run_in_processes
from tests.capfilt.capfilt_toys import make_job, picture, read_rows, web_folder, web_tar, write_jsonl

pytestmark = pytest.mark.usefixtures("one_thread")


def test_scores_equal_those_of_the_api(folder: Path, blip: Blip, tmp_path: Path) -> None:
    source = web_folder(tmp_path / "web", 5)
    counts = run([str(source)], make_job(folder, tmp_path / "out", num=3))
    rows = read_rows(tmp_path / "out")
    assert sorted(rows) == [f"{number:03d}.jpg" for number in range(5)]
    scorer = Scorer(blip, blip, Sampling(num=3))
    for key, row in rows.items():
        image = source / key
        captions = blip.caption(
            image, do_sample=True, top_p=0.9, n=3, seed=scorer.seed_of(key), min_new_tokens=1, max_new_tokens=6
        )
        samples = [caption.text for caption in (captions, *captions.alternatives)]
        assert row["texts"] == [(source / key).with_suffix(".txt").read_text().strip(), *samples]
        assert row["sources"] == ["web", *["synthetic"] * 3]
        matches = blip.match(image, row["texts"])
        np.testing.assert_allclose(row["itm"], [match.probability for match in matches], atol=1e-5)
        np.testing.assert_allclose(row["itc"], [match.similarity for match in matches], atol=1e-5)
        assert row["kept"] == [p >= 0.5 for p in row["itm"]]
        assert row["captions"] == [text for text, kept in zip(row["texts"], row["kept"], strict=True) if kept]
        assert row["image"] == str(image)
    assert counts["images"] == counts["web"] == 5
    assert counts["synthetic"] == 15
    kept = [kept for row in rows.values() for kept in row["kept"]]
    assert 0 < sum(kept) < len(kept), "the toy filter keeps some texts and drops others"


def test_batches_and_numbers_of_texts_do_not_matter(folder: Path, blip: Blip) -> None:
    scorer = Scorer(blip, blip, Sampling(num=2, min_new_tokens=1, max_new_tokens=6))
    texts = [["a man"], [], ["cat", "a dog on the street", "people"], ["cat"], ["a", "b"]]
    candidates = [scorer.open(f"k{i}", picture(i), web) for i, web in enumerate(texts)]
    together = scorer.score(candidates)
    assert [len(row) for row in together] == [3, 2, 5, 3, 4]
    for candidate, row in zip(candidates, together, strict=True):
        (alone,) = scorer.score([candidate])
        assert [text.text for text in alone] == [text.text for text in row]
        np.testing.assert_allclose([text.itm for text in alone], [text.itm for text in row], atol=1e-5)  # type: ignore[arg-type]
        np.testing.assert_allclose([text.itc for text in alone], [text.itc for text in row], atol=1e-5)  # type: ignore[arg-type]


def test_captioner_and_filter_of_different_sizes(folder: Path, blip: Blip, tmp_path: Path) -> None:
    from openblip.checkpoints import write
    from openblip.preprocess.settings import ImageSettings
    from tests.toys import toy_model, toy_tokenizer

    model = toy_model("retrieval", image_size=48)
    write.save(model, tmp_path / "filter", tokenizer=toy_tokenizer(), image=ImageSettings(size=48))
    matcher = openblip.load(tmp_path / "filter")
    scorer = Scorer(blip, matcher, Sampling(min_new_tokens=1, max_new_tokens=6))
    ((web, _),) = scorer.score([scorer.open("a", picture(1), ["a man"])])
    assert web.itm == pytest.approx(matcher.match(picture(1), "a man").probability, abs=1e-5)


@pytest.mark.parametrize("form", ["tar", "jsonl", "csv", "parquet", "folder"])
def test_rows_do_not_depend_on_order_or_shards(folder: Path, tmp_path: Path, form: str) -> None:
    images = web_folder(tmp_path / "web", 9)
    source, keys = _convert(images, tmp_path / "data", form)
    run(source, make_job(folder, tmp_path / "a"), images=str(images), shard_rows=4)
    digest = digest_rows(CapFiltFolder(tmp_path / "a"))
    assert set(read_rows(tmp_path / "a")) == keys

    def backwards(job, shards):  # type: ignore[no-untyped-def]
        return run_in_process(job, random.Random(1).sample(shards, len(shards)))

    run(source, make_job(folder, tmp_path / "b", batch_size=3), images=str(images), shard_rows=4, execute=backwards)
    assert digest_rows(CapFiltFolder(tmp_path / "b")) == digest
    shards = len(list((tmp_path / "a/parquet").iterdir()))
    assert shards == (2 if form == "tar" else 3)
    other = tmp_path / "c"
    run(source, make_job(folder, other, seed=1), images=str(images))
    texts = [[row["texts"] for row in read_rows(out).values()] for out in (tmp_path / "a", other)]
    assert texts[0] != texts[1]


def _convert(images: Path, folder: Path, form: str) -> tuple[list[str], set[str]]:
    """Return the same data in another form, and the keys that its rows have."""
    folder.mkdir()
    names = [f"{number:03d}" for number in range(9)]
    listed = [{"image": f"{name}.jpg", "caption": (images / f"{name}.txt").read_text().strip()} for name in names]
    by_name = {row["image"] for row in listed}
    if form == "folder":
        return [str(images)], by_name
    if form == "jsonl":
        return [str(write_jsonl(folder / "web.jsonl", listed))], by_name
    if form == "csv":
        lines = ["caption,image", *(f'"{row["caption"]}\n",{row["image"]}' for row in listed)]
        (folder / "web.csv").write_text("\n".join(lines) + "\n")
        return [str(folder / "web.csv")], by_name
    if form == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(listed), folder / "web.parquet", row_group_size=2)
        return [str(folder / "web.parquet")], by_name
    web_tar(folder / "0.tar", 5)
    web_tar(folder / "1.tar", 4, start=5)
    return [str(folder)], {f"{n // 5}.tar:{n:09d}" for n in range(9)}


@pytest.mark.slow
def test_processes_compute_the_same(folder: Path, tmp_path: Path) -> None:
    source = [str(web_folder(tmp_path / "web", 12))]
    digests = set()
    executors: list[Executor] = [run_in_process, run_in_processes(2), run_in_processes(4)]
    for number, execute in enumerate(executors):
        run(source, make_job(folder, tmp_path / str(number)), shard_rows=3, execute=execute)
        digests.add(digest_rows(CapFiltFolder(tmp_path / str(number))))
    assert len(digests) == 1


def test_a_stopped_run_resumes(folder: Path, tmp_path: Path) -> None:
    source, out = [str(web_folder(tmp_path / "web", 9))], tmp_path / "out"

    class StoppedError(Exception):
        pass

    def stop_after_one(job, shards):  # type: ignore[no-untyped-def]
        results = run_in_process(job, shards)
        yield next(results)
        raise StoppedError

    with pytest.raises(StoppedError):
        run(source, make_job(folder, out), shard_rows=3, execute=stop_after_one)
    (first,) = CapFiltFolder(out).shards()
    stamp = CapFiltFolder(out).rows_path(first).stat().st_mtime_ns
    notes: list[tuple[int, int]] = []
    run(source, make_job(folder, out), shard_rows=3, notify=lambda *numbers: notes.append(numbers))
    assert notes == [(1, 3), (2, 3), (3, 3)]
    assert CapFiltFolder(out).rows_path(first).stat().st_mtime_ns == stamp
    run(source, make_job(folder, tmp_path / "whole"), shard_rows=3)
    assert digest_rows(CapFiltFolder(out)) == digest_rows(CapFiltFolder(tmp_path / "whole"))


def test_another_run_is_refused(folder: Path, tmp_path: Path) -> None:
    images, out = web_folder(tmp_path / "web", 4), tmp_path / "out"
    run([str(images)], make_job(folder, out))
    with pytest.raises(JobError, match="a run with another num, seed; choose another --out"):
        run([str(images)], make_job(folder, out, num=2, seed=3))
    (images / "000.jpg").unlink()
    with pytest.raises(JobError, match="changed since"):
        run([str(images)], make_job(folder, out))
    with CapFiltFolder(out).lock(), pytest.raises(JobError, match="in use"):
        run([str(images)], make_job(folder, out))


def test_new_shards_are_added(folder: Path, tmp_path: Path) -> None:
    web_tar(tmp_path / "web/0.tar", 2)
    run([str(tmp_path / "web")], make_job(folder, tmp_path / "out"))
    web_tar(tmp_path / "web/1.tar", 3, start=2)
    counts = run([str(tmp_path / "web")], make_job(folder, tmp_path / "out", rule=Rule(itm_threshold=0.9)))
    assert counts["images"] == 5
    folder_ = CapFiltFolder(tmp_path / "out")
    for shard in folder_.shards():
        for row in read_table(folder_.rows_path(shard)).to_pylist():
            assert row["kept"] == [p >= 0.9 for p in row["itm"]], "one rule for old and new shards"


def test_out_of_memory_halves_the_batch(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = [str(web_folder(tmp_path / "web", 9))]
    run(source, make_job(folder, tmp_path / "a", batch_size=8))
    sizes: list[int] = []
    score = Scorer.score

    def score_small(self: Scorer, batch):  # type: ignore[no-untyped-def]
        sizes.append(len(batch))
        if len(batch) > 2:
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        return score(self, batch)

    monkeypatch.setattr(Scorer, "score", score_small)
    run(source, make_job(folder, tmp_path / "b", batch_size=8))
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 1]
    assert digest_rows(CapFiltFolder(tmp_path / "a")) == digest_rows(CapFiltFolder(tmp_path / "b"))

    def score_none(self: Scorer, batch):  # type: ignore[no-untyped-def]
        raise MemoryError

    monkeypatch.setattr(Scorer, "score", score_none)
    counts = run(source, replace(make_job(folder, tmp_path / "c"), to="webdataset"))
    assert counts["failed"] == 9
    assert "more memory than there is" in read_rows(tmp_path / "c")["000.jpg"]["error"]

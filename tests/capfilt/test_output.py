"""The output: read by training as it is, judged again without a model, and completed where it failed."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openblip.capfilt import rows
from openblip.capfilt.folder import CapFiltFolder, digest_rows
from openblip.capfilt.images import update_tar
from openblip.capfilt.report import make_report, measure_diversity, write_report
from openblip.capfilt.rethreshold import rethreshold
from openblip.capfilt.rows import Row, ScoredText, make_table
from openblip.capfilt.rules import Rule
from openblip.capfilt.run import run
from openblip.data.images import open_image
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.errors import InputError, JobError
from tests.capfilt.capfilt_toys import make_job, picture, read_rows, web_folder, web_tar, write_jsonl, write_tar

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def output(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with tars, of a source with tars."""
    home = tmp_path_factory.mktemp("output")
    web_tar(home / "web/0.tar", 6)
    web_tar(home / "web/1.tar", 5, start=6)
    run([str(home / "web")], make_job(folder, home / "out", to="webdataset", num=2))
    return home / "out"


def read_captions(path: Path) -> dict[bytes, tuple[str, ...]]:
    """Return captions by the pixels of their image, as training reads them."""
    source = open_source(str(path))
    assert isinstance(source, Source)
    return {open_image(source[i].images[0]).tobytes(): source[i].captions for i in range(len(source))}


def expected_captions(out: Path, rule: Rule) -> dict[bytes, tuple[str, ...]]:
    """Return the captions that a rule keeps, by the pixels of their image, from the scores."""
    import io

    from PIL import Image

    expected = {}
    for key, row in read_rows(out).items():
        kept = rule.accepts(np.array(row["itm"], float), np.array(row["itc"], float))
        pixels = Image.open(io.BytesIO(picture(int(key.rpartition(":")[2])))).convert("RGB").tobytes()
        expected[pixels] = tuple(text for text, verdict in zip(row["texts"], kept, strict=True) if verdict)
    return expected


def test_parquet_and_tars_hold_the_kept_texts(output: Path) -> None:
    expected = expected_captions(output, Rule())
    assert len(expected) == 11
    assert read_captions(output / "parquet") == read_captions(output / "webdataset") == expected
    assert any(expected.values())


def test_another_rule_replaces_verdicts_in_place(output: Path) -> None:
    before = {path: path.stat().st_size for path in (output / "webdataset").iterdir()}
    digest = digest_rows(CapFiltFolder(output))
    scores = [row["itc"] for row in read_rows(output).values()]
    middle = float(np.median(scores))
    for rule in (
        Rule("itc", itc_threshold=middle),
        Rule("both", 0.1, middle),
        Rule("itm", 0.0),
        Rule("itm", 1.0),
        Rule(),
    ):
        counts = rethreshold(CapFiltFolder(output), rule)
        expected = expected_captions(output, rule)
        assert read_captions(output / "parquet") == read_captions(output / "webdataset") == expected
        assert counts["web_kept"] + counts["synthetic_kept"] == sum(map(len, expected.values()))
    assert {path: path.stat().st_size for path in before} == before
    assert digest_rows(CapFiltFolder(output)) == digest
    for path in (output / "webdataset").iterdir():
        with tarfile.open(path) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    entry = json.loads(tar.extractfile(name).read())  # type: ignore[union-attr]
                    assert [text["text"] for text in entry["texts"] if text["kept"]] == entry["captions"]


def test_an_interrupted_rethreshold_is_completed(output: Path) -> None:
    folder = CapFiltFolder(output)
    shard = folder.shards()[0]
    table = rows.read_table(folder.rows_path(shard))
    # The tar got the verdicts of another rule, and the process was killed before it wrote the rows.
    update_tar(folder.tar_path(shard, True), rows.to_rows(table), Rule("itm", 1.0))
    folder.write_settings({**folder.require_settings(), "complete": False})
    rethreshold(folder, Rule())
    assert read_captions(output / "webdataset") == expected_captions(output, Rule())


def test_rethreshold_imports_no_torch(output: Path) -> None:
    program = (
        "import sys; from openblip.cli import main\n"
        f"try: main(['capfilt', 'rethreshold', {str(output)!r}, '--itm-threshold', '0.5'])\n"
        "except SystemExit as exit: print(exit.code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0 False", done.stderr
    assert "web texts kept" in done.stderr


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_pretraining_reads_the_output(output: Path, tmp_path: Path, form: str) -> None:
    from openblip.training.config import recipe_from_table
    from openblip.training.run import run as train
    from tests.conftest import GOLDEN

    recipe = recipe_from_table(
        {
            "task": "pretrain",
            "out": str(tmp_path / "run"),
            "epochs": 1,
            "batch_size": 2,
            "tokenizer": str(GOLDEN / "vocab.txt"),
            "model": {
                "size": "base",
                "image_size": 32,
                "vision": {"width": 32, "depth": 1, "heads": 4, "mlp_width": 64},
                "text": {
                    "width": 32, "depth": 1, "heads": 4, "mlp_width": 64, "max_positions": 64, "memory_width": 32,
                },
            },
            "data": {"train": [str(output / form)], "num_workers": 0},
            "loss": {"queue_size": 8},
            "run": {"device": "cpu", "charts": False},
        }
    )  # fmt: skip
    result = train(recipe)
    kept = sum(map(len, expected_captions(output, Rule()).values()))
    assert result.progress.step == kept // 2 > 0
    assert len(result.report) == 0


def test_images_without_a_path_are_stored(folder: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({"image": [picture(n) for n in range(3)], "caption": ["a man", "cat", "a dog"]})
    pq.write_table(table, tmp_path / "web.parquet")
    run([str(tmp_path / "web.parquet")], make_job(folder, tmp_path / "out", rule=Rule("itm", 0.0)))
    found = read_rows(tmp_path / "out")
    assert set(found) == {f"web.parquet:row {n}" for n in range(3)}
    assert not (tmp_path / "out/webdataset").exists()
    source = open_source(str(tmp_path / "out/parquet"))
    assert isinstance(source, Source)
    with tarfile.open(next((tmp_path / "out/images").iterdir())) as tar:
        assert [tar.extractfile(name).read() for name in tar.getnames()] == [picture(n) for n in range(3)]  # type: ignore[union-attr]
    assert [source[n].captions[0] for n in range(3)] == ["a man", "cat", "a dog"]


def test_failures_are_counted_and_the_rest_is_done(folder: Path, tmp_path: Path) -> None:
    images = web_folder(tmp_path / "web", 3)
    (images / "bad.jpg").write_bytes(b"not a picture")
    listed: list[dict[str, Any]] = [
        {"image": "000.jpg", "caption": "a man"},
        {"image": "bad.jpg", "caption": "a dog"},
        {"image": "001.jpg", "caption": ""},
        {"image": "000.jpg", "caption": "again"},
        {"image": "002.jpg", "caption": "x" * 10_000},
        {"image": "gone.jpg", "caption": "a cat"},
        {"image": "https://127.0.0.1:1/a.jpg", "caption": "a cat"},
        {"caption": "no image"},
    ]
    path = write_jsonl(tmp_path / "web.jsonl", listed)
    path.write_text(path.read_text() + "{broken\n")
    data = web_tar(tmp_path / "cut.tar", 3).read_bytes()
    (tmp_path / "cut.tar").write_bytes(data[: len(data.rstrip(b"\0")) - 2000])
    vanishing = web_tar(tmp_path / "vanishing.tar", 2)
    job = make_job(folder, tmp_path / "out")

    def vanish(job, shards):  # type: ignore[no-untyped-def]
        from openblip.jobs.executors import run_in_process

        vanishing.unlink()
        return run_in_process(job, shards)

    sources = [str(path), str(tmp_path / "cut.tar"), str(vanishing)]
    counts = run(sources, job, images=str(images), execute=vanish)
    found = read_rows(tmp_path / "out")
    errors = {key: row["error"] for key, row in found.items() if row["error"]}
    assert [key for key in found if key not in errors] == ["cut.tar:000000000", "cut.tar:000000001", "000.jpg", "001.jpg", "002.jpg"]  # fmt: skip # noqa: E501
    reasons = {key.rpartition("/")[2]: error for key, error in errors.items()}
    assert "cannot decode" in reasons["bad.jpg"] or "cannot read" in reasons["bad.jpg"]
    assert "gone.jpg" in reasons["gone.jpg"]
    assert reasons["a.jpg"] == "the image is on the web: allow it with --allow-fetch"
    assert "duplicate key" in reasons["web.jsonl:4"]
    assert "there is no image" in reasons["web.jsonl:8"]
    assert "not JSON" in reasons["web.jsonl:9"]
    (cut,) = (error for key, error in errors.items() if key.startswith("cut-"))
    assert "damaged or cut short" in cut
    (gone,) = (error for key, error in errors.items() if key.startswith("vanishing-"))
    assert "No such file" in gone
    assert counts["failed"] == len(errors) == 8
    assert counts["rejected"] == 2
    assert counts["text: empty after cleaning"] == counts["text: longer than 1000 characters"] == 1
    assert found["002.jpg"]["sources"] == ["web", "synthetic"]
    assert found["002.jpg"]["itm"][0] is None
    assert found["002.jpg"]["kept"][0] is False


def test_failed_rows_alone_are_computed_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from openblip.capfilt.scoring import Scorer

    images = web_folder(tmp_path / "web", 5)
    (images / "001.jpg").write_bytes(b"damaged")
    web = tmp_path / "web.jsonl"
    write_jsonl(web, [{"image": f"{n:03d}.jpg", "caption": "a man"} for n in range(5)])
    whole = web_tar(tmp_path / "0.tar", 3).read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: len(whole.rstrip(b"\0")) - 2000])
    job = make_job(folder, tmp_path / "out", to="webdataset")
    sources = [str(web), str(tmp_path / "0.tar")]
    first = run(sources, job, images=str(images))
    assert first["failed"] == 2
    assert run(sources, job, images=str(images)) == first, "failures are not tried again without --retry"
    # A tar of a retry that was killed before it wrote its rows has members that no row knows.
    (images / "001.jpg").write_bytes(picture(1))
    (tmp_path / "0.tar").write_bytes(whole)
    opened: list[str] = []
    open_one = Scorer.open

    def open_counted(self: Scorer, key: str, *rest: Any) -> Any:
        opened.append(key)
        return open_one(self, key, *rest)

    monkeypatch.setattr(Scorer, "open", open_counted)
    retry = make_job(folder, tmp_path / "out", to="webdataset", retry=True)
    rename = rows.write_table
    monkeypatch.setattr(rows, "write_table", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run([], retry)
    monkeypatch.setattr(rows, "write_table", rename)
    assert read_captions(tmp_path / "out/parquet").keys() <= read_captions(tmp_path / "out/webdataset").keys()
    opened.clear()
    counts = run([], retry)
    assert sorted(opened) == ["0.tar:000000002", "001.jpg"]
    assert counts["failed"] == 0
    assert counts["images"] == 8
    fresh = make_job(folder, tmp_path / "fresh", to="webdataset")
    run(sources, fresh, images=str(images))
    assert digest_rows(CapFiltFolder(tmp_path / "out")) == digest_rows(CapFiltFolder(tmp_path / "fresh"))
    for rule in (Rule("itm", 0.0), Rule()):
        rethreshold(CapFiltFolder(tmp_path / "out"), rule)
        assert read_captions(tmp_path / "out/parquet") == read_captions(tmp_path / "out/webdataset")


def test_the_report_counts_and_shows(output: Path, tmp_path: Path) -> None:
    report = make_report(CapFiltFolder(output))
    found = read_rows(output)
    synthetic = [
        kept for row in found.values() for kept, s in zip(row["kept"], row["sources"], strict=True) if s != "web"
    ]
    assert report.noise_ratio == pytest.approx(1 - sum(synthetic) / len(synthetic))
    assert report.histograms["itm"].counts["synthetic"].sum() == len(synthetic) == 22
    assert report.diversity["web"].texts == 11
    assert len(report.examples) == 11
    assert report.repeated_keys == 0
    write_report(CapFiltFolder(output), tmp_path / "report.html", images=3)
    html = (tmp_path / "report.html").read_text()
    assert html.count("<article>") == html.count("data:image/jpeg;base64,") == 3
    assert "noise" in html.lower()
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_diversity_by_hand() -> None:
    measured = measure_diversity(["A cat.", "a cat", "the dog ran"])
    assert (measured.texts, measured.vocabulary) == (3, 5)
    assert measured.words == pytest.approx(7 / 3)
    assert measured.unique == pytest.approx(1 / 3)
    assert measured.distinct == pytest.approx((5 / 7, 3 / 4, 1.0, 0.0))


def test_rules() -> None:
    itm, itc = np.array([0.5, 0.49, 0.9, np.nan]), np.array([0.1, 0.9, 0.3, 0.9])
    assert Rule().accepts(itm, itc).tolist() == [True, False, True, False]
    assert Rule("itc", itc_threshold=0.3).accepts(itm, itc).tolist() == [False, True, True, False]
    assert Rule("both", 0.5, 0.2).accepts(itm, itc).tolist() == [False, False, True, False]
    for wrong in ({"keep": "itc"}, {"keep": "both"}, {"itc_threshold": 0.2}, {"itm_threshold": 1.5}, {"keep": "clip"}):
        with pytest.raises(InputError):
            Rule(**wrong)


def test_verdicts_of_a_sliced_table() -> None:
    texts = [tuple(ScoredText(f"{i}{j}", "web", j / 4, 0.0) for j in range(i)) for i in range(5)]
    table = make_table([Row(str(i), texts=row) for i, row in enumerate(texts)], Rule())
    part = rows.judge(table.slice(2, 3), Rule("itm", 0.25))
    assert part["captions"].to_pylist() == [["21"], ["31", "32"], ["41", "42", "43"]]
    assert rows.changed_rows(table.slice(2, 3), part).tolist() == [0, 1, 2]
    assert rows.changed_rows(part, part).tolist() == []


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="must be the output of `openblip capfilt run`"):
        rethreshold(CapFiltFolder(tmp_path), Rule())


def test_a_tar_inside_the_sources_keeps_its_images(folder: Path, tmp_path: Path) -> None:
    write_tar(tmp_path / "a.b.tar", [("x.jpg", picture(0)), ("x.txt", b"")])
    counts = run([str(tmp_path / "a.b.tar")], make_job(folder, tmp_path / "out"))
    assert counts["text: empty after cleaning"] == 1
    ((_, row),) = read_rows(tmp_path / "out").items()
    assert row["image"] == f"{tmp_path}/a.b.tar:x.jpg"
    assert not (tmp_path / "out/images").exists()

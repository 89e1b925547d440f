"""Predictions from runs and jobs: their scores equal those of the run that wrote them, however files are named."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import openblip
from openblip.blip import Blip
from openblip.cli import app
from openblip.errors import EvaluationError
from openblip.evaluation import predictions as reader
from openblip.evaluation.report import write_report
from openblip.evaluation.run import run_records
from tests.evaluation import evaluation_toys as toys
from tests.evaluation.test_run import open_records
from tests.toys import toy_image

TEXTS = {"0": ["a dog", "a brown dog"], "1": ["two cats"], "2": ["a man on a horse", "a horse"]}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.make_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def blip(bundle: Path) -> Blip:
    return openblip.load(bundle)


@pytest.fixture
def records(tmp_path: Path) -> Path:
    for name in TEXTS:
        toy_image(int(name)).save(tmp_path / f"{name}.png")
    rows = [
        {"image": f"{name}.png", "captions": texts, "question": "what is it?", "answers": ["dog", name]}
        for name, texts in TEXTS.items()
    ]
    (tmp_path / "my.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return tmp_path / "my.jsonl"


def score(*arguments: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["eval", "score", *map(str, arguments), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.stderr
    scores: dict[str, Any] = json.loads(result.stdout)
    return scores


def make_tar(path: Path, images: Sequence[Path]) -> Path:
    with tarfile.open(path, "w") as tar:
        for image in images:
            caption = TEXTS[image.stem][0].encode()
            info = tarfile.TarInfo(f"in/{image.stem}.txt")
            info.size = len(caption)
            tar.add(image, f"in/{image.name}")
            tar.addfile(info, io.BytesIO(caption))
    return path


def test_a_tar_is_evaluated_like_its_files(blip: Blip, tmp_path: Path) -> None:
    for name, texts in TEXTS.items():
        toy_image(int(name)).save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(texts[0])
    files = run_records(blip, open_records(tmp_path))
    tar = run_records(blip, open_records(make_tar(tmp_path / "s.tar", sorted(tmp_path.glob("*.png")))))
    assert list(tar.predictions.values()) == list(files.predictions.values())
    assert tar.metrics == files.metrics
    retrieval = run_records(blip, open_records(tmp_path / "s.tar"), task="retrieval")
    assert retrieval.metrics == run_records(blip, open_records(tmp_path), task="retrieval").metrics
    report = tmp_path / "report.html"
    write_report(report, "tar", tar.metrics, tar.notes, tar.report_items)
    assert report.read_text().count("data:image/jpeg") == 3
    damaged = (tmp_path / "s.tar").read_bytes().replace(b"\x89PNG", b"\0PNG", 1)
    (tmp_path / "t.tar").write_bytes(damaged)
    assert len(run_records(blip, open_records(tmp_path / "t.tar")).failed) == 1


@pytest.mark.parametrize("task", ["captions", "vqa"])
def test_a_run_is_scored_again_from_its_folder(
    blip: Blip, records: Path, tmp_path: Path, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    result = run_records(blip, open_records(records), task=task.removesuffix("s"), out=run)
    name = "CIDEr" if task == "captions" else "accuracy"
    for predictions in (run, run / "predictions.jsonl"):
        assert score(task, "-p", predictions)[name] == pytest.approx(result.metrics[name])
        assert score(task, "-p", predictions, "-r", records)[name] == pytest.approx(result.metrics[name])
    monkeypatch.chdir(tmp_path)  # the records by another name
    assert score(task, "-p", "run", "-r", "my.jsonl")[name] == pytest.approx(result.metrics[name])
    comparison = score(task, "-p", run, "-p", run)["comparison"]
    assert (comparison["difference"], comparison["p"]) == (0, 1)


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "parquet"])
def test_lists_of_jobs_are_scored_by_image(
    blip: Blip, bundle: Path, records: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"out.{suffix}"
    images = sorted(map(str, tmp_path.glob("*.png")))

    def job(*arguments: str) -> None:
        model = ["-m", str(bundle), "--to", suffix, "--out", str(out), "--restart"]
        result = CliRunner().invoke(app, [*arguments, *images, *model], catch_exceptions=False)
        assert result.exit_code == 0, result.stderr

    job("caption", "-n", "2")
    expected = run_records(blip, open_records(records), out=tmp_path / "run").metrics
    captions = [caption.text for caption in blip.caption(images)]
    assert list(reader.read_captions(out).values.values()) == captions, "the best of two"
    assert score("captions", "-p", out, "-r", records)["CIDEr"] == pytest.approx(expected["CIDEr"])
    assert score("captions", "-p", out, "-r", tmp_path / "run")["CIDEr"] == pytest.approx(expected["CIDEr"])
    coco = {
        "images": [{"id": int(name), "file_name": f"{name}.png"} for name in TEXTS],
        "annotations": [{"image_id": int(name), "caption": text} for name, texts in TEXTS.items() for text in texts],
    }
    (tmp_path / "coco.json").write_text(json.dumps(coco))
    assert score("captions", "-p", out, "-r", tmp_path / "coco.json")["CIDEr"] == pytest.approx(expected["CIDEr"])
    out.unlink()
    job("ask", "-q", "what is it?")
    accuracy = score("vqa", "-p", out, "-r", records, "--rule", "exact")["accuracy"]
    assert accuracy == run_records(blip, open_records(records), task="vqa").metrics["accuracy"]


def test_boxes_of_a_job_are_scored_by_image_and_expression(tmp_path: Path) -> None:
    toy_image(0).save(tmp_path / "0.png")
    row = {"path": "0.png", "expression": "the dog: left", "bbox": [10, 20, 4, 2], "probability": 0.5}
    (tmp_path / "out.jsonl").write_text(json.dumps(row) + "\n")
    rows = [{"image": str(tmp_path / "0.png"), "expression": "the dog: left", "bbox": [10, 20, 8, 2]}]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    scores = score("grounding", "-p", tmp_path / "out.jsonl", "-r", tmp_path / "my.jsonl")
    assert scores["mean_IoU"] == 0.5, "width and height, not right and bottom"


def test_equal_file_names_in_two_folders_are_not_joined(tmp_path: Path) -> None:
    rows = [{"path": f"/gone/{folder}/0.png", "text": "a dog"} for folder in "ab"]
    (tmp_path / "out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [{"image": f"{folder}/0.png", "caption": folder} for folder in "ab"]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions = reader.read_captions(tmp_path / "out.jsonl")
    references = reader.read_caption_references(tmp_path / "my.jsonl", predictions)
    assert reader.align(predictions, references) == predictions.values
    with pytest.raises(EvaluationError, match="-r is required"):
        reader.read_caption_references(None, predictions)
    with pytest.raises(EvaluationError, match="must be the folder of a run"):
        reader.read_captions(tmp_path)

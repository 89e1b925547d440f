"""`openblip eval run` with the bundled model, on the example photos."""

from __future__ import annotations

import json
import re
from pathlib import Path

from click.testing import CliRunner

from openblip.cli import app
from openblip.evaluation import protocols
from tests.evaluation import evaluation_toys as toys

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", "run", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def test_own_records(tmp_path: Path) -> None:
    rows = [{"image": str(PHOTOS / name), "captions": ["a photo"]} for name in ("cat.jpg", "nothing.jpg")]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    report, out = tmp_path / "report.html", tmp_path / "out"
    code, stdout, err = run("own", "--data", file, "--report", report, "--out", out)
    assert code == 3  # one image is missing
    assert "CIDEr" in stdout
    assert "nothing.jpg" in err
    assert report.read_text().count("<section ") == 2
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2
    rows = rows[:1]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, stdout, err = run("own", "--data", file, "--json")
    assert (code, err) == (0, "")
    assert json.loads(stdout)["metrics"]["METEOR"] is None


def test_missing_files_are_reported_before_a_model_is_loaded(tmp_path: Path) -> None:
    code, _, err = run("coco-caption", "--data", tmp_path, "--model", "no-such-model")
    assert code == 1
    assert "missing: coco_karpathy_test.json, coco_karpathy_test_gt.json" in err
    assert "Published at" in err
    code, _, err = run("coco", "--data", tmp_path)
    assert code == 2
    assert "did you mean coco-caption" in err or "must be one of coco-caption" in err


def test_help_lists_every_benchmark() -> None:
    code, stdout, _ = run("--help")
    assert code == 0
    words = set(re.findall(r"[\w-]+", re.sub(r"-\n +", "-", stdout)))  # lines break after hyphens
    assert set(protocols.NAMES) <= words


def test_options_that_exclude_each_other_are_refused(tmp_path: Path) -> None:
    for wrong in (
        ("own", "--preset", "lavis"), ("own", "--task", "talk"), ("nlvr2", "--task", "vqa"),
        ("nlvr2", "--images", tmp_path),
    ):  # fmt: skip
        assert run(*wrong, "--data", tmp_path)[0] == 2


def test_an_unreadable_record_sets_the_exit_code(tmp_path: Path) -> None:
    rows = [{"image": str(PHOTOS / "cat.jpg"), "captions": ["a photo"]}, {"captions": ["of nothing"]}]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, _, err = run("own", "--data", file)
    assert code == 3
    assert "error: " in err
    rows[1] = {"image": "nothing.jpg", "captions": ["a photo"]}
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, stdout, _ = run("own", "--data", file, "--json")
    assert code == 3
    (error,) = json.loads(stdout)["failed"].values()
    assert "nothing.jpg" in error


def test_a_benchmark_for_the_server_needs_a_folder(tmp_path: Path) -> None:
    toys.make_vqa(tmp_path)
    code, _, err = run("vqa-v2", "--data", tmp_path)
    assert code == 2
    assert "only the server can score" in err
    code, stdout, _ = run("vqa-v2", "--data", tmp_path, "--out", tmp_path / "out")
    assert code == 0
    assert f"wrote {tmp_path / 'out/vqa_result.json'}" in stdout

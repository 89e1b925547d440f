"""``openblip eval run`` with the bundled model, on the pictures of the examples."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from openblip.cli import app

PHOTOS = Path(__file__).parents[2] / "examples" / "photos"


def run(*args: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["eval", "run", *map(str, args)])
    return done.exit_code, done.stdout, done.stderr


def test_own(tmp_path: Path) -> None:
    rows = [{"image": str(PHOTOS / name), "captions": ["a photo"]} for name in ("cat.jpg", "nothing.jpg")]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    report, out = tmp_path / "report.html", tmp_path / "out"
    code, printed, err = run("own", "--data", file, "--report", report, "--out", out)
    assert code == 3  # one picture is not there
    assert "CIDEr" in printed
    assert "nothing.jpg" in err
    assert report.read_text().count("<section>") == 2
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2
    rows = rows[:1]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, printed, err = run("own", "--data", file, "--json")
    assert (code, err) == (0, "")
    assert json.loads(printed)["metrics"]["METEOR"] is None


def test_missing_files_are_said_before_a_model_is_loaded(tmp_path: Path) -> None:
    code, _, err = run("coco-caption", "--data", tmp_path, "--model", "no-such-model")
    assert code == 1
    assert "coco_karpathy_test.json, coco_karpathy_test_gt.json are not there" in err
    assert "Published at" in err
    code, _, err = run("coco", "--data", tmp_path)
    assert code == 1
    assert "there are coco-caption" in err

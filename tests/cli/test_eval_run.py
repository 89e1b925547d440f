"""``openblip eval run`` with the bundled model, on the pictures of the examples."""

from __future__ import annotations

import json
from pathlib import Path

from click.testing import CliRunner

from openblip.cli import app
from tests.evaluation import evaluation_toys as toys

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


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    for wrong in (
        ("own", "--protocol", "lavis"), ("own", "--task", "talk"), ("nlvr2", "--task", "vqa"),
        ("nlvr2", "--images", tmp_path),
    ):  # fmt: skip
        assert run(*wrong, "--data", tmp_path)[0] == 2


def test_a_row_that_cannot_be_read_is_told_by_the_exit_code(tmp_path: Path) -> None:
    rows = [{"image": str(PHOTOS / "cat.jpg"), "captions": ["a photo"]}, {"captions": ["of nothing"]}]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, _, err = run("own", "--data", file)
    assert code == 3
    assert "error: " in err
    rows[1] = {"image": "nothing.jpg", "captions": ["a photo"]}
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    code, printed, _ = run("own", "--data", file, "--json")
    assert code == 3
    (why,) = json.loads(printed)["failed"].values()
    assert "nothing.jpg" in why


def test_what_only_a_server_can_score_needs_a_folder(tmp_path: Path) -> None:
    toys.vqa(tmp_path)
    code, _, err = run("vqa-v2", "--data", tmp_path)
    assert code == 1
    assert "scored by the server alone" in err
    code, printed, _ = run("vqa-v2", "--data", tmp_path, "--out", tmp_path / "out")
    assert code == 0
    assert f"wrote {tmp_path / 'out/vqa_result.json'}" in printed

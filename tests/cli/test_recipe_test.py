"""``openblip test``: every known configuration leads to a benchmark, and the numbers are those of ``eval run``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from openblip.cli import app
from openblip.cli.recipe_test import CONFIGS, their_name, their_value
from openblip.evaluation import protocols
from tests.evaluation import evaluation_toys as toys

ROOT = Path(__file__).parents[2]


def run(*args: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    return done.exit_code, done.stdout, done.stderr


def test_every_recipe_of_a_benchmark_is_known() -> None:
    recipes = {path.stem for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.startswith("pretrain")}
    assert recipes <= set(CONFIGS)
    for name, preset in CONFIGS.values():
        assert protocols.find(name).preset(preset)


def test_it_is_eval_run(tmp_path: Path) -> None:
    model = toys.toy_bundle(tmp_path / "toy")
    toys.coco(tmp_path / "coco")
    code, printed, _ = run("eval", "run", "coco-caption", "--model", model, "--data", tmp_path / "coco", "--json")
    assert code == 0
    options = ["--cfg-options", f"data={tmp_path / 'coco'}", "--work-dir", tmp_path / "work", "--show-dir", tmp_path]
    written = ["--out", tmp_path / "metrics.json", "--out-item", "metrics"]
    code, _, err = run("test", "recipes/caption_coco_base.yaml", model, *options, *written)
    assert code == 0, err
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(printed)["metrics"]
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "work" / "captions_karpathy_openblip_results.json").is_file()
    code, _, _ = run("test", "caption_coco_base", model, *options, "--out", tmp_path / "pred.json")
    assert code == 0
    assert [key for key, _ in json.loads((tmp_path / "pred.json").read_text())] == [7, 3]


@pytest.mark.parametrize(
    ("key", "task", "theirs"),
    [
        ("txt_r5", "retrieval", "i2t/retrieval/Recall@5"),
        ("img_r10", "retrieval", "t2i/retrieval/Recall@10"),
        ("txt_r_mean", "retrieval", "txt_r_mean"),
        ("accuracy", "vqa", "VQA/acc"),
        ("accuracy", "nlvr", "accuracy/top1"),
        ("mean_IoU", "grounding", "visual-grounding/miou"),
        ("CIDEr", "caption", "CIDEr"),
    ],
)
def test_names_are_mmpretrain_s(key: str, task: str, theirs: str) -> None:
    assert their_name(key, task) == theirs


def test_recalls_and_accuracies_are_percent() -> None:
    assert their_value("txt_r1", "retrieval", 0.5) == 50
    assert their_value("txt_median_rank", "retrieval", 2.0) == 2
    assert their_value("accuracy", "vqa", 0.5) == 50
    assert their_value("accuracy", "grounding", 0.5) == 0.5
    assert their_value("CIDEr", "caption", 1.3) == 1.3


def test_wrong_options_are_usage_errors(tmp_path: Path) -> None:
    assert run("test", "x", "pocket")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--cfg-options", "a=b")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--out-item", "x")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--out", tmp_path / "results.pkl")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--cfg-options", "limit=\N{SUPERSCRIPT TWO}")[0] == 2
    assert run("test", "retrieval_coco_base", "pocket", "--out", tmp_path / "rankings.json")[0] == 2
    code, _, err = run("test", "nlvr2_base", "pocket", "--cfg-options", f"data={tmp_path}")
    assert code == 1
    assert "test1.json is not there" in err

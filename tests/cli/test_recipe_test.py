"""`openblip test`: every known configuration has a benchmark, and the metrics equal those of `eval run`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from openblip.cli import app
from openblip.cli.eval import OWN_TASKS
from openblip.cli.recipe_test import CONFIGURATIONS, mmpretrain_name, mmpretrain_value
from openblip.evaluation import protocols
from openblip.evaluation.records import RECORD_TASKS
from tests.evaluation import evaluation_toys as toys

ROOT = Path(__file__).parents[2]


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    return result.exit_code, result.stdout, result.stderr


def test_every_recipe_has_a_benchmark() -> None:
    recipes = {
        path.stem for path in (ROOT / "recipes").glob("*.yaml") if not path.stem.startswith(("pretrain", "distill"))
    }
    assert recipes <= set(CONFIGURATIONS)
    for name, preset in CONFIGURATIONS.values():
        assert protocols.find(name).preset(preset)


def test_metrics_equal_those_of_eval_run(tmp_path: Path) -> None:
    model = toys.make_bundle(tmp_path / "toy")
    toys.make_coco(tmp_path / "coco")
    code, stdout, _ = run("eval", "run", "coco-caption", "--model", model, "--data", tmp_path / "coco", "--json")
    assert code == 0
    settings = ["--cfg-options", f"data={tmp_path / 'coco'}", "--work-dir", tmp_path / "work", "--show-dir", tmp_path]
    output = ["--out", tmp_path / "metrics.json", "--out-item", "metrics"]
    code, _, err = run("test", "recipes/caption_coco_base.yaml", model, *settings, *output)
    assert code == 0, err
    assert json.loads((tmp_path / "metrics.json").read_text()) == json.loads(stdout)["metrics"]
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "work" / "captions_karpathy_openblip_results.json").is_file()
    code, _, _ = run("test", "caption_coco_base", model, *settings, "--out", tmp_path / "pred.json")
    assert code == 0
    assert [key for key, _ in json.loads((tmp_path / "pred.json").read_text())] == [7, 3]


@pytest.mark.parametrize(
    ("key", "task", "name"),
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
def test_names_of_metrics_in_mmpretrain(key: str, task: str, name: str) -> None:
    assert mmpretrain_name(key, task) == name


def test_recalls_and_accuracies_are_in_percent() -> None:
    assert mmpretrain_value("txt_r1", "retrieval", 0.5) == 50
    assert mmpretrain_value("txt_median_rank", "retrieval", 2.0) == 2
    assert mmpretrain_value("accuracy", "vqa", 0.5) == 50
    assert mmpretrain_value("accuracy", "grounding", 0.5) == 0.5
    assert mmpretrain_value("CIDEr", "caption", 1.3) == 1.3


def test_wrong_options_are_usage_errors(tmp_path: Path) -> None:
    assert run("test", "x", "pocket")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--cfg-options", "a=b")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--out-item", "x")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--out", tmp_path / "results.pkl")[0] == 2
    assert run("test", "nlvr2_base", "pocket", "--cfg-options", "limit=\N{SUPERSCRIPT TWO}")[0] == 2
    assert run("test", "retrieval_coco_base", "pocket", "--out", tmp_path / "rankings.json")[0] == 2
    code, _, err = run("test", "nlvr2_base", "pocket", "--cfg-options", f"data={tmp_path}")
    assert code == 1
    assert "missing: test1.json" in err


def test_tasks_of_own_records_match_the_library() -> None:
    assert OWN_TASKS == RECORD_TASKS

"""`openblip eval score`: metrics, items, comparison, errors."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from openblip.cli import app

DATA = Path(__file__).parent.parent / "evaluation" / "caption_scores.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    recorded = json.loads(DATA.read_text(encoding="utf-8"))
    texts = recorded["references"]
    gt = {
        "images": [{"id": int(key)} for key in texts],
        "annotations": [{"image_id": int(key), "caption": t} for key, ts in texts.items() for t in ts],
    }
    (tmp_path / "gt.json").write_text(json.dumps(gt))
    result = [{"image_id": int(key), "caption": text} for key, text in recorded["predictions"].items()]
    (tmp_path / "result.json").write_text(json.dumps(result))
    perfect = [{"image_id": int(key), "caption": ts[0]} for key, ts in texts.items()]
    (tmp_path / "perfect.json").write_text(json.dumps(perfect))
    return tmp_path


def run(*args: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["eval", "score", *map(str, args)])
    return result.exit_code, result.stdout, result.stderr


def test_captions(folder: Path) -> None:
    recorded = json.loads(DATA.read_text(encoding="utf-8"))
    items = folder / "items.jsonl"
    arguments = ["captions", "-p", folder / "result.json", "-r", folder / "gt.json"]
    code, out, _ = run(*arguments, "--json", "--per-item", items)
    assert code == 0
    scores = json.loads(out)
    for name, value in recorded["corpus"].items():
        assert scores[name] == pytest.approx(value, abs=1e-9)
    assert scores["METEOR"] is None
    assert "METEOR" in scores["missing"]
    lines = [json.loads(line) for line in items.read_text().splitlines()]
    assert [line["id"] for line in lines] == [int(key) for key in recorded["items"]]
    assert lines[1]["CIDEr"] == pytest.approx(recorded["items"]["2"]["CIDEr"], abs=1e-9)
    code, out, err = run(*arguments)
    assert code == 0
    assert f"{recorded['corpus']['CIDEr']:.4f}" in out
    assert "SPICE: computed only on request" in err


def test_two_files_are_compared(folder: Path) -> None:
    arguments = ["captions", "-p", folder / "result.json", "-p", folder / "perfect.json", "-r", folder / "gt.json"]
    code, out, _ = run(*arguments, "--json")
    assert code == 0
    record = json.loads(out)
    assert record["results"][1]["CIDEr"] > record["results"][0]["CIDEr"]
    assert record["comparison"]["difference"] > 0
    assert run(*arguments, "-p", folder / "result.json")[0] == 2
    code, out, _ = run(*arguments)
    assert "second minus first +" in out


def test_vqa_retrieval_and_grounding(tmp_path: Path) -> None:
    def write(name: str, entries: list[dict[str, object]]) -> Path:
        (tmp_path / name).write_text("".join(f"{json.dumps(entry)}\n" for entry in entries))
        return tmp_path / name

    answers = write("a.jsonl", [{"question_id": 1, "answer": "cat"}])
    people = write("p.jsonl", [{"question_id": 1, "answers": ["cat"] * 3 + ["dog"] * 7, "answer_type": "other"}])
    code, out, _ = run("vqa", "-p", answers, "-r", people, "--json")
    scores = {"predictions": str(answers), "accuracy": pytest.approx(0.9), "other": 0.9, "intervals": {}}
    assert (code, json.loads(out)) == (0, scores), "one item has no interval"
    code, out, _ = run("vqa", "-p", answers, "-r", people, "--rule", "mmpretrain", "--json")
    assert json.loads(out)["accuracy"] == 1
    assert run("vqa", "-p", answers, "-r", people, "--rule", "x")[0] == 2
    rankings = write("f.jsonl", [{"query_id": 1, "ranking": ["x", "y", "z"]}])
    relevant = write("w.jsonl", [{"query_id": 1, "relevant": ["y", "z"]}])
    code, out, _ = run("retrieval", "-p", rankings, "-r", relevant, "--json")
    scores = {"predictions": str(rankings), "R@1": 0, "R@5": 1, "R@10": 1, "median_rank": 2, "intervals": {}}
    assert json.loads(out) == scores
    boxes = write("b.jsonl", [{"id": 1, "box": [0, 0, 1, 1]}])
    code, out, _ = run("grounding", "-p", boxes, "-r", boxes, "--json")
    assert json.loads(out) == {"predictions": str(boxes), "accuracy": 1, "mean_IoU": 1, "intervals": {}}


def test_two_files_side_by_side_as_a_page_and_as_tables(folder: Path) -> None:
    page, table, latex = folder / "page.html", folder / "table.csv", folder / "table.tex"
    two = ["captions", "-p", folder / "result.json", "-p", folder / "perfect.json", "-r", folder / "gt.json"]
    assert run(*two, "--report", page, "--table", table)[0] == 0
    text = page.read_text()
    count = len(json.loads((folder / "gt.json").read_text())["images"])
    assert text.count("<section ") == text.count("data-difference=") == count
    assert "METEOR" not in text
    header, *rows = csv.reader(table.read_text().splitlines())
    assert header[0] == "metric"
    assert header[-1] == "two-sided p"
    cells = {row[0]: row for row in rows}
    assert set(cells) == {"Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr"}
    low, value, high = (float(cells["CIDEr"][column]) for column in (2, 1, 3))
    assert low < value < high
    assert float(cells["CIDEr"][-1]) < 0.05
    assert run(*two[:3], *two[5:], "--table", latex)[0] == 0
    assert r"Bleu\_4 & " in latex.read_text()
    code, out, _ = run(*two[:3], *two[5:])
    assert code == 0
    assert re.search(rf"CIDEr +{value:.4f} +{low:.4f} to {high:.4f}", out)
    assert run(*two, "--table", folder / "table.md")[0] == 2


def test_errors_are_one_line(folder: Path) -> None:
    (folder / "short.json").write_text(json.dumps([{"image_id": 1, "caption": "a"}]))
    code, _, err = run("captions", "-p", folder / "short.json", "-r", folder / "gt.json")
    assert code == 1
    assert err.startswith("error: no prediction for id 2, id 3, id 4 and 4 more")
    assert len(err.splitlines()) == 1

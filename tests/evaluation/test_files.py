"""Files of predictions and references: the official formats, and errors that name the record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import EvaluationError
from openblip.evaluation import files


def put(folder: Path, name: str, value: Any) -> Path:
    text = value if isinstance(value, str) else json.dumps(value)
    if name.endswith(".jsonl") and not isinstance(value, str):
        text = "".join(f"{json.dumps(entry)}\n" for entry in value)
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_coco_format(tmp_path: Path) -> None:
    references = {
        "images": [{"id": 7}, {"id": 3}],
        "annotations": [
            {"image_id": 3, "id": 1, "caption": "a cat"},
            {"image_id": 7, "id": 2, "caption": "a dog"},
            {"image_id": 3, "id": 3, "caption": "two cats"},
        ],
    }
    references_read = files.read_caption_references(put(tmp_path, "gt.json", references))
    assert list(references_read.items()) == [(7, ["a dog"]), (3, ["a cat", "two cats"])]
    result = [{"image_id": 3, "caption": "cat"}, {"image_id": 7, "caption": "dog"}]
    assert files.read_captions(put(tmp_path, "result.json", result)) == {3: "cat", 7: "dog"}
    assert files.read_captions(put(tmp_path, "result.jsonl", result)) == {3: "cat", 7: "dog"}
    lines = [{"image": "a.jpg", "captions": ["x", "y"]}]
    assert files.read_caption_references(put(tmp_path, "gt.jsonl", lines)) == {"a.jpg": ["x", "y"]}


def test_vqa_format(tmp_path: Path) -> None:
    annotation = {
        "question_id": 5, "image_id": 1, "question_type": "what", "answer_type": "other",
        "answers": [{"answer": "cat", "answer_confidence": "yes", "answer_id": 1}] * 2,
    }  # fmt: skip
    references = files.read_answer_references(put(tmp_path, "gt.json", {"annotations": [annotation]}))
    assert (references[5].answers, references[5].answer_type) == (["cat", "cat"], "other")
    assert files.read_answers(put(tmp_path, "r.json", [{"question_id": 5, "answer": "cat"}])) == {5: "cat"}
    aok = {"q1": {"multiple_choice": "", "direct_answer": "cat"}}
    assert files.read_answers(put(tmp_path, "aok.json", aok)) == {"q1": "cat"}
    references = files.read_answer_references(put(tmp_path, "gt.jsonl", [{"question_id": "q1", "answer": "cat"}]))
    assert references["q1"].answers == ["cat"]


CUT = '[{"image_id": 1, "caption": "a"}, {"image_id": 2, "capti'


@pytest.mark.parametrize(
    ("read_file", "name", "content", "message"),
    [
        (files.read_captions, "r.json", [{"image_id": 1, "caption": "a"}] * 2, "entry 2: id 1 occurs a second time"),
        (files.read_captions, "r.json", CUT, "r.json is not JSON.*complete entries: 1, the last.*\"image_id\": 1"),
        (files.read_captions, "r.jsonl", '{"image_id": 1, "caption": "a"}\n{"image_id', "r.jsonl:2 is not JSON"),
        (files.read_captions, "r.json", [{"image_id": 1}], "entry 1 has no 'caption'"),
        (files.read_captions, "r.json", [{"caption": "a"}], "entry 1 has no 'image_id'"),
        (files.read_captions, "r.json", ["a"], "entry 1 must be an object"),
        (files.read_captions, "r.json", {"x": 1}, "must be a list of entries"),
        (files.read_caption_references, "r.json",
         {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a"}]}, "entry 1: image_id 2 is not among"),
        (files.read_answers, "r.json", [{"question_id": 1, "answer": 5}], "entry 1 has no 'answer'"),
        (files.read_answer_references, "r.json", [{"question_id": 1, "answers": []}], "entry 1: \"answers\" must be"),
        (files.read_boxes, "r.jsonl", [{"id": 1, "box": [1, 2, 3]}], "r.jsonl:1: \"box\" must be"),
    ],
)  # fmt: skip
def test_errors_name_the_record(
    tmp_path: Path, read_file: Callable[[Path], Any], name: str, content: Any, message: str
) -> None:
    with pytest.raises(EvaluationError, match=message):
        read_file(put(tmp_path, name, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nothing\.json cannot be read"):
        files.read_captions(tmp_path / "nothing.json")


def test_a_file_is_written_completely(tmp_path: Path) -> None:
    files.write_json(tmp_path / "new" / "a.json", [{"caption": "café"}])
    assert (tmp_path / "new" / "a.json").read_text(encoding="utf-8") == '[{"caption": "café"}]'
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]

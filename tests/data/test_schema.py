"""The record schema: every published layout of a row, and the errors of rows that are not records."""

from __future__ import annotations

import math
from typing import Any

import pytest

from openblip.data.records import Expression, Question
from openblip.data.schema import ParsedRow, check_columns, parse_row
from openblip.errors import InputError


def test_pretraining_and_captioning_rows() -> None:
    assert parse_row({"image": "web/17.jpg", "caption": "two kites"}) == ParsedRow(("web/17.jpg",), ("two kites",))
    row = {"image": "val2014/COCO_42.jpg", "caption": ["a cat", "a grey cat"], "image_id": "coco_42"}
    assert parse_row(row) == ParsedRow(("val2014/COCO_42.jpg",), ("a cat", "a grey cat"), image_id="coco_42")
    assert parse_row({"url": "https://x.example/a.jpg", "caption": "c"}).images == ("https://x.example/a.jpg",)


def test_this_programs_own_results_are_read() -> None:
    row = {"path": "a.jpg", "index": 0, "text": "a dog", "scores": {"logprob": -3.2}, "model": "base", "error": None}
    assert parse_row(row) == ParsedRow(("a.jpg",), ("a dog",))
    with pytest.raises(InputError, match="records a failure: it is empty"):
        parse_row({**row, "text": None, "error": "it is empty"})


def test_vqa_row() -> None:
    answers = ["red"] * 8 + ["maroon", "dark red"]
    row = {"question_id": 42001, "question": "What colour?", "image": "42.jpg", "dataset": "vqa", "answer": answers}
    (question,) = parse_row(row).questions
    assert question == Question("What colour?", tuple(answers), "vqa", 42001)
    assert question.weighted_answers() == pytest.approx({"red": 0.8, "maroon": 0.1, "dark red": 0.1})


def test_visual_genome_answers_weigh_less() -> None:
    row = {"question": "Where?", "image": "1.jpg", "dataset": "vg", "answer": "on the left"}
    (question,) = parse_row(row).questions
    assert question.weighted_answers() == {"on the left": 0.2}
    assert question.weighted_answers(vg_weight=1.0) == {"on the left": 1.0}
    assert Question("Where?", ("here",)).weighted_answers() == {"here": 1.0}


def test_a_okvqa_and_hub_answers() -> None:
    row = {
        "question": "q?",
        "image": "1.jpg",
        "choices": ["a", "b"],
        "correct_choice_idx": 0,
        "direct_answers": ["a", "c"],
    }
    assert parse_row(row).questions[0].answers == ("a", "c")
    hub = {"question": "q?", "image": "1.jpg", "answers": [{"answer": "yes", "answer_id": 1}, {"answer": "no"}]}
    assert parse_row(hub).questions[0].answers == ("yes", "no")
    assert parse_row({"question": "how many?", "image": "1.jpg", "answer": 2}).questions[0].answers == ("2",)


def test_several_questions_and_boxes_of_one_image() -> None:
    row = {
        "captions": ["c"],
        "qa": [{"question": "a?", "answer": "yes", "auto": True}, {"question": "b?", "answer": "no"}],
        "refs": [{"expression": "the dog", "bbox": [10, 20, 30, 40], "auto": "False"}],
    }
    assert parse_row(row) == ParsedRow(
        (),
        ("c",),
        (Question("a?", ("yes",), auto=True), Question("b?", ("no",))),
        (Expression("the dog", (10.0, 20.0, 40.0, 60.0)),),
    )


def test_pair_of_images_with_a_statement() -> None:
    row = {"sentence": "exactly two cups", "label": "True", "images": ["a-img0.png", "a-img1.png"]}
    assert parse_row(row) == ParsedRow(("a-img0.png", "a-img1.png"), ("exactly two cups",), label=1)
    assert [parse_row({**row, "label": label}).label for label in ("False", False, 0, "1")] == [0, 0, 0, 1]
    with pytest.raises(InputError, match="label must be True or False"):
        parse_row({**row, "label": "maybe"})
    assert parse_row({"image": "a.jpg", "text": "c", "label": 57}).label is None  # the class of another data set


@pytest.mark.parametrize("nothing", [None, "", math.nan, [], "  ", ["", None]])
def test_what_is_missing_is_missing(nothing: Any) -> None:
    assert parse_row({"image": "a.jpg", "caption": nothing}).captions == ()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"image": "a.jpg", "caption": 5}, "caption must be a text, got a number"),
        ({"image": "a.jpg", "caption": ["fine", {"nothing": 1}, 3]}, "caption must be a text, got a number"),
        ({"image": "a.jpg", "question": ["two", "questions"]}, "question must be a text, got a list"),
        ({"image": "a.jpg", "question": "q?", "answer": 1.5}, "answer must be a text, got a number"),
        ({"image": "a.jpg", "qa": "no list"}, "qa must be a list of rows, got a text"),
        ({"image": "a.jpg", "qa": [{"answer": "yes"}]}, "there is no question"),
        ({"image": "a.jpg", "expression": "it", "bbox": [1, 2, 3]}, "four numbers"),
        ({"image": "a.jpg", "expression": "it", "bbox": [1, 2, 0, 4]}, "positive size"),
        ({"image": "a.jpg", "expression": "it", "bbox": [1, 2, math.inf, 4]}, "positive size"),
        ({"image": "a.jpg", "expression": "it"}, r"four numbers, \[left, top, width, height\], got None"),
        (["image"], "a mapping of columns to values, got a list"),
    ],
)
def test_a_row_that_is_no_record_says_why(row: Any, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_row(row)


def test_columns_rename_and_hide() -> None:
    row = {"file": "a.jpg", "title": "the title", "text": "other words", "left": "l.png", "right": "r.png"}
    parsed = parse_row(row, {"image": "file", "caption": "title"}, keep=("text", "absent"))
    assert parsed == ParsedRow(("a.jpg",), ("the title",), extra={"text": "other words"})
    assert parse_row(row, {"image": ("left", "right")}).images == ("l.png", "r.png")
    with pytest.raises(InputError, match="the row has no 'header'; it has file, title"):
        parse_row(row, {"caption": "header"})
    with pytest.raises(InputError, match=r"must map fields of the schema .* got captionn"):
        check_columns({"captionn": "title"})

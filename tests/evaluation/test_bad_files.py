"""Repeated, damaged and unexpected records: accepted, or an error that names the file and the record."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from openblip import Blip
from openblip.errors import EvaluationError
from openblip.evaluation import files, protocols
from openblip.evaluation.evaluators.caption import CaptionEvaluator
from openblip.evaluation.journal import digest_item
from openblip.evaluation.metrics import boxes, ids, ranks
from openblip.evaluation.metrics.ids import ItemId
from openblip.evaluation.protocols.base import CaptionPreset, Item, Items, Split
from openblip.evaluation.report import write_report
from openblip.evaluation.retrieval_store import RetrievalStore
from openblip.evaluation.workspace import Workspace
from tests.evaluation import evaluation_toys as toys

OKVQA = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
NOCAPS = "nocaps_val_4500_captions.json"


def read(name: str, folder: Path) -> Any:
    protocol = protocols.find(name)
    return protocol.read(folder, protocol.preset("paper"))


def repeat_entry(value: Any) -> Any:
    """Return a list, or the first list of an object, with its final entry twice."""
    if isinstance(value, list):
        return [*value, value[-1]]
    name = next(name for name in ("images", "questions", "annotations") if name in value)
    return {**value, name: repeat_entry(value[name])}


@pytest.mark.parametrize(
    ("name", "make", "file", "message"),
    [
        (
            "vqa-v2",
            toys.make_vqa,
            "vqa_test.json",
            "json: id 12 occurs a second time, as items 3 and 4 of test2",
        ),
        ("okvqa", toys.make_okvqa, OKVQA[0], "questions.json: id 5 occurs a second time"),
        ("okvqa", toys.make_okvqa, OKVQA[1], "annotations.json: entry 2: id 5 occurs a second time"),
        ("aokvqa", toys.make_aokvqa, "aokvqa_v1p0_val.json", "val.json: id 'q4' occurs a second time"),
        ("flickr30k-caption", toys.make_flickr, "dataset_flickr30k.json", "flickr30k.json: id 3 occurs a second time"),
        (
            "flickr30k-retrieval",
            toys.make_flickr,
            "flickr30k_test.json",
            "'flickr30k-images/3.jpg' occurs a sec",
        ),
        ("refcoco-testa", toys.make_refcoco, "instances.json", "instances.json: entry 4: id 72 occurs a second time"),
        (
            "coco-caption",
            toys.make_coco,
            "coco_karpathy_test.json",
            "test.json: entry 3: image_id 3 occurs a second",
        ),
    ],
)
def test_a_repeated_record_is_an_error(
    tmp_path: Path, name: str, make: Callable[[Path], Path], file: str, message: str
) -> None:
    make(tmp_path)
    read(name, tmp_path)
    toys.write_json(tmp_path / file, repeat_entry(json.loads((tmp_path / file).read_text())))
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "file", "message"),
    [
        ("nlvr2", toys.make_nlvr, "test1.json", "test1.json: id 'test1-8-1-1' occurs a second time"),
        ("msvd-qa", toys.make_msvd, "youtube_mapping.txt", "mapping.txt:3: vid1302 occurs a second time"),
        ("msrvtt-retrieval", toys.make_msrvtt, "msrvtt_test.jsonl", "jsonl:4: 'video7012' occurs a second time"),
    ],
)
def test_a_repeated_line_is_an_error(
    tmp_path: Path, name: str, make: Callable[[Path], Path], file: str, message: str
) -> None:
    lines = (make(tmp_path) / file).read_text().splitlines(keepends=True)
    (tmp_path / file).write_text("".join([*lines, lines[-1]]))
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


def test_repeated_and_damaged_expressions_are_errors(tmp_path: Path) -> None:
    path = toys.make_refcoco(tmp_path) / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([*refs, refs[1]]))
    with pytest.raises(EvaluationError, match=r"refs\(unc\).p: id 10 occurs a second time"):
        read("refcoco-testa", tmp_path)
    refs[1]["sentences"][1] = {"sent_id": 11}
    path.write_bytes(pickle.dumps(refs))
    with pytest.raises(EvaluationError, match="entry 2 lacks 'sent_id' or 'raw'"):
        read("refcoco-testa", tmp_path)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"x",
        b"]\x85R.",
        b"]NR.",
        b"N}b.",
        b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x63.",
        b"K\x01b.",
    ],
)
def test_a_damaged_pickle_is_an_error(tmp_path: Path, damaged: bytes) -> None:
    (toys.make_refcoco(tmp_path) / "refs(unc).p").write_bytes(damaged)
    with pytest.raises(EvaluationError, match=r"refs\(unc\).p (cannot be read, is damaged|must be a list)"):
        read("refcoco-testa", tmp_path)


def test_a_pickle_cut_at_any_byte_is_an_error(tmp_path: Path) -> None:
    path = toys.make_refcoco(tmp_path) / "refs(unc).p"
    content = path.read_bytes()
    for end in range(len(content)):
        path.write_bytes(content[:end])
        with pytest.raises(EvaluationError, match=r"refs\(unc\).p cannot be read, is damaged"):
            read("refcoco-testa", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "file", "content", "message"),
    [
        ("okvqa", toys.make_okvqa, OKVQA[0], {"questions": []}, "annotations.json: question_id 5 is not in OpenEnded"),
        ("nocaps", toys.make_nocaps, NOCAPS, {"annotations": []}, "must be in COCO's format, with 'images'"),
        ("nocaps", toys.make_nocaps, NOCAPS, [{"image_id": 1, "captions": ["a"]}], "must be in COCO's format"),
        ("nocaps", toys.make_nocaps, NOCAPS, {"images": [1], "annotations": []}, "image 1 must be an object, got 1"),
        ("nlvr2", toys.make_nlvr, "test1.json", {"identifier": "test1-8-0", "sentence": "x", "label": "True"},
         "json:1: the identifier must be split, set, pair and sentence .*, got 'test1-8-0'"),
        ("vqa-v2", toys.make_vqa, "vqa_test.json", [{"question_id": True, "question": "x", "image": "a"}], "1 lacks"),
        ("ocr-vqa", toys.make_ocr_vqa, "dataset.json", {"b": 1}, "book 'b' must be an object"),
        ("aokvqa", toys.make_aokvqa, "aokvqa_v1p0_val.json",
         [{"question_id": "a", "question": "x", "image_id": 1, "direct_answers": []}],
         "val.json: entry 1: 'direct_answers' must be a list of at least one text"),
        ("coco-caption", toys.make_coco, "coco_karpathy_test.json", [{"image": "x_².jpg"}], "must end in its number"),
        ("coco-caption", toys.make_coco, "coco_karpathy_test_gt.json",
         {"images": [{"id": 7}, {"id": 3}], "annotations": [{"image_id": 3, "caption": "a"}]}, "image 7 has no capt"),
        ("flickr30k-caption", toys.make_flickr, "dataset_flickr30k.json",
         {"images": [{"split": "test", "imgid": 1, "filename": "a.jpg", "sentences": []}]}, "1: 'sentences' must"),
    ],
)  # fmt: skip
def test_a_record_of_another_form_is_an_error(
    tmp_path: Path, name: str, make: Callable[[Path], Path], file: str, content: Any, message: str
) -> None:
    toys.write_json(make(tmp_path) / file, content)
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


DEEP = "[" * 200_000
TWICE = '{"q1": {"direct_answer": "a"}, "q1": {"direct_answer": "b"}}'


@pytest.mark.parametrize(
    ("read_file", "text", "message"),
    [
        (files.read_caption_references, '{"images": [1], "annotations": []}', "x.json: image 1 must be an object"),
        (files.read_caption_references, '{"images": null, "annotations": []}', "x.json must be in COCO's format"),
        (files.read_caption_references, '{"images": {}, "annotations": []}', "x.json must be in COCO's format"),
        (files.read_caption_references, '{"images": [{}], "annotations": []}', "x.json: image 1 has no 'id'"),
        (files.read_answers, TWICE, "x.json: 'q1' occurs twice in one object"),
        (files.read_captions, '[{"image_id": 1, "image_id": 2, "caption": "a"}]', "'image_id' occurs twice"),
        (files.read_captions, DEEP, "x.json is nested too deeply"),
        (files.read_captions, '{"image_id": 1, "caption": "a"}', "a single line needs the suffix .jsonl"),
        (files.read_captions, "", "x.json is not JSON"),
        (files.read_boxes, '[{"id": 1, "box": [0, 0, 1, true]}]', 'entry 1: "box" must be four numbers'),
        (
            lambda path: files.read_id_lists(path, "ranking"),
            '[{"id": 1, "ranking": [true]}]',
            "entry 1: 'ranking' must be",
        ),
    ],
)
def test_a_broken_file_is_an_error(tmp_path: Path, read_file: Callable[[Path], Any], text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read_file(tmp_path / "x.json")


LINES = '{"image_id": 1, "caption": "a"}\n{"image_id": 2, "caption": "b"}\n'
LIST = '[{"image_id": 1, "caption": "a"},\n{"image_id": 2, "caption": "b"}]'
OBJECT = '{"predictions":\n' + LIST + "}"
REFERENCES = '{"images": [{"id": 1}],\n "annotations": [{"image_id": 1, "caption": "a"}]}'


@pytest.mark.parametrize("suffix", ["json", "jsonl", "JSONL", "txt"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("text", [LINES, LIST, OBJECT, LINES.replace("\n", "\r\n"), f"\n{LIST}\n"])
def test_the_content_decides_the_form_of_a_file(tmp_path: Path, suffix: str, mark: str, text: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes((mark + text).encode())
    assert files.read_captions(path) == {1: "a", 2: "b"}
    path.write_bytes((mark + REFERENCES).encode())
    assert files.read_caption_references(path) == {1: ["a"]}
    path.write_text(LINES.replace('"b"}', '"b'))
    with pytest.raises(EvaluationError, match=f"x.{suffix}:2 is not JSON"):
        files.read_captions(path)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_characters_that_end_no_line(tmp_path: Path, sign: str) -> None:
    text = f"one{sign}two"
    lines = [{"image_id": n, "caption": text} for n in range(2)]
    files.write_json_lines(tmp_path / "x.jsonl", lines)
    assert files.read_captions(tmp_path / "x.jsonl") == {0: text, 1: text}


def test_references_with_one_caption_per_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(LINES.replace("2", "1"))
    assert files.read_caption_references(tmp_path / "x.jsonl") == {1: ["a", "b"]}


def test_an_image_may_be_listed_twice_if_both_entries_are_equal(tmp_path: Path) -> None:
    cat, dog = {"id": 3, "file_name": "cat.jpg"}, {"id": 3, "file_name": "dog.jpg"}
    path = tmp_path / "gt.json"
    assert files.index_coco_images(path, {"images": [cat, {"id": 4}, dict(cat)]}) == {3: cat, 4: {"id": 4}}
    with pytest.raises(EvaluationError, match=r"gt\.json: image 3: id 3 occurs a second time"):
        files.index_coco_images(path, {"images": [cat, {"id": 4}, dog]})


KEY = {"model": "base"}
HEADER = json.dumps(KEY).encode() + b"\n"
FOREIGN = "predictions.jsonl is empty, damaged at its start, or not written by an evaluation; delete it"


ITEMS = [Item(1, "a.png"), Item(2, "b.png")]
RECORD = json.dumps({"id": 1, "of": digest_item(ITEMS[0])}).encode()[:-1]


class StubEvaluator(CaptionEvaluator):
    """Predicts captions without a model."""

    def predict(self, items: Items) -> Iterator[str]:
        return (f"new {item.id}" for item in items)


def collect(folder: Path) -> dict[ItemId, str]:
    """Return the predictions of two items, resumed from a folder."""
    evaluator = StubEvaluator(cast(Blip, None), CaptionPreset(split=Split("own", (), 2)))
    return evaluator.collect(ITEMS, Workspace(folder, KEY)).values


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", FOREIGN),
        (b"\n", FOREIGN),
        (b"image,caption\n1,a\n", FOREIGN),
        (b"\xff\xfe\n", FOREIGN),
        (HEADER[:-4], FOREIGN),
        (b"[]\n", "has predictions of another model"),
        (
            HEADER + b'{"id": 1, "predi\n{"id": 2, "prediction": "b"}\n',
            "jsonl:2 is damaged .*; delete its line to compute it again",
        ),
        (HEADER + b'{"id": 1, "prediction": "\xff"}\n', "jsonl:2 is damaged"),
        (HEADER + b"5\n", "jsonl:2 must be a record with an 'id'"),
        (HEADER + b'{"text": "a"}\n', "jsonl:2 must be a record with an 'id'"),
        (
            HEADER + RECORD + b"}\n",
            "predictions.jsonl: the 'prediction' of id 1 must be a text, got None; delete its line",
        ),
        (HEADER + (RECORD + b', "prediction": "a"}\n') * 2, "jsonl:3: id .* occurs a second time"),
    ],
)
def test_a_damaged_journal_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        collect(tmp_path)
    assert path.read_bytes() == content, "a damaged file is not changed"


def test_an_incomplete_row_of_retrieval_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(HEADER + b'{"id": 1, "texts": [0]}\n')
    with pytest.raises(EvaluationError, match="the row of image 1 lacks 'texts' or 'logits'; delete its line"):
        RetrievalStore(tmp_path, KEY)


def test_a_journal_cut_within_a_character_is_resumed(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(HEADER + RECORD + b', "prediction": "one\xe2\x80\xa8a"}\n{"id": 2, "prediction": "\xc3')
    assert collect(tmp_path) == {1: "one\u2028a", 2: "new 2"}
    assert collect(tmp_path) == {1: "one\u2028a", 2: "new 2"}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for write in (
        lambda: collect(tmp_path / "file"),
        lambda: write_report(tmp_path, "x", {}, [], []),
        lambda: files.write_text(tmp_path / "file" / "items.jsonl", "x"),
        lambda: files.write_text(Path(), "x"),
        lambda: files.write_text(tmp_path / "new", "\ud800"),
    ):
        with pytest.raises(EvaluationError, match=r"cannot be (written|read): "):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "no temporary file remains"


BOX = [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("predicted", "reference", "message"),
    [
        ([2, 0, 0, 2], BOX, "the box of id 'e1' must be left, top"),
        ([0, 2, 2, 0], BOX, "the box of id 'e1' must be left, top"),
        ([0, 0, float("inf"), 1], BOX, "the box of id 'e1' must be four numbers"),
        ([0, 0, float("nan"), 1], BOX, "the box of id 'e1' must be four numbers"),
        ([0, 0, 10**400, 1], BOX, "the box of id 'e1' must be four numbers"),
        ([0, 0, True, True], BOX, "the box of id 'e1' must be four numbers"),
        (BOX, [0, 0, 0, 2], "the reference box of id 'e1' has no area"),
        (BOX, [2, 2, 0, 0], "the reference box of id 'e1' must be left, top"),
    ],
)
def test_broken_boxes_are_errors(predicted: list[float], reference: list[float], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        boxes.score({"e1": predicted}, {"e1": reference})
    assert boxes.score({"e1": [1, 1, 1, 2]}, {"e1": BOX}).accuracy == 0


def test_ids_of_another_type_are_errors() -> None:
    with pytest.raises(
        EvaluationError, match=r"id 'q' lists '1': predictions have ids such as '1' \(str\), ref.* 1 \(i"
    ):
        ranks.score({"q": ["7", "1"]}, {"q": [1]})
    with pytest.raises(
        EvaluationError, match=r"no prediction for id 1: .*ids such as '1' \(str\), references 1 \(int\)"
    ):
        ids.check_ids({"1": "a"}, {1: ["a"]})  # type: ignore[misc]
    assert ranks.score({"q": ["7", 1]}, {"q": [1]}).items == {"q": 2}

"""Files that are doubled, damaged or of another form: read rightly, or an error that names the file and the record."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from openblip.errors import EvaluationError
from openblip.evaluation import files, journal, protocols
from openblip.evaluation.metrics import boxes, ids, ranks
from openblip.evaluation.protocols.base import Item
from openblip.evaluation.report import write_report
from openblip.evaluation.store import Store
from tests.evaluation import evaluation_toys as toys

OKVQA = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
NOCAPS = "nocaps_val_4500_captions.json"


def read(name: str, folder: Path) -> Any:
    protocol = protocols.find(name)
    return protocol.read(folder, protocol.preset("paper"))


def doubled(value: Any) -> Any:
    """A list, or the first list of an object, with its last entry twice."""
    if isinstance(value, list):
        return [*value, value[-1]]
    name = next(name for name in ("images", "questions", "annotations") if name in value)
    return {**value, name: doubled(value[name])}


@pytest.mark.parametrize(
    ("name", "make", "file", "message"),
    [
        ("vqa-v2", toys.vqa, "vqa_test.json", "vqa_test.json: id 12 is there a second time, as items 3 and 4 of test2"),
        ("okvqa", toys.okvqa, OKVQA[0], "questions.json: id 5 is there a second time"),
        ("okvqa", toys.okvqa, OKVQA[1], "annotations.json: entry 2: id 5 is there a second time"),
        ("aokvqa", toys.aokvqa, "aokvqa_v1p0_val.json", "val.json: id 'q4' is there a second time"),
        ("flickr30k-caption", toys.flickr, "dataset_flickr30k.json", "flickr30k.json: id 3 is there a second time"),
        ("flickr30k-retrieval", toys.flickr, "flickr30k_test.json", "entry 3: 'flickr30k-images/3.jpg' is there a sec"),
        ("refcoco-testa", toys.refcoco, "instances.json", "instances.json: entry 4: id 72 is there a second time"),
        (
            "coco-caption",
            toys.coco,
            "coco_karpathy_test.json",
            "test.json: entry 3: the picture of image_id 3 is there",
        ),
    ],
)
def test_a_record_that_is_there_twice(
    tmp_path: Path, name: str, make: Callable[[Path], Path], file: str, message: str
) -> None:
    make(tmp_path)
    read(name, tmp_path)
    toys.put(tmp_path / file, doubled(json.loads((tmp_path / file).read_text())))
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "file", "message"),
    [
        ("nlvr2", toys.nlvr, "test1.json", "test1.json: id 'test1-8-1-1' is there a second time"),
        ("msvd-qa", toys.msvd, "youtube_mapping.txt", "mapping.txt:3: vid1302 is there a second time"),
        ("msrvtt-retrieval", toys.msrvtt, "msrvtt_test.jsonl", "jsonl:4: 'video7012' is there a second time"),
    ],
)
def test_a_line_that_is_there_twice(
    tmp_path: Path, name: str, make: Callable[[Path], Path], file: str, message: str
) -> None:
    lines = (make(tmp_path) / file).read_text().splitlines(keepends=True)
    (tmp_path / file).write_text("".join([*lines, lines[-1]]))
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


def test_expressions_that_are_there_twice_or_damaged(tmp_path: Path) -> None:
    path = toys.refcoco(tmp_path) / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps([*refs, refs[1]]))
    with pytest.raises(EvaluationError, match=r"refs\(unc\).p: id 10 is there a second time"):
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
def test_a_damaged_pickle(tmp_path: Path, damaged: bytes) -> None:
    (toys.refcoco(tmp_path) / "refs(unc).p").write_bytes(damaged)
    with pytest.raises(EvaluationError, match=r"refs\(unc\).p (cannot be read, is damaged|is not a list)"):
        read("refcoco-testa", tmp_path)


def test_a_cut_pickle_at_every_byte(tmp_path: Path) -> None:
    path = toys.refcoco(tmp_path) / "refs(unc).p"
    whole = path.read_bytes()
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(EvaluationError, match=r"refs\(unc\).p cannot be read, is damaged"):
            read("refcoco-testa", tmp_path)


@pytest.mark.parametrize(
    ("name", "make", "file", "content", "message"),
    [
        ("okvqa", toys.okvqa, OKVQA[0], {"questions": []}, "annotations.json: question_id 5 is not in OpenEnded"),
        ("nocaps", toys.nocaps, NOCAPS, {"annotations": []}, "captions.json is not COCO's format: no 'images'"),
        ("nocaps", toys.nocaps, NOCAPS, [{"image_id": 1, "captions": ["a"]}], "is not COCO's format"),
        ("nocaps", toys.nocaps, NOCAPS, {"images": [1], "annotations": []}, "image 1 is not an object: 1"),
        ("nlvr2", toys.nlvr, "test1.json", {"identifier": "test1-8-0", "sentence": "x", "label": "True"},
         "test1.json:1: the identifier is split, set, pair and sentence .*, not 'test1-8-0'"),
        ("vqa-v2", toys.vqa, "vqa_test.json", [{"question_id": True, "question": "x", "image": "a.jpg"}], "1 lacks"),
        ("ocr-vqa", toys.ocrvqa, "dataset.json", {"b": 1}, "book 'b' is not an object"),
        ("aokvqa", toys.aokvqa, "aokvqa_v1p0_val.json",
         [{"question_id": "a", "question": "x", "image_id": 1, "direct_answers": []}],
         "val.json: entry 1: 'direct_answers' is not a list of texts, at least one"),
        ("coco-caption", toys.coco, "coco_karpathy_test.json", [{"image": "x_².jpg"}], "ends in no image number"),
        ("coco-caption", toys.coco, "coco_karpathy_test_gt.json",
         {"images": [{"id": 7}, {"id": 3}], "annotations": [{"image_id": 3, "caption": "a"}]}, "image 7 has no capt"),
        ("flickr30k-caption", toys.flickr, "dataset_flickr30k.json",
         {"images": [{"split": "test", "imgid": 1, "filename": "a.jpg", "sentences": []}]}, "entry 1: 'sentences' is"),
    ],
)  # fmt: skip
def test_a_record_of_another_form(
    tmp_path: Path, name: str, make: Callable[[Path], Path], file: str, content: Any, message: str
) -> None:
    toys.put(make(tmp_path) / file, content)
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


DEEP = "[" * 200_000
TWICE = '{"q1": {"direct_answer": "a"}, "q1": {"direct_answer": "b"}}'


@pytest.mark.parametrize(
    ("given", "text", "message"),
    [
        (files.caption_references, '{"images": [1], "annotations": []}', "x.json: image 1 is not an object"),
        (files.caption_references, '{"images": null, "annotations": []}', "x.json is not COCO's format"),
        (files.caption_references, '{"images": {}, "annotations": []}', "x.json is not COCO's format"),
        (files.caption_references, '{"images": [{}], "annotations": []}', "x.json: image 1 has no 'id'"),
        (files.answers, TWICE, "x.json: 'q1' is there a second time in one object"),
        (files.captions, '[{"image_id": 1, "image_id": 2, "caption": "a"}]', "'image_id' is there a second time"),
        (files.captions, DEEP, "x.json is nested too deeply"),
        (files.captions, '{"image_id": 1, "caption": "a"}', "a lone line needs the suffix .jsonl"),
        (files.captions, "", "x.json is not JSON"),
        (files.boxes, '[{"id": 1, "box": [0, 0, 1, true]}]', 'entry 1: no "box", four numbers'),
        (lambda path: files.lists(path, ("ranking",)), '[{"id": 1, "ranking": [true]}]', "entry 1: no 'ranking'"),
    ],
)
def test_a_file_that_cannot_be_read_rightly(
    tmp_path: Path, given: Callable[[Path], Any], text: str, message: str
) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EvaluationError, match=message):
        given(tmp_path / "x.json")


LINES = '{"image_id": 1, "caption": "a"}\n{"image_id": 2, "caption": "b"}\n'
LIST = '[{"image_id": 1, "caption": "a"},\n{"image_id": 2, "caption": "b"}]'
OBJECT = '{"predictions":\n' + LIST + "}"
REFERENCES = '{"images": [{"id": 1}],\n "annotations": [{"image_id": 1, "caption": "a"}]}'


@pytest.mark.parametrize("suffix", ["json", "jsonl", "JSONL", "txt"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("text", [LINES, LIST, OBJECT, LINES.replace("\n", "\r\n"), f"\n{LIST}\n"])
def test_what_a_file_is_shows_in_what_it_says(tmp_path: Path, suffix: str, mark: str, text: str) -> None:
    path = tmp_path / f"x.{suffix}"
    path.write_bytes((mark + text).encode())
    assert files.captions(path) == {1: "a", 2: "b"}
    path.write_bytes((mark + REFERENCES).encode())
    assert files.caption_references(path) == {1: ["a"]}
    path.write_text(LINES.replace('"b"}', '"b'))
    with pytest.raises(EvaluationError, match=f"x.{suffix}:2 is not JSON"):
        files.captions(path)


@pytest.mark.parametrize("sign", ["\u2028", "\u2029", "\x85"])
def test_signs_that_end_no_line(tmp_path: Path, sign: str) -> None:
    text = f"one{sign}two"
    lines = [{"image_id": n, "caption": text} for n in range(2)]
    (tmp_path / "x.jsonl").write_text("".join(f"{json.dumps(one, ensure_ascii=False)}\n" for one in lines), "utf-8")
    assert files.captions(tmp_path / "x.jsonl") == {0: text, 1: text}


def test_references_one_caption_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(LINES.replace("2", "1"))
    assert files.caption_references(tmp_path / "x.jsonl") == {1: ["a", "b"]}


def test_an_image_may_be_listed_twice_but_not_as_two(tmp_path: Path) -> None:
    cat, dog = {"id": 3, "file_name": "cat.jpg"}, {"id": 3, "file_name": "dog.jpg"}
    path = tmp_path / "gt.json"
    assert files.coco_images(path, {"images": [cat, {"id": 4}, dict(cat)]}) == {3: cat, 4: {"id": 4}}
    with pytest.raises(EvaluationError, match=r"gt\.json: image 3: id 3 is there a second time"):
        files.coco_images(path, {"images": [cat, {"id": 4}, dog]})


KEY = {"model": "base"}
HEAD = json.dumps(KEY).encode() + b"\n"
FOREIGN = "predictions.jsonl is empty, damaged at its beginning, or no evaluation wrote it; delete it"


ONE = Item(1, "a.png")
RECORD = json.dumps({"id": 1, "of": journal._digest(ONE)}).encode()[:-1]


def fill(path: Path) -> Any:
    def predict(items: Any) -> Iterator[str]:
        return (f"new {item.id}" for item in items)

    return journal.fill(path, KEY, [ONE, Item(2, "b.png")], predict, lambda *_: None).texts


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", FOREIGN),
        (b"\n", FOREIGN),
        (b"image,caption\n1,a\n", FOREIGN),
        (b"\xff\xfe\n", FOREIGN),
        (HEAD[:-4], FOREIGN),
        (b"[]\n", "holds predictions of another model"),
        (
            HEAD + b'{"id": 1, "te\n{"id": 2, "text": "b"}\n',
            "jsonl:2 is damaged .*; delete its line, and it is computed",
        ),
        (HEAD + b'{"id": 1, "text": "\xff"}\n', "jsonl:2 is damaged"),
        (HEAD + b"5\n", "jsonl:2 is no record with an 'id'"),
        (HEAD + b'{"text": "a"}\n', "jsonl:2 is no record with an 'id'"),
        (HEAD + RECORD + b"}\n", "predictions.jsonl: the record of id 1 has no 'text'; delete its line"),
        (HEAD + (RECORD + b', "text": "a"}\n') * 2, "jsonl:3: id .* is there a second time"),
    ],
)
def test_a_damaged_journal(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        fill(path)
    assert path.read_bytes() == content, "what is damaged is left to its owner"


def test_a_row_of_a_retrieval_that_lacks_something(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(HEAD + b'{"id": 1, "texts": [0]}\n')
    with pytest.raises(EvaluationError, match="the row of image 1 has no 'texts' or no 'logits'; delete its line"):
        Store(tmp_path, KEY)


def test_a_journal_cut_within_a_letter_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    path.write_bytes(HEAD + RECORD + b', "text": "one\xe2\x80\xa8a"}\n{"id": 2, "text": "\xc3')
    assert fill(path) == {1: "one\u2028a", 2: "new 2"}
    assert fill(path) == {1: "one\u2028a", 2: "new 2"}


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for write in (
        lambda: fill(tmp_path / "file" / "predictions.jsonl"),
        lambda: fill(tmp_path),
        lambda: write_report(tmp_path, "x", {}, [], []),
        lambda: files.write_text(tmp_path / "file" / "items.jsonl", "x"),
        lambda: files.write_text(Path(), "x"),
        lambda: files.write_text(tmp_path / "new", "\ud800"),
    ):
        with pytest.raises(EvaluationError, match=r"cannot be (written|read): "):
            write()
    assert [path.name for path in tmp_path.iterdir()] == ["file"], "nothing is left behind"


BOX = [0.0, 0.0, 2.0, 2.0]


@pytest.mark.parametrize(
    ("predicted", "reference", "message"),
    [
        ([2, 0, 0, 2], BOX, "the box of id 'e1' is reversed"),
        ([0, 2, 2, 0], BOX, "the box of id 'e1' is reversed"),
        ([0, 0, float("inf"), 1], BOX, "the box of id 'e1' is not four numbers"),
        ([0, 0, float("nan"), 1], BOX, "the box of id 'e1' is not four numbers"),
        ([0, 0, 10**400, 1], BOX, "the box of id 'e1' is not four numbers"),
        ([0, 0, True, True], BOX, "the box of id 'e1' is not four numbers"),
        (BOX, [0, 0, 0, 2], "the reference box of id 'e1' has no area"),
        (BOX, [2, 2, 0, 0], "the reference box of id 'e1' is reversed"),
    ],
)
def test_boxes_that_are_none(predicted: list[float], reference: list[float], message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        boxes.score({"e1": predicted}, {"e1": reference})
    assert boxes.score({"e1": [1, 1, 1, 2]}, {"e1": BOX}).accuracy == 0


def test_ids_of_another_kind() -> None:
    with pytest.raises(
        EvaluationError, match=r"id 'q' lists '1': predictions have ids such as '1' \(str\), ref.* 1 \(i"
    ):
        ranks.from_lists({"q": ["7", "1"]}, {"q": [1]})
    with pytest.raises(
        EvaluationError, match=r"no prediction for id 1: .*ids such as '1' \(str\), references 1 \(int\)"
    ):
        ids.check_ids({"1": "a"}, {1: ["a"]})
    assert ranks.from_lists({"q": ["7", 1]}, {"q": [1]}).items == {"q": 2}

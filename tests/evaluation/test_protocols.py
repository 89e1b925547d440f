"""Every row's settings, and readers on miniature files in the official formats."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from openblip.checkpoints import published
from openblip.errors import EvaluationError
from openblip.evaluation import protocols
from openblip.evaluation.protocols import nlvr2
from openblip.evaluation.protocols.base import (
    AnswerPreset,
    CaptionPreset,
    ComparePreset,
    GroundPreset,
    RetrievalPreset,
    need_files,
)
from openblip.evaluation.protocols.videos import VideoAnswerPreset, VideoRetrievalPreset
from openblip.evaluation.protocols.visdial import DialogPreset
from tests.evaluation import evaluation_toys as toys

# Split, items of the whole split, lengths, repetition penalty and the images scored, as the references have them.
CAPTIONS = {
    ("coco-caption", "paper"): ("Karpathy test", 5000, 20, 5, 1.0, "all"),
    ("coco-caption", "lavis"): ("Karpathy test", 5000, 20, 5, 1.15, "all"),
    ("coco-caption", "mmpretrain"): ("Karpathy val", 5000, 20, 2, 1.0, "predicted"),
    ("nocaps", "paper"): ("val", 4500, 20, 5, 1.1, "all"),
    ("nocaps", "lavis"): ("val", 4500, 20, 5, 1.15, "all"),
    ("nocaps", "mmpretrain"): ("val", 4500, 20, 2, 1.0, "predicted"),
    ("flickr30k-caption", "paper"): ("Karpathy test", 1000, 20, 5, 1.0, "all"),
    ("flickr30k-caption", "lavis"): ("Karpathy test", 1000, 20, 5, 1.15, "all"),
    ("flickr30k-caption", "mmpretrain"): ("Karpathy test", 1000, 20, 2, 1.0, "predicted"),
}
# Split, items, inference, list of answers, scoring, punctuation taken from questions; of videos, frames.
ANSWERS = {
    ("vqa-v2", "paper"): ("test2015", 447_793, "rank", "answer_list.json", "", False),
    ("vqa-v2", "lavis"): ("test2015", 447_793, "rank", "answer_list.json", "", False),
    ("vqa-v2", "mmpretrain"): ("test2015", 447_793, "rank", "answer_list.json", "", True),
    ("okvqa", "paper"): ("val2014", 5046, "rank", "answer_list.json", "official", False),
    ("okvqa", "lavis"): ("val2014", 5046, "rank", "okvqa_answer_list_train.json", "lavis", False),
    ("okvqa", "mmpretrain"): ("val2014", 5046, "generate", "", "mmpretrain", True),
    ("aokvqa", "paper"): ("val", 1145, "rank", "specialized_vocab_train.json", "direct", False),
    ("aokvqa", "lavis"): ("val", 1145, "rank", "specialized_vocab_train.json", "direct", False),
    ("aokvqa", "mmpretrain"): ("val", 1145, "rank", "specialized_vocab_train.json", "direct", True),
    ("ocr-vqa", "paper"): ("test", 100_037, "generate", "", "exact", False),
    ("ocr-vqa", "lavis"): ("test", 100_037, "generate", "", "exact", False),
    **{
        (name, preset): ("test", count, "rank", "answer_list.json", "exact", False, 16)
        for name, count in (("msrvtt-qa", 72_821), ("msvd-qa", 13_157))
        for preset in ("paper", "lavis", "mmpretrain")
    },
    ("ocr-vqa", "mmpretrain"): ("test", 100_037, "generate", "", "exact", True),
}
# Split, items, shortlist, words, punctuation taken from texts; of videos, frames.
RETRIEVAL = {
    ("coco-retrieval", "paper"): ("Karpathy test", 5000, 256, 30, False),
    ("coco-retrieval", "lavis"): ("Karpathy test", 5000, 256, 50, False),
    ("coco-retrieval", "mmpretrain"): ("Karpathy val", 5000, 256, None, True),
    ("flickr30k-retrieval", "paper"): ("Karpathy test", 1000, 128, 30, False),
    ("flickr30k-retrieval", "lavis"): ("Karpathy test", 1000, 128, 50, False),
    ("flickr30k-retrieval", "mmpretrain"): ("Karpathy test", 1000, 256, None, True),
    **{
        ("msrvtt-retrieval", preset): ("1k test", 1000, 128, 40, False, 8)
        for preset in ("paper", "lavis", "mmpretrain")
    },
    **{("visdial", preset): ("val", 20_640, 256) for preset in ("paper", "lavis", "mmpretrain")},  # and tokens
}


# Split, items, words, first token, cleaned.
STATEMENTS = {
    ("nlvr2", "paper"): ("test-P", 6967, 40, "enc", True),
    ("nlvr2", "lavis"): ("test-P", 6967, 50, "enc", True),
    ("nlvr2", "mmpretrain"): ("dev", 6982, 40, "cls", False),
}


# Split, items, threshold.
BOXES = {
    (f"refcoco-{split.lower()}", preset): (split, count, 0.5)
    for split, count in (("testA", 5657), ("testB", 5095))
    for preset in ("paper", "lavis", "mmpretrain")
}


def test_every_row_s_preset() -> None:
    found: dict[str, dict[Any, Any]] = {"caption": {}, "vqa": {}, "retrieval": {}, "nlvr": {}, "grounding": {}}
    for name, protocol in protocols.PROTOCOLS.items():
        for preset, one in protocol.presets.items():
            row: tuple[Any, ...] = ()
            if isinstance(one, CaptionPreset):
                row = (one.max_length, one.min_length, one.repetition_penalty, one.ids)
                assert (one.num_beams, one.prompt, one.max_new_tokens) == (3, "a picture of ", 16)
                assert one.min_new_tokens == {5: 1, 2: 0}[one.min_length]  # four tokens are the prompt's
            elif isinstance(one, AnswerPreset):
                row = (one.inference, one.answer_list, one.rule, one.bare)
                assert (one.k, one.smoothing, one.num_beams, one.max_length, one.min_length) == (128, 0.1, 3, 10, 1)
                assert one.max_words == 50
                assert one.bare_answers == ((name, preset) == ("ocr-vqa", "mmpretrain"))
            elif isinstance(one, RetrievalPreset):
                row = (one.k, one.max_words, one.bare)
                assert one.max_tokens == 35
            elif isinstance(one, ComparePreset):
                row = (one.max_words, one.first_token, one.clean)
            elif isinstance(one, GroundPreset):
                row = (one.threshold,)
            if isinstance(one, VideoAnswerPreset | VideoRetrievalPreset):
                row = (*row, one.frames)
            if isinstance(one, DialogPreset):
                row = (one.max_tokens,)
                assert one.note.startswith("no published checkpoint")
            found[protocol.task][name, preset] = (one.split, one.count, *row)
    assert found == {
        "caption": CAPTIONS,
        "vqa": ANSWERS,
        "retrieval": RETRIEVAL,
        "nlvr": STATEMENTS,
        "grounding": BOXES,
    }


def test_published_scores_are_of_published_checkpoints() -> None:
    for protocol in protocols.PROTOCOLS.values():
        for preset in protocol.presets.values():
            for score in preset.published:
                for name in score.checkpoints:
                    entry = published.get(name)
                    assert (entry.name, entry.task) == (name, protocol.task)


def read(name: str, folder: Path, preset: str = "paper") -> Any:
    protocol = protocols.find(name)
    need_files(protocol, folder, protocol.preset(preset))
    return protocol.read(folder, protocol.preset(preset))


def test_coco(tmp_path: Path) -> None:
    items = read("coco-caption", toys.coco(tmp_path))
    assert [(item.id, item.texts) for item in items] == [
        (7, ("a man on a horse", "a horse")),
        (3, ("two dogs", "dogs playing")),
    ]
    assert Path(items[0].image) == tmp_path / "val2014/COCO_val2014_000000000007.jpg"
    items = read("coco-retrieval", tmp_path)
    assert [item.texts[0] for item in items] == ["a man on a horse", "two dogs"]
    assert read("coco-caption", toys.coco(tmp_path, "val"), "mmpretrain")[0].id == 7
    toys.put(tmp_path / "coco_karpathy_val.json", [{"image": "val2014/COCO_val2014_000000000003.jpg"}])
    assert [item.id for item in read("coco-caption", tmp_path, "mmpretrain")] == [3]  # references alone are passed over
    server = protocols.find("coco-caption").server
    assert server is not None
    assert server({7: "a horse"}) == [{"image_id": 7, "caption": "a horse"}]


def test_nocaps_and_flickr(tmp_path: Path) -> None:
    items = read("nocaps", toys.nocaps(tmp_path))
    assert [(item.id, item.group) for item in items] == [(0, "in"), (1, "out"), (2, "out")]
    assert all(Path(item.image).is_file() for item in items)
    items = read("flickr30k-caption", toys.flickr(tmp_path))
    assert [(item.id, item.texts) for item in items] == [(1, ("dog 1.",)), (3, ("dog 3.",))]  # the test split alone
    assert all(Path(item.image).is_file() for item in items)
    assert [item.texts for item in read("flickr30k-retrieval", tmp_path)] == [("dog 1", "a dog"), ("dog 3", "a dog")]


def test_questions(tmp_path: Path) -> None:
    assert [item.id for item in read("vqa-v2", toys.vqa(tmp_path))] == [10, 11, 12]
    (item,) = read("okvqa", toys.okvqa(tmp_path / "ok"), "lavis")
    assert (item.id, item.answers, item.kinds) == (5, ("dog",) * 10, ("what is", "other"))
    assert Path(item.image).is_file()
    (item,) = read("aokvqa", toys.aokvqa(tmp_path / "aok"))
    assert item.answers.count("dog") == 7
    assert Path(item.image).is_file()
    server = protocols.find("aokvqa").server
    assert server is not None
    assert server({"q4": "dog"}) == {"q4": {"multiple_choice": "", "direct_answer": "dog"}}
    items = read("ocr-vqa", toys.ocrvqa(tmp_path / "ocr"))
    assert [(item.id, item.answers) for item in items] == [("b1-0", ("A. Man",)), ("b1-1", ("Dogs",))]


def test_statements(tmp_path: Path) -> None:
    items = read("nlvr2", toys.nlvr(tmp_path))
    assert [(item.id, item.answers) for item in items[:2]] == [("test1-8-0-0", ("True",)), ("test1-8-0-1", ("False",))]
    assert Path(items[3].image).name == "test1-8-1-img0.png"
    assert Path(items[3].second).is_file()
    right = {"dev-8-0-0": True, "dev-8-1-0": True, "dev-8-0-1": True, "dev-8-1-1": False}
    assert nlvr2.consistency(right) == 0.5
    assert nlvr2.for_server({"dev-8-0-0": "True"}) == "dev-8-0-0,True\n"


def test_expressions(tmp_path: Path) -> None:
    items = read("refcoco-testa", toys.refcoco(tmp_path))
    assert [(item.id, item.texts, item.box) for item in items] == [
        (10, ("the man in red shirt",), (4, 3, 24, 14)),
        (11, ("man",), (4, 3, 24, 14)),
    ]
    assert Path(items[0].image).is_file()
    assert [item.id for item in read("refcoco-testb", tmp_path)] == [20]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(EvaluationError, match="no plain data"):
        read("refcoco-testa", tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([{"split": "testA"}])[:-3])
    with pytest.raises(EvaluationError, match="cut off"):
        read("refcoco-testa", tmp_path)


def test_videos(tmp_path: Path) -> None:
    items = read("msrvtt-retrieval", toys.msrvtt(tmp_path))
    assert [(item.id, item.texts) for item in items] == [
        (0, ("a man on a horse",)), (1, ("two dogs playing",)), (2, ("a cat",)),
    ]  # fmt: skip
    assert Path(items[2].image) == tmp_path / "videos/video7012.mp4"
    items = read("msrvtt-qa", tmp_path)
    assert [(item.id, Path(item.image).name, item.answers) for item in items] == [
        (170000, "video7010.mp4", ("dog",)), (170001, "video7010.mp4", ("dog",)), (170002, "video7011.mp4", ("dog",)),
    ]  # fmt: skip
    assert Path(items[0].image).is_file()
    items = read("msvd-qa", toys.msvd(tmp_path / "msvd"))
    assert [Path(item.image).name for item in items] == ["-4wsuPCjDBc_5_15.avi", "jfrrO5K_vKM_55_65.avi"]
    assert Path(items[1].image).is_file()


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("msrvtt-retrieval", "msrvtt_test.jsonl", '{"clip_name": "video1"}', "jsonl:1 lacks 'clip_name' or 'caption'"),
        ("msrvtt-qa", "test_qa.json", '[{"id": 1, "video_id": 2, "question": "x"}]', "entry 1 lacks 'id', 'video_id'"),
        ("msrvtt-qa", "test_qa.json", json.dumps([{"id": 1, "video_id": 2, "question": "x", "answer": "y"}] * 2),
         "entry 2: id 1 is there a second time"),
        ("msvd-qa", "test_qa.json", '[{"id": 1, "video_id": 9, "question": "x", "answer": "y"}]',
         "entry 1: video_id 9 is not in youtube_mapping.txt"),
        ("msvd-qa", "youtube_mapping.txt", "one vid1301\ntwo\n", "txt:2 is not the name of a clip and vidN"),
    ],
)  # fmt: skip
def test_a_broken_record_about_videos_is_named(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    (toys.msvd if name == "msvd-qa" else toys.msrvtt)(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


def test_what_is_missing_is_said_with_where_it_is_published(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nocaps_val_4500_captions\.json is not there. Published at nocaps\.org"):
        read("nocaps", tmp_path)
    with pytest.raises(EvaluationError, match="no benchmark 'coco'; there are coco-caption, "):
        protocols.find("coco")
    with pytest.raises(EvaluationError, match="no preset 'blip'; it has paper, lavis, mmpretrain"):
        protocols.find("nocaps").preset("blip")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("coco-caption", "coco_karpathy_test.json", [{"image": "x_3.jpg"}], "no picture for image_id 7"),
        ("coco-caption", "coco_karpathy_test.json", [{"image": "dog.jpg"}], "entry 1: 'dog.jpg' ends in no"),
        ("coco-retrieval", "coco_karpathy_test.json", [{"image": "a.jpg"}], "entry 1 lacks 'image' or 'caption'"),
        ("flickr30k-retrieval", "flickr30k_test.json", [{"image": "a.jpg", "caption": []}], "lacks 'image' or 'cap"),
        ("flickr30k-caption", "dataset_flickr30k.json",
         {"images": [{"split": "test", "imgid": 1, "filename": "a.jpg", "sentences": ["a dog"]}]}, "1 lacks 'raw'"),
        ("nocaps", "nocaps_val_4500_captions.json", {"images": [{"id": 4}], "annotations": []}, "image 4 lacks 'file"),
        ("vqa-v2", "vqa_test.json", [{"question_id": 1}], "entry 1 lacks 'question', 'image' or 'question_id'"),
        ("aokvqa", "aokvqa_v1p0_val.json", [{"question_id": "a"}], "entry 1 lacks 'question'"),
        ("ocr-vqa", "dataset.json", {"b": {"split": 3, "imageURL": "a.png", "questions": ["x"]}}, "book 'b' has not"),
        ("okvqa", "OpenEnded_mscoco_val2014_questions.json",
         {"questions": [{"question_id": 6, "image_id": 9, "question": "x"}]}, "entry 1: question_id 6 is not in"),
    ],
)  # fmt: skip
def test_a_broken_record_is_named(tmp_path: Path, name: str, file: str, content: Any, message: str) -> None:
    for make in (toys.coco, toys.nocaps, toys.flickr, toys.vqa, toys.okvqa, toys.aokvqa, toys.ocrvqa):
        make(tmp_path)
    toys.put(tmp_path / file, content)
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)

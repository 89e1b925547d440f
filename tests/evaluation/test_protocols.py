"""The settings of every benchmark, and its reader on small files in the official formats."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from openblip import tasks
from openblip.checkpoints import published
from openblip.errors import EvaluationError
from openblip.evaluation import protocols
from openblip.evaluation.evaluators.base import Evaluator
from openblip.evaluation.evaluators.nlvr import compute_consistency
from openblip.evaluation.protocols import server
from openblip.evaluation.protocols.base import (
    CaptionPreset,
    GroundingPreset,
    Items,
    NlvrPreset,
    RetrievalPreset,
    VisdialPreset,
    VqaPreset,
)
from tests.evaluation import evaluation_toys as toys

# Split, number of items, lengths, repetition penalty and scored images of each reference.
CAPTIONS = {
    ("coco-caption", "paper"): ("Karpathy test", 5000, 20, 5, 1.0, "all"),
    ("coco-caption", "lavis"): ("Karpathy test", 5000, 20, 5, 1.15, "all"),
    ("coco-caption", "mmpretrain"): ("Karpathy val", 5000, 20, 2, 1.0, "listed"),
    ("nocaps", "paper"): ("val", 4500, 20, 5, 1.1, "all"),
    ("nocaps", "lavis"): ("val", 4500, 20, 5, 1.15, "all"),
    ("nocaps", "mmpretrain"): ("val", 4500, 20, 2, 1.0, "listed"),
    ("flickr30k-caption", "paper"): ("Karpathy test", 1000, 20, 5, 1.0, "all"),
    ("flickr30k-caption", "lavis"): ("Karpathy test", 1000, 20, 5, 1.15, "all"),
    ("flickr30k-caption", "mmpretrain"): ("Karpathy test", 1000, 20, 2, 1.0, "listed"),
}
# Split, number of items, inference, list of answers, rule, no punctuation in questions, frames of a video.
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
# Split, number of items, shortlist, words, no punctuation in texts, frames of a video.
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
}
# Split, number of items, tokens.
DIALOGS = {("visdial", preset): ("val", 20_640, 256) for preset in ("paper", "lavis", "mmpretrain")}
# Split, number of items, words, first token, cleaned.
STATEMENTS = {
    ("nlvr2", "paper"): ("test-P", 6967, 40, "enc", True),
    ("nlvr2", "lavis"): ("test-P", 6967, 50, "enc", True),
    ("nlvr2", "mmpretrain"): ("dev", 6982, 40, "cls", False),
}
# Split, number of items, threshold.
BOXES = {
    (f"refcoco-{split.lower()}", preset): (split, count, 0.5)
    for split, count in (("testA", 5657), ("testB", 5095))
    for preset in ("paper", "lavis", "mmpretrain")
}


def test_settings_of_every_preset() -> None:
    settings: dict[str, dict[Any, Any]] = defaultdict(dict)
    for name in protocols.NAMES:
        protocol = protocols.find(name)
        assert protocol.name == name
        for preset_name, preset in protocol.presets.items():
            row: tuple[Any, ...] = ()
            if isinstance(preset, CaptionPreset):
                row = (preset.max_length, preset.min_length, preset.repetition_penalty, preset.scored_images)
                assert (preset.num_beams, preset.prompt, preset.max_new_tokens) == (3, "a picture of ", 16)
                assert preset.min_new_tokens == {5: 1, 2: 0}[preset.min_length]  # [DEC] and the prompt are four tokens
            elif isinstance(preset, VqaPreset):
                row = (preset.inference, preset.answer_list, preset.rule, preset.strip_punctuation)
                assert (preset.shortlist, preset.smoothing, preset.num_beams) == (128, 0.1, 3)
                assert (preset.max_length, preset.min_length, preset.max_words) == (10, 1, 50)
                assert preset.strip_answer_punctuation == ((name, preset_name) == ("ocr-vqa", "mmpretrain"))
            elif isinstance(preset, RetrievalPreset):
                row = (preset.shortlist, preset.max_words, preset.strip_punctuation)
                assert preset.max_tokens == 35
            elif isinstance(preset, NlvrPreset):
                row = (preset.max_words, preset.first_token, preset.clean)
            elif isinstance(preset, GroundingPreset):
                row = (preset.threshold,)
            elif isinstance(preset, VisdialPreset):
                row = (preset.max_tokens,)
                assert preset.note.startswith("no published checkpoint")
            if isinstance(preset, VqaPreset | RetrievalPreset) and preset.num_frames is not None:
                row = (*row, preset.num_frames)
            assert preset.task == protocol.task
            settings[protocol.task][name, preset_name] = (preset.split.name, preset.split.count, *row)
    assert settings == {
        "caption": CAPTIONS,
        "vqa": ANSWERS,
        "retrieval": RETRIEVAL,
        "nlvr": STATEMENTS,
        "grounding": BOXES,
        "visdial": DIALOGS,
    }


def test_every_task_has_an_evaluator() -> None:
    for name in protocols.NAMES:
        protocol = protocols.find(name)
        reference = tasks.find(protocol.task).evaluator
        assert reference is not None
        assert issubclass(reference.resolve(), Evaluator)


def test_published_scores_belong_to_published_checkpoints() -> None:
    for name in protocols.NAMES:
        protocol = protocols.find(name)
        for preset in protocol.presets.values():
            for score in preset.published:
                for checkpoint in score.checkpoints:
                    entry = published.get(checkpoint)
                    assert (entry.name, entry.task) == (checkpoint, protocol.task)


def read(name: str, folder: Path, preset: str = "paper") -> Items:
    return protocols.open_benchmark(name, folder, preset).read()


def test_coco(tmp_path: Path) -> None:
    items = read("coco-caption", toys.make_coco(tmp_path))
    assert [(item.id, item.texts) for item in items] == [
        (7, ("a man on a horse", "a horse")),
        (3, ("two dogs", "dogs playing")),
    ]
    assert Path(items[0].image) == tmp_path / "val2014/COCO_val2014_000000000007.jpg"
    items = read("coco-retrieval", tmp_path)
    assert [item.texts[0] for item in items] == ["a man on a horse", "two dogs"]
    assert read("coco-caption", toys.make_coco(tmp_path, "val"), "mmpretrain")[0].id == 7
    toys.write_json(tmp_path / "coco_karpathy_val.json", [{"image": "val2014/COCO_val2014_000000000003.jpg"}])
    assert [item.id for item in read("coco-caption", tmp_path, "mmpretrain")] == [3]
    server_file = protocols.find("coco-caption").server_file
    assert server_file is not None
    assert server_file.build({7: "a horse"}) == [{"image_id": 7, "caption": "a horse"}]


def test_nocaps_and_flickr(tmp_path: Path) -> None:
    items = read("nocaps", toys.make_nocaps(tmp_path))
    assert [(item.id, item.domain) for item in items] == [(0, "in"), (1, "out"), (2, "out")]
    assert all(Path(item.image).is_file() for item in items)
    items = read("flickr30k-caption", toys.make_flickr(tmp_path))
    assert [(item.id, item.texts) for item in items] == [(1, ("dog 1.",)), (3, ("dog 3.",))]  # the test split only
    assert all(Path(item.image).is_file() for item in items)
    assert [item.texts for item in read("flickr30k-retrieval", tmp_path)] == [("dog 1", "a dog"), ("dog 3", "a dog")]


def test_questions(tmp_path: Path) -> None:
    assert [item.id for item in read("vqa-v2", toys.make_vqa(tmp_path))] == [10, 11, 12]
    (item,) = read("okvqa", toys.make_okvqa(tmp_path / "ok"), "lavis")
    assert (item.id, item.answers) == (5, ("dog",) * 10)
    assert (item.question_type, item.answer_type) == ("what is", "other")
    assert Path(item.image).is_file()
    (item,) = read("aokvqa", toys.make_aokvqa(tmp_path / "aok"))
    assert item.answers.count("dog") == 7
    assert Path(item.image).is_file()
    server_file = protocols.find("aokvqa").server_file
    assert server_file is not None
    assert server_file.build({"q4": "dog"}) == {"q4": {"multiple_choice": "", "direct_answer": "dog"}}
    items = read("ocr-vqa", toys.make_ocr_vqa(tmp_path / "ocr"))
    assert [(item.id, item.answers) for item in items] == [("b1-0", ("A. Man",)), ("b1-1", ("Dogs",))]


def test_statements(tmp_path: Path) -> None:
    items = read("nlvr2", toys.make_nlvr(tmp_path))
    assert [(item.id, item.answers) for item in items[:2]] == [("test1-8-0-0", ("True",)), ("test1-8-0-1", ("False",))]
    assert Path(items[3].image).name == "test1-8-1-img0.png"
    assert Path(items[3].second_image).is_file()
    right = {"dev-8-0-0": True, "dev-8-1-0": True, "dev-8-0-1": True, "dev-8-1-1": False}
    assert compute_consistency(right) == 0.5
    assert server.build_nlvr_lines({"dev-8-0-0": True}) == "dev-8-0-0,True\n"


def test_expressions(tmp_path: Path) -> None:
    items = read("refcoco-testa", toys.make_refcoco(tmp_path))
    assert [(item.id, item.texts, item.box) for item in items] == [
        (10, ("the man in red shirt",), (4, 3, 24, 14)),
        (11, ("man",), (4, 3, 24, 14)),
    ]
    assert Path(items[0].image).is_file()
    assert [item.id for item in read("refcoco-testb", tmp_path)] == [20]
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(EvaluationError, match="must contain plain data only"):
        read("refcoco-testa", tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([{"split": "testA"}])[:-3])
    with pytest.raises(EvaluationError, match="cut off"):
        read("refcoco-testa", tmp_path)


def test_videos(tmp_path: Path) -> None:
    items = read("msrvtt-retrieval", toys.make_msrvtt(tmp_path))
    assert [(item.id, item.texts) for item in items] == [
        (0, ("a man on a horse",)), (1, ("two dogs playing",)), (2, ("a cat",)),
    ]  # fmt: skip
    assert Path(items[2].image) == tmp_path / "videos/video7012.mp4"
    items = read("msrvtt-qa", tmp_path)
    assert [(item.id, Path(item.image).name, item.answers) for item in items] == [
        (170000, "video7010.mp4", ("dog",)), (170001, "video7010.mp4", ("dog",)), (170002, "video7011.mp4", ("dog",)),
    ]  # fmt: skip
    assert Path(items[0].image).is_file()
    items = read("msvd-qa", toys.make_msvd(tmp_path / "msvd"))
    assert [Path(item.image).name for item in items] == ["-4wsuPCjDBc_5_15.avi", "jfrrO5K_vKM_55_65.avi"]
    assert Path(items[1].image).is_file()


@pytest.mark.parametrize(
    ("name", "file", "text", "message"),
    [
        ("msrvtt-retrieval", "msrvtt_test.jsonl", '{"clip_name": "video1"}', "jsonl:1 lacks 'clip_name' or 'caption'"),
        ("msrvtt-qa", "test_qa.json", '[{"id": 1, "video_id": 2, "question": "x"}]', "entry 1 lacks 'id', 'video_id'"),
        ("msrvtt-qa", "test_qa.json", json.dumps([{"id": 1, "video_id": 2, "question": "x", "answer": "y"}] * 2),
         "entry 2: id 1 occurs a second time"),
        ("msvd-qa", "test_qa.json", '[{"id": 1, "video_id": 9, "question": "x", "answer": "y"}]',
         "entry 1: video_id 9 is not in youtube_mapping.txt"),
        ("msvd-qa", "youtube_mapping.txt", "one vid1301\ntwo\n", "txt:2 must be the name of a clip and vidN"),
    ],
)  # fmt: skip
def test_a_broken_record_of_videos_is_an_error(tmp_path: Path, name: str, file: str, text: str, message: str) -> None:
    (toys.make_msvd if name == "msvd-qa" else toys.make_msrvtt)(tmp_path)
    (tmp_path / file).write_text(text)
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)


def test_missing_files_are_named_with_their_source(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"missing: nocaps_val_4500_captions\.json. Published at nocaps\.org"):
        read("nocaps", tmp_path)
    with pytest.raises(EvaluationError, match=r"must be coco-caption, .* or own, got 'coco'"):
        protocols.find("coco")
    with pytest.raises(EvaluationError, match="preset of nocaps must be paper, lavis, mmpretrain, got 'blip'"):
        protocols.find("nocaps").preset("blip")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("coco-caption", "coco_karpathy_test.json", [{"image": "x_3.jpg"}], "no image for image_id 7"),
        ("coco-caption", "coco_karpathy_test.json", [{"image": "dog.jpg"}], "must end in its number, got 'dog.jpg'"),
        ("coco-retrieval", "coco_karpathy_test.json", [{"image": "a.jpg"}], "entry 1 lacks 'image' or 'caption'"),
        ("flickr30k-retrieval", "flickr30k_test.json", [{"image": "a.jpg", "caption": []}], "lacks 'image' or 'cap"),
        ("flickr30k-caption", "dataset_flickr30k.json",
         {"images": [{"split": "test", "imgid": 1, "filename": "a.jpg", "sentences": ["a dog"]}]}, "1 lacks 'raw'"),
        ("nocaps", "nocaps_val_4500_captions.json", {"images": [{"id": 4}], "annotations": []}, "image 4 lacks 'file"),
        ("vqa-v2", "vqa_test.json", [{"question_id": 1}], "entry 1 lacks 'question', 'image' or 'question_id'"),
        ("aokvqa", "aokvqa_v1p0_val.json", [{"question_id": "a"}], "entry 1 lacks 'question'"),
        ("ocr-vqa", "dataset.json", {"b": {"split": 3, "imageURL": "a.png", "questions": ["x"]}}, "book 'b' must have"),
        ("okvqa", "OpenEnded_mscoco_val2014_questions.json",
         {"questions": [{"question_id": 6, "image_id": 9, "question": "x"}]}, "entry 1: question_id 6 is not in"),
    ],
)  # fmt: skip
def test_a_broken_record_is_an_error(tmp_path: Path, name: str, file: str, content: Any, message: str) -> None:
    for make in (
        toys.make_coco,
        toys.make_nocaps,
        toys.make_flickr,
        toys.make_vqa,
        toys.make_okvqa,
        toys.make_aokvqa,
        toys.make_ocr_vqa,
    ):
        make(tmp_path)
    toys.write_json(tmp_path / file, content)
    with pytest.raises(EvaluationError, match=message):
        read(name, tmp_path)

"""A toy bundle, images, and small data sets in the official formats."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, cast

from openblip.checkpoints import write
from openblip.checkpoints.folder import write_bundle
from openblip.engine.eager import EagerEngine
from openblip.pipelines.base import TaskModel
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer
from tests.videos import make_video

TOY_TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "nlvr")


def make_bundle(home: Path) -> Path:
    for task in TOY_TASKS:
        write.save(
            toy_model(task), home / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE),
            prompt="a picture of " if task == "caption" else None,
        )  # fmt: skip
    write_bundle(home, {task: home / task for task in TOY_TASKS})
    return home


def write_json(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def write_image(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    toy_image(seed).save(path)


def make_coco(folder: Path, split: str = "test") -> Path:
    """The authors' files of Karpathy's split: images with captions, and the references in COCO's own format
    (github.com/salesforce/BLIP data/coco_karpathy_dataset.py, data/utils.py coco_caption_eval)."""
    names = {7: "val2014/COCO_val2014_000000000007.jpg", 3: "val2014/COCO_val2014_000000000003.jpg"}
    texts = {7: ["a man on a horse", "a horse"], 3: ["two dogs", "dogs playing"]}
    write_json(folder / f"coco_karpathy_{split}.json", [{"image": names[key], "caption": texts[key]} for key in names])
    annotations = [{"image_id": key, "id": n, "caption": t} for key in names for n, t in enumerate(texts[key])]
    gt = {"images": [{"id": key} for key in names], "annotations": annotations}
    write_json(folder / f"coco_karpathy_{split}_gt.json", gt)
    for key, name in names.items():
        write_image(folder / name, key)
    return folder


def make_nocaps(folder: Path) -> Path:
    """nocaps.org's val file: COCO's format, the domain with each image."""
    images = [
        {"id": 0, "file_name": "0a.jpg", "domain": "in-domain"},
        {"id": 1, "file_name": "0b.jpg", "domain": "out-domain"},
        {"id": 2, "file_name": "0c.jpg", "domain": "out-domain"},
    ]
    annotations = [{"image_id": i["id"], "id": n, "caption": f"a {i['domain']} dog"} for n, i in enumerate(images)]
    write_json(folder / "nocaps_val_4500_captions.json", {"images": images, "annotations": annotations})
    for n, image in enumerate(images):
        write_image(folder / "val" / str(image["file_name"]), n)
    return folder


def make_flickr(folder: Path) -> Path:
    """Karpathy's file: all splits, sentences with raw text; and the authors' retrieval file."""
    images = [
        {"filename": f"{n}.jpg", "imgid": n, "split": split, "sentences": [{"raw": f"dog {n}.", "sentid": n}]}
        for n, split in enumerate(("train", "test", "val", "test"))
    ]
    write_json(folder / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": images})
    entries = [{"image": f"flickr30k-images/{n}.jpg", "caption": [f"dog {n}", "a dog"]} for n in (1, 3)]
    write_json(folder / "flickr30k_test.json", entries)
    for n in (1, 3):
        write_image(folder / "flickr30k-images" / f"{n}.jpg", n)
    return folder


def make_six(folder: Path) -> Path:
    """The authors' file for retrieval on Flickr30k, with six images and ten texts."""
    texts = ["a man on a horse", "two dogs", "a plate", "an old clock tower", "people", "a dog playing in the park"]
    entries = [
        {"image": f"flickr30k-images/{n}.jpg", "caption": [text] if n < 2 else [text, f"{text} again"]}
        for n, text in enumerate(texts)
    ]
    write_json(folder / "flickr30k_test.json", entries)
    for n in range(len(texts)):
        write_image(folder / "flickr30k-images" / f"{n}.jpg", n)
    return folder


def make_vqa(folder: Path) -> Path:
    """The authors' list of test questions (data/vqa_dataset.py), and answers to rank."""
    entries = [
        {"question_id": 10 + n, "question": f"how many dogs are there in {n}?", "image": f"test2015/{n}.jpg"}
        for n in range(3)
    ]
    write_json(folder / "vqa_test.json", entries)
    write_json(folder / "answer_list.json", ["dog", "two", "yes", "a man"])
    for n in range(3):
        write_image(folder / "test2015" / f"{n}.jpg", n)
    return folder


def make_okvqa(folder: Path) -> Path:
    """The VQA challenge's questions and annotations (visualqa.org/download)."""
    questions = [{"question_id": 5, "image_id": 9, "question": "what is it?"}]
    people = [{"answer": "dog", "answer_confidence": "yes", "answer_id": n} for n in range(10)]
    annotations = [
        {"question_id": 5, "image_id": 9, "question_type": "what is", "answer_type": "other",
         "multiple_choice_answer": "dog", "answers": people}
    ]  # fmt: skip
    write_json(folder / "OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    write_json(folder / "mscoco_val2014_annotations.json", {"annotations": annotations})
    write_json(folder / "okvqa_answer_list_train.json", ["dog", "cat"])
    write_json(folder / "answer_list.json", ["dog"])
    write_image(folder / "val2014" / "COCO_val2014_000000000009.jpg", 9)
    return folder


def make_aokvqa(folder: Path) -> Path:
    """allenai's val file."""
    entry = {
        "split": "val", "image_id": 4, "question_id": "q4", "question": "what is it?", "choices": ["dog", "cat"],
        "correct_choice_idx": 0, "direct_answers": ["dog"] * 7 + ["a dog"] * 3, "difficult_direct_answer": False,
    }  # fmt: skip
    write_json(folder / "aokvqa_v1p0_val.json", [entry])
    write_json(folder / "specialized_vocab_train.json", ["dog", "cat"])
    write_image(folder / "val2017" / "000000000004.jpg", 4)
    return folder


def make_ocr_vqa(folder: Path) -> Path:
    """dataset.json: a book each; split 3 is test; images other than .jpg and .png are skipped."""
    book = {"questions": ["Who wrote this book?", "What is the title?"], "answers": ["A. Man", "Dogs"], "genre": "Pets"}
    books = {
        "b1": {**book, "imageURL": "http://books/x.jpg", "split": 3},
        "b2": {**book, "imageURL": "http://books/y.jpg", "split": 1},
        "b3": {**book, "imageURL": "http://books/z.gif", "split": 3},
    }
    write_json(folder / "dataset.json", books)
    write_image(folder / "images" / "b1.jpg", 1)
    return folder


def make_nlvr(folder: Path, split: str = "test1") -> Path:
    """lil-lab/nlvr's JSON lines: an identifier of split, set, pair and sentence."""
    lines = [
        {"identifier": f"{split}-8-{pair}-{n}", "sentence": f"there are {n + 1} dogs, at least.", "label": label}
        for pair in range(2)
        for n, label in enumerate(("True", "False"))
    ]
    name = {"test1": "test1.json", "dev": "dev.json"}[split]
    (folder / name).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    for pair in range(2):
        for side in range(2):
            write_image(folder / split / f"{split}-8-{pair}-img{side}.png", 2 * pair + side)
    return folder


def make_refcoco(folder: Path) -> Path:
    """lichengunc/refer's files: a pickled list of references with sentences, and COCO's instances."""
    refs = [
        {"ref_id": n, "ann_id": 70 + n, "image_id": n, "split": split, "category_id": 1, "file_name": "unused.jpg",
         "sentences": [{"sent_id": 10 * n + i, "raw": raw, "sent": raw} for i, raw in enumerate(expressions)]}
        for n, (split, expressions) in enumerate(
            [("train", ["dog"]), ("testA", ["the man in red shirt", "man"]), ("testB", ["dog on the left"])]
        )
    ]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol=0))
    write_json(
        folder / "instances.json", {"annotations": [{"id": 70 + n, "bbox": [4, 3, 20, 10 + n]} for n in range(3)]}
    )
    for n in range(3):
        write_image(folder / "train2014" / f"COCO_train2014_{n:012d}.jpg", n)
    return folder


def make_msrvtt(folder: Path) -> Path:
    """The authors' test list, a line for each clip and its caption (github.com/salesforce/BLIP
    data/video_dataset.py: `ann['clip_name']`, `ann['caption']`, videos in .mp4), and MSRVTT-QA's test questions
    (github.com/xudejing/video-question-answering: id, category_id, video_id, question, answer)."""
    lines = [
        {"caption": text, "clip_name": f"video{7010 + n}", "retrieval_key": f"ret{n}"}
        for n, text in enumerate(["a man on a horse", "two dogs playing", "a cat"])
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "msrvtt_test.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    questions = [
        {"answer": "dog", "category_id": 3, "id": 170000 + n, "question": question, "video_id": 7010 + n // 2}
        for n, question in enumerate(["what is playing?", "who is riding?", "how many dogs are there?"])
    ]
    write_json(folder / "test_qa.json", questions)
    write_json(folder / "answer_list.json", ["dog", "two", "yes", "a man"])
    for n, frames in enumerate((9, 20, 33)):
        make_video(folder / "videos" / f"video{7010 + n}.mp4", frames, seed=n)
    return folder


def make_msvd(folder: Path) -> Path:
    """MSVD-QA's test questions and the names of its clips (the same repository: id, video_id, question, answer;
    youtube_mapping.txt: a clip's name and vidN)."""
    questions = [{"answer": "dog", "id": 40000 + n, "question": "what is it?", "video_id": 1301 + n} for n in range(2)]
    write_json(folder / "test_qa.json", questions)
    write_json(folder / "answer_list.json", ["dog", "two"])
    names = ["-4wsuPCjDBc_5_15", "jfrrO5K_vKM_55_65"]
    (folder / "youtube_mapping.txt").write_text("".join(f"{name} vid{1301 + n}\n" for n, name in enumerate(names)))
    for n, name in enumerate(names):
        make_video(folder / "YouTubeClips" / f"{name}.avi", 20, codec="mpeg4", seed=n)
    return folder


def make_visdial(folder: Path, split: str = "val") -> Path:
    """VisDial v1.0 (visualdialog.org/data; batra-mlp-lab/visdial-challenge-starter-pytorch, data/readers.py): texts by
    number, 5 options for 100, and the relevance of the candidates in one round (`gt_relevance`)."""
    questions = ["is the photo in color", "how many dogs", "is it sunny"]
    answers = ["yes", "no", "two", "1 dog", "i can not tell", "a man on a horse", "not that i can see"]
    rounds = [[(0, 0, [1, 0, 2, 3, 4]), (1, 2, [4, 3, 2, 5, 6])], [(2, 4, [0, 1, 6, 5, 4]), (1, 3, [3, 2, 1, 0, 4])]]
    dialogs = [
        {
            "image_id": 185565 + n,
            "caption": caption,
            "dialog": [
                {"question": q, "answer": a, "answer_options": options, "gt_index": options.index(a)}
                for q, a, options in turns
            ],
        }
        for n, (caption, turns) in enumerate(zip(["two dogs playing in the park", "a man"], rounds, strict=True))
    ]
    data = {"questions": questions, "answers": answers, "dialogs": dialogs}
    write_json(folder / f"visdial_1.0_{split}.json", {"version": "1.0", "split": f"{split}2018", "data": data})
    relevance = [{"image_id": 185565, "round_id": 2, "gt_relevance": [0.0, 0.5, 1.0, 0.0, 0.2]}]
    write_json(folder / "visdial_1.0_val_dense_annotations.json", relevance)
    for n in range(2):
        write_image(folder / "VisualDialog_val2018" / f"VisualDialog_val2018_{185565 + n:012d}.jpg", n)
    return folder


def network(model: TaskModel) -> Any:
    """Return the PyTorch module of a model, to compute expected results with."""
    return cast(EagerEngine, model.engine).model

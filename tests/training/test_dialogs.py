"""VisDial: its files as records, rounds as samples, and the objective against a plain recomputation."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from openblip.data.augment import Resize
from openblip.data.collate import normalize_batch
from openblip.data.images import MemoryImage
from openblip.data.records import Question, Record
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.data.tasks.visdial import VisdialData
from openblip.errors import InputError
from openblip.preprocess.settings import ImageSettings
from openblip.training.objectives.visdial import VisdialBatch, VisdialObjective
from tests.evaluation import evaluation_toys
from tests.toys import SIZE, toy_image, toy_tokenizer
from tests.training.training_toys import CLS, ENC, alone, assert_same, gradients, images, texts, toy


def opened(path: Path, **options: Any) -> Source:
    results = open_source(path, **options)
    assert isinstance(results, Source)
    return results


def test_a_dialog_is_a_record_of_its_rounds(tmp_path: Path) -> None:
    evaluation_toys.make_visdial(tmp_path)
    source = opened(tmp_path / "visdial_1.0_val.json")
    assert len(source) == 2
    record = source[0]
    assert record.captions == ("two dogs playing in the park",)
    assert record.address.endswith("visdial_1.0_val.json[0]")
    assert record.images[0].address.endswith("VisualDialog_val2018/VisualDialog_val2018_000000185565.jpg")
    assert [(entry.text, entry.answers, entry.wrong) for entry in record.questions] == [
        ("is the photo in color", ("yes",), ("no", "two", "1 dog", "i can not tell")),
        ("how many dogs", ("two",), ("i can not tell", "1 dog", "a man on a horse", "not that i can see")),
    ]


def test_training_images_are_those_of_coco(tmp_path: Path) -> None:
    file = evaluation_toys.make_visdial(tmp_path, "train") / "visdial_1.0_train.json"
    content = json.loads(file.read_text())
    content["split"] = "train"
    content["data"]["dialogs"][1]["dialog"][0]["gt_index"] = 3
    file.write_text(json.dumps(content))
    evaluation_toys.write_image(tmp_path / "images/val2014/COCO_val2014_000000185565.jpg", 1)
    source = opened(file, images=tmp_path / "images")
    assert [entry.images[0].address for entry in source] == [
        str(tmp_path / "images/val2014/COCO_val2014_000000185565.jpg")
    ]
    (problem,) = source.problems
    assert problem.address.endswith("[1]")
    assert "gt_index must be the index of the answer among the options, got 3" in problem.reason


RECORD = Record(
    (MemoryImage(toy_image(0), "x"),),
    "x",
    ("two dogs",),
    (
        Question("is it sunny", ("yes",), wrong=("no", "not at all")),
        Question("why", ("a man",), wrong=("dog", "cat")),
    ),
)


def test_a_round_is_a_sample_of_its_answer_and_a_wrong_one() -> None:
    tokenizer = toy_tokenizer()
    task = VisdialData(tokenizer=tokenizer, transform=Resize(SIZE), draw=False)
    assert task.count_samples(RECORD) == 2
    samples = [task.make_sample(RECORD, index, random.Random(0)) for index in range(2)]
    batch = VisdialBatch(**normalize_batch(task.make_batch(samples), ImageSettings(SIZE)))
    assert batch.pixels.shape == (2, 3, SIZE, SIZE)
    expected_texts = [
        "q: is it sunny a: yes", "q: is it sunny a: no",
        "q: is it sunny a: yes q: why a: a man", "q: is it sunny a: yes q: why a: dog",
    ]  # fmt: skip
    encoded = tokenizer.encode(expected_texts, "enc")
    assert torch.equal(batch.ids, encoded.ids)
    assert torch.equal(batch.mask, encoded.mask)
    assert torch.equal(batch.caption_ids, tokenizer.encode(["two dogs"] * 2, "cls").ids)
    assert batch.labels.tolist() == [1, 0, 1, 0]
    random_data = VisdialData(tokenizer=tokenizer, transform=Resize(SIZE))
    results = {tuple(random_data.make_sample(RECORD, 0, random.Random(seed)).dialogs[1]) for seed in range(20)}
    assert len(results) == 2


def test_a_round_needs_wrong_answers() -> None:
    task = VisdialData(tokenizer=toy_tokenizer(), transform=Resize(SIZE))
    bare = Record(RECORD.images, "x", ("a",), (Question("why", ("yes",)),))
    with pytest.raises(InputError, match="'why' needs wrong answers"):
        task.make_sample(bare, 0, random.Random(0))
    assert task.count_samples(Record(RECORD.images, "x", (), RECORD.questions)) == 0


def dialog_batch(length: int = 0) -> VisdialBatch:
    ids, mask = texts([[10, 11], [12, 13, 14, 15], [16], [17, 18]], ENC, length)
    caption_ids, caption_mask = texts([[20, 21, 22], [23]], CLS, length)
    torch.manual_seed(3)
    return VisdialBatch(
        pixels=images(2), caption_ids=caption_ids, caption_mask=caption_mask, ids=ids, mask=mask,
        labels=torch.tensor([1, 0, 1, 0]),
    )  # fmt: skip


def test_dialogs_are_the_plain_computation() -> None:
    model, batch = toy("retrieval"), dialog_batch()
    terms = []
    for row in range(4):
        image = row // 2
        image_states = model.encode_image(batch.pixels[image : image + 1])
        caption = model.text.encode(alone(batch.caption_ids, batch.caption_mask, image))
        states = model.text.encode_grounded(
            alone(batch.ids, batch.mask, row), None, torch.cat([image_states, caption], 1)
        )
        terms.append(F.cross_entropy(model.itm_head(states[:, 0]), batch.labels[row : row + 1]))
    expected = torch.stack(terms).mean()
    loss = VisdialObjective(model)(batch)["itm"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(model, loss), gradients(model, expected))
    torch.testing.assert_close(VisdialObjective(model)(dialog_batch(20))["itm"], loss)

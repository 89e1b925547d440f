"""What each task makes of a record, and that its tensors are the fields of its objective's batch."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openblip.data.augment import Resize
from openblip.data.collate import IMAGE_FIELDS, normalize_batch
from openblip.data.images import ImageRef, MemoryImage
from openblip.data.records import Expression, Question, Record
from openblip.data.tasks.base import TaskData
from openblip.data.tasks.caption import CaptionData
from openblip.data.tasks.grounding import GroundingData
from openblip.data.tasks.nlvr import NlvrData
from openblip.data.tasks.pretrain import PretrainData
from openblip.data.tasks.retrieval import RetrievalData
from openblip.data.tasks.vqa import VqaData
from openblip.errors import ImageError, InputError
from openblip.preprocess.image import load_image, resize, to_tensor
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import Tokenizer
from openblip.training.objectives.caption import CaptionBatch
from openblip.training.objectives.grounding import GroundingBatch
from openblip.training.objectives.nlvr import NlvrBatch
from openblip.training.objectives.pretrain import PretrainBatch
from openblip.training.objectives.retrieval import RetrievalBatch
from openblip.training.objectives.vqa import VqaBatch
from tests.data.data_toys import SIZE, numbers_of, picture

PIECES = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] a picture of dog cat red left right what colour is the two one ? , ##s "
    "it in cup image number yes no 0 1 2 3 4 5 6 7 8 9 d e f x y"
)
TOKENIZER = Tokenizer.from_vocab(PIECES.split())
PLAIN = Resize(SIZE)


def images_of(*numbers: int) -> tuple[ImageRef, ...]:
    return tuple(MemoryImage(picture(number), f"picture {number}") for number in numbers)


def make_batch(
    task: TaskData[Any], records: Sequence[Record], batch: type[Any], seed: int = 0
) -> tuple[Any, list[Any]]:
    """The objective's batch of every sample of the records."""
    samples = [
        task.make_sample(record, index, random.Random(f"{seed}/{number}/{index}"))
        for number, record in enumerate(records)
        for index in range(task.count_samples(record))
    ]
    tensors = task.make_batch(samples)
    assert set(tensors) <= {field.name for field in dataclasses.fields(batch)}
    results = batch(**normalize_batch(tensors, ImageSettings(SIZE)))
    for name in set(tensors) & set(IMAGE_FIELDS):
        assert getattr(results, name).shape[1:] == (3, SIZE, SIZE)
        assert getattr(results, name).dtype == torch.float32
    return results, samples


def words(ids: Tensor) -> list[str]:
    return [" ".join(TOKENIZER.pieces(row)) for row in ids]


DOGS = Record(images_of(3), "dogs", ("A dog.", "A red dog!"), image_id=7)
CAT = Record(images_of(5), "cat", ("the cat",), image_id=8)


def test_pretraining_makes_every_caption_a_sample() -> None:
    task = PretrainData(tokenizer=TOKENIZER, transform=PLAIN, max_tokens=6)
    assert [task.count_samples(record) for record in (DOGS, CAT)] == [2, 1]
    batch, samples = make_batch(task, [DOGS, CAT], PretrainBatch)
    assert numbers_of(np.stack([sample.images[0] for sample in samples])) == [3, 3, 5]
    assert words(batch.ids) == [
        "[CLS] a dog [SEP] [PAD] [PAD]", "[CLS] a red dog [SEP] [PAD]", "[CLS] the cat [SEP] [PAD] [PAD]"
    ]  # fmt: skip
    assert batch.mask.sum(1).tolist() == [4, 5, 4]
    assert batch.lm_ids is None


def test_pretraining_with_several_captions_of_an_image() -> None:
    task = PretrainData(tokenizer=TOKENIZER, transform=PLAIN, texts_per_image=3)
    assert [task.count_samples(record) for record in (DOGS, CAT)] == [1, 1]
    batch, samples = make_batch(task, [DOGS, CAT], PretrainBatch)
    assert batch.ids.shape == (2, 30)
    assert batch.lm_ids.shape == batch.lm_mask.shape == (6, 30)
    assert batch.lm_ids[:, 0].tolist() == [TOKENIZER.dec_id] * 6
    assert torch.equal(batch.lm_ids[::3, 1:], batch.ids[:, 1:])  # the first for ITC and ITM, all for LM
    assert set(samples[0].texts) == {"a dog", "a red dog"}
    assert samples[1].texts == ["the cat"] * 3  # it has but one
    firsts = {make_batch(task, [DOGS], PretrainBatch, seed)[1][0].texts[0] for seed in range(20)}
    assert firsts == {"a dog", "a red dog"}


def test_published_lengths() -> None:
    long = Record(images_of(0), "long", (" ".join(["dog"] * 500),))
    pretraining, _ = make_batch(PretrainData(tokenizer=TOKENIZER, transform=PLAIN), [long], PretrainBatch)
    retrieval, _ = make_batch(RetrievalData(tokenizer=TOKENIZER, transform=PLAIN), [long], RetrievalBatch)
    captioning, _ = make_batch(CaptionData(tokenizer=TOKENIZER, transform=PLAIN), [long], CaptionBatch)
    assert pretraining.ids.shape == (1, 30)  # 30 words cut to 30 tokens
    assert retrieval.ids.shape == (1, 35)
    assert retrieval.mask.sum() == 32  # 30 words, [CLS] and [SEP]; the rest is padding, as ranks exchange texts
    assert captioning.ids.shape == (1, 35)  # [DEC] a picture of, 30 words, [SEP]


def test_captioning_puts_the_prompt_first() -> None:
    task = CaptionData(tokenizer=TOKENIZER, transform=PLAIN)
    assert task.prompt_length == 4
    batch, _ = make_batch(task, [DOGS, CAT], CaptionBatch)
    assert words(batch.ids) == [
        "[DEC] a picture of a dog [SEP] [PAD]", "[DEC] a picture of a red dog [SEP]",
        "[DEC] a picture of the cat [SEP] [PAD]",
    ]  # fmt: skip
    several, _ = make_batch(dataclasses.replace(task, texts_per_image=2, prompt=""), [DOGS, CAT], CaptionBatch)
    assert several.pixels.shape[0] == 2
    assert sorted(words(several.ids)[:2]) == ["[DEC] a dog [SEP] [PAD]", "[DEC] a red dog [SEP]"]
    assert words(several.ids)[2:] == ["[DEC] the cat [SEP] [PAD]"] * 2
    assert dataclasses.replace(task, prompt="").prompt_length == 1


def test_retrieval_has_the_ids_of_images() -> None:
    task = RetrievalData(tokenizer=TOKENIZER, transform=PLAIN)
    batch, _ = make_batch(task, [DOGS, CAT], RetrievalBatch)
    assert batch.image_ids.tolist() == [7, 7, 8]
    assert batch.image_ids.dtype == torch.int64
    single, _ = make_batch(dataclasses.replace(task, texts_per_image=1), [DOGS, CAT], RetrievalBatch)
    assert single.image_ids.tolist() == [7, 8]
    with pytest.raises(InputError, match="must be None or 1"):
        RetrievalData(tokenizer=TOKENIZER, texts_per_image=2)


@pytest.mark.parametrize("task", [PretrainData, CaptionData, RetrievalData])
def test_captions_that_clean_to_nothing(task: type[Any]) -> None:
    dots = Record(images_of(0), "dots", ("...", "a dog"))
    all_texts = task(tokenizer=TOKENIZER, transform=PLAIN)
    with pytest.raises(InputError, match="empty after cleaning"):
        all_texts.make_sample(dots, 0, random.Random(0))
    assert all_texts.make_sample(dots, 1, random.Random(0)).texts == ["a dog"]
    random_data = task(tokenizer=TOKENIZER, transform=PLAIN, texts_per_image=1)
    assert random_data.make_sample(dots, 0, random.Random(0)).texts == ["a dog"]
    with pytest.raises(InputError, match="texts_per_image must be at least 1"):
        task(tokenizer=TOKENIZER, texts_per_image=0)


ASKED = Record(
    images_of(3),
    "asked",
    questions=(
        Question("What colour is it?", ("red",) * 3 + ("Red.",)),
        Question("no one knows?"),
        Question("What is in the image?", ("a dog",), source="vg"),
    ),
)
ASKED_ONCE = Record(images_of(5), "asked once", questions=(Question("Is it (2)?", ("yes",)),))


def test_answering_weighs_answers_as_they_are() -> None:
    task = VqaData(tokenizer=TOKENIZER, transform=PLAIN)
    assert [task.count_samples(record) for record in (ASKED, ASKED_ONCE, CAT)] == [2, 1, 0]
    batch, samples = make_batch(task, [ASKED, ASKED_ONCE], VqaBatch)
    assert words(batch.ids) == [
        "[ENC] what colour is it ? [SEP] [PAD]", "[ENC] what is in the image ? [SEP]",
        "[ENC] is it 2 ? [SEP] [PAD] [PAD]",
    ]  # fmt: skip
    assert [list(answers.items()) for sample in samples for answers in sample.answers] == [
        [("red", 0.75), ("Red.", 0.25)], [("a dog", 0.2)], [("yes", 1.0)]
    ]  # fmt: skip
    assert batch.question_index.tolist() == [0, 0, 1, 2]
    assert batch.weights.tolist() == pytest.approx([0.75, 0.25, 0.2, 1.0])
    assert batch.weights.dtype == torch.float32
    assert words(batch.answer_ids)[2] == "[DEC] a dog [SEP]"
    assert batch.answer_mask.sum(1).tolist() == [3, 4, 4, 3]
    assert batch.image_index is None
    full = dataclasses.replace(task, vg_weight=1.0)
    assert make_batch(full, [ASKED], VqaBatch)[0].weights.tolist() == [0.75, 0.25, 1.0]


def test_answering_several_questions_of_one_image() -> None:
    task = VqaData(tokenizer=TOKENIZER, transform=PLAIN, texts_per_image=2)
    batch, samples = make_batch(task, [ASKED, ASKED_ONCE], VqaBatch)
    assert batch.pixels.shape[0] == 2
    assert batch.image_index.tolist() == [0, 0, 1]
    assert sorted(samples[0].texts) == ["what colour is it?", "what is in the image?"]
    single = dataclasses.replace(task, texts_per_image=1)
    random_data = {make_batch(single, [ASKED], VqaBatch, seed)[1][0].texts[0] for seed in range(20)}
    assert random_data == {"what colour is it?", "what is in the image?"}
    with pytest.raises(InputError, match="texts_per_image must be at least 1"):
        VqaData(tokenizer=TOKENIZER, texts_per_image=0)
    with pytest.raises(InputError, match="question is empty after cleaning"):
        task.make_sample(Record(images_of(0), "x", questions=(Question("...", ("yes",)),)), 0, random.Random(0))


def test_comparing_swaps_images_and_sides() -> None:
    record = Record(images_of(1, 2), "pair", ("The left cup is red.",), label=1)
    plain = NlvrData(tokenizer=TOKENIZER, transform=PLAIN)
    batch, samples = make_batch(plain, [record], NlvrBatch)
    assert [numbers_of([single])[0] for single in samples[0].images] == [1, 2]
    assert words(batch.ids) == ["[ENC] the left cup is red [SEP]"]
    assert batch.labels.tolist() == [1]
    assert not torch.equal(batch.left_pixels, batch.right_pixels)
    swapping = dataclasses.replace(plain, swap=True)
    results = {
        (numbers_of([sample.images[0]])[0], sample.texts[0])
        for sample in (swapping.make_sample(record, 0, random.Random(seed)) for seed in range(20))
    }
    assert results == {(1, "the left cup is red"), (2, "the right cup is red")}


def test_comparing_needs_two_images_and_a_label() -> None:
    task = NlvrData(tokenizer=TOKENIZER)
    assert task.count_samples(Record(images_of(1, 2), "x", ("a",), label=0)) == 1
    assert task.count_samples(Record(images_of(1), "x", ("a",), label=0)) == 0
    assert task.count_samples(Record(images_of(1, 2), "x", ("a",))) == 0
    assert task.count_samples(Record(images_of(1, 2), "x", label=0)) == 0
    assert PretrainData(tokenizer=TOKENIZER).count_samples(Record(images_of(1, 2), "x", ("a",), label=0)) == 0
    with pytest.raises(InputError, match="statement is empty after cleaning"):
        task.make_sample(Record(images_of(1, 2), "x", ("...",), label=0), 0, random.Random(0))


NAMED = Record(
    images_of(3),
    "named",
    expressions=(
        Expression("The dog's cup.", (3.0, 2.0, 9.0, 7.0)),
        Expression("it, the cat", (-2.0, 0.0, 12.0, 99.0)),
    ),
)


def test_grounding_moves_boxes_with_their_image() -> None:
    task = GroundingData(tokenizer=TOKENIZER)
    assert task.count_samples(NAMED) == 2
    tensors = task.make_batch([task.make_sample(NAMED, index, random.Random(0)) for index in range(2)])
    assert set(tensors) == {"pixels", "ids", "mask", "boxes", "sizes"}
    batch = GroundingBatch(**normalize_batch(tensors, ImageSettings(384)))
    assert words(batch.ids)[0] == "[CLS] the dog ##s cup [SEP]"  # all punctuation goes, and leaves no space
    assert words(batch.ids)[1] == "[CLS] it the cat [SEP] [PAD]"
    assert batch.sizes.tolist() == [[384.0, 384.0]] * 2
    scale = torch.tensor([384 / 12, 384 / 10] * 2)  # the image is 12 x 10
    assert torch.allclose(batch.boxes[0], torch.tensor([3.0, 2.0, 9.0, 7.0]) * scale)
    assert torch.allclose(batch.boxes[1], torch.tensor([0.0, 0.0, 12.0, 10.0]) * scale)  # cut at the edge
    several = dataclasses.replace(task, texts_per_image=5)
    tensors = several.make_batch([several.make_sample(NAMED, 0, random.Random(0))])
    assert tensors["pixels"].shape[0] == 1
    assert tensors["image_index"].tolist() == [0, 0]
    with pytest.raises(InputError, match="texts_per_image must be at least 1"):
        GroundingData(tokenizer=TOKENIZER, texts_per_image=0)


def test_a_mirrored_image_has_its_sides_exchanged() -> None:
    record = dataclasses.replace(
        NAMED, expressions=(Expression("the dog left of the Right, leftover cup", (3.0, 2.0, 9.0, 7.0)),)
    )
    plain = GroundingData(tokenizer=TOKENIZER)
    straight = plain.make_sample(record, 0, random.Random(0))
    mirrored = dataclasses.replace(plain, mirror=1.0).make_sample(record, 0, random.Random(0))
    assert mirrored.texts == ["the dog right of the left leftover cup"]
    # The same image, mirrored after resizing, with its box measured from the right edge.
    assert np.abs(mirrored.images[0].astype(int) - straight.images[0][:, ::-1].astype(int)).max() <= 1
    ((x0, y0, x1, y1),) = straight.boxes
    assert list(mirrored.boxes[0]) == pytest.approx([384 - x1, y0, 384 - x0, y1])
    random_data = [
        dataclasses.replace(plain, mirror=0.5).make_sample(record, 0, random.Random(seed)).texts for seed in range(40)
    ]
    assert 10 < sum(texts == mirrored.texts for texts in random_data) < 30


@pytest.mark.parametrize("box", [(12.0, 0.0, 20.0, 5.0), (0.0, -5.0, 5.0, 0.0)])
def test_a_box_outside_its_image_is_a_bad_record(box: tuple[float, float, float, float]) -> None:
    task = GroundingData(tokenizer=TOKENIZER)
    with pytest.raises(InputError, match=r"bbox must overlap the image of 12 x 10"):
        task.make_sample(Record(images_of(0), "x", expressions=(Expression("it", box),)), 0, random.Random(0))
    with pytest.raises(InputError, match="expression is empty after cleaning"):
        task.make_sample(Record(images_of(0), "x", expressions=(Expression("...", (0, 0, 1, 1)),)), 0, random.Random(0))


def test_plain_pixels_are_those_of_evaluation(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    pixels = Resize(16)(load_image(tmp_path / "a.png"), random.Random(0))
    assert np.array_equal(pixels, resize(load_image(tmp_path / "a.png"), 16))
    settings = ImageSettings(16)
    batch = normalize_batch({"pixels": torch.from_numpy(pixels[None]), "ids": torch.ones(1, 2)}, settings)
    assert torch.equal(batch["pixels"], to_tensor(pixels[None], settings))
    assert torch.equal(batch["ids"], torch.ones(1, 2))


def test_an_image_that_cannot_be_read_is_an_error_of_the_family() -> None:
    bad = Record((MemoryImage(b"no picture", "here"),), "x", ("a",), (Question("q?", ("yes",)),))
    for task in (CaptionData(tokenizer=TOKENIZER), VqaData(tokenizer=TOKENIZER)):
        with pytest.raises(ImageError):
            task.make_sample(bad, 0, random.Random(0))

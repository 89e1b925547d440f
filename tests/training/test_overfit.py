"""Each objective learns a handful of samples: its loss falls to its floor and the right outputs come back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip.model.text import Memory
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.contrastive import Features
from openblip.training.objectives.grounding import GroundingBatch, GroundingObjective, box_bins
from openblip.training.objectives.nlvr import NlvrBatch, NlvrObjective
from openblip.training.objectives.pretrain import PretrainBatch, PretrainObjective
from openblip.training.objectives.retrieval import RetrievalBatch, RetrievalObjective
from openblip.training.objectives.vqa import VqaBatch, VqaObjective
from tests.training.training_toys import CLS, DEC, ENC, SEP, images, texts, toy

CAPTIONS = [[10, 11, 12], [10, 13, 14, 15], [16, 11], [17, 10, 18, 12]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)  # the toys are too small to share
    yield
    torch.set_num_threads(threads_before)


def fit(objective: nn.Module, steps: int, losses: Callable[[], dict[str, Tensor]]) -> dict[str, float]:
    """Train, and give the mean of each loss over the last ten steps, as draws of negatives vary."""
    optimizer = torch.optim.AdamW((p for p in objective.parameters() if p.requires_grad), lr=5e-3, fused=True)
    history = []
    for _ in range(steps):
        values = losses()
        optimizer.zero_grad()
        torch.stack(list(values.values())).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        history.append({name: value.item() for name, value in values.items()})
    return {name: sum(values[name] for values in history[-10:]) / 10 for name in history[0]}


@torch.no_grad()
def written(model: Any, memory: Memory, prompt: list[int]) -> list[int]:
    """The likeliest continuation, token by token, up to [SEP]."""
    ids = list(prompt)
    while ids[-1] != SEP and len(ids) < 12:
        ids.append(int(model.logits(torch.tensor([ids]), None, memory)[0, -1].argmax()))
    return ids[len(prompt) :]


def test_captioning() -> None:
    model = toy("caption")
    objective, pixels = CaptionObjective(model, prompt_length=2, smoothing=0.0), images(4)
    ids, mask = texts([[9, *caption] for caption in CAPTIONS], DEC)  # [DEC] 9 is the prompt
    batch = CaptionBatch(pixels=pixels, ids=ids, mask=mask)
    assert fit(objective, 80, lambda: objective(batch))["lm"] < 0.1
    for i, caption in enumerate(CAPTIONS):
        memory = model.decoder.project(model.encode_image(pixels[i : i + 1]))
        assert written(model, memory, [DEC, 9]) == [*caption, SEP]


def test_answering() -> None:
    model = toy("vqa")
    objective, pixels = VqaObjective(model, smoothing=0.0), images(2)
    ids, mask = texts([[10, 11], [12], [10, 11], [12]], ENC)
    answers = [[30], [31, 32], [33, 34], [30, 35]]  # two questions about each of two images
    answer_ids, answer_mask = texts(answers, DEC)
    batch = VqaBatch(
        pixels=pixels, ids=ids, mask=mask, answer_ids=answer_ids, answer_mask=answer_mask,
        question_index=torch.arange(4), weights=torch.ones(4),
    )  # fmt: skip
    assert fit(objective, 100, lambda: objective(batch))["vqa"] < 0.1
    states = model.encode_question(ids, mask, model.encoder.project(model.encode_image(pixels)))
    for i, answer in enumerate(answers):
        memory = model.decoder.project(states[i : i + 1], mask[i : i + 1])
        assert written(model, memory, [DEC]) == [*answer, SEP]


def check_matches(model: Any, pixels: Tensor, ids: Tensor, mask: Tensor, owners: list[int]) -> None:
    """Every text is nearest to its own image, and judged to match it and no other."""
    with torch.no_grad():
        tokens = model.encode_image(pixels)
        nearest = (model.embed_text(ids, mask) @ model.embed_image(tokens).T).argmax(1)
        assert nearest.tolist() == owners
        enc_ids = ids.clone()
        enc_ids[:, 0] = ENC
        for image in range(len(pixels)):
            logits = model.match_logits(enc_ids, mask, tokens[image : image + 1])
            assert logits.argmax(1).tolist() == [int(owner == image) for owner in owners]


def test_retrieval() -> None:
    """Two texts for each of three images. With soft labels off, the floor of ITC is the entropy of its targets: a pair
    has the two texts of its image in the batch and, as the batch is always the same, again in the queue."""
    model, pixels, owners = toy("retrieval"), images(3), [0, 0, 1, 1, 2, 2]
    ids, mask = texts([*CAPTIONS, [19], [20, 21]], CLS)
    batch = RetrievalBatch(pixels=pixels[owners], ids=ids, mask=mask, image_ids=torch.tensor(owners))
    objective = RetrievalObjective(model, queue_size=6, momentum=0.5)
    losses = fit(objective, 70, lambda: objective(batch, alpha=0.0))
    assert losses["itm"] < 0.05
    assert losses["itc"] - math.log(4) < 0.05
    check_matches(model, pixels, ids, mask, owners)


class OtherPairs(PretrainObjective):
    """An objective whose queue keeps its initial random features, like features of other images.

    Fed one batch over and over, it would fill with these same pairs, which ITC could only tell from themselves by age.
    """

    def advance_queues(self, features: Features, pair_ids: Tensor) -> None:
        pass


def test_pretraining() -> None:
    model, pixels = toy("pretrain"), images(4)
    ids, mask = texts(CAPTIONS, CLS)
    batch = PretrainBatch(pixels=pixels, ids=ids, mask=mask)
    objective = OtherPairs(model, queue_size=16, momentum=0.5, smoothing=0.0)
    losses = fit(objective, 80, lambda: objective(batch, alpha=0.0))
    assert all(loss < 0.1 for loss in losses.values()), losses
    check_matches(model, pixels, ids, mask, [0, 1, 2, 3])
    for i, caption in enumerate(CAPTIONS):
        memory = model.text.project(model.encode_image(pixels[i : i + 1]))
        assert written(model, memory, [DEC]) == [*caption, SEP]


def test_comparing() -> None:
    """The same statement is true of a pair and false of the pair turned round."""
    model, left_images, right_images = toy("nlvr"), images(2), images(2)
    ids, mask = texts([[10, 11], [12], [10, 11], [12]], ENC)
    batch = NlvrBatch(
        left_pixels=torch.cat([left_images, right_images]),
        right_pixels=torch.cat([right_images, left_images]),
        ids=ids,
        mask=mask,
        labels=torch.tensor([1, 0, 0, 1]),
    )
    objective = NlvrObjective(model)
    assert fit(objective, 60, lambda: objective(batch))["nlvr"] < 0.05
    pair = (model.encode_image(batch.left_pixels), model.encode_image(batch.right_pixels))
    assert model.logits(ids, mask, pair).argmax(1).equal(batch.labels)


def test_grounding() -> None:
    """Two expressions about each of two images; the box is predicted as four likeliest bins in sequence."""
    model, pixels = toy("grounding", box_bins=16, box_start_id=39), images(2)
    ids, mask = texts([[10, 11], [12], [10, 11], [12]], CLS)
    boxes = torch.tensor(
        [[0.0, 0.0, 10.0, 30.0], [5.0, 5.0, 30.0, 9.0], [20.0, 1.0, 31.0, 31.0], [8.0, 8.0, 20.0, 20.0]]
    )
    sizes, image = torch.full((4, 2), 32.0), torch.tensor([0, 0, 1, 1])
    batch = GroundingBatch(pixels=pixels, ids=ids, mask=mask, boxes=boxes, sizes=sizes, image_index=image)
    objective = GroundingObjective(model)
    assert fit(objective, 70, lambda: objective(batch))["box"] < 0.05
    memory = model.make_memory(ids, mask, model.encode_image(pixels), image)
    values = torch.full((4, 1), 39)
    for _ in range(4):
        logits = model.logits(values, memory)[:, -1, model.box_ids()]
        values = torch.cat([values, model.box_ids()[logits.argmax(1)][:, None]], dim=1)
    assert (values[:, 1:] - 40).equal(box_bins(boxes, sizes, 16))

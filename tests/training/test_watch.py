"""Figures and samples of the evaluation in the middle of training, against plain recomputation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from openblip.model.comparer import Comparer
from openblip.model.matcher import Matcher
from openblip.training import watch
from openblip.training.objectives.comparing import Comparing
from openblip.training.objectives.grounding import GroundingBatch
from openblip.training.watch import answer, describe, found_boxes, held_out, recall, true_statements
from tests.toys import SIZE, toy_model, toy_tokenizer
from tests.training.loop_toys import half, toy_batch, toy_objective

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.usefixtures("no_gradients")]


@pytest.fixture
def no_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_recall_counts_by_hand() -> None:
    """Eight texts of six images, some of them shown twice, against loops over texts and images."""
    model: Any = toy_model("retrieval")
    assert isinstance(model, Matcher)
    batch = toy_batch("retrieval")
    batch.pixels[3], batch.pixels[5] = batch.pixels[0], batch.pixels[1]  # as their ids say
    found = recall(model, [half(batch, 0), half(batch, 1)])
    ids = batch.image_ids.tolist()
    texts = model.embed_text(batch.ids, batch.mask)
    images = {i: model.embed_image(model.encode_image(batch.pixels[[n]]))[0] for n, i in enumerate(ids)}
    scores = {(t, i): float(texts[t] @ images[i]) for t in range(8) for i in images}
    t2i = [sum(scores[t, i] > scores[t, ids[t]] for i in images) for t in range(8)]
    i2t = [
        sum(scores[t, i] > max(scores[own, i] for own in range(8) if ids[own] == i) for t in range(8)) for i in images
    ]
    for name, ranks in (("t2i", t2i), ("i2t", i2t)):
        for k in (1, 5, 10):
            assert found[f"{name}_r{k}"] == pytest.approx(100 * sum(r < k for r in ranks) / len(ranks)), (name, k)
    assert found["r_mean"] == pytest.approx(sum(v for n, v in found.items() if n != "r_mean") / 6)
    assert 0 < found["t2i_r1"] < 100, "a case that tells something"


def test_held_out_losses_are_weighted_by_their_texts() -> None:
    objective = toy_objective("nlvr").eval()
    assert isinstance(objective, Comparing)
    batch = toy_batch("nlvr")
    large, small = half(batch, 0), half(half(batch, 1), 0)
    found = held_out(objective, [large, small], true_statements)
    losses = [float(objective(part)["nlvr"]) for part in (large, small)]
    assert found["val_loss"] == pytest.approx((4 * losses[0] + 2 * losses[1]) / 6)
    model = objective.model
    assert isinstance(model, Comparer)
    right = 0
    for part in (large, small):
        for n in range(len(part.ids)):
            pair = (model.encode_image(part.first[[n]]), model.encode_image(part.second[[n]]))
            logits = model.logits(part.ids[[n]], part.mask[[n]], pair)[0]
            right += int(logits[1] > logits[0]) == int(part.targets[n])
    assert found["accuracy"] == pytest.approx(right / 6)


def test_boxes_are_found_where_half_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grounder that always says one box, held against boxes that share more and less than half with it."""
    model: Any = toy_objective("grounding").model
    said = torch.tensor([10.0, 10.0, 10.0, 20.0])  # of 20 bins
    monkeypatch.setattr(watch, "decode_boxes", lambda session, start, *_: (said.expand(len(start), 4), None))
    # Centre (0.5, 0.5), half as wide as the picture and as high as it: from 8 to 24, and from 0 to 32, of 32 pixels.
    boxes = [
        [8, 0, 24, 32],
        [8, 0, 24, 17],
        [8, 0, 24, 15],
        [0, 0, 32, 32],
        [0, 0, 32, 31],
        [24, 0, 32, 32],
        [0, 0, 16, 32],
    ]
    count = len(boxes)
    batch = GroundingBatch(
        pixels=torch.zeros(1, 3, SIZE, SIZE), image=torch.zeros(count, dtype=torch.long),
        ids=torch.full((count, 3), 5), mask=torch.ones(count, 3, dtype=torch.long),
        boxes=torch.tensor(boxes, dtype=torch.float32), sizes=torch.full((count, 2), 32.0),
    )  # fmt: skip
    assert found_boxes(model, batch).tolist() == [True, True, False, True, False, False, False]


def test_pictures_are_described_and_questions_answered_as_one_alone_is() -> None:
    """Each text of a batch is the one that the picture gets by itself."""
    tokenizer = toy_tokenizer()
    pixels = torch.randn(3, 3, SIZE, SIZE)
    captioner: Any = toy_model("caption")
    together = describe(captioner, tokenizer, pixels, "a picture of ")
    assert len(set(together)) > 1
    assert together == [describe(captioner, tokenizer, pixels[[n]], "a picture of ")[0] for n in range(3)]
    pretrainer: Any = toy_model("pretrain")
    assert len(describe(pretrainer, tokenizer, pixels, "")) == 3
    answerer: Any = toy_model("vqa")
    questions = ["what is it?", "where is the dog in the picture?", "is it red?"]
    together = answer(answerer, tokenizer, pixels, questions)
    assert together == [answer(answerer, tokenizer, pixels[[n]], [questions[n]])[0] for n in range(3)]

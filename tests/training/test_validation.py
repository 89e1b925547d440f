"""Quick evaluations during training: recall, held-out losses, boxes, and texts for some images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from openblip.model.comparer import Comparer
from openblip.model.matcher import Matcher
from openblip.training.config import NlvrLoss
from openblip.training.objectives import grounding
from openblip.training.objectives.base import PreviewImage
from openblip.training.objectives.caption import CaptionObjective
from openblip.training.objectives.grounding import GroundingBatch, GroundingObjective
from openblip.training.objectives.nlvr import NlvrObjective
from openblip.training.objectives.pretrain import PretrainObjective
from openblip.training.objectives.vqa import VqaObjective
from openblip.training.recall import measure_recall
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
    metrics = measure_recall(model, [half(batch, 0), half(batch, 1)])
    ids = batch.image_ids.tolist()
    texts = model.embed_text(batch.ids, batch.mask)
    images = {i: model.embed_image(model.encode_image(batch.pixels[[n]]))[0] for n, i in enumerate(ids)}
    scores = {(t, i): float(texts[t] @ images[i]) for t in range(8) for i in images}
    t2i = [sum(scores[t, i] > scores[t, ids[t]] for i in images) for t in range(8)]
    i2t = [
        sum(scores[t, i] > max(scores[text, i] for text in range(8) if ids[text] == i) for t in range(8))
        for i in images
    ]
    for name, ranks in (("t2i", t2i), ("i2t", i2t)):
        for k in (1, 5, 10):
            assert metrics[f"{name}_r{k}"] == pytest.approx(100 * sum(r < k for r in ranks) / len(ranks)), (name, k)
    assert metrics["r_mean"] == pytest.approx(sum(v for n, v in metrics.items() if n != "r_mean") / 6)
    assert 0 < metrics["t2i_r1"] < 100, "a case that tells something"


def test_validation_losses_are_weighted_by_their_texts() -> None:
    objective = toy_objective("nlvr").eval()
    assert isinstance(objective, NlvrObjective)
    batch = toy_batch("nlvr")
    large, small = half(batch, 0), half(half(batch, 1), 0)
    model = objective.model
    assert isinstance(model, Comparer)
    data: Any = None  # the objective takes nothing from it
    metrics = NlvrObjective.validate(model, [large, small], NlvrLoss(), data)
    losses = [float(objective(batch_part)["nlvr"]) for batch_part in (large, small)]
    assert metrics["val_loss"] == pytest.approx((4 * losses[0] + 2 * losses[1]) / 6)
    correct = 0
    for batch_part in (large, small):
        for n in range(len(batch_part.ids)):
            pair = (model.encode_image(batch_part.left_pixels[[n]]), model.encode_image(batch_part.right_pixels[[n]]))
            logits = model.logits(batch_part.ids[[n]], batch_part.mask[[n]], pair)[0]
            correct += int(logits[1] > logits[0]) == int(batch_part.labels[n])
    assert metrics["accuracy"] == pytest.approx(correct / 6)


def test_a_box_is_correct_if_half_is_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A grounder that always predicts one box, against boxes with an IoU above and below one half."""
    objective: Any = toy_objective("grounding")
    assert isinstance(objective, GroundingObjective)
    predicted = torch.tensor([10.0, 10.0, 10.0, 20.0])  # of 20 bins
    monkeypatch.setattr(grounding, "decode_boxes", lambda session, start, *_: (predicted.expand(len(start), 4), None))
    # Center (0.5, 0.5), half the width and the full height of the image: from 8 to 24, and from 0 to 32, of 32 pixels.
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
        pixels=torch.zeros(1, 3, SIZE, SIZE),
        image_index=torch.zeros(count, dtype=torch.long),
        ids=torch.full((count, 3), 5),
        mask=torch.ones(count, 3, dtype=torch.long),
        boxes=torch.tensor(boxes, dtype=torch.float32),
        sizes=torch.full((count, 2), 32.0),
    )
    assert objective.correct(batch).tolist() == [True, True, False, True, False, False, False]


def test_texts_of_a_batch_equal_texts_of_single_images() -> None:
    tokenizer = toy_tokenizer()
    questions = ["what is it?", "where is the dog in the picture?", "is it red?"]
    images = [PreviewImage(f"{n}.png", torch.randn(3, SIZE, SIZE), questions[n]) for n in range(3)]
    captioner: Any = toy_model("caption")
    rows = CaptionObjective.describe(captioner, tokenizer, images, "a picture of ")
    assert [row["image"] for row in rows] == ["0.png", "1.png", "2.png"]
    assert len({row["caption"] for row in rows}) > 1
    assert rows == [CaptionObjective.describe(captioner, tokenizer, [image], "a picture of ")[0] for image in images]
    pretrainer: Any = toy_model("pretrain")
    assert len(PretrainObjective.describe(pretrainer, tokenizer, images, "")) == 3
    answerer: Any = toy_model("vqa")
    rows = VqaObjective.describe(answerer, tokenizer, images, "")
    assert [row["question"] for row in rows] == questions
    assert rows == [VqaObjective.describe(answerer, tokenizer, [image], "")[0] for image in images]

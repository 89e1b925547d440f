"""Captioning, VQA, NLVR2 and grounding against plain recomputations, one sample and one token at a time."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.errors import ConfigError, InputError
from openblip.model.layers import Trace
from openblip.preprocess.text import Tokenizer, clean_caption
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.gather import Gather
from openblip.training.objectives.grounding import (
    ATTENTION_LAYERS,
    GroundingBatch,
    GroundingObjective,
    box_bins,
    generalized_iou,
    to_center,
    to_corners,
)
from openblip.training.objectives.language import IGNORED, lm_loss, lm_targets, with_first_token
from openblip.training.objectives.nlvr import NlvrBatch, NlvrObjective
from openblip.training.objectives.vqa import VqaBatch, VqaObjective
from tests.conftest import GOLDEN
from tests.training.training_toys import (
    CLS,
    DEC,
    ENC,
    PAD,
    SEP,
    alone,
    assert_same,
    gradients,
    images,
    texts,
    toy,
)

CAPTIONS = [[10, 11, 20, 21, 22], [10, 11, 23], [10, 11], [10, 11, 24, 25, 26, 27]]  # the prompt is [DEC] 10 11


def smoothed(logits: Tensor, target: int, smoothing: float) -> Tensor:
    """Cross-entropy of one token (V,): the target's share is 1 - smoothing plus what every word gets."""
    logs = [logit - logits.exp().sum().log() for logit in logits]
    return -((1 - smoothing) * logs[target] + smoothing * torch.stack(logs).mean())


def token_losses(logits: Tensor, ids: Tensor, prompt_length: int, smoothing: float) -> list[Tensor]:
    """The losses of the tokens after the first `given` of ids (1, t), by logits (1, t, V)."""
    return [smoothed(logits[0, p - 1], int(ids[0, p]), smoothing) for p in range(prompt_length, ids.shape[1])]


def captioning_batch(length: int = 0, image: Tensor | None = None) -> CaptionBatch:
    ids, mask = texts(CAPTIONS, DEC, length)
    return CaptionBatch(pixels=images(2), ids=ids, mask=mask, image_index=image)


@pytest.mark.parametrize("smoothing", [0.1, 0.0])
@pytest.mark.parametrize("image", [None, [1, 0, 1, 1]])
def test_captioning_is_the_plain_computation(image: list[int] | None, smoothing: float) -> None:
    model = toy("caption")
    batch = captioning_batch(image=None if image is None else torch.tensor(image))
    terms = []
    for row, picture in enumerate(image or [0, 0, 1, 1]):
        ids = alone(batch.ids, batch.mask, row)
        logits = model.logits(ids, None, model.encode_image(batch.pixels[picture : picture + 1]))
        terms += token_losses(logits, ids, 3, smoothing)
    assert len(terms) == 4 + 2 + 1 + 5
    expected = torch.stack(terms).mean()
    loss = CaptionObjective(model, prompt_length=3, smoothing=smoothing)(batch)["lm"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(model, loss), gradients(model, expected))


def test_captioning_does_not_depend_on_padding() -> None:
    objective = CaptionObjective(toy("caption"), prompt_length=3)
    short = captioning_batch()
    ids, mask = texts(CAPTIONS, DEC, 40)
    ids[mask == 0] = 33  # padding with any ids
    long = CaptionBatch(pixels=short.pixels, ids=ids, mask=mask)
    short_loss, long_loss = objective(short)["lm"], objective(long)["lm"]
    torch.testing.assert_close(short_loss, long_loss)
    assert_same(gradients(objective.model, short_loss), gradients(objective.model, long_loss), 1e-6)


def test_the_prompt_is_given_and_dec_comes_first() -> None:
    ids, mask = texts([[10, 11, 20]], DEC, 7)
    assert lm_targets(ids, mask, 3).tolist() == [[IGNORED] * 3 + [20, SEP, IGNORED, IGNORED]]
    assert lm_targets(ids, mask).tolist() == [[DEC, 10, 11, 20, SEP, IGNORED, IGNORED]]
    cls_ids, _ = texts([[10, 11, 20]], CLS, 7)
    assert with_first_token(cls_ids, DEC).equal(ids)
    assert int(cls_ids[0, 0]) == CLS  # the caller's ids are left alone


def test_captions_with_nothing_to_learn() -> None:
    """An empty caption teaches its end; a batch whose captions are all cut off inside the prompt, nothing at all."""
    model = toy("caption")
    ids, mask = texts([[10, 11]], DEC)
    batch = CaptionBatch(pixels=images(1), ids=ids, mask=mask)
    logits = model.logits(ids, mask, model.encode_image(batch.pixels))
    torch.testing.assert_close(CaptionObjective(model, prompt_length=3)(batch)["lm"], smoothed(logits[0, 2], SEP, 0.1))
    cut = CaptionBatch(pixels=batch.pixels, ids=ids[:, :3], mask=mask[:, :3])
    loss = CaptionObjective(model, prompt_length=3)(cut)["lm"]
    assert loss.item() == 0.0
    assert all((g == 0).all() for g in gradients(model, loss).values())


def test_a_caption_of_500_words_is_cut_by_the_tokenizer() -> None:
    tokenizer = Tokenizer.from_vocab(GOLDEN / "vocab.txt")
    words = "a man riding a brown horse on the beach and " * 50
    tokens = tokenizer.encode(["a picture of " + clean_caption(words, 500), "a picture of a dog"], "dec", 40)
    assert tokens.ids.shape == (2, 40)
    model = toy("caption")
    batch = CaptionBatch(pixels=images(2), ids=tokens.ids % 60, mask=tokens.mask)  # the toy knows 60 words
    assert torch.isfinite(CaptionObjective(model, prompt_length=4)(batch)["lm"])
    ids, mask = texts([[20] * 500], DEC)
    with pytest.raises(InputError, match="at most 48 tokens, got 502"):
        CaptionObjective(model, prompt_length=4)(CaptionBatch(pixels=images(1), ids=ids, mask=mask))


def test_token_mean_over_all_processes() -> None:
    """Given that another process scores 3 tokens to our 12, a sum is divided by the 7.5 of the average process."""

    class Two(Gather):
        def __call__(self, rows: Tensor) -> Tensor:
            return torch.cat([rows, torch.full_like(rows, 3)])

    model, batch = toy("caption"), captioning_batch()
    boxes_a = CaptionObjective(model, prompt_length=3, gather=Two())(batch)["lm"]
    shared = CaptionObjective(model, prompt_length=3, token_mean="all", gather=Two())(batch)["lm"]
    torch.testing.assert_close(shared, boxes_a * 12 / 7.5)


def test_lm_loss_sums_per_text() -> None:
    model = toy("caption")
    ids, mask = texts(CAPTIONS, DEC)
    states = model.decoder.decode(ids, mask, model.encode_image(images(4)))
    labels = lm_targets(ids, mask, 3)
    sums = lm_loss(states, labels, model.to_logits, reduction="none")
    logits = model.to_logits(states)
    for row in range(4):
        complete = alone(ids, mask, row)
        expected = torch.stack(token_losses(logits[row : row + 1], complete, 3, 0.1)).sum()
        torch.testing.assert_close(sums[row], expected)


QUESTIONS = [[10, 11, 12, 13], [14], [15, 16]]
ANSWERS = [[30], [31, 32], [33], [30], [34, 35, 36]]
OWNERS = [0, 0, 1, 2, 2]
WEIGHTS = [0.7, 0.3, 1.0, 0.2, 0.5]


def answering_batch(image: list[int] | None = None, questions: int = 0, answers: int = 0) -> VqaBatch:
    ids, mask = texts(QUESTIONS, ENC, questions)
    answer_ids, answer_mask = texts(ANSWERS, DEC, answers)
    torch.manual_seed(3)
    return VqaBatch(
        pixels=images(3 if image is None else 2),
        image_index=None if image is None else torch.tensor(image),
        ids=ids,
        mask=mask,
        answer_ids=answer_ids,
        answer_mask=answer_mask,
        question_index=torch.tensor(OWNERS),
        weights=torch.tensor(WEIGHTS),
    )


@pytest.mark.parametrize("image", [None, [0, 1, 0]])
def test_answering_is_the_plain_computation(image: list[int] | None) -> None:
    model, batch = toy("vqa"), answering_batch(image)
    expected = torch.zeros(())
    for row, (question, weight) in enumerate(zip(OWNERS, WEIGHTS, strict=True)):
        picture = question if image is None else image[question]
        tokens = model.encode_image(batch.pixels[picture : picture + 1])
        states = model.encode_question(alone(batch.ids, batch.mask, question), None, tokens)
        ids = alone(batch.answer_ids, batch.answer_mask, row)
        terms = token_losses(model.logits(ids, None, states), ids, 1, 0.1)
        expected = expected + weight * torch.stack(terms).sum() / len(QUESTIONS)
    loss = VqaObjective(model)(batch)["vqa"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(model, loss), gradients(model, expected))


def test_answering_does_not_depend_on_padding() -> None:
    objective = VqaObjective(toy("vqa"))
    short_loss, long_loss = objective(answering_batch())["vqa"], objective(answering_batch(None, 20, 12))["vqa"]
    torch.testing.assert_close(short_loss, long_loss)


def test_answering_one_question_and_an_empty_answer() -> None:
    model = toy("vqa")
    ids, mask = texts([[10]], ENC)
    answer_ids, answer_mask = texts([[]], DEC)
    batch = VqaBatch(
        pixels=images(1), ids=ids, mask=mask, answer_ids=answer_ids, answer_mask=answer_mask,
        question_index=torch.tensor([0]), weights=torch.tensor([1.0]),
    )  # fmt: skip
    states = model.encode_question(ids, None, model.encode_image(batch.pixels))
    logits = model.logits(answer_ids, None, states)
    torch.testing.assert_close(VqaObjective(model)(batch)["vqa"], smoothed(logits[0, 0], SEP, 0.1))


def comparing_batch(count: int, length: int = 0) -> NlvrBatch:
    ids, mask = texts([[10, 11], [12, 13, 14, 15], [16]][:count], ENC, length)
    torch.manual_seed(5)
    return NlvrBatch(
        left_pixels=images(count),
        right_pixels=images(count),
        ids=ids,
        mask=mask,
        labels=torch.tensor([1, 0, 1][:count]),
    )


@pytest.mark.parametrize("count", [1, 3])
def test_comparing_is_the_plain_computation(count: int) -> None:
    model, batch = toy("nlvr"), comparing_batch(count)
    terms = []
    for row in range(count):
        pair = tuple(
            model.encode_image(images_of_side[row : row + 1])
            for images_of_side in (batch.left_pixels, batch.right_pixels)
        )
        logits = model.logits(alone(batch.ids, batch.mask, row), None, pair)[0]
        terms.append(logits.exp().sum().log() - logits[batch.labels[row]])
    expected = torch.stack(terms).mean()
    loss = NlvrObjective(model)(batch)["nlvr"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(model, loss), gradients(model, expected))
    torch.testing.assert_close(NlvrObjective(model)(comparing_batch(count, 30))["nlvr"], loss)


SIZES = torch.tensor([[64.0, 48.0], [64.0, 48.0], [100.0, 200.0]])
BOXES = torch.tensor([[0.0, 0.0, 64.0, 48.0], [10.0, 5.0, 20.0, 47.0], [30.0, 100.0, 90.0, 130.0]])


def grounder() -> Any:
    return toy("grounding", box_bins=16, box_start_id=39)


def grounding_batch(image: list[int] | None = None, length: int = 0, count: int = 3) -> GroundingBatch:
    ids, mask = texts([[10, 11], [12, 13, 14, 15], [16]][:count], CLS, length)
    torch.manual_seed(7)
    return GroundingBatch(
        pixels=images(count if image is None else 2),
        ids=ids,
        mask=mask,
        boxes=BOXES[:count],
        sizes=SIZES[:count],
        image_index=None if image is None else torch.tensor(image),
    )


@pytest.mark.parametrize(("image", "count"), [(None, 3), ([0, 0, 1], 3), (None, 1)])
def test_grounding_is_the_plain_computation(image: list[int] | None, count: int) -> None:
    model, batch = grounder(), grounding_batch(image, count=count)
    terms = []
    for row in range(count):
        x0, y0, x1, y1 = BOXES[row].tolist()
        width, height = SIZES[row].tolist()
        shares = (
            (x0 + x1) / 2 / width,
            (y0 + y1) / 2 / height,
            (x1 - x0) / width,
            (y1 - y0) / height,
        )
        ids = [39, *(40 + math.floor(16 * share) for share in shares)]
        picture = row if image is None else image[row]
        tokens = model.encode_image(batch.pixels[picture : picture + 1])
        words = alone(batch.ids, batch.mask, row)
        fused = model.fusion.encode_embedded(model.text.encode(words), None, tokens)
        fused_memory = model.decoder.project(torch.cat([tokens, fused], dim=1))
        logits = model.logits(torch.tensor([ids]), fused_memory)[0]
        outside = [word for word in range(60) if not 40 <= word <= 56]
        logits = logits.index_fill(1, torch.tensor(outside), 0.0)
        logits = logits + torch.tensor([-10000.0 if word in outside else 0.0 for word in range(60)])
        terms += [smoothed(logits[position], ids[position + 1], 0.0) for position in range(4)]
    expected = torch.stack(terms).mean()
    loss = GroundingObjective(model)(batch)["box"]
    torch.testing.assert_close(loss, expected)
    assert_same(gradients(model, loss), gradients(model, expected))
    padded = grounding_batch(image, 30, count)
    torch.testing.assert_close(GroundingObjective(model)(padded)["box"], loss)


def test_bins_are_whole_shares_of_the_image() -> None:
    assert box_bins(BOXES, SIZES, 640).tolist()[0] == [320, 320, 640, 640]
    edge = torch.tensor([[3.0, 0.0, 18.0, 300.0]])  # 15 / 300 of 640 is 32; 18 / 300 - 3 / 300 in single precision, 31
    assert box_bins(edge, torch.tensor([[300.0, 300.0]]), 640).tolist() == [[22, 320, 32, 640]]
    beyond = torch.tensor([[-50.0, 0.0, 150.0, 100.0]])  # wider than its image
    assert box_bins(beyond, torch.tensor([[100.0, 100.0]]), 640).tolist() == [[320, 320, 640, 640]]


@pytest.mark.parametrize("box", [[20.0, 0.0, 10.0, 5.0], [0.0, 9.0, 10.0, 5.0]])
def test_a_box_inside_out_is_refused(box: list[float]) -> None:
    with pytest.raises(InputError, match="left, top, right, bottom"):
        box_bins(torch.tensor([box]), torch.tensor([[100.0, 100.0]]), 640)


def test_a_vocabulary_without_box_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="must hold box tokens up to id 60"):
        GroundingObjective(toy("grounding", box_bins=20, box_start_id=39))


def test_generalised_iou() -> None:
    torch.testing.assert_close(to_corners(to_center(BOXES)), BOXES)
    boxes_a = torch.tensor([[0.0, 0.0, 2.0, 2.0]]).expand(3, 4)
    boxes_b = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 0.0, 3.0, 2.0], [4.0, 0.0, 6.0, 2.0]])
    # the same; a third shared and no gap; nothing shared, and a third of the hull empty
    torch.testing.assert_close(generalized_iou(boxes_a, boxes_b), torch.tensor([1.0, 1 / 3, -1 / 3]))


def test_the_logged_weighted_loss_has_no_gradient() -> None:
    model = grounder()
    plain, both = (
        GroundingObjective(model)(grounding_batch()),
        GroundingObjective(model, log_weighted=True)(grounding_batch()),
    )
    assert plain.keys() == {"box"}
    assert not both["box_weighted"].requires_grad
    assert both["box_weighted"] > 0
    torch.testing.assert_close(both["box"], plain["box"])


def test_targets_that_spread_over_neighboring_bins() -> None:
    """Against the bell written out bin by bin; a narrow one is the published target."""
    model, batch = grounder(), grounding_batch()
    bins, box_ids = model.config.box_bins, model.box_ids(batch.ids.device)
    targets = box_bins(batch.boxes, batch.sizes, bins)
    fed = torch.cat([torch.full_like(targets[:, :1], model.config.box_start_id), box_ids[targets[:, :3]]], 1)
    memory = model.make_memory(batch.ids, batch.mask, model.encode_image(batch.pixels))
    logprobs = model.logits(fed, memory)[..., box_ids].log_softmax(-1)
    losses = []
    for row, coordinate in itertools.product(range(len(targets)), range(4)):
        heights = [
            math.exp(-((position - int(targets[row, coordinate])) ** 2) / (2 * 1.5**2)) for position in range(bins + 1)
        ]
        losses.append(-sum(h * lp for h, lp in zip(heights, logprobs[row, coordinate], strict=True)) / sum(heights))
    torch.testing.assert_close(GroundingObjective(model, spread=1.5)(batch)["box"], torch.stack(losses).mean())
    torch.testing.assert_close(
        GroundingObjective(model, spread=0.05)(batch)["box"], GroundingObjective(model)(batch)["box"]
    )
    with pytest.raises(ConfigError, match="0 or more"):
        GroundingObjective(model, spread=-1)


def test_words_learn_to_look_into_their_boxes() -> None:
    """Compare with loops over patches, heads and words; the loss of the boxes does not change."""
    model, batch = grounder(), grounding_batch()
    losses = GroundingObjective(model, attention=0.5)(batch)
    torch.testing.assert_close(losses["box"], GroundingObjective(model)(batch)["box"])
    trace, side = Trace(attention=True), 2
    model.fuse(batch.ids, batch.mask, model.encode_image(batch.pixels), trace=trace)
    values = []
    for weights, row in itertools.product(trace.cross_weights[-ATTENTION_LAYERS:], range(len(batch.boxes))):
        x0, y0, x1, y1 = (batch.boxes[row] / batch.sizes[row].repeat(2) * side).tolist()
        for head, word in itertools.product(range(weights.shape[1]), range(int(batch.mask[row].sum()))):
            share = sum(
                float(weights.detach()[row, head, word, 1 + side * y + x])
                * max(0.0, min(x1, x + 1) - max(x0, x))
                * max(0.0, min(y1, y + 1) - max(y0, y))
                for x, y in itertools.product(range(side), repeat=2)
            )
            values.append(-math.log(max(share, 1e-4)))
    torch.testing.assert_close(losses["attention"], torch.tensor(0.5 * sum(values) / len(values)))
    assert gradients(model, losses["attention"])
    padded = GroundingObjective(model, attention=0.5)(grounding_batch(None, 30))
    torch.testing.assert_close(padded["attention"], losses["attention"])


def test_padding_id_is_no_word() -> None:
    """A pad that the mask shows is a token like any other: masks decide, not ids."""
    ids = torch.tensor([[DEC, 10, PAD, SEP]])
    assert lm_targets(ids, torch.ones_like(ids)).tolist() == [[DEC, 10, PAD, SEP]]

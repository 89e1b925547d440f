"""ITC and ITM against a plain recomputation, pair by pair in loops; their edge cases; several processes at once."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip.errors import ConfigError, InputError
from openblip.training.momentum import FeatureQueue, MomentumTwin
from openblip.training.objectives.contrastive import draw_negatives, hard_negative_weights
from openblip.training.objectives.gather import Gather
from openblip.training.objectives.pretrain import PretrainBatch, PretrainObjective
from openblip.training.objectives.retrieval import RetrievalBatch, RetrievalObjective
from tests.training.training_toys import CLS, DEC, ENC, alone, assert_same, gradients, images, texts, toy

ROWS = [[10, 11, 12], [13], [14, 15, 16, 17, 18], [19, 20]]


def hardest(weights: Tensor) -> Tensor:
    return weights.argmax(1)


def retrieval_batch(owners: list[int], rows: list[list[int]] = ROWS, length: int = 0) -> RetrievalBatch:
    ids, mask = texts(rows[: len(owners)], CLS, length)
    return RetrievalBatch(pixels=images(len(owners)), ids=ids, mask=mask, image_ids=torch.tensor(owners))


def pretraining_batch(count: int = 4) -> PretrainBatch:
    ids, mask = texts(ROWS[:count], CLS)
    return PretrainBatch(pixels=images(count), ids=ids, mask=mask)


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


@dataclass
class Plain:
    """One step in loops over single pairs, without padding, on copies of the objective's state."""

    objective: PretrainObjective | RetrievalObjective
    alpha: float
    slow: nn.Module = field(init=False)
    draws: list[list[int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Move a copy of the twin; keep the queues as they are before the step."""
        model, twin = self.objective.model, copy.deepcopy(self.objective.twin)
        online = dict(model.named_parameters())
        for name, weight in twin.named_parameters():
            weight.copy_(0.995 * weight + 0.005 * online[name].detach())
        self.slow = twin
        self.queue = [
            copy.deepcopy(queue_tensor) for queue_tensor in (self.objective.queue.image, self.objective.queue.text)
        ]
        self.queue_ids = self.objective.queue.ids[0].tolist()

    def losses(self, pixels: Tensor, ids: Tensor, mask: Tensor, pair_ids: list[int]) -> dict[str, Tensor]:
        model, pretraining = self.objective.model, isinstance(self.objective, PretrainObjective)
        count, temperature = len(ids), model.temperature
        tokens = [model.encode_image(pixels[i : i + 1]) for i in range(count)]
        image = [unit(model.vision_proj(t[0, 0])) for t in tokens]
        text = [unit(model.text_proj(model.text.encode(alone(ids, mask, i))[0, 0])) for i in range(count)]
        slow: Any = self.slow
        self.image_m = [unit(slow.vision_proj(slow.vision(pixels[i : i + 1])[0, 0])).detach() for i in range(count)]
        self.text_m = [unit(slow.text_proj(slow.text.encode(alone(ids, mask, i))[0, 0])).detach() for i in range(count)]
        columns = [*pair_ids, *(self.queue_ids if not pretraining else [None] * len(self.queue_ids))]

        def one_way(online: list[Tensor], momentum: list[Tensor], bank: list[Tensor], queue: Tensor) -> Tensor:
            everyone = [*bank, *queue.T]
            loss = torch.zeros(())
            for i in range(count):
                logits = torch.stack([online[i] @ candidate / temperature for candidate in everyone])
                beliefs = (
                    torch.stack([momentum[i] @ candidate / temperature for candidate in everyone]).detach().softmax(0)
                )
                same = [owner == pair_ids[i] for owner in columns]
                for j, logit in enumerate(logits):
                    hard = 1.0 / sum(same) if same[j] else 0.0
                    target = self.alpha * beliefs[j] + (1 - self.alpha) * hard
                    loss = loss - target * (logit - logits.exp().sum().log())
            return loss / count

        i2t = one_way(image, self.image_m, self.text_m, self.queue[1])
        t2i = one_way(text, self.text_m, self.image_m, self.queue[0])
        results = {"itc": (i2t + t2i) / 2}

        bank = (self.image_m, self.text_m) if pretraining else (image, text)
        wrong_image = self.wrong(text, bank[0], pair_ids, 1e-4 if pretraining else 0.0)
        wrong_text = self.wrong(image, bank[1], pair_ids, 1e-4 if pretraining else 0.0)
        self.drawn = [wrong_image, wrong_text]

        def judged(i: int, j: int, label: int) -> Tensor:
            """Cross-entropy of text i with image j."""
            words = alone(ids, mask, i).clone()
            words[0, 0] = ENC
            states = model.text.encode_grounded(words, None, tokens[j])
            return -model.itm_head(states[0, 0]).log_softmax(0)[label]

        terms = [judged(i, i, 1) for i in range(count)]
        terms += [judged(i, j, 0) for i, j in enumerate(wrong_image) if j >= 0]
        terms += [judged(j, i, 0) for i, j in enumerate(wrong_text) if j >= 0]
        results["itm"] = torch.stack(terms).mean()
        if pretraining:
            results["lm"] = plain_lm(model, tokens, [alone(ids, mask, i) for i in range(count)], 0.1)
        return results

    def wrong(self, of: list[Tensor], bank: list[Tensor], pair_ids: list[int], floor: float) -> list[int]:
        """The column of the largest weight in each row, -1 where there is none."""
        chosen = []
        for i, feature in enumerate(of):
            logits = torch.stack([feature @ candidate / self.objective.model.temperature for candidate in bank])
            weights = [
                0.0 if pair_ids[j] == pair_ids[i] else (logit.exp() / logits.exp().sum()).item() + floor
                for j, logit in enumerate(logits)
            ]
            chosen.append(weights.index(max(weights)) if max(weights) > 0 else -1)
        return chosen


def unit(vector: Tensor) -> Tensor:
    return vector / (vector * vector).sum().sqrt()


def plain_lm(model: Any, tokens: list[Tensor], rows: list[Tensor], smoothing: float) -> Tensor:
    """Smoothed cross-entropy token by token, averaged."""
    terms = []
    for image, row in zip(tokens, rows, strict=True):
        words = row.clone()
        words[0, 0] = DEC
        logs = model.logits(words, None, image)[0].log_softmax(-1)
        for position in range(words.shape[1] - 1):
            right = -logs[position, words[0, position + 1]]
            terms.append((1 - smoothing) * right + smoothing * -logs[position].mean())
    return torch.stack(terms).mean()


def check_against_plain(
    objective: PretrainObjective | RetrievalObjective, batch: Any, pair_ids: list[int], alpha: float
) -> None:
    state_before = int(objective.queue.pointer)
    plain = Plain(objective, alpha)
    expected = plain.losses(batch.pixels, batch.ids, batch.mask, pair_ids)
    expected_gradients = gradients(objective.model, total(expected))
    losses = objective(batch, alpha=alpha)
    for name, value in losses.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5)
    assert_same(gradients(objective.model, total(losses)), expected_gradients)
    for (name, ours), slow in zip(objective.twin.named_parameters(), plain.slow.parameters(), strict=True):
        torch.testing.assert_close(ours, slow, msg=name)
    size = objective.queue.image.shape[1]
    for i in range(len(batch.ids)):
        column = (state_before + i) % size
        plain.queue[0][:, column], plain.queue[1][:, column] = plain.image_m[i], plain.text_m[i]
        plain.queue_ids[column] = pair_ids[i] if isinstance(objective, RetrievalObjective) else -100
    torch.testing.assert_close(objective.queue.image, plain.queue[0])
    torch.testing.assert_close(objective.queue.text, plain.queue[1])
    assert objective.queue.ids[0].tolist() == plain.queue_ids
    assert objective.queue.pointer.item() == (state_before + len(batch.ids)) % size


def drift(objective: PretrainObjective | RetrievalObjective) -> None:
    """Let model and twin differ, as after some steps."""
    with torch.no_grad():
        for parameter in objective.model.parameters():
            if parameter.ndim:
                parameter.add_(0.02 * torch.randn_like(parameter))


def test_pretraining_is_the_plain_computation() -> None:
    objective = PretrainObjective(toy("pretrain"), queue_size=6, draw=hardest)
    for step in range(2):  # in the second the queue wraps around
        drift(objective)
        check_against_plain(objective, pretraining_batch(), list(range(4)), 0.3 * step)


def test_retrieval_is_the_plain_computation() -> None:
    objective = RetrievalObjective(toy("retrieval"), queue_size=6, draw=hardest)
    for owners in ([7, 3, 7, 5], [5, 7, 2, 2]):  # repeated within the batch, and in the queue
        drift(objective)
        check_against_plain(objective, retrieval_batch(owners), owners, 0.4)


@pytest.mark.parametrize("count", [1, 3])
def test_small_and_last_batches(count: int) -> None:
    """A batch of one has no negative: ITM is its match alone. Any batch up to the queue's size fits."""
    objective = PretrainObjective(toy("pretrain"), queue_size=4, draw=hardest)
    for _ in range(3):
        drift(objective)
        check_against_plain(objective, pretraining_batch(count), list(range(count)), 0.4)
    with pytest.raises(InputError, match="queue_size must be at least the batch of 3, got 2"):
        PretrainObjective(toy("pretrain"), queue_size=2)(pretraining_batch(3))


@pytest.mark.parametrize("owners", [[5], [5, 5, 5, 5], [5, 5, 5, 2]])
def test_texts_of_one_image(owners: list[int]) -> None:
    """They are no negatives of each other, by any draw."""
    batch = retrieval_batch(owners)
    check_against_plain(RetrievalObjective(toy("retrieval"), queue_size=8, draw=hardest), batch, owners, 0.4)
    objective = RetrievalObjective(toy("retrieval"), queue_size=8)  # the multinomial draw
    losses = objective(batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(torch.isfinite(g).all() for g in gradients(objective.model, total(losses)).values())


def test_losses_do_not_depend_on_padding() -> None:
    batch = retrieval_batch([1, 2, 3, 3])
    ids, mask = texts(ROWS, CLS, 35)
    padded = RetrievalBatch(pixels=batch.pixels, ids=ids, mask=mask, image_ids=batch.image_ids)
    objective = RetrievalObjective(toy("retrieval"), queue_size=8, draw=hardest).eval()
    for name, loss in objective(batch).items():
        torch.testing.assert_close(loss, objective(padded)[name])
    pretraining = PretrainObjective(toy("pretrain"), queue_size=8, draw=hardest).eval()
    short = pretraining(PretrainBatch(pixels=batch.pixels, ids=batch.ids, mask=batch.mask))
    long = pretraining(PretrainBatch(pixels=batch.pixels, ids=ids, mask=mask))
    for name, loss in short.items():
        torch.testing.assert_close(loss, long[name])


def test_empty_text() -> None:
    """[CLS] [SEP] alone: embedded, matched, and one token to learn."""
    ids, mask = texts([[], [10, 11]], CLS)
    batch = PretrainBatch(pixels=images(2), ids=ids, mask=mask)
    check_against_plain(PretrainObjective(toy("pretrain"), queue_size=4, draw=hardest), batch, [0, 1], 0.4)


def test_evaluation_changes_nothing() -> None:
    objective = PretrainObjective(toy("pretrain"), queue_size=8, draw=hardest)
    drift(objective)
    with torch.no_grad():
        objective.model.temperature.fill_(0.9)  # beyond what training holds it to
    state_before = copy.deepcopy(objective.state_dict())
    objective.eval()(pretraining_batch())
    for name, value in objective.state_dict().items():
        assert value.equal(state_before[name]), name
    objective.train()(pretraining_batch())
    assert objective.model.temperature.item() == 0.5
    assert objective.queue.pointer.item() == 4
    free = PretrainObjective(toy("pretrain"), queue_size=8, temperature_range=None)
    with torch.no_grad():
        free.model.temperature.fill_(0.9)
    free(pretraining_batch())
    assert free.model.temperature.item() == pytest.approx(0.9)


def test_several_lm_texts_per_image() -> None:
    """LM learns every caption of an image that is encoded once; ITC and ITM see one of them."""
    model = toy("pretrain")
    batch = pretraining_batch(2)
    ids, mask = texts([[10, 11], [12], [13, 14, 15], [16, 17]], DEC)
    many = PretrainBatch(pixels=batch.pixels, ids=batch.ids, mask=batch.mask, lm_ids=ids, lm_mask=mask)
    objective = PretrainObjective(model, queue_size=8, draw=hardest).eval()
    single, all_of_them = objective(batch), objective(many)
    assert single["itc"].equal(all_of_them["itc"])
    assert single["itm"].equal(all_of_them["itm"])
    tokens = [model.encode_image(batch.pixels[i : i + 1]) for i in (0, 0, 1, 1)]
    expected = plain_lm(model, tokens, [alone(ids, mask, i) for i in range(4)], 0.1)
    torch.testing.assert_close(all_of_them["lm"], expected)


def test_retrieval_learns_the_temperature_of_a_matcher() -> None:
    model = toy("retrieval")
    names = model.state_dict().keys()
    objective = RetrievalObjective(model, queue_size=8)
    assert isinstance(model.temperature, nn.Parameter)
    assert model.state_dict().keys() == names  # saved under the name it had
    losses = objective(retrieval_batch([0, 1, 2, 3]))
    assert "temperature" in gradients(model, total(losses))
    assert not any(p.requires_grad for p in objective.twin.parameters())


def test_retrieval_refuses_ids_that_mean_nothing() -> None:
    with pytest.raises(InputError, match="must be 0 or more"):
        RetrievalObjective(toy("retrieval"), queue_size=8)(retrieval_batch([0, -100]))


@pytest.mark.parametrize("floor", [0.0, 1e-4])
def test_weights_of_negatives(floor: float) -> None:
    """The softmax over the row, plus the floor, cleared for pairs of the same id; only the odds matter."""
    logits, ids = 5 * torch.randn(4, 4), [3, 1, 3, 2]
    same = torch.tensor([[single == candidate for candidate in ids] for single in ids])
    ours = hard_negative_weights(logits, same, floor)
    for i in range(4):
        exponentials = [math.exp(logit) for logit in logits[i].tolist()]
        weights = [0.0 if ids[i] == ids[j] else e / sum(exponentials) + floor for j, e in enumerate(exponentials)]
        odds = [weight / sum(weights) for weight in weights]
        torch.testing.assert_close(ours[i] / ours[i].sum(), torch.tensor(odds))


def test_a_sharp_temperature_still_offers_negatives() -> None:
    """Where the softmax rounds every other image to 0, the nearest of them is still the hardest."""
    logits = torch.tensor([[900.0, 1.0, 2.0], [5.0, 900.0, -3.0]])
    same = torch.tensor([[True, False, False], [False, True, False]])
    weights = hard_negative_weights(logits, same, 0.0)
    torch.testing.assert_close(weights.sum(1), torch.ones(2))
    assert weights.argmax(1).tolist() == [2, 0]
    assert (weights[same] == 0).all()


def test_negatives_are_drawn_by_weight() -> None:
    weights = torch.tensor([[0.0, 3.0, 1.0]]).expand(4000, 3)
    draws = draw_negatives(weights, lambda w: torch.multinomial(w, 1).squeeze(1))
    shares = torch.bincount(draws, minlength=3) / 4000
    assert shares[0] == 0
    assert abs(shares[1] - 0.75) < 0.04


def test_half_precision_stays_near() -> None:
    objective = RetrievalObjective(toy("retrieval"), queue_size=8, draw=hardest).eval()
    batch = retrieval_batch([0, 1, 2, 2])
    complete = objective(batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = objective(batch)
    for name, loss in half.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, complete[name], rtol=0.1, atol=0.05)


def test_queue_wraps_and_keeps_ids() -> None:
    queue = FeatureQueue(3, 5)
    assert queue.ids.tolist() == [[-100] * 5]
    torch.testing.assert_close(queue.image.norm(dim=0), torch.ones(5))
    for start in (0, 3):
        rows = torch.arange(start, start + 3).float()[:, None].expand(3, 3)
        queue.push(rows, rows + 10, torch.arange(start, start + 3))
    assert queue.image[0].tolist() == [5, 1, 2, 3, 4]
    assert queue.text[0].tolist() == [15, 11, 12, 13, 14]
    assert queue.ids[0].tolist() == [5, 1, 2, 3, 4]
    assert queue.pointer.item() == 1
    with pytest.raises(ConfigError, match="at least 1"):
        FeatureQueue(3, 0)


def test_twin_holds_what_embeds_and_no_more() -> None:
    model = toy("pretrain")
    twin = MomentumTwin(model, 0.9)
    assert not any("decoder" in name or "lm_head" in name or "itm" in name for name, _ in twin.named_parameters())
    state_before = {name: slow.clone() for name, slow in twin.named_parameters()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    twin.update(model)
    for name, slow in twin.named_parameters():
        torch.testing.assert_close(slow, state_before[name] + 0.1, msg=name)


class Exchange(Gather):
    """One of several processes, simulated by a thread; gradients pass between them."""

    def __init__(self, rank: int, slots: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.slots, self.barrier = rank, slots, barrier

    def __call__(self, rows: Tensor) -> Tensor:
        self.slots[self.rank] = rows
        self.barrier.wait(timeout=20)
        everyone = torch.cat(self.slots)
        self.barrier.wait(timeout=20)
        return everyone


def run_ranks(count: int, work: Callable[[Exchange], Any]) -> list[Any]:
    slots: list[Any] = [None] * count
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count

    def single(rank: int) -> None:
        try:
            results[rank] = work(Exchange(rank, slots, barrier))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=single, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert None not in results
    return results


def queue_tensor(batch: Any, rank: int) -> Any:
    """Rows 0-2 of a batch of four for rank 0, the last one for rank 1: ranks need not be equal."""
    rows = slice(0, 3) if rank == 0 else slice(3, 4)
    return type(batch)(**{name: value[rows] for name, value in vars(batch).items() if value is not None})


def halves(batch: Any, rank: int) -> Any:
    rows = slice(2 * rank, 2 * rank + 2)
    return type(batch)(**{name: value[rows] for name, value in vars(batch).items() if value is not None})


GLOBAL: dict[str, Any] = {"negatives": "all", "itc_columns": "all"}


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
def test_two_ranks_with_everything_shared_equal_one_global_batch(kind: str) -> None:
    pretraining = kind == "pretraining"
    batch: Any = pretraining_batch() if pretraining else retrieval_batch([4, 2, 4, 9])
    model = toy("pretrain" if pretraining else "retrieval")
    options = {"queue_size": 6, "draw": hardest, **GLOBAL, **({"token_mean": "all"} if pretraining else {})}
    complete: Any = (PretrainObjective if pretraining else RetrievalObjective)(model, **options)
    drift(complete)
    ranks = [copy.deepcopy(complete) for _ in range(2)]
    expected = complete(batch)
    expected_gradients = gradients(complete.model, total(expected))

    def work(gather: Exchange) -> dict[str, Tensor]:
        objective = ranks[gather.rank]
        rebuilt = type(objective)(objective.model, gather=gather, **options)
        rebuilt.load_state_dict(objective.state_dict())
        ranks[gather.rank] = rebuilt
        return rebuilt(halves(batch, gather.rank))

    losses = run_ranks(2, work)
    for name, value in expected.items():
        torch.testing.assert_close((losses[0][name] + losses[1][name]) / 2, value)
    mean = (total(losses[0]) + total(losses[1])) / 2
    results = [dict(rank.model.named_parameters()) for rank in ranks]
    names = list(expected_gradients)
    summed = torch.autograd.grad(mean, [rank[name] for rank in results for name in names])
    both = {name: summed[i] + summed[i + len(names)] for i, name in enumerate(names)}
    assert_same(both, expected_gradients)
    for rank in ranks:
        for name, value in complete.queue.state_dict().items():
            torch.testing.assert_close(rank.queue.state_dict()[name], value, msg=name)


def test_two_ranks_as_published_keep_to_their_own_batch_but_share_the_queue() -> None:
    batch = retrieval_batch([4, 2, 4, 9])
    base = RetrievalObjective(toy("retrieval"), queue_size=6, draw=hardest)
    singles = [copy.deepcopy(base)(queue_tensor(batch, rank)) for rank in range(2)]
    ranks: list[Any] = [None, None]

    def work(gather: Exchange) -> dict[str, Tensor]:
        ranks[gather.rank] = RetrievalObjective(copy.deepcopy(base.model), queue_size=6, draw=hardest, gather=gather)
        ranks[gather.rank].load_state_dict(base.state_dict())
        return ranks[gather.rank](queue_tensor(batch, gather.rank))

    losses = run_ranks(2, work)
    for alone_there, here in zip(singles, losses, strict=True):
        for name in here:
            torch.testing.assert_close(here[name], alone_there[name])
    assert [rank.queue.ids[0, :4].tolist() for rank in ranks] == [[4, 2, 4, 9]] * 2
    torch.testing.assert_close(ranks[0].queue.image, ranks[1].queue.image)


def test_negatives_of_all_ranks_reach_a_rank_that_has_none() -> None:
    """A lone pair gets its negatives from the other process, and that process's image tower a gradient for it."""
    batch = retrieval_batch([4, 2, 4, 9])
    base = RetrievalObjective(toy("retrieval"), queue_size=6)
    models = [copy.deepcopy(base.model) for _ in range(2)]

    def work(gather: Exchange) -> dict[str, Tensor]:
        objective = RetrievalObjective(models[gather.rank], queue_size=6, draw=hardest, negatives="all", gather=gather)
        objective.queue.load_state_dict(base.queue.state_dict())
        return objective(queue_tensor(batch, gather.rank))

    losses = run_ranks(2, work)
    crossing = torch.autograd.grad(losses[1]["itm"], [models[0].vision.cls_token])
    assert crossing[0].abs().max() > 0

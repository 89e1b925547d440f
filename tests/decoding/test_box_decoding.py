"""Boxes from a session whose logits are written down: only coordinates are taken, and their probability is theirs."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from openblip.decoding import decode_boxes
from openblip.decoding.boxes import find_medians


class Written:
    """Gives the logits of a script, step by step, and keeps what it was fed."""

    def __init__(self, steps: Tensor) -> None:
        self.steps = list(steps)
        self.fed: list[list[int]] = []

    def step(self, ids: Tensor) -> Tensor:
        self.fed.append(ids[:, 0].tolist())
        return self.steps.pop(0)

    def widen(self, width: int) -> None:
        raise AssertionError

    def reorder(self, rows: Tensor) -> None:
        raise AssertionError

    def keep(self, items: Tensor) -> None:
        raise AssertionError


def test_only_coordinates_are_taken() -> None:
    steps = torch.randn(4, 2, 12)
    steps[:, :, 0] = 50.0  # a word that no coordinate beats
    positions = torch.tensor([7, 8, 9, 10])
    session = Written(steps)
    bins, logprob = decode_boxes(session, torch.tensor([[6], [6]]), positions)
    for item in range(2):
        probability = 0.0
        for step in range(4):
            scores = steps[step, item, 7:11].tolist()
            best = max(range(4), key=scores.__getitem__)
            assert bins[item, step] == best
            probability += scores[best] - math.log(sum(map(math.exp, scores)))
            if step < 3:
                assert session.fed[step + 1][item] == 7 + best
        assert math.isclose(logprob[item].item(), probability, abs_tol=1e-5)
    assert session.fed[0] == [6, 6]


def test_the_median_is_read_where_half_lies_below() -> None:
    """A peak beside a broad hill: the likeliest is the peak, the median lies in the hill, and is what is fed on."""
    positions = torch.tensor([7, 8, 9, 10])
    shares = torch.tensor([0.4, 0.0, 0.3, 0.3])
    scores = torch.full((12,), 9.0)
    scores[7:11] = shares.clamp(min=1e-30).log()
    steps = scores.repeat(4, 1, 1)
    peak, _ = decode_boxes(Written(steps), torch.tensor([[6]]), positions)
    assert peak.tolist() == [[0, 0, 0, 0]]
    session = Written(steps)
    numbers, logprob = decode_boxes(session, torch.tensor([[6]]), positions, "median")
    assert torch.allclose(numbers, torch.full((1, 4), 2 + 1 / 3))  # a tenth of the three tenths in bin 2
    assert math.isclose(logprob.item(), 4 * math.log(0.3), abs_tol=1e-5)
    assert session.fed == [[6], [9], [9], [9]]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12).filter(any))
def test_medians_halve_what_lies_below(weights: list[int]) -> None:
    """By walking: the weight of whole bins below, and the part of the bin that it lies in, are half of all."""
    shares = torch.tensor([weights], dtype=torch.float32) / sum(weights)
    bins, numbers = find_medians(shares)
    chosen, number = int(bins), float(numbers)
    assert weights[chosen] > 0
    assert chosen <= number <= chosen + 1
    below = sum(weights[:chosen]) + (number - chosen) * weights[chosen]
    assert math.isclose(below, sum(weights) / 2, abs_tol=1e-4)

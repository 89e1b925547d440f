"""Boxes from a session whose logits are written down: only coordinates are taken, and their probability is theirs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from openblip.decoding import decode_boxes


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
    places = torch.tensor([7, 8, 9, 10])
    session = Written(steps)
    bins, logprob = decode_boxes(session, torch.tensor([[6], [6]]), places)
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

"""Learning rates against the formulas of the published code, written out."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import pytest

from openblip.errors import ConfigError
from openblip.training.config import Schedule

STEPS, EPOCHS = 10, 5


def rates(schedule: Schedule, steps: int = STEPS, epochs: int = EPOCHS) -> list[list[float]]:
    return [
        [schedule.rate(epoch=e, step=s, steps_per_epoch=steps, epochs=epochs) for s in range(steps)]
        for e in range(epochs)
    ]


def test_cosine_moves_once_per_epoch_and_never_reaches_its_end() -> None:
    actual = rates(Schedule(kind="cosine", lr=1e-5, min_lr=1e-6))
    for epoch, row in enumerate(actual):
        expected = (1e-5 - 1e-6) * 0.5 * (1.0 + math.cos(math.pi * epoch / EPOCHS)) + 1e-6
        assert row == pytest.approx([expected] * STEPS, rel=1e-12)
    assert actual[0][0] == 1e-5
    assert actual[-1][0] > 1e-6


def test_pretraining_warms_up_in_the_first_epoch_then_decays_by_step() -> None:
    actual = rates(Schedule(kind="step", lr=3e-4, min_lr=1e-6, warmup_steps=4, warmup_lr=1e-6, decay_rate=0.9))
    warm = [min(3e-4, 1e-6 + (3e-4 - 1e-6) * i / 4) for i in range(STEPS)]
    assert actual[0] == pytest.approx(warm, rel=1e-12)
    for epoch in range(1, EPOCHS):
        assert actual[epoch] == pytest.approx([max(1e-6, 3e-4 * 0.9**epoch)] * STEPS, rel=1e-12)


def test_step_decay_has_a_floor() -> None:
    assert rates(Schedule(kind="step", lr=1e-3, min_lr=9e-4, decay_rate=0.5))[2] == [9e-4] * STEPS


def test_a_short_first_epoch_cuts_the_warm_up() -> None:
    actual = rates(Schedule(kind="step", lr=1.0, warmup_steps=100, decay_rate=0.5))
    assert actual[0][-1] == pytest.approx(0.09)
    assert actual[1] == [0.5] * STEPS


def test_cosine_per_step_finishes_its_warm_up_and_ends_at_the_minimum() -> None:
    actual = list(chain(*rates(Schedule(kind="cosine_per_step", lr=1.0, min_lr=0.1, warmup_steps=15))))
    assert actual[:15] == pytest.approx([i / 15 for i in range(15)])
    assert actual[15] == 1.0
    assert actual[-1] == pytest.approx(0.1)
    assert actual[15:] == sorted(actual[15:], reverse=True)
    middle = 15 + (len(actual) - 1 - 15) / 2
    assert actual[int(middle)] == pytest.approx(0.55, abs=0.03)


def test_constant_after_the_warm_up() -> None:
    actual = list(chain(*rates(Schedule(kind="constant", lr=2.0, warmup_steps=12, warmup_lr=1.0))))
    assert actual[6] == pytest.approx(1.5)
    assert set(actual[12:]) == {2.0}


@pytest.mark.parametrize(
    "wrong", [{"lr": 0}, {"min_lr": 1.0}, {"warmup_lr": 1.0}, {"warmup_steps": -1}, {"decay_rate": 0}]
)
def test_settings_that_cannot_work_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Schedule(**{"lr": 1e-4, **wrong})

"""Limits of a call: a time limit, and a function that asks to stop. Long loops call `check`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

from openblip.errors import InputError, StoppedError, TimeLimitError

T = TypeVar("T")
Stop: TypeAlias = Callable[[], bool]
"""A function that returns True to end a call, such as the `is_set` of a `threading.Event`."""


@dataclass(frozen=True)
class Limit:
    """When a call ends early.

    Attributes:
        timeout: Seconds from the creation of the limit; `None` for no time limit.
        stop: Function that returns True to end the call.

    Raises:
        InputError: If the time is not positive.
    """

    timeout: float | None = None
    stop: Stop | None = None
    started: float = field(default_factory=lambda: time.monotonic())

    def __post_init__(self) -> None:
        if self.timeout is not None and not self.timeout > 0:
            raise InputError(f"timeout must be a positive number of seconds, got {self.timeout}")

    def check(self) -> None:
        """Raise an error if the call must end.

        Raises:
            TimeLimitError: The time is over.
            StoppedError: `stop` returned True.
        """
        if self.stop is not None and self.stop():
            raise StoppedError("the call was stopped")
        if self.timeout is not None and time.monotonic() - self.started > self.timeout:
            raise TimeLimitError(f"the call took longer than timeout={self.timeout:g} s")


_current: ContextVar[Limit | None] = ContextVar("limit", default=None)


def check() -> None:
    """Raise an error if the call that runs in this thread must end. Loops over steps of a model call this."""
    limit = _current.get()
    if limit is not None:
        limit.check()


def apply(results: Iterator[T], limit: Limit) -> Iterator[T]:
    """Yield results as long as the limit allows.

    Args:
        results: The results. While the next one is computed, `check` checks the limit.
        limit: The limit.

    Yields:
        The results.

    Raises:
        StoppedError: The limit was reached.
    """
    while True:
        token = _current.set(limit)
        try:
            limit.check()
            result = next(results)
        except StopIteration:
            return
        finally:
            _current.reset(token)
        yield result

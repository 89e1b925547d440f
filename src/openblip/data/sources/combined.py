"""Several sources as one (no torch)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from openblip.data.records import Record
from openblip.data.sources.base import Counts, Source
from openblip.data.sources.table import _checked, dense
from openblip.errors import InputError


class ConcatSource(Source):
    """Several sources one after another; records of one picture share an image id across them."""

    def __init__(self, parts: Sequence[Source]) -> None:
        if not parts:
            raise InputError("no source was given")
        self.parts = tuple(parts)
        self.name = ", ".join(part.name for part in parts)
        self.problems = [problem for part in parts for problem in part.problems]
        self._ends = np.cumsum([len(part) for part in parts])
        self._counts = {name: np.concatenate([part.counts[name] for part in parts]) for name in parts[0].counts}
        self._keys = np.concatenate([part.keys for part in parts])
        self._ids = dense(self._keys)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        index = _checked(index, len(self))
        part = int(np.searchsorted(self._ends, index, side="right"))
        start = int(self._ends[part - 1]) if part else 0
        return replace(self.parts[part][index - start], image_id=int(self._ids[index]))

    @property
    def counts(self) -> Counts:
        return self._counts

    @property
    def keys(self) -> NDArray[np.uint64]:
        return self._keys


class RotatingSource(ConcatSource):
    """Sources of which an epoch sees one, in turn, beside others that every epoch sees.

    The paper's pretraining on 129M images reads a fifth of LAION in each epoch (section 4.1).
    """

    def __init__(self, turns: Sequence[Source], always: Sequence[Source] = ()) -> None:
        super().__init__([*always, *turns])
        self.period = len(turns)
        self._always = sum(len(part) for part in always)
        self._turns = np.cumsum([self._always, *(len(part) for part in turns)])

    def indices(self, epoch: int) -> NDArray[np.int64]:
        """Those of ``always``, then those of the epoch's turn."""
        turn = epoch % self.period
        return np.concatenate(
            [np.arange(self._always), np.arange(self._turns[turn], self._turns[turn + 1])], dtype=np.int64
        )

"""The base of the annotators: objects that compute the records of a job's items with a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from openblip.jobs.items import Item
from openblip.jobs.run import Result

if TYPE_CHECKING:
    from openblip.blip import Blip

T = TypeVar("T")


@dataclass
class BlipAnnotator(ABC):
    """An annotator that runs a model.

    Attributes:
        blip: The model.
        frame: Frame of animations to read.
    """

    blip: Blip
    frame: int = 0

    @property
    def batch_size(self) -> int:
        """Number of images that the model computes at once."""
        return self.blip.batch_size

    @batch_size.setter
    def batch_size(self, size: int) -> None:
        self.blip.batch_size = size

    @abstractmethod
    def run(self, items: Iterator[Item]) -> Iterator[Result]:
        """Yield for each item, in order, the records of its results, or its error."""


def iter_batches(items: Iterator[T], size: int) -> Iterator[list[T]]:
    """Yield lists of up to `size` consecutive items."""
    while batch := list(islice(items, size)):
        yield batch

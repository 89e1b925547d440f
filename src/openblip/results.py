"""What comes back: plain data, free of torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """A description. ``logprob`` is the summed natural-log probability of its new tokens, [SEP] included.

    ``finished`` tells whether the text came to its end, or was cut off by ``max_new_tokens``; ``unmet`` is set where a
    required word could not be had.
    """

    text: str
    logprob: float
    finished: bool = True
    unmet: bool = False


@dataclass(frozen=True)
class Answer:
    """An answer and its probability: of the whole sequence, or among the closed list it was chosen from."""

    text: str
    probability: float


@dataclass(frozen=True)
class Match:
    """How well a text fits a picture: ``probability`` by ITM, ``similarity`` the ITC cosine (-1 to 1)."""

    probability: float
    similarity: float

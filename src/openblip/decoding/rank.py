"""Closed-answer ranking: how likely a decoder finds each answer of a list.

Answers share beginnings, so a list is decoded as a tree: every distinct beginning is computed once per item, many of
them packed in one sequence in which a token sees only its own text.

Shapes: I items, C candidates, T tree nodes at a time, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from openblip.errors import InputError
from openblip.model.text import LanguageHead, Memory, TextTransformer


class PackedDecoder(Protocol):
    """What ranking needs from an engine: many texts at once, packed in one sequence, against every one of I items."""

    @property
    def items(self) -> int:
        """How many items there are."""
        ...

    @property
    def device(self) -> torch.device:
        """Where logits come out."""
        ...

    def logits(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        """Logits (I, T, V), float32, after each of the tokens ``ids`` (T,).

        Token t stands at ``positions[t]`` (T,) of its text and sees the tokens that ``seen[t]`` (T, T) marks.
        """
        ...

    def select(self, item: int) -> PackedDecoder:
        """The same with one item alone."""
        ...


def rank_answers(
    text: TextTransformer, head: LanguageHead, memory: Memory, candidates: Sequence[Sequence[int]], **options: Any
) -> Tensor:
    """As :func:`rank`, by a text transformer with its language head and the ``memory`` that it reads."""
    return rank(TorchDecoder(text, head, memory), candidates, **options)


@torch.inference_mode()
def rank(
    decoder: PackedDecoder,
    candidates: Sequence[Sequence[int]],
    *,
    k: int | None = None,
    smoothing: float = 0.0,
    chunk: int = 1024,
) -> Tensor:
    """Log-probability (I, C), float32, of every candidate, [DEC] to [SEP], for every item of ``decoder``.

    The sum over all tokens after [DEC], the final one included; its softmax over C is the probability among the
    candidates. The original model ranks in two steps: ``k`` shortlists per item the candidates with the likeliest
    first token (the earlier one among equals; the others get minus infinity), and ``smoothing=0.1`` makes the score
    minus the label-smoothed loss. ``chunk`` bounds how many logit rows (each V wide) exist at a time; results do not
    depend on it. Raises :class:`InputError` for an empty list, candidates that do not begin alike, and bad options.
    """
    texts = [list(candidate) for candidate in candidates]
    _check(texts, k, smoothing, chunk)
    if k is None or k >= len(texts):
        return _score(decoder, texts, smoothing, chunk)
    start = _Tree(texts[0][:1]).logits(decoder)[:, 0]  # (I, V)
    ranked = start[:, [candidate[1] for candidate in texts]].sort(descending=True, stable=True).indices
    scores = start.new_full((decoder.items, len(texts)), float("-inf"))
    for item, short in enumerate(ranked[:, :k].tolist()):
        scores[item, short] = _score(decoder.select(item), [texts[i] for i in short], smoothing, chunk)[0]
    return scores


@dataclass(frozen=True)
class TorchDecoder:
    """The :class:`PackedDecoder` of plain modules."""

    text: TextTransformer
    head: LanguageHead
    memory: Memory

    @property
    def items(self) -> int:
        return self.memory.items

    @property
    def device(self) -> torch.device:
        return self.text.device

    def logits(self, ids: Tensor, positions: Tensor, seen: Tensor) -> Tensor:
        states = self.text.decode_packed(ids, positions, seen, self.memory)
        return self.head(states, self.text.embeddings.word).float()

    def select(self, item: int) -> TorchDecoder:
        chosen = torch.tensor([item], device=self.device)
        return TorchDecoder(self.text, self.head, self.memory.select(chosen))


def _check(texts: list[list[int]], k: int | None, smoothing: float, chunk: int) -> None:
    if not texts:
        raise InputError("there are no candidates to rank")
    if any(len(candidate) < 2 or candidate[0] != texts[0][0] for candidate in texts):
        raise InputError("every candidate is [DEC], the answer's tokens, [SEP]: all with the same first token")
    if k is not None and k < 1:
        raise InputError(f"k is how many candidates to shortlist, at least 1, not {k}")
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing is at least 0 and below 1, not {smoothing}")
    if chunk < 1:
        raise InputError(f"chunk is at least 1, not {chunk}")


def _score(decoder: PackedDecoder, texts: list[list[int]], smoothing: float, chunk: int) -> Tensor:
    """Scores (I, C) of all ``texts`` for all items."""
    scores = torch.empty(decoder.items, len(texts), device=decoder.device)
    order = sorted(range(len(texts)), key=texts.__getitem__)  # so that shared beginnings meet in one tree
    while order:
        tree = _Tree(texts[order[0]][:1])
        taken = 0
        while taken < len(order) and tree.add(texts[order[taken]], chunk // decoder.items):
            taken += 1
        scores[:, order[:taken]] = tree.score(decoder, smoothing)
        order = order[taken:]
    return scores


class _Tree:
    """Beginnings of texts; a node is a token after its parent, an edge the token that a text has next."""

    def __init__(self, root: list[int]) -> None:
        self.ids = root
        self.lines = [[0]]  # every node's ancestors and itself
        self.places: dict[tuple[int, int], int] = {}  # (parent, token) -> node
        self.edges: dict[tuple[int, int], int] = {}  # (node, next token) -> edge
        self.paths: list[list[int]] = []  # the edges of every text

    def add(self, candidate: list[int], limit: int) -> bool:
        """Add a text, unless the tree already holds one and would grow beyond ``limit`` nodes."""
        node, new = 0, 0
        for token in candidate[1:-1]:
            node = self.places.get((node, token), -1) if node >= 0 else node
            new += node < 0
        if self.paths and len(self.ids) + new > limit:
            return False
        node, path = 0, []
        for position, token in enumerate(candidate[1:]):
            path.append(self.edges.setdefault((node, token), len(self.edges)))
            if position < len(candidate) - 2:  # nothing is read after the final token
                node = self._child(node, token)
        self.paths.append(path)
        return True

    def _child(self, node: int, token: int) -> int:
        if (child := self.places.get((node, token))) is None:
            child = self.places[node, token] = len(self.ids)
            self.ids.append(token)
            self.lines.append([*self.lines[node], child])
        return child

    def logits(self, decoder: PackedDecoder) -> Tensor:
        """Logits (I, T, V) after each node."""
        device = decoder.device
        pairs = torch.tensor([(node, place) for node, line in enumerate(self.lines) for place in line])
        seen = torch.zeros(len(self.ids), len(self.ids), dtype=torch.bool)
        seen[pairs[:, 0], pairs[:, 1]] = True
        positions = torch.tensor([len(line) - 1 for line in self.lines], device=device)
        return decoder.logits(torch.tensor(self.ids, device=device), positions, seen.to(device))

    def score(self, decoder: PackedDecoder, smoothing: float) -> Tensor:
        """Scores (I, texts), in the order in which the texts were added."""
        logits = self.logits(decoder)
        nodes, tokens = torch.tensor(list(self.edges), device=logits.device).T
        # Per edge the smoothed log-probability: (1 - s) log p(token) + s * (mean over V of log p).
        edges = (1 - smoothing) * logits[:, nodes, tokens] - logits.logsumexp(-1)[:, nodes]
        if smoothing:
            edges = edges + smoothing * logits.mean(-1)[:, nodes]
        edges = torch.cat([edges, torch.zeros_like(edges[:, :1])], 1)  # a last edge that adds nothing, for short texts
        longest = max(map(len, self.paths))
        padded = [path + [len(self.edges)] * (longest - len(path)) for path in self.paths]
        total = torch.zeros(len(logits), len(self.paths), device=logits.device)
        for step in torch.tensor(padded, device=logits.device).T:  # token by token, so that other texts change nothing
            total = total + edges[:, step]
        return total

"""Closed-answer ranking: the log-probability of each answer of a list (paper section 5.3).

Answers share prefixes, so a list is decoded as a tree: each distinct prefix is computed once per item, and many of them
are packed in one sequence in which a token sees its own text only.

Shapes: I items, C candidates, T tree nodes in a sequence, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from openblip.errors import InputError
from openblip.io import limits
from openblip.model.text import LanguageHead, Memory, TextTransformer

DecoderT = TypeVar("DecoderT", bound="PackedDecoder")


@dataclass(frozen=True, kw_only=True)
class PackedDecoder(ABC):
    """Decodes many texts, packed in one sequence, for each of I items.

    Attributes:
        memory: Cross-attention keys and values of the items.
    """

    memory: Memory

    @property
    def items(self) -> int:
        """Number of items."""
        return self.memory.items

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.memory.device

    def select(self: DecoderT, item: int) -> DecoderT:
        """Return the decoder of a single item."""
        return replace(self, memory=self.memory.select(torch.tensor([item], device=self.device)))

    @abstractmethod
    def logits(self, ids: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Compute the logits of the token after each token.

        Args:
            ids: Token ids (T,).
            positions: Position of each token in its text (T,).
            visible: Whether token t sees token s, `visible[t, s]` (T, T).

        Returns:
            Logits (I, T, V), float32.
        """


@dataclass(frozen=True, kw_only=True)
class TorchPackedDecoder(PackedDecoder):
    """A packed decoder in PyTorch."""

    text: TextTransformer
    head: LanguageHead

    def logits(self, ids: Tensor, positions: Tensor, visible: Tensor) -> Tensor:
        """Return the logits (I, T, V) after each token; see the base class."""
        states = self.text.decode_packed(ids, positions, visible, self.memory)
        return self.head(states, self.text.embeddings.word).float()


@torch.inference_mode()
def rank_answers(
    decoder: PackedDecoder,
    candidates: Sequence[Sequence[int]],
    *,
    shortlist: int | None = None,
    smoothing: float = 0.0,
    chunk_size: int = 1024,
) -> Tensor:
    """Score every candidate for every item.

    A score is the summed log-probability of all tokens after [DEC], the final [SEP] included, so the softmax over the
    candidates is the probability among them.

    The original model ranks in two steps: it scores only the candidates with the likeliest first tokens, and it uses
    the label-smoothed loss of training. `shortlist=128` and `smoothing=0.1` reproduce this.

    Args:
        decoder: Decoder of the items.
        candidates: Answers, each from [DEC] to [SEP].
        shortlist: Number of candidates to score per item, chosen by their first token (in the order of the list among
            equals). `None` scores all.
        smoothing: Label smoothing.
        chunk_size: Maximum number of logit rows, each of length V, in memory. Results do not depend on it.

    Returns:
        Scores (I, C), float32; minus infinity for candidates outside the shortlist.

    Raises:
        InputError: There are no candidates, they do not start with the same token, or an option is out of range.
    """
    texts = [list(candidate) for candidate in candidates]
    if not texts:
        raise InputError("candidates must not be empty")
    if any(len(text) < 2 or text[0] != texts[0][0] for text in texts):
        raise InputError("candidates must have at least two tokens, [DEC] to [SEP], and the same first token")
    if shortlist is not None and shortlist < 1:
        raise InputError(f"shortlist must be at least 1, got {shortlist}")
    if not 0 <= smoothing < 1:
        raise InputError(f"smoothing must be at least 0 and below 1, got {smoothing}")
    if chunk_size < 1:
        raise InputError(f"chunk_size must be at least 1, got {chunk_size}")
    if shortlist is None or shortlist >= len(texts):
        return _score(decoder, texts, smoothing, chunk_size)

    start_logits = _PrefixTree(texts[0][:1]).logits(decoder)[:, 0]  # (I, V)
    ranked = start_logits[:, [text[1] for text in texts]].sort(descending=True, stable=True).indices
    scores = start_logits.new_full((decoder.items, len(texts)), float("-inf"))
    for item, indices in enumerate(ranked[:, :shortlist].tolist()):
        item_texts = [texts[i] for i in indices]
        scores[item, indices] = _score(decoder.select(item), item_texts, smoothing, chunk_size)[0]
    return scores


def _score(decoder: PackedDecoder, texts: list[list[int]], smoothing: float, chunk_size: int) -> Tensor:
    """Return the scores (I, C) of all texts for all items."""
    scores = torch.empty(decoder.items, len(texts), device=decoder.device)
    order = sorted(range(len(texts)), key=texts.__getitem__)  # sorted, so that texts with a shared prefix are adjacent
    while order:
        limits.check()
        tree = _PrefixTree(texts[order[0]][:1])
        count = 0
        while count < len(order) and tree.add(texts[order[count]], chunk_size // decoder.items):
            count += 1
        scores[:, order[:count]] = tree.score(decoder, smoothing)
        order = order[count:]
    return scores


class _PrefixTree:
    """Prefixes of texts. A node is a token after its parent, an edge the next token of a text at a node."""

    def __init__(self, root: list[int]) -> None:
        self.ids = root
        self.ancestors = [[0]]  # per node: its ancestors and itself
        self.nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> node
        self.edges: dict[tuple[int, int], int] = {}  # (node, next token) -> edge
        self.paths: list[list[int]] = []  # per text: its edges

    def add(self, text: list[int], max_nodes: int) -> bool:
        """Add a text, unless the tree has a text and would exceed `max_nodes` nodes; return whether it was added."""
        node, new_nodes = 0, 0
        for token in text[1:-1]:
            node = self.nodes.get((node, token), -1) if node >= 0 else node
            new_nodes += node < 0
        if self.paths and len(self.ids) + new_nodes > max_nodes:
            return False
        node, path = 0, []
        for position, token in enumerate(text[1:]):
            path.append(self.edges.setdefault((node, token), len(self.edges)))
            if position < len(text) - 2:  # nothing follows the final token
                if (node, token) not in self.nodes:
                    child = self.nodes[node, token] = len(self.ids)
                    self.ids.append(token)
                    self.ancestors.append([*self.ancestors[node], child])
                node = self.nodes[node, token]
        self.paths.append(path)
        return True

    def logits(self, decoder: PackedDecoder) -> Tensor:
        """Return the logits (I, T, V) after each node."""
        device = decoder.device
        pairs = [(node, ancestor) for node, ancestors in enumerate(self.ancestors) for ancestor in ancestors]
        rows, columns = torch.tensor(pairs).T
        visible = torch.zeros(len(self.ids), len(self.ids), dtype=torch.bool)
        visible[rows, columns] = True
        positions = torch.tensor([len(ancestors) - 1 for ancestors in self.ancestors], device=device)
        return decoder.logits(torch.tensor(self.ids, device=device), positions, visible.to(device))

    def score(self, decoder: PackedDecoder, smoothing: float) -> Tensor:
        """Return the scores (I, texts) in the order in which the texts were added."""
        logits = self.logits(decoder)
        nodes, tokens = torch.tensor(list(self.edges), device=logits.device).T
        # Smoothed log-probability of each edge: (1 - s) log p(token) + s * (mean over V of log p).
        edge_scores = (1 - smoothing) * logits[:, nodes, tokens] - logits.logsumexp(-1)[:, nodes]
        if smoothing:
            edge_scores = edge_scores + smoothing * logits.mean(-1)[:, nodes]
        # Pad short texts with an extra edge that adds 0. Sum token by token, so that other texts change nothing.
        edge_scores = torch.cat([edge_scores, torch.zeros_like(edge_scores[:, :1])], 1)
        longest = max(map(len, self.paths))
        padded = [path + [len(self.edges)] * (longest - len(path)) for path in self.paths]
        total = torch.zeros(len(logits), len(self.paths), device=logits.device)
        for step in torch.tensor(padded, device=logits.device).T:
            total = total + edge_scores[:, step]
        return total

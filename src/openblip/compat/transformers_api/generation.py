"""`generate` with the options of `transformers`, mapped to `openblip.decoding`, which returns the same tokens.

Shapes: R rows (images or questions), P prompt tokens, M memory tokens, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from openblip.compat.transformers_api.config import BlipTextConfig
from openblip.compat.transformers_api.options import (
    GenerationConfig,
    Rows,
    decoding_options,
    join_results,
    pair_prompts,
    penalized_history,
    resolve_settings,
    special_ids,
)
from openblip.compat.transformers_api.outputs import GenerateOutput
from openblip.compat.transformers_api.padding import select_columns, unpad_rows
from openblip.decoding import Decoding, Hypothesis, Session, generate_grouped
from openblip.engine.eager import EagerSession
from openblip.errors import InputError
from openblip.model.text import LanguageHead, Memory, TextTransformer


class TextDecoder(Protocol):
    """A text decoder that `generate` can drive."""

    @property
    def config(self) -> BlipTextConfig:
        """The configuration, which names the special tokens."""

    @property
    def generation_config(self) -> GenerationConfig:
        """The decoder's default options."""

    @property
    def text_transformer(self) -> TextTransformer:
        """The transformer that computes hidden states."""

    @property
    def language_head(self) -> LanguageHead:
        """The head that computes next-token logits."""


def generate(
    decoder: TextDecoder,
    prompts: Tensor,
    mask: Tensor | None,
    states: Tensor | None,
    states_mask: Tensor | None,
    config: GenerationConfig | None,
    options: Mapping[str, Any],
) -> Tensor | GenerateOutput:
    """Continue prompts.

    Padding columns that all prompts share stay in the prompt; padding that only longer prompts in the batch caused does
    not. Results shorter than the longest are padded with the padding id or, after a beam search with padding id 0, with
    the end-of-text id, as in `transformers`.

    Args:
        decoder: The text decoder.
        prompts: Token ids (R, P).
        mask: Attention mask (R, P); by default padding ids are masked.
        states: Hidden states (R, M, W) for cross-attention.
        states_mask: Attention mask (R, M) of `states`.
        config: Options that override the decoder's own.
        options: Options that override `config`.

    Returns:
        Token ids (R, T) including the prompts, or `GenerateOutput` with `return_dict_in_generate=True`.

    Raises:
        InputError: An option or an input is invalid or not supported.
    """
    if prompts.ndim != 2 or prompts.shape[1] == 0:
        raise InputError(
            f"input_ids must have shape (rows, tokens) with at least one token, got {tuple(prompts.shape)}"
        )
    if mask is None:
        pad_id = options.get("pad_token_id", decoder.config.pad_token_id)
        mask = (prompts != pad_id).long()
    ids, masks = unpad_rows(prompts, mask)
    return continue_rows(decoder, ids, masks, states, select_columns(states_mask), config, options)


def continue_rows(
    decoder: TextDecoder,
    ids: Rows,
    masks: Rows,
    states: Tensor | None,
    states_mask: Tensor | None,
    config: GenerationConfig | None,
    options: Mapping[str, Any],
) -> Tensor | GenerateOutput:
    """Continue prompts of different lengths; otherwise as `generate`.

    Args:
        decoder: The text decoder.
        ids: Token ids of each prompt.
        masks: Attention mask of each prompt.
        states: Hidden states (R, M, W) for cross-attention.
        states_mask: Attention mask (R, M) of `states`, applied as it is.
        config: Options that override the decoder's own.
        options: Options that override `config`.

    Returns:
        Token ids (R, T) including the prompts, or `GenerateOutput` with `return_dict_in_generate=True`.

    Raises:
        InputError: An option or an input is invalid or not supported.
    """
    settings = resolve_settings(options, config, decoder.generation_config)
    text, head = decoder.text_transformer, decoder.language_head
    device = text.device
    num_rows, memory = len(ids), None
    if states is not None:
        memory = text.project(states, None if states_mask is None else states_mask.to(device))
        ids, masks, num_rows = pair_prompts(memory.items, ids, masks)
        if memory.items != num_rows:
            memory = memory.select(torch.zeros(num_rows, dtype=torch.long))
    eos_id, pad_id, filler_id = special_ids(settings, decoder.config)
    results: list[list[Hypothesis]] = [[] for _ in range(num_rows)]
    for length in sorted({len(row) for row in ids}):
        rows = [row for row in range(num_rows) if len(ids[row]) == length]
        decoding = decoding_options(settings, length, text.config.max_positions, eos_id, pad_id)
        group = _PromptGroup(text, head, memory, [ids[i] for i in rows], [masks[i] for i in rows], rows, decoding)
        for row, hypotheses in zip(rows, group.decode(device), strict=True):
            results[row] = hypotheses
    return _output(ids, results, settings, filler_id, device)


class _PromptGroup:
    """Prompts of equal length that are decoded together."""

    def __init__(
        self,
        text: TextTransformer,
        head: LanguageHead,
        memory: Memory | None,
        ids: Rows,
        masks: Rows,
        rows: Sequence[int],
        options: Decoding,
    ) -> None:
        self.text, self.head, self.memory = text, head, memory
        self.ids, self.masks, self.rows = ids, masks, rows
        self.options = options

    def decode(self, device: torch.device) -> list[list[Hypothesis]]:
        """Return the hypotheses of each prompt."""
        return generate_grouped(self._session, self._history(), self.options, device=device)

    def _session(self, indices: list[int]) -> Session:
        """Return a decoding session for some prompts of the group."""
        device = self.text.device
        memory = self.memory
        if memory is not None:
            rows = [self.rows[index] for index in indices]
            if rows != list(range(memory.items)):
                memory = memory.select(torch.tensor(rows, device=device))
        length = len(self.ids[indices[0]])
        capacity = min(self.options.capacity(length), self.text.config.max_positions)
        if all(all(self.masks[index]) for index in indices):
            return EagerSession(self.text, self.head, memory, capacity, items=len(indices))
        ids = torch.tensor([self.ids[index] for index in indices], device=device)
        mask = torch.tensor([self.masks[index] for index in indices], device=device)
        return _MaskedSession(self.text, self.head, memory, capacity, ids, mask)

    def _history(self) -> list[list[int]]:
        """Return the prompts as penalties count them: `transformers` does not count padding on the left."""
        return [penalized_history(*row, self.options) for row in zip(self.ids, self.masks, strict=True)]


class _MaskedSession(EagerSession):
    """A session over padded prompts. As in `transformers`, padding is masked and has position 0.

    New tokens continue from the position of the last column, even if that is padding.
    """

    def __init__(
        self,
        text: TextTransformer,
        head: LanguageHead,
        memory: Memory | None,
        capacity: int,
        ids: Tensor,
        mask: Tensor,
    ) -> None:
        super().__init__(text, head, memory, capacity, items=len(ids))
        self.ids = ids
        self.mask = mask
        self.positions = (mask.cumsum(1) - 1) * mask

    def step(self, ids: Tensor) -> Tensor:
        if self.cache.length == 0:
            ids = self.ids  # the given ids may be changed for the penalties
        else:
            self.positions = self.positions[:, -1:] + 1
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        x = self.text.embeddings.embed(self.text.embeddings.word(ids), positions=self.positions)
        states = self.text.decode_embedded(x, self.mask, self.memory, cache=self.cache)
        return self.head(states[:, -1], self.text.embeddings.word).float()

    def widen(self, width: int) -> None:
        super().widen(width)
        self.mask, self.positions = self.mask.repeat_interleave(width, 0), self.positions.repeat_interleave(width, 0)

    def keep(self, items: Tensor) -> None:
        super().keep(items)
        rows = (items[:, None] * self.width + torch.arange(self.width, device=items.device)).flatten()
        self.mask, self.positions = self.mask[rows], self.positions[rows]


def _output(
    ids: Rows,
    results: Sequence[list[Hypothesis]],
    settings: Mapping[str, Any],
    filler_id: int,
    device: torch.device,
) -> Tensor | GenerateOutput:
    rows, scores = join_results(ids, results, settings, filler_id)
    sequences = torch.tensor(rows, device=device)
    if not settings["return_dict_in_generate"]:
        return sequences
    sequences_scores = torch.tensor(scores, device=device) if settings["output_scores"] else None
    return GenerateOutput(sequences=sequences, sequences_scores=sequences_scores)

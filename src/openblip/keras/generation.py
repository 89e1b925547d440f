"""`generate` with the options of `transformers`: sessions of compiled decoder steps, and the bookkeeping around them.

A session decodes I items (images, or questions). Each item owns `width` adjacent rows (beams, or samples). The rows of
an item share one cross-attention memory, which is never copied. All items stay in the batch until the last one ends, so
that shapes are static and each step is compiled once.

Shapes: R rows (I * width), P prompt tokens, L tokens that the cache has room for, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openblip.compat.transformers_api.options import (
    GenerationConfig,
    Rows,
    decoding_options,
    join_results,
    pair_prompts,
    penalized_history,
    read_generation_config,
    resolve_settings,
    special_ids,
    write_generation_config,
)
from openblip.compat.transformers_api.outputs import GenerateOutput
from openblip.compat.transformers_api.tensors import to_array
from openblip.decoding.options import Hypothesis
from openblip.errors import InputError
from openblip.keras.backend import Compiled, Tensor, ops, stack_rows
from openblip.keras.base import TFBlipPreTrainedModel
from openblip.keras.decoding import Draws, Floats, Integers, beam_search, decode_single
from openblip.keras.encoders import TFBlipTextLMHeadModel
from openblip.keras.text import Cache, Memory

_ROOM_STEP = 16  # caches have room for a multiple of it, so that requests of similar lengths share compiled steps


class GeneratingModel(TFBlipPreTrainedModel):
    """A model with a `text_decoder` that generates text.

    Args:
        config: Sizes of the model.
    """

    text_decoder: TFBlipTextLMHeadModel
    generation_config: GenerationConfig

    def __init__(self, config: Any, *, dtype: str | None = None, name: str | None = None) -> None:
        super().__init__(config, dtype=dtype, name=name)
        self.generation_config = GenerationConfig()
        self._functions: dict[tuple[str, bool], Compiled] = {}

    def compiled_function(self, name: str, function: Any, jit_compile: bool | None) -> Compiled:
        """Return a compiled function, which compiles again only for new shapes.

        Args:
            name: Name of the function.
            function: The function.
            jit_compile: Whether to compile by XLA; `None` for the back end's default.

        Returns:
            The compiled function.
        """
        key = name, bool(jit_compile)
        if key not in self._functions:
            self._functions[key] = Compiled(self, function, jit_compile=bool(jit_compile))
        return self._functions[key]

    def continue_rows(
        self,
        ids: Rows,
        masks: Rows,
        memory: Memory,
        config: GenerationConfig | None,
        options: Mapping[str, Any],
        seed: int | None,
        jit_compile: bool | None,
    ) -> Tensor | GenerateOutput:
        """Continue prompts.

        Args:
            ids: Token ids of each prompt.
            masks: Attention mask of each prompt.
            memory: Keys and values of the images or questions.
            config: Options that override the model's own.
            options: Options that override `config`.
            seed: Seed of samples.
            jit_compile: Whether to compile by XLA; `None` for the back end's default.

        Returns:
            Token ids (R, T) including the prompts, or `GenerateOutput` with `return_dict_in_generate=True`.

        Raises:
            InputError: An option or an input is invalid or not supported.
        """
        text = self.config.text_config
        tokens = {"eos_token_id": text.sep_token_id, "pad_token_id": text.pad_token_id}
        settings = resolve_settings({**tokens, **options}, config, self.generation_config)
        if seed is not None and not settings["do_sample"]:
            raise InputError(f"seed needs do_sample=True, got seed={seed}")
        items = memory.layers[0][0].shape[0]
        ids, masks, rows = pair_prompts(items, ids, masks)
        eos_id, pad_id, filler_id = special_ids(settings, text)
        results: list[list[Hypothesis]] = [[] for _ in range(rows)]
        for length in sorted({len(row) for row in ids}):
            group = [row for row in range(rows) if len(ids[row]) == length]
            decoding = decoding_options(settings, length, text.max_position_embeddings, eos_id, pad_id)
            chosen = group if items == rows else [0] * len(group)
            session = Session(self, select_items(memory, chosen), decoding.capacity(length), jit_compile)
            session.masks = np.array([masks[row] for row in group], dtype=np.int32)
            prompts = np.array([ids[row] for row in group], dtype=np.int32)
            history = [penalized_history(ids[row], masks[row], decoding) for row in group]
            draws = Draws(decoding, seed) if decoding.do_sample else None
            decode = decode_single if decoding.num_beams == 1 else beam_search
            hypotheses = decode(session, prompts, np.array(history, dtype=np.int32), decoding, draws)
            for row, found in zip(group, hypotheses, strict=True):
                results[row] = found
        sequences, scores = join_results(ids, results, settings, filler_id)
        if not settings["return_dict_in_generate"]:
            return stack_rows(sequences)
        sequences_scores = ops.convert_to_tensor(np.array(scores, np.float32)) if settings["output_scores"] else None
        return GenerateOutput(sequences=stack_rows(sequences), sequences_scores=sequences_scores)

    def prefill(self, ids: Tensor, positions: Tensor, visible: Tensor, memory: Memory) -> tuple[Tensor, Cache]:
        """Decode prompts; see `TextTransformer.prefill`.

        Args:
            ids: Token ids (R, P).
            positions: Positions (R, P).
            visible: 1 for tokens that others may attend to (R, L).
            memory: Keys and values of the items.

        Returns:
            Logits of the next token (R, V), and the cache.
        """
        states, cache = self.text_decoder.bert.model.prefill(ids, positions, visible, memory)
        return ops.cast(self.text_decoder.logits(states[:, -1:])[:, 0], "float32"), cache

    def advance(
        self,
        ids: Tensor,
        positions: Tensor,
        visible: Tensor,
        slot: Tensor,
        sources: Tensor,
        memory: Memory,
        cache: Cache,
    ) -> tuple[Tensor, Cache]:
        """Decode one token of each row; see `TextTransformer.step`.

        Args:
            ids: Token ids (R, 1).
            positions: Positions (R, 1).
            visible: 1 for tokens that the new one attends to (R, L).
            slot: The slot of the cache for the new token, a scalar.
            sources: The row (R,) of the cache that each row continues.
            memory: Keys and values of the items.
            cache: The cache of the previous tokens.

        Returns:
            Logits of the next token (R, V), and the cache with the new tokens.
        """
        cache = tuple((ops.take(keys, sources, axis=0), ops.take(values, sources, axis=0)) for keys, values in cache)
        states, cache = self.text_decoder.bert.model.step(ids, positions, visible, slot, memory, cache)
        return ops.cast(self.text_decoder.logits(states)[:, 0], "float32"), cache

    def _read_extra_files(self, folder: Path) -> None:
        if folder.is_dir():
            self.generation_config = read_generation_config(folder)

    def _write_extra_files(self, folder: Path) -> None:
        write_generation_config(self.generation_config, self.config.text_config, folder)


class Session:
    """One decoding run over prompts of equal length.

    As in `transformers`, masked tokens of a prompt have position 0, and new tokens continue from the position of the
    last column, even if that is padding.

    Args:
        model: The model, which serves many sessions.
        memory: Keys and values of the items.
        capacity: Maximum number of tokens in a row.
        jit_compile: Whether to compile by XLA; `None` for the back end's default.
    """

    def __init__(self, model: GeneratingModel, memory: Memory, capacity: int, jit_compile: bool | None) -> None:
        limit = model.config.text_config.max_position_embeddings
        if capacity > limit:
            raise InputError(f"a text must have at most {limit} tokens, got a request for {capacity}")
        self._prefill = model.compiled_function("prefill", model.prefill, jit_compile)
        self._advance = model.compiled_function("advance", model.advance, jit_compile)
        self._memory = memory
        self._room = -(-capacity // _ROOM_STEP) * _ROOM_STEP
        self._length = 0
        self._cache: Cache = ()
        self._positions: Integers = np.zeros((0, 1), np.int32)
        self._visible: Integers = np.zeros((0, 0), np.int32)
        self._sources: Integers = np.zeros(0, np.int32)
        self.masks: Integers = np.zeros((0, 0), np.int32)
        """1 for real tokens of the prompts (I, P)."""

    def start(self, prompts: Integers) -> Floats:
        """Decode the prompts, one row per item.

        Args:
            prompts: Token ids (I, P).

        Returns:
            Logits (I, V) of the next token.
        """
        items, self._length = prompts.shape
        positions = ((self.masks.cumsum(1) - 1) * self.masks).astype(np.int32)
        self._visible = np.zeros((items, self._room), np.int32)
        self._visible[:, : self._length] = self.masks
        inputs = map(ops.convert_to_tensor, (prompts, positions, self._visible))
        logits, self._cache = self._prefill(*inputs, self._memory)
        self._positions = positions[:, -1:]
        self._sources = np.arange(items, dtype=np.int32)
        return np.asarray(logits)

    def widen(self, width: int) -> None:
        """Let the row of each item become several rows.

        Args:
            width: Number of rows per item.
        """
        self.reorder(np.repeat(np.arange(len(self._sources), dtype=np.int32), width))

    def reorder(self, rows: Integers) -> None:
        """Let each row continue another one.

        Args:
            rows: The row that each row continues.
        """
        self._sources = self._sources[rows]
        self._positions, self._visible = self._positions[rows], self._visible[rows]

    def step(self, ids: Integers) -> Floats:
        """Append a token to each row.

        Args:
            ids: Token ids (R,).

        Returns:
            Logits (R, V) of the next token.
        """
        self._positions = self._positions + 1
        self._visible[:, self._length] = 1
        arrays = (ids[:, None].astype(np.int32), self._positions, self._visible, np.int32(self._length), self._sources)
        logits, self._cache = self._advance(*map(ops.convert_to_tensor, arrays), self._memory, self._cache)
        self._length += 1
        self._sources = np.arange(len(ids), dtype=np.int32)
        return np.asarray(logits)


def select_items(memory: Memory, items: Sequence[int]) -> Memory:
    """Return the memory of some items.

    Args:
        memory: The memory.
        items: Numbers of the items.

    Returns:
        The memory of the items, in their order.
    """
    if list(items) == list(range(memory.layers[0][0].shape[0])):
        return memory
    indices = ops.convert_to_tensor(np.array(items, np.int32))
    layers = tuple(
        (ops.take(keys, indices, axis=0), ops.take(values, indices, axis=0)) for keys, values in memory.layers
    )
    return Memory(layers, None if memory.bias is None else ops.take(memory.bias, indices, axis=0))


def to_rows(table: Any) -> Rows:
    """Return a table of token ids, or a mask, as lists of numbers.

    Args:
        table: Token ids or mask (B, T).

    Returns:
        The rows.

    Raises:
        InputError: The table is not two-dimensional.
    """
    array: NDArray[Any] = to_array(table)
    if array.ndim != 2:
        raise InputError(f"input_ids and attention_mask must have shape (rows, columns), got {array.shape}")
    rows: Rows = array.astype(np.int64).tolist()
    return rows

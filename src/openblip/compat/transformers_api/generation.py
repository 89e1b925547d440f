"""`generate` with the options of `transformers`, mapped to `openblip.decoding`, which returns the same tokens.

Shapes: R rows (images or questions), P prompt tokens, M memory tokens, W width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from openblip.compat.transformers_api.config import BlipTextConfig
from openblip.compat.transformers_api.options import (
    MONITORED,
    GenerationConfig,
    Rows,
    decoding_options,
    pair_prompts,
    penalized_history,
    resolve_settings,
    special_ids,
)
from openblip.compat.transformers_api.outputs import (
    GenerateBeamDecoderOnlyOutput,
    GenerateDecoderOnlyOutput,
    GenerateOutput,
)
from openblip.compat.transformers_api.padding import select_columns, unpad_rows
from openblip.compat.transformers_api.processors import Prompts, make_criteria, make_processors
from openblip.compat.transformers_api.steps import StepMonitor
from openblip.compat.transformers_api.text_layers import TextCache
from openblip.decoding import Decoding, Hypothesis, Session, generate_grouped
from openblip.decoding.search import generate as search
from openblip.errors import InputError
from openblip.model.layers import padding_bias
from openblip.model.packing import packing_of

_OUTPUTS = {
    "output_scores": "scores",
    "output_logits": "logits",
    "output_hidden_states": "hidden_states",
    "output_attentions": "attentions",
}


class GenerationMethods:
    """What models that generate have besides `generate`."""

    config: Any

    def compute_transition_scores(
        self,
        sequences: Tensor,
        scores: Sequence[Tensor],
        beam_indices: Tensor | None = None,
        normalize_logits: bool = False,
    ) -> Tensor:
        """Return the score of each new token, from the outputs of `generate`.

        Args:
            sequences: Token ids (R, T).
            scores: Scores (rows, V) of each step.
            beam_indices: Rows (R, S) that new tokens continued, of a beam search.
            normalize_logits: Turn logits into log-probabilities.

        Returns:
            Scores (R, S); 0 after the end of a beam.
        """
        steps = torch.stack(list(scores))  # (S, rows, V)
        if normalize_logits:
            steps = steps.log_softmax(-1)
        if beam_indices is None:
            rows = torch.arange(len(sequences), device=sequences.device)[:, None].expand(-1, len(steps))
        else:
            rows = beam_indices.long()
        count = int((rows >= 0).sum(-1).max())
        rows = rows[:, :count]
        tokens = sequences[:, sequences.shape[1] - count :]
        numbers = torch.arange(count, device=sequences.device)
        return steps[numbers, rows.clamp(min=0), tokens].masked_fill(rows < 0, 0.0)


class TextDecoder(Protocol):
    """A text decoder that `generate` can drive."""

    @property
    def config(self) -> BlipTextConfig:
        """The configuration, which names the special tokens."""

    @property
    def generation_config(self) -> GenerationConfig:
        """The decoder's default options."""

    def __call__(self, input_ids: Tensor, **kwargs: Any) -> Any:
        """Compute next-token logits; the `forward` of `BlipTextLMHeadModel`."""


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
    device = prompts.device if states is None else states.device
    return continue_rows(decoder, ids, masks, states, select_columns(states_mask), config, options, device)


def continue_rows(
    decoder: TextDecoder,
    ids: Rows,
    masks: Rows,
    states: Tensor | None,
    states_mask: Tensor | None,
    config: GenerationConfig | None,
    options: Mapping[str, Any],
    device: torch.device | None = None,
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
        device: Device of the ids; the default is the device of `states`.

    Returns:
        Token ids (R, T) including the prompts, or `GenerateOutput` with `return_dict_in_generate=True`.

    Raises:
        InputError: An option or an input is invalid or not supported.
    """
    settings = resolve_settings(options, config, decoder.generation_config, monitored=True)
    if device is None:
        device = torch.device("cpu") if states is None else states.device
    if states is not None:
        states_mask = None if states_mask is None else states_mask.to(device)
        ids, masks, _ = pair_prompts(len(states), ids, masks)
    num_rows = len(ids)
    eos_id, pad_id, filler_id = special_ids(settings, decoder.config)
    results: list[list[Hypothesis]] = [[] for _ in range(num_rows)]
    lengths = sorted({len(row) for row in ids})
    monitored = _is_monitored(settings)
    recorded = _recorded(settings) - ({"scores"} if settings["num_beams"] > 1 else set())
    if monitored and len(lengths) > 1 and (settings["streamer"] or recorded):
        raise InputError(
            "streamer and outputs of each step need prompts of equal length, got "
            f"{', '.join(map(str, lengths))} tokens: generate for one length at a time"
        )
    monitor: StepMonitor | None = None
    for length in lengths:
        rows = [row for row in range(num_rows) if len(ids[row]) == length]
        decoding = decoding_options(settings, length, decoder.config.max_position_embeddings, eos_id, pad_id)
        group = _PromptGroup(
            decoder, states, states_mask, [ids[i] for i in rows], [masks[i] for i in rows], rows, decoding
        )
        if monitored:
            hypotheses, monitor = group.decode_monitored(device, settings)
        else:
            hypotheses = group.decode(device)
        for row, row_hypotheses in zip(rows, hypotheses, strict=True):
            results[row] = row_hypotheses
    return _output(ids, results, settings, filler_id, device, monitor)


def _is_monitored(settings: Mapping[str, Any]) -> bool:
    """Return whether options need a monitor of each step."""
    if settings["return_dict_in_generate"]:
        return True
    outputs = ("output_logits", "output_hidden_states", "output_attentions")  # which need return_dict_in_generate
    return any(settings[name] not in (None, off) for name, off in MONITORED.items() if name not in outputs)


def _recorded(settings: Mapping[str, Any]) -> frozenset[str]:
    """Return the names of the outputs of each step to record."""
    if not settings["return_dict_in_generate"]:
        return frozenset()
    return frozenset(output for name, output in _OUTPUTS.items() if settings[name])


class _PromptGroup:
    """Prompts of equal length that are decoded together."""

    def __init__(
        self,
        decoder: TextDecoder,
        states: Tensor | None,
        states_mask: Tensor | None,
        ids: Sequence[Sequence[int]],
        masks: Sequence[Sequence[int]],
        rows: Sequence[int],
        options: Decoding,
    ) -> None:
        self.decoder, self.states, self.states_mask = decoder, states, states_mask
        self.ids, self.masks, self.rows = ids, masks, rows
        self.options = options

    def decode(self, device: torch.device) -> list[list[Hypothesis]]:
        """Return the hypotheses of each prompt."""

        def start(indices: list[int]) -> Session:
            return self._session(indices, device)

        return generate_grouped(start, self._history(), self.options, device=device)

    def decode_monitored(
        self, device: torch.device, settings: Mapping[str, Any]
    ) -> tuple[list[list[Hypothesis]], StepMonitor]:
        """Return the hypotheses of each prompt, and the monitor of the run."""
        options, length = self.options, len(self.ids[0])
        session = self._session(list(range(len(self.ids))), device)
        records = _recorded(settings)
        session.records = {f"output_{name}": True for name in records & {"hidden_states", "attentions"}}
        per_prompt = max(options.num_beams, options.n)
        prompts = Prompts(
            length=length,
            max_length=length + options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            rows=self.rows,
            rows_per_prompt=per_prompt,
            eos_id=options.eos_id,
        )
        streamer = settings["streamer"]
        monitor = StepMonitor(
            make_processors(settings, prompts),
            make_criteria(settings, settings.get("tokenizer")),
            streamer,
            session,
            records,
            per_prompt * len(self.ids),
        )
        ids = torch.tensor(self._history(), device=device)
        if streamer is not None:
            streamer.put(ids.cpu())
        hypotheses = search(session, ids, options, monitor=monitor)
        if streamer is not None:
            streamer.end()
        return hypotheses, monitor

    def _session(self, indices: list[int], device: torch.device) -> DecoderSession:
        """Return a decoding session for some prompts of the group."""
        states, mask = self.states, self.states_mask
        rows = [self.rows[index] for index in indices]
        if states is not None and len(states) > 1 and rows != list(range(len(states))):
            selection = torch.tensor(rows, device=device)
            states = states[selection]
            mask = None if mask is None else mask[selection]
        length = len(self.ids[indices[0]])
        capacity = min(self.options.capacity(length), self.decoder.config.max_position_embeddings)
        prompt = None
        if not all(all(self.masks[index]) for index in indices):
            prompt = (
                torch.tensor([self.ids[index] for index in indices], device=device),
                torch.tensor([self.masks[index] for index in indices], device=device),
            )
        return DecoderSession(self.decoder, states, mask, capacity, len(indices), prompt)

    def _history(self) -> list[list[int]]:
        """Return the prompts as penalties count them."""
        pairs = zip(self.ids, self.masks, strict=True)
        return [penalized_history(row, mask, self.options) for row, mask in pairs]


class DecoderSession:
    """A decoding run that calls the decoder module, so that hooks, adapters and replaced modules take part.

    Args:
        decoder: The text decoder.
        states: States (I, M, W) to attend to; a single item serves all rows.
        states_mask: 1 for tokens, 0 for padding (I, M) of the states.
        capacity: Maximum number of tokens in a row.
        rows: Number of rows.
        padded_prompt: Ids and mask (R, P) of prompts with padding. As in `transformers`, padding is masked and has
            position 0, and new tokens continue from the position of the last column, even if it is padding.
    """

    def __init__(
        self,
        decoder: TextDecoder,
        states: Tensor | None,
        states_mask: Tensor | None,
        capacity: int,
        rows: int,
        padded_prompt: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.decoder, self.states = decoder, states
        if isinstance(decoder, nn.Module):
            packing_of(decoder).check()
        # A bias, because a mask of one row would not hide padding that the row shares with no other row.
        self.states_bias = None
        if states is not None and states_mask is not None:
            self.states_bias = padding_bias(states_mask, states.dtype)
        self.cache = TextCache(capacity)
        self.rows, self.width = rows, 1
        self.prompt: Tensor | None = None
        self.mask: Tensor | None = None
        if padded_prompt is not None:
            self.prompt, self.mask = padded_prompt
        self.positions: Tensor | None = None
        self.records: dict[str, Any] = {}  # options of `forward` to record more than logits
        self.output: Any = None

    def step(self, ids: Tensor) -> Tensor:
        """Append tokens (rows, t) to all rows; return the logits (rows, V) of the next token."""
        if self.mask is not None:
            ids = self._advance_mask(ids)
        packed: AbstractContextManager[None] = nullcontext()
        if isinstance(self.decoder, nn.Module):  # its packed weights were checked when the session started
            packed = packing_of(self.decoder).active(self.decoder, checked=True)
        with packed:
            self.output = self.decoder(
                input_ids=ids,
                attention_mask=self.mask,
                position_ids=self.positions,
                encoder_hidden_states=self.states,
                encoder_attention_mask=self.states_bias,
                past_key_values=self.cache,
                use_cache=True,
                is_decoder=True,
                logits_to_keep=1,
                return_dict=True,
                **self.records,
            )
        if self.states is not None and len(self.states) == 1 < self.rows:
            self._repeat_states()
        return self.output.logits[:, -1].float()

    def widen(self, width: int) -> None:
        """Replace the row of each item by `width` copies."""
        rows = torch.arange(self.rows, device=self.cache.layers[0][0].device).repeat_interleave(width)
        self._select(rows)
        self.width = width

    def reorder(self, rows: Tensor) -> None:
        """Replace each row r by row `rows[r]` of the same item."""
        self._select(rows, same_mask=True)

    def keep(self, items: Tensor) -> None:
        """Drop all items except these."""
        self._select((items[:, None] * self.width + torch.arange(self.width, device=items.device)).flatten())
        self.rows = len(items)
        if self.states is not None:
            self.states = self.states[items]
            self.states_bias = None if self.states_bias is None else self.states_bias[items]
            self.cache.select_memory(items)

    def _select(self, rows: Tensor, *, same_mask: bool = False) -> None:
        self.cache.select(rows)
        if self.mask is not None and not same_mask:
            self.mask = self.mask[rows]
            self.positions = None if self.positions is None else self.positions[rows]

    def _repeat_states(self) -> None:
        """Give each row its own item, so that rows can be dropped; the keys and values are not repeated in memory."""
        assert self.states is not None
        self.states = self.states.expand(self.rows, -1, -1)
        if self.states_bias is not None:
            self.states_bias = self.states_bias.expand(self.rows, -1, -1, -1)
        self.cache.memory = [
            (keys.contiguous().expand(self.rows, -1, -1, -1), values.contiguous().expand(self.rows, -1, -1, -1))
            for keys, values in self.cache.memory
        ]

    def _advance_mask(self, ids: Tensor) -> Tensor:
        """Update mask and positions for a step, and return its ids."""
        assert self.mask is not None
        if self.positions is None:
            self.positions = (self.mask.cumsum(1) - 1) * self.mask
            assert self.prompt is not None
            return self.prompt  # the given ids may be changed for the penalties
        self.positions = self.positions[:, -1:] + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        return ids


def _output(
    ids: Sequence[Sequence[int]],
    results: Sequence[list[Hypothesis]],
    settings: Mapping[str, Any],
    filler_id: int,
    device: torch.device,
    monitor: StepMonitor | None,
) -> Tensor | GenerateOutput:
    count = settings["num_return_sequences"]
    empty = Hypothesis([], -1e9, -1e9, finished=False, beam_indices=())  # where bans leave fewer sequences
    rows, scores, origins = [], [], []
    for prompt, hypotheses in zip(ids, results, strict=True):
        for hypothesis in [*hypotheses, *[empty] * (count - len(hypotheses))]:
            rows.append([*prompt, *hypothesis.ids])
            scores.append(hypothesis.score)
            origins.append(list(hypothesis.beam_indices or ()))
    longest = max(map(len, rows))
    sequences = torch.tensor([row + [filler_id] * (longest - len(row)) for row in rows], device=device)
    if not settings["return_dict_in_generate"]:
        return sequences
    assert monitor is not None
    is_one_group = len({len(row) for row in ids}) == 1  # otherwise the monitor saw only one of several groups
    records = monitor.records if is_one_group else frozenset()
    cache = monitor.session.cache if is_one_group else None
    steps: dict[str, Any] = {
        name: tuple(getattr(monitor.steps, name)) if name in records else None for name in _OUTPUTS.values()
    }
    if settings["num_beams"] == 1:
        return GenerateDecoderOnlyOutput(sequences=sequences, past_key_values=cache, **steps)
    longest = max(map(len, origins))
    return GenerateBeamDecoderOnlyOutput(
        sequences=sequences,
        sequences_scores=torch.tensor(scores, device=device) if settings["output_scores"] else None,
        beam_indices=None
        if not is_one_group
        else torch.tensor([row + [-1] * (longest - len(row)) for row in origins], device=device, dtype=torch.int32),
        past_key_values=cache,
        **steps,
    )

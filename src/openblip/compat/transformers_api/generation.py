"""`generate` with the options of `transformers`, mapped to `openblip.decoding`, which returns the same tokens.

Shapes: R rows (images or questions), P prompt tokens, M memory tokens, W width, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from openblip.compat.transformers_api.config import BlipTextConfig
from openblip.compat.transformers_api.files import StrPath, Values, local_folder, write_text
from openblip.compat.transformers_api.outputs import GenerateOutput
from openblip.compat.transformers_api.padding import select_columns, unpad_rows
from openblip.decoding import Decoding, Hypothesis, Session, generate_grouped
from openblip.engine.eager import EagerSession
from openblip.errors import CheckpointError, InputError
from openblip.model.text import LanguageHead, Memory, TextTransformer

_DEFAULTS: dict[str, Any] = {
    "max_length": None,
    "max_new_tokens": None,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "do_sample": False,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
    "length_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "early_stopping": False,
    "suppress_tokens": None,
    "return_dict_in_generate": False,
    "output_scores": False,
    "pad_token_id": None,
    "eos_token_id": None,
}
_DEFAULT_NEW_TOKENS = 20

# Options that change speed or memory but not results.
_WITHOUT_EFFECT = ("use_cache", "cache_implementation", "cache_config", "synced_gpus", "disable_compile")

# Options of transformers that are not supported, with the value that switches them off.
_UNSUPPORTED_OBJECTS = """
    max_time stop_strings use_mtp max_cache_len min_p top_h bad_words_ids sequence_bias forced_bos_token_id
    forced_eos_token_id exponential_decay_length_penalty begin_suppress_tokens guidance_scale watermarking_config
    decoder_start_token_id renormalize_logits remove_invalid_values output_attentions output_hidden_states
    output_logits token_healing logits_processor stopping_criteria prefix_allowed_tokens_fn assistant_model
    streamer negative_prompt_ids negative_prompt_attention_mask custom_generate prompt_lookup_num_tokens
    compile_config low_memory penalty_alpha constraints force_words_ids dola_layers
"""
_UNSUPPORTED: dict[str, Any] = {
    **dict.fromkeys(_UNSUPPORTED_OBJECTS.split()),
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a GenerationConfig: the text config overrides them


class GenerationConfig:
    """Default options of `generate`. Options that are `None` or not set keep the default of `transformers`.

    Args:
        **options: Options of `generate` by name.
    """

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def from_pretrained(cls, name_or_path: StrPath, **kwargs: Any) -> GenerationConfig:
        """Read `generation_config.json` of a folder or hub id.

        Args:
            name_or_path: Local folder or file, or hub id.
            **kwargs: Location of the files (`revision`, `cache_dir`, `subfolder`, ...) and further options.

        Returns:
            The configuration.

        Raises:
            CheckpointError: There is no `generation_config.json`.
        """
        folder, kwargs = local_folder(name_or_path, kwargs)
        path = folder / "generation_config.json" if folder.is_dir() else folder
        if not path.is_file():
            raise CheckpointError(f"{folder} has no generation_config.json")
        values = json.loads(path.read_text(encoding="utf-8"))
        inert = ("_from_model_config", "transformers_version")
        return cls(**{name: value for name, value in values.items() if name not in inert}, **kwargs)

    def save_pretrained(self, save_directory: StrPath) -> None:
        """Write `generation_config.json` to a folder.

        Args:
            save_directory: Folder to write to.
        """
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_text(Path(save_directory) / "generation_config.json", text)

    def to_dict(self) -> Values:
        """Return the options that are set.

        Returns:
            The options that are set.
        """
        return {name: value for name, value in vars(self).items() if value is not None}

    def update(self, **options: Any) -> None:
        """Set options.

        Args:
            **options: Options by name.
        """
        vars(self).update(options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"GenerationConfig {json.dumps(self.to_dict(), indent=2, default=str)}"


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
    ids: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]],
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
        memory, ids, masks = _broadcast_prompts(memory, ids, masks)
        num_rows = len(ids)
    eos_id = settings["eos_token_id"] if settings["eos_token_id"] is not None else decoder.config.eos_token_id
    pad_id = settings["pad_token_id"] if settings["pad_token_id"] is not None else decoder.config.pad_token_id
    results: list[list[Hypothesis]] = [[] for _ in range(num_rows)]
    for length in sorted({len(row) for row in ids}):
        rows = [row for row in range(num_rows) if len(ids[row]) == length]
        decoding = _decoding(settings, length, text.config.max_positions, eos_id, pad_id)
        group = _PromptGroup(text, head, memory, [ids[i] for i in rows], [masks[i] for i in rows], rows, decoding)
        for row, hypotheses in zip(rows, group.decode(device), strict=True):
            results[row] = hypotheses
    filler_id = eos_id if settings["num_beams"] > 1 and pad_id == 0 else pad_id
    return _output(ids, results, settings, filler_id, device)


def resolve_settings(options: Mapping[str, Any], *configs: GenerationConfig | None) -> Values:
    """Return the value of every option.

    Args:
        options: Options of the call, which override `configs`.
        *configs: Configurations; an option comes from the first one that sets it, otherwise it has its default.

    Returns:
        The value of every option.

    Raises:
        InputError: An option does not exist or is not supported.
    """
    settings = dict(_DEFAULTS)
    for config in reversed(configs):
        stored = {} if config is None else config.to_dict()
        settings.update({name: value for name, value in stored.items() if name not in _TOKENS})
    settings.update({name: value for name, value in options.items() if value is not None})
    unknown = [name for name in options if name not in {*_DEFAULTS, *_WITHOUT_EFFECT, *_UNSUPPORTED}]
    if unknown:
        raise InputError(f"generate has no option {', '.join(unknown)}")
    for name, off in _UNSUPPORTED.items():
        value = settings.pop(name, off)
        if value not in (None, False, off):
            raise InputError(f"generate does not support {name}={value!r}; omit it")
    _check(settings)
    return settings


def _check(settings: dict[str, Any]) -> None:
    """Raise for settings that `transformers` rejects, and warn about settings that it ignores."""
    beams, count, sample = settings["num_beams"], settings["num_return_sequences"], settings["do_sample"]
    if settings["max_new_tokens"] is not None and settings["max_new_tokens"] <= 0:
        raise InputError(f"max_new_tokens must be at least 1, got {settings['max_new_tokens']}")
    if count > 1 and beams == 1 and not sample:
        raise InputError(
            f"num_return_sequences must be 1 for greedy decoding, got {count}: set num_beams or do_sample=True"
        )
    if 1 < beams < count:
        raise InputError(f"num_return_sequences must be at most num_beams ({beams}), got {count}")
    ignored = [] if sample else ["temperature", "top_k", "top_p"]
    ignored += [] if beams > 1 else ["length_penalty", "early_stopping"]
    ignored += [] if settings["return_dict_in_generate"] else ["output_scores"]
    for name in ignored:
        if settings[name] != _DEFAULTS[name]:
            warnings.warn(f"generate: {name}={settings[name]!r} has no effect with these options", stacklevel=6)
            settings[name] = _DEFAULTS[name]
    if settings["output_scores"] and beams == 1:
        raise InputError("output_scores=True needs num_beams > 1; it returns sequences_scores")


def _decoding(settings: Mapping[str, Any], length: int, max_positions: int, eos_id: int, pad_id: int) -> Decoding:
    """Return decoding options for prompts of `length` tokens."""
    max_new_tokens = settings["max_new_tokens"]
    if max_new_tokens is None and settings["max_length"] is None:
        max_new_tokens = min(_DEFAULT_NEW_TOKENS, max_positions - length)
    elif max_new_tokens is None:
        max_new_tokens = settings["max_length"] - length
    if max_new_tokens <= 0:
        raise InputError(
            f"max_length must be greater than the prompt's {length} tokens, got "
            f"{settings['max_length'] or max_positions}: raise it, or set max_new_tokens"
        )
    min_new_tokens = settings["min_new_tokens"]
    if min_new_tokens is None:
        min_new_tokens = max(settings["min_length"] - length, 0)
    if min_new_tokens > max_new_tokens:
        warnings.warn(
            f"generate: min_new_tokens ({min_new_tokens}) is greater than max_new_tokens ({max_new_tokens}); "
            f"using {max_new_tokens}",
            stacklevel=5,
        )
        min_new_tokens = max_new_tokens
    beams, sample = settings["num_beams"], bool(settings["do_sample"])
    beam_options = {"length_penalty": float(settings["length_penalty"]), "early_stopping": settings["early_stopping"]}
    sample_options = {
        "temperature": float(settings["temperature"]),
        "top_k": settings["top_k"],
        "top_p": float(settings["top_p"]),
    }
    return Decoding(
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
        n=settings["num_return_sequences"],
        repetition_penalty=float(settings["repetition_penalty"]),
        no_repeat_ngram_size=settings["no_repeat_ngram_size"],
        do_sample=sample,
        score_rule="generated",
        forbid_ids=tuple(settings["suppress_tokens"] or ()),
        eos_id=eos_id,
        pad_id=pad_id,
        **(beam_options if beams > 1 else {}),
        **(sample_options if sample else {}),
    )


class _PromptGroup:
    """Prompts of equal length that are decoded together."""

    def __init__(
        self,
        text: TextTransformer,
        head: LanguageHead,
        memory: Memory | None,
        ids: Sequence[Sequence[int]],
        masks: Sequence[Sequence[int]],
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
        history = [list(row) for row in self.ids]
        if self.options.repetition_penalty != 1.0:
            for row, mask in zip(history, self.masks, strict=True):
                padding = mask.index(1) if 1 in mask else 0
                if padding and self.options.no_repeat_ngram_size:
                    raise InputError(
                        "repetition_penalty and no_repeat_ngram_size cannot be combined with padding on the left: pad "
                        "on the right, or use one of them"
                    )
                row[:padding] = [row[padding]] * padding
        return history


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


def _broadcast_prompts(
    memory: Memory, ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]
) -> tuple[Memory, Sequence[Sequence[int]], Sequence[Sequence[int]]]:
    """Repeat a single prompt for all images, or a single image for all prompts."""
    if len(ids) == memory.items:
        return memory, ids, masks
    if memory.items == 1:
        return memory.select(torch.zeros(len(ids), dtype=torch.long)), ids, masks
    if len(ids) == 1:
        return memory, list(ids) * memory.items, list(masks) * memory.items
    raise InputError(f"{len(ids)} prompts must match {memory.items} images or questions, or either must be 1")


def _output(
    ids: Sequence[Sequence[int]],
    results: Sequence[list[Hypothesis]],
    settings: Mapping[str, Any],
    filler_id: int,
    device: torch.device,
) -> Tensor | GenerateOutput:
    count = settings["num_return_sequences"]
    empty = Hypothesis([], -1e9, -1e9, finished=False)  # where bans leave fewer sequences than requested
    rows, scores = [], []
    for prompt, hypotheses in zip(ids, results, strict=True):
        for hypothesis in [*hypotheses, *[empty] * (count - len(hypotheses))]:
            rows.append([*prompt, *hypothesis.ids])
            scores.append(hypothesis.score)
    longest = max(map(len, rows))
    sequences = torch.tensor([row + [filler_id] * (longest - len(row)) for row in rows], device=device)
    if not settings["return_dict_in_generate"]:
        return sequences
    sequences_scores = torch.tensor(scores, device=device) if settings["output_scores"] else None
    return GenerateOutput(sequences=sequences, sequences_scores=sequences_scores)

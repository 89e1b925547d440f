"""``generate``: the options of that library, told to our decoding, which follows it token for token.

Shapes: R rows (images or questions), P prompt tokens, V vocabulary.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from openblip.compat.transformers_api.files import StrPath, local_folder, write_text
from openblip.compat.transformers_api.outputs import GenerateOutput
from openblip.compat.transformers_api.padding import kept_columns, rows_alone
from openblip.decoding import Decoding, Hypothesis, Session, generate_grouped
from openblip.engine.eager import EagerSession
from openblip.errors import CheckpointError, InputError
from openblip.model.text import LanguageHead, Memory, TextTransformer

if TYPE_CHECKING:
    from openblip.compat.transformers_api.text import BlipTextLMHeadModel

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

# How things are done, not what comes out.
_WITHOUT_EFFECT = ("use_cache", "cache_implementation", "cache_config", "synced_gpus", "disable_compile")

# Options of that library which are not here, with the value that asks for nothing.
_ABSENT = """
    max_time stop_strings use_mtp max_cache_len min_p top_h bad_words_ids sequence_bias forced_bos_token_id
    forced_eos_token_id exponential_decay_length_penalty begin_suppress_tokens guidance_scale watermarking_config
    decoder_start_token_id renormalize_logits remove_invalid_values output_attentions output_hidden_states
    output_logits token_healing logits_processor stopping_criteria prefix_allowed_tokens_fn assistant_model
    streamer negative_prompt_ids negative_prompt_attention_mask custom_generate prompt_lookup_num_tokens
    compile_config low_memory penalty_alpha constraints force_words_ids dola_layers
"""
_NOT_HERE: dict[str, Any] = {
    **dict.fromkeys(_ABSENT.split()),
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # generate takes these from the text configuration


class GenerationConfig:
    """Defaults for ``generate``: an option that is ``None``, or was never named, is left to that library's default."""

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def from_pretrained(cls, name_or_path: StrPath, **kwargs: Any) -> GenerationConfig:
        """Read ``generation_config.json`` of a folder or hub id."""
        folder, kwargs = local_folder(name_or_path, kwargs)
        path = folder / "generation_config.json" if folder.is_dir() else folder
        if not path.is_file():
            raise CheckpointError(f"{folder} has no generation_config.json")
        values = json.loads(path.read_text(encoding="utf-8"))
        inert = ("_from_model_config", "transformers_version")
        return cls(**{name: value for name, value in values.items() if name not in inert}, **kwargs)

    def save_pretrained(self, save_directory: StrPath) -> None:
        """Write ``generation_config.json``."""
        text = json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
        write_text(Path(save_directory) / "generation_config.json", text)

    def to_dict(self) -> dict[str, Any]:
        """What has been set."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def update(self, **options: Any) -> None:
        """Set several options."""
        vars(self).update(options)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"GenerationConfig {json.dumps(self.to_dict(), indent=2, default=str)}"


def generate(
    decoder: BlipTextLMHeadModel,
    prompts: Tensor,
    mask: Tensor | None,
    states: Tensor | None,
    states_mask: Tensor | None,
    config: GenerationConfig | None,
    options: Mapping[str, Any],
) -> Any:
    """Continue prompts (R, P) that read ``states`` (R, M, W): ids, prompts included, or :class:`GenerateOutput`.

    Without a ``mask``, padding ids are taken as padding, as that library does. Padding columns that every row has stay
    in the prompt; those of batch mates do not. Rows shorter than the longest are filled up as there: by the padding id,
    or after a beam search, if that id is 0, by the id that ends a text.
    """
    if prompts.ndim != 2 or prompts.shape[1] == 0:
        raise InputError(f"input_ids are rows of at least one token, not {tuple(prompts.shape)}")
    if mask is None:
        pad = options.get("pad_token_id", decoder.config.pad_token_id)
        mask = (prompts != pad).long()
    ids, masks = rows_alone(prompts, mask)
    return continue_rows(decoder, ids, masks, states, kept_columns(states_mask), config, options)


def continue_rows(
    decoder: BlipTextLMHeadModel,
    ids: Sequence[Sequence[int]],
    masks: Sequence[Sequence[int]],
    states: Tensor | None,
    states_mask: Tensor | None,
    config: GenerationConfig | None,
    options: Mapping[str, Any],
) -> Any:
    """As :func:`generate`, from rows of any lengths; masks may still be 0 in places, ``states_mask`` is obeyed."""
    settings = settle(options, config, decoder.generation_config)
    text, head = decoder.bert.model, decoder.cls.model
    device = text.device
    rows, memory = len(ids), None
    if states is not None:
        memory = text.project(states, None if states_mask is None else states_mask.to(device))
        memory, ids, masks = _as_many(memory, ids, masks)
        rows = len(ids)
    eos = settings["eos_token_id"] if settings["eos_token_id"] is not None else decoder.config.eos_token_id
    pad = settings["pad_token_id"] if settings["pad_token_id"] is not None else decoder.config.pad_token_id
    results: list[list[Hypothesis]] = [[] for _ in range(rows)]
    for length in sorted({len(row) for row in ids}):
        items = [row for row in range(rows) if len(ids[row]) == length]
        asked = _decoding(settings, length, text.config.max_positions, eos, pad)
        group = _Group(text, head, memory, [ids[i] for i in items], [masks[i] for i in items], items, asked)
        for item, found in zip(items, group.decode(device), strict=True):
            results[item] = found
    filler = eos if settings["num_beams"] > 1 and pad == 0 else pad
    return _output(ids, results, settings, filler, device)


def settle(options: Mapping[str, Any], *configs: GenerationConfig | None) -> dict[str, Any]:
    """Every option's value: as given, else of the first configuration that has it, else that library's default.

    Raises ``ValueError`` for an option that does not exist, or that is not supported.
    """
    settings = dict(_DEFAULTS)
    for config in reversed(configs):
        stored = {} if config is None else config.to_dict()
        settings.update({name: value for name, value in stored.items() if name not in _TOKENS})
    settings.update({name: value for name, value in options.items() if value is not None})
    unknown = [name for name in options if name not in {*_DEFAULTS, *_WITHOUT_EFFECT, *_NOT_HERE}]
    if unknown:
        raise InputError(f"generate has no option {', '.join(unknown)}")
    for name, nothing in _NOT_HERE.items():
        value = settings.pop(name, nothing)
        if value not in (None, False, nothing):
            raise InputError(f"generate does not support {name}={value!r}")
    _check(settings)
    return settings


def _check(settings: dict[str, Any]) -> None:
    """Refuse what that library refuses; warn of what it would ignore."""
    beams, count, sample = settings["num_beams"], settings["num_return_sequences"], settings["do_sample"]
    if settings["max_new_tokens"] is not None and settings["max_new_tokens"] <= 0:
        raise InputError(f"max_new_tokens={settings['max_new_tokens']}: at least one token is generated")
    if count > 1 and beams == 1 and not sample:
        raise InputError(f"num_return_sequences={count}: greedy decoding has one result; use num_beams, or do_sample")
    if 1 < beams < count:
        raise InputError(f"num_return_sequences={count} is more than num_beams={beams}")
    idle = [] if sample else ["temperature", "top_k", "top_p"]
    idle += [] if beams > 1 else ["length_penalty", "early_stopping"]
    idle += [] if settings["return_dict_in_generate"] else ["output_scores"]
    for name in idle:
        if settings[name] != _DEFAULTS[name]:
            warnings.warn(f"generate: {name}={settings[name]!r} has no effect here", stacklevel=6)
            settings[name] = _DEFAULTS[name]
    if settings["output_scores"] and beams == 1:
        raise InputError("output_scores=True is supported for beam search, as sequences_scores")


def _decoding(settings: Mapping[str, Any], length: int, most: int, eos: int, pad: int) -> Decoding:
    """Our decoding options for prompts of ``length`` tokens, in a model with ``most`` positions."""
    new = settings["max_new_tokens"]
    if new is None and settings["max_length"] is None:
        new = min(_DEFAULT_NEW_TOKENS, most - length)
    elif new is None:
        new = settings["max_length"] - length
    if new <= 0:
        raise InputError(
            f"a prompt of {length} tokens leaves no room within max_length={settings['max_length'] or most}: raise it, "
            "or say how many to add with max_new_tokens"
        )
    least = settings["min_new_tokens"]
    least = max(settings["min_length"] - length, 0) if least is None else least
    if least > new:
        warnings.warn(f"generate: at least {least} tokens cannot be had of at most {new}", stacklevel=5)
        least = new
    beams, sample = settings["num_beams"], bool(settings["do_sample"])
    searching = {"length_penalty": float(settings["length_penalty"]), "early_stopping": settings["early_stopping"]}
    drawing = {
        "temperature": float(settings["temperature"]),
        "top_k": settings["top_k"],
        "top_p": float(settings["top_p"]),
    }
    return Decoding(
        beams=beams,
        max_new_tokens=new,
        min_new_tokens=least,
        n=settings["num_return_sequences"],
        repetition_penalty=float(settings["repetition_penalty"]),
        no_repeat_ngram=settings["no_repeat_ngram_size"],
        sample=sample,
        score_rule="generated",
        forbid_ids=tuple(settings["suppress_tokens"] or ()),
        eos_id=eos,
        pad_id=pad,
        **(searching if beams > 1 else {}),
        **(drawing if sample else {}),
    )


class _Group:
    """Rows with prompts of one length, decoded together."""

    def __init__(
        self,
        text: TextTransformer,
        head: LanguageHead,
        memory: Memory | None,
        ids: Sequence[Sequence[int]],
        masks: Sequence[Sequence[int]],
        items: Sequence[int],
        options: Decoding,
    ) -> None:
        self.text, self.head, self.memory = text, head, memory
        self.ids, self.masks, self.items = ids, masks, items
        self.options = options

    def decode(self, device: torch.device) -> list[list[Hypothesis]]:
        """The hypotheses of each row."""
        return generate_grouped(self._session, self._history(), self.options, device=device)

    def _session(self, rows: list[int]) -> Session:
        """The session of some rows of the group."""
        device = self.text.device
        memory = self.memory
        if memory is not None and (chosen := [self.items[row] for row in rows]) != list(range(memory.items)):
            memory = memory.select(torch.tensor(chosen, device=device))
        length = len(self.ids[rows[0]])
        capacity = min(self.options.capacity(length), self.text.config.max_positions)
        if all(all(self.masks[row]) for row in rows):
            return EagerSession(self.text, self.head, memory, capacity, items=len(rows))
        ids, mask = (torch.tensor([part[row] for row in rows], device=device) for part in (self.ids, self.masks))
        return _MaskedSession(self.text, self.head, memory, capacity, ids, mask)

    def _history(self) -> list[list[int]]:
        """The prompts as penalties see them: that library's does not count padding on the left."""
        history = [list(row) for row in self.ids]
        if self.options.repetition_penalty != 1.0:
            for row, mask in zip(history, self.masks, strict=True):
                first = mask.index(1) if 1 in mask else 0
                if first and self.options.no_repeat_ngram:
                    raise InputError("repetition_penalty and no_repeat_ngram_size do not go with padding on the left")
                row[:first] = [row[first]] * first
        return history


class _MaskedSession(EagerSession):
    """A session over prompts that hold padding, which the library counts as it does: hidden, at position 0.

    New tokens follow the position of the last column, also where that is padding.
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
        self.places = (mask.cumsum(1) - 1) * mask

    def step(self, ids: Tensor) -> Tensor:
        if self.cache.length == 0:
            ids = self.ids  # what was fed may be adjusted for the penalties
        else:
            self.places = self.places[:, -1:] + 1
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(ids), 1)], 1)
        x = self.text.embeddings.embed(self.text.embeddings.word(ids), positions=self.places)
        states = self.text.decode_embedded(x, self.mask, self.memory, cache=self.cache)
        return self.head(states[:, -1], self.text.embeddings.word).float()

    def widen(self, width: int) -> None:
        super().widen(width)
        self.mask, self.places = self.mask.repeat_interleave(width, 0), self.places.repeat_interleave(width, 0)

    def keep(self, items: Tensor) -> None:
        super().keep(items)
        rows = (items[:, None] * self.width + torch.arange(self.width, device=items.device)).flatten()
        self.mask, self.places = self.mask[rows], self.places[rows]


def _as_many(
    memory: Memory, ids: Sequence[Sequence[int]], masks: Sequence[Sequence[int]]
) -> tuple[Memory, Sequence[Sequence[int]], Sequence[Sequence[int]]]:
    """As many prompts as items: one prompt serves all images, one image all prompts."""
    if len(ids) == memory.items:
        return memory, ids, masks
    if memory.items == 1:
        return memory.select(torch.zeros(len(ids), dtype=torch.long)), ids, masks
    if len(ids) == 1:
        return memory, list(ids) * memory.items, list(masks) * memory.items
    raise InputError(f"{len(ids)} prompts do not go with {memory.items} images or questions")


def _output(
    ids: Sequence[Sequence[int]],
    results: Sequence[list[Hypothesis]],
    settings: Mapping[str, Any],
    filler: int,
    device: torch.device,
) -> Any:
    count = settings["num_return_sequences"]
    nothing = Hypothesis([], -1e9, -1e9, finished=False)  # where bans leave fewer sequences than were asked for
    found = [[*item, *[replace(nothing)] * (count - len(item))] for item in results]
    rows = [list(row) + one.ids for row, item in zip(ids, found, strict=True) for one in item]
    longest = max(map(len, rows))
    sequences = torch.tensor([row + [filler] * (longest - len(row)) for row in rows], device=device)
    if not settings["return_dict_in_generate"]:
        return sequences
    scores = torch.tensor([one.score for item in found for one in item], device=device)
    return GenerateOutput(sequences=sequences, sequences_scores=scores if settings["output_scores"] else None)

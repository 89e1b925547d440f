"""Options of `generate` in the names of `transformers`, mapped to options of `openblip.decoding`; and its prompts.

Nothing here needs a framework: the classes of PyTorch and of Keras share it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openblip.compat.transformers_api.config import BlipTextConfig
from openblip.compat.transformers_api.files import PushToHub, StrPath, Values, local_folder, write_text
from openblip.decoding.options import Decoding, Hypothesis
from openblip.errors import CheckpointError, InputError

Rows = Sequence[Sequence[int]]
"""Token ids, or a mask, of rows that may differ in length."""

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
_WITHOUT_EFFECT = (
    *("use_cache", "cache_implementation", "cache_config", "synced_gpus", "disable_compile", "tokenizer"),
    "labels",  # which Seq2SeqTrainer passes
)

# Options that the plain decoding does not know, with the values that switch them off.
MONITORED: dict[str, Any] = {
    "logits_processor": None,
    "stopping_criteria": None,
    "streamer": None,
    "prefix_allowed_tokens_fn": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "begin_suppress_tokens": None,
    "exponential_decay_length_penalty": None,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "min_p": None,
    "top_h": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "max_time": None,
    "stop_strings": None,
    "output_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
}
# Options of transformers that are not supported, with the value that switches them off.
_UNSUPPORTED_OBJECTS = (
    *("use_mtp", "max_cache_len", "guidance_scale", "watermarking_config", "decoder_start_token_id", "token_healing"),
    *("assistant_model", "negative_prompt_ids", "negative_prompt_attention_mask", "custom_generate", "low_memory"),
    *("prompt_lookup_num_tokens", "compile_config", "penalty_alpha", "constraints", "force_words_ids", "dola_layers"),
)
# Options of transformers that are not supported, with the value that switches them off.
_UNSUPPORTED: dict[str, Any] = {
    **dict.fromkeys(_UNSUPPORTED_OBJECTS),
    "encoder_repetition_penalty": 1.0,
    "encoder_no_repeat_ngram_size": 0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
}
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")  # of a GenerationConfig: the text config overrides them


class GenerationConfig(PushToHub):
    """Default options of `generate`. Options that are `None` or not set keep the default of `transformers`.

    Args:
        **options: Options of `generate` by name.
    """

    _from_model_config = False  # Seq2SeqTrainer reads it

    def __init__(self, **options: Any) -> None:
        for name, value in options.items():
            setattr(self, name, value)

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name: StrPath, config_file_name: str | None = None, **kwargs: Any
    ) -> GenerationConfig:
        """Read `generation_config.json` of a folder or hub id.

        Args:
            pretrained_model_name: Local folder or file, or hub id.
            config_file_name: Another name of the file.
            **kwargs: Location of the files (`revision`, `cache_dir`, `subfolder`, ...) and further options.

        Returns:
            The configuration.

        Raises:
            CheckpointError: There is no `generation_config.json`.
        """
        folder, kwargs = local_folder(pretrained_model_name, kwargs)
        file_name = config_file_name or "generation_config.json"
        path = folder / file_name if folder.is_dir() else folder
        if not path.is_file():
            raise CheckpointError(f"{folder} has no {file_name}")
        values = json.loads(path.read_text(encoding="utf-8"))
        inert = ("_from_model_config", "transformers_version")
        return cls(**{name: value for name, value in values.items() if name not in inert}, **kwargs)

    def save_pretrained(
        self,
        save_directory: StrPath,
        config_file_name: str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """Write `generation_config.json` to a folder.

        Args:
            save_directory: Folder to write to.
            config_file_name: Another name of the file.
            push_to_hub: Upload the folder to the hub.
            **kwargs: Arguments of `push_to_hub`.
        """
        folder = Path(save_directory)
        write_text(folder / (config_file_name or "generation_config.json"), self.to_json_string())
        self._push(folder, push_to_hub, kwargs)

    def to_dict(self) -> Values:
        """Return the options that are set.

        Returns:
            The options that are set.
        """
        return {name: value for name, value in vars(self).items() if value is not None and not name.startswith("_")}

    @staticmethod
    def _get_default_generation_params() -> Values:
        """Return the defaults of all options; Seq2SeqTrainer asks for them."""
        return {**_DEFAULTS, "max_length": _DEFAULT_NEW_TOKENS}

    def to_diff_dict(self) -> Values:
        """Return the options that are set; unset options have no value here.

        Returns:
            The options that are set.
        """
        return self.to_dict()

    def to_json_string(
        self, use_diff: bool = True, ignore_metadata: bool = False, keys_to_pop: Sequence[str] | None = None
    ) -> str:
        """Return the content of `generation_config.json`.

        Args:
            use_diff: Ignored; only options that are set have a value.
            ignore_metadata: Ignored; there is no metadata.
            keys_to_pop: Options to omit.

        Returns:
            The content of the file.
        """
        values = {name: value for name, value in self.to_dict().items() if name not in (keys_to_pop or ())}
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(
        self, json_file_path: StrPath, use_diff: bool = True, keys_to_pop: Sequence[str] | None = None
    ) -> None:
        """Write the options to a file.

        Args:
            json_file_path: The file.
            use_diff: Ignored; only options that are set have a value.
            keys_to_pop: Options to omit.
        """
        write_text(Path(json_file_path), self.to_json_string(use_diff, keys_to_pop=keys_to_pop))

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], **kwargs: Any) -> GenerationConfig:
        """Create a configuration from options by name.

        Args:
            config_dict: Options by name.
            **kwargs: Options to override.

        Returns:
            The configuration.
        """
        return cls(**{**config_dict, **kwargs})

    def update(self, defaults_only: bool = False, allow_custom_entries: bool = False, **kwargs: Any) -> Values:
        """Set options. An option that does not exist is an error of `generate`.

        Args:
            defaults_only: Set only options that are not set.
            allow_custom_entries: Ignored; options of any name are set.
            **kwargs: Options by name.

        Returns:
            The options that were not set, because they have a value and `defaults_only` is true.
        """
        unused = {name: value for name, value in kwargs.items() if defaults_only and vars(self).get(name) is not None}
        for name, value in kwargs.items():
            if name not in unused:
                setattr(self, name, value)
        return unused

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GenerationConfig) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"GenerationConfig {json.dumps(self.to_dict(), indent=2, default=str)}"


def resolve_settings(options: Mapping[str, Any], *configs: Any, monitored: bool = False) -> Values:
    """Return the value of every option.

    Args:
        options: Options of the call, which override `configs`.
        *configs: Configurations, ours or of `transformers`; an option comes from the first one that sets it, otherwise
            it has its default.
        monitored: Whether the caller can monitor each step: processors, streamers, outputs of each step.

    Returns:
        The value of every option.

    Raises:
        InputError: An option does not exist or is not supported.
    """
    supported = {**_DEFAULTS, **(MONITORED if monitored else {})}
    unsupported = {**_UNSUPPORTED, **({} if monitored else MONITORED)}
    settings, known = dict(supported), {*supported, *_WITHOUT_EFFECT, *unsupported}
    for config in reversed(configs):
        stored = {} if config is None else config.to_dict()
        names = [name for name in stored if name in known and name not in _TOKENS]
        settings.update({name: stored[name] for name in names if stored[name] is not None})
    settings.update({name: value for name, value in options.items() if value is not None})
    unknown = [name for name in options if name not in known]
    if unknown:
        raise InputError(f"generate has no option {', '.join(unknown)}")
    for name, off in unsupported.items():
        value = settings.pop(name, off)
        if value not in (None, False, off):
            raise InputError(f"generate does not support {name}={value!r}; omit it")
    _check(settings, monitored)
    return settings


def _check(settings: dict[str, Any], monitored: bool) -> None:
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
    ignored += [] if monitored or settings["return_dict_in_generate"] else ["output_scores"]
    for name in ignored:
        if settings[name] != _DEFAULTS[name]:
            warnings.warn(f"generate: {name}={settings[name]!r} has no effect with these options", stacklevel=6)
            settings[name] = _DEFAULTS[name]
    if settings["output_scores"] and beams == 1 and not monitored:
        raise InputError("output_scores=True needs num_beams > 1; it returns sequences_scores")
    if settings.get("streamer") is not None and beams > 1:
        raise InputError(f"streamer needs num_beams=1, got {beams}: a beam search has no last tokens before its end")


def decoding_options(
    settings: Mapping[str, Any], length: int, max_positions: int, eos_id: int, pad_id: int
) -> Decoding:
    """Return decoding options for prompts of `length` tokens.

    Args:
        settings: Result of `resolve_settings`.
        length: Number of tokens of each prompt.
        max_positions: Maximum number of tokens of a text.
        eos_id: Token id that ends a text.
        pad_id: Token id of padding.

    Returns:
        The options.

    Raises:
        InputError: If the options contradict each other or the length of the prompts.
    """
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


def read_generation_config(folder: Path) -> GenerationConfig:
    """Return the options that a folder stores, or none.

    Args:
        folder: The folder of a model.

    Returns:
        The options that a folder stores, or none.
    """
    stored = (folder / "generation_config.json").is_file()
    return GenerationConfig.from_pretrained(folder) if stored else GenerationConfig()


def write_generation_config(config: GenerationConfig, text: BlipTextConfig, folder: Path) -> None:
    """Write `generation_config.json` with the token ids of a text transformer.

    Args:
        config: The options.
        text: Configuration of the text transformer.
        folder: The folder to write to.
    """
    tokens = {name: getattr(text, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    GenerationConfig(**{**tokens, **config.to_dict()}).save_pretrained(folder)


def caption_prompts(ids: Rows | None, mask: Rows | None, count: int, text: BlipTextConfig) -> tuple[Rows, Rows]:
    """Return the prompts of captions: they start with [DEC], and their last token, expected to be [SEP], is removed.

    Args:
        ids: Token ids of prompts; `None` for captions without a prompt.
        mask: 1 for real tokens.
        count: Number of images.
        text: Configuration of the text transformer.

    Returns:
        Token ids and masks of the prompts.

    Raises:
        InputError: If a row is only padding, or the mask has another shape.
    """
    if ids is None:
        return [[text.bos_token_id]] * count, [[1]] * count
    given = mask is not None
    rows, masks = unpad(ids, mask if mask is not None else [[int(i != text.pad_token_id) for i in row] for row in ids])
    if not given:
        masks = [[1, *row[1:]] for row in masks]  # transformers sets [DEC] before it looks for padding
    return [[text.bos_token_id, *row[1:-1]] for row in rows], [row[:-1] for row in masks]


def unpad(ids: Rows, mask: Rows) -> tuple[Rows, Rows]:
    """Return the ids and mask of each row without the padding that longer rows caused.

    Columns that are padding in every row are part of the input, and stay.

    Args:
        ids: Token ids (B, T).
        mask: Attention mask (B, T).

    Returns:
        The ids and mask of each row without the padding that longer rows caused.

    Raises:
        InputError: The mask has another shape, or a row is only padding.
    """
    shape, mask_shape = ((len(rows), len(rows[0]) if rows else 0) for rows in (ids, mask))
    if mask_shape != shape:
        raise InputError(f"attention mask must have the shape of input_ids {shape}, got {mask_shape}")
    shared = [not any(column) for column in zip(*mask, strict=True)]
    used = [[bool(real) or common for real, common in zip(row, shared, strict=True)] for row in mask]
    if all(map(all, used)):
        return ids, mask
    for number, row in enumerate(mask):
        if not any(row):
            raise InputError(f"every row must contain a token, but row {number} is only padding")

    def select(rows: Rows) -> Rows:
        return [[value for value, keep in zip(*pair, strict=True) if keep] for pair in zip(rows, used, strict=True)]

    return select(ids), select(mask)


def pair_prompts(items: int, ids: Rows, masks: Rows) -> tuple[Rows, Rows, int]:
    """Repeat a single prompt for all images, or report that a single image serves all prompts.

    Args:
        items: Number of images or questions.
        ids: Token ids of the prompts.
        masks: Masks of the prompts.

    Returns:
        Token ids and masks of the prompts, and the number of images or questions that the caller must have.

    Raises:
        InputError: If the numbers differ, and neither is 1.
    """
    if len(ids) == items or items == 1:
        return ids, masks, len(ids)
    if len(ids) == 1:
        return list(ids) * items, list(masks) * items, items
    raise InputError(f"{len(ids)} prompts must match {items} images or questions, or either must be 1")


def penalized_history(row: Sequence[int], mask: Sequence[int], options: Decoding) -> list[int]:
    """Return a prompt as penalties count it: `transformers` does not count padding on the left.

    Args:
        row: Token ids of the prompt.
        mask: Mask of the prompt.
        options: Options of decoding.

    Returns:
        The prompt, with another of its tokens in place of padding on the left.

    Raises:
        InputError: If both penalties are on, which would count differently.
    """
    history = list(row)
    padding = list(mask).index(1) if 1 in mask else 0
    if options.repetition_penalty == 1.0 or not padding:
        return history
    if options.no_repeat_ngram_size:
        raise InputError(
            "repetition_penalty and no_repeat_ngram_size cannot be combined with padding on the left: pad "
            "on the right, or use one of them"
        )
    history[:padding] = [history[padding]] * padding
    return history


def join_results(
    ids: Rows, results: Sequence[Sequence[Hypothesis]], settings: Mapping[str, Any], filler_id: int
) -> tuple[list[list[int]], list[float]]:
    """Return prompts and their continuations as rows of one length, and the scores of the rows.

    Args:
        ids: Token ids of the prompts.
        results: Hypotheses of each prompt.
        settings: Result of `resolve_settings`.
        filler_id: Token id for padding on the right.

    Returns:
        `num_return_sequences` rows per prompt, and the score of each.
    """
    count = settings["num_return_sequences"]
    empty = Hypothesis([], -1e9, -1e9, finished=False)  # where bans leave fewer sequences than requested
    rows, scores = [], []
    for prompt, hypotheses in zip(ids, results, strict=True):
        for hypothesis in [*hypotheses, *[empty] * (count - len(hypotheses))]:
            rows.append([*prompt, *hypothesis.ids])
            scores.append(hypothesis.score)
    longest = max(map(len, rows))
    return [row + [filler_id] * (longest - len(row)) for row in rows], scores


def special_ids(settings: Mapping[str, Any], text: BlipTextConfig) -> tuple[int, int, int]:
    """Return the ids of the end of a text, of padding, and of what fills the rows of a result.

    Results shorter than the longest are padded with the padding id or, after a beam search with padding id 0, with the
    end-of-text id, as in `transformers`.

    Args:
        settings: Result of `resolve_settings`.
        text: Configuration of the text transformer.

    Returns:
        The ids of the end of a text, of padding, and of what fills the rows of a result.
    """
    eos_id = settings["eos_token_id"] if settings["eos_token_id"] is not None else text.eos_token_id
    pad_id = settings["pad_token_id"] if settings["pad_token_id"] is not None else text.pad_token_id
    return eos_id, pad_id, eos_id if settings["num_beams"] > 1 and pad_id == 0 else pad_id

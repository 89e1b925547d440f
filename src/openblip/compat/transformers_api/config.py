"""The configuration classes of the ``transformers`` API, and what they mean for our model."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, cast

from openblip.compat.transformers_api.files import StrPath, local_folder, write_text
from openblip.errors import CheckpointError, ConfigError
from openblip.model.config import Activation, TextConfig, VisionConfig

if TYPE_CHECKING:
    import torch

C = TypeVar("C", bound="PreTrainedConfig")


class PreTrainedConfig:
    """A bag of named values: every field of the class, plus whatever else a file or a caller brought along.

    Unknown names are kept as attributes and written back, as that library does, except for the generation settings
    that old configurations carry, which it drops too.
    """

    model_type: ClassVar[str] = ""
    base_config_key: ClassVar[str] = ""
    fields: ClassVar[Mapping[str, Any]] = {}
    """Every field of the class with its default, in the order that 4.x took them by position."""

    def __init__(self, *args: Any, **values: Any) -> None:
        if len(args) > len(self.fields):
            raise TypeError(f"{type(self).__name__} takes at most {len(self.fields)} values by position")
        for name, value in zip(self.fields, args, strict=False):
            if name in values:
                raise TypeError(f"{type(self).__name__} got {name!r} twice")
            values[name] = value
        for name in ("model_type", "transformers_version"):
            values.pop(name, None)
        dtype, torch_dtype = values.pop("dtype", None), values.pop("torch_dtype", None)
        self._dtype = _dtype_name(dtype if dtype is not None else torch_dtype)
        for name, value in {**_COMMON, **self.fields, **values}.items():
            if name not in _GENERATION:
                setattr(self, name, value)

    if TYPE_CHECKING:  # the fields are known by name at run time only

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    @property
    def dtype(self) -> torch.dtype | None:
        """The floating type of the weights, as stored; ``None`` if nothing says so."""
        import torch

        return cast("torch.dtype | None", getattr(torch, self._dtype) if self._dtype else None)

    @dtype.setter
    def dtype(self, value: torch.dtype | str | None) -> None:
        self._dtype = _dtype_name(value)

    torch_dtype = dtype
    """The name that 4.x has for it."""

    @property
    def use_return_dict(self) -> bool:
        """The name that 4.x has for ``return_dict``."""
        return bool(self.return_dict)

    # Files

    @classmethod
    def from_pretrained(cls: type[C], name_or_path: StrPath, **kwargs: Any) -> Any:
        """Read ``config.json`` of a local folder or hub id, or the named file; ``kwargs`` override its fields.

        With ``return_unused_kwargs=True`` the result is ``(config, kwargs that are no fields)``. A text or vision class
        takes its part of a whole model's configuration.
        """
        values, kwargs = cls.get_config_dict(name_or_path, **kwargs)
        if cls.base_config_key and cls.base_config_key in values:
            values = dict(values[cls.base_config_key])
        if (found := values.get("model_type", cls.model_type)) != cls.model_type:
            raise CheckpointError(_wrong_kind(str(name_or_path), found, cls.__name__))
        return cls.from_dict(values, **kwargs)

    @classmethod
    def get_config_dict(cls, name_or_path: StrPath, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The parsed ``config.json`` and those ``kwargs`` that do not say where to find it."""
        folder, kwargs = local_folder(name_or_path, kwargs)
        path = folder / "config.json" if folder.is_dir() else folder
        if not path.is_file():
            raise CheckpointError(f"{folder} has no config.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} holds no configuration")
        return values, kwargs

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any], **kwargs: Any) -> Any:
        """A configuration from a plain dictionary; ``kwargs`` as in :meth:`from_pretrained`."""
        return_unused = kwargs.pop("return_unused_kwargs", False)
        config = cls(**dict(values))
        unused = {}
        for name, value in kwargs.items():
            if name in ("dtype", "torch_dtype") and value == "auto":
                continue
            if not hasattr(config, name):
                unused[name] = value
                continue
            current = getattr(config, name)
            if isinstance(current, PreTrainedConfig) and isinstance(value, dict):
                value = type(current)(**{**current.to_dict(), **value})
            setattr(config, name, value)
        return (config, unused) if return_unused else config

    def save_pretrained(self, save_directory: StrPath) -> None:
        """Write ``config.json``, which ``transformers`` reads too."""
        write_text(Path(save_directory) / "config.json", self.to_json_string())

    def to_dict(self) -> dict[str, Any]:
        """All values, those of the parts too, as plain data."""
        found = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**copy.deepcopy(found), "dtype": self._dtype, "model_type": self.model_type}

    def to_diff_dict(self) -> dict[str, Any]:
        """What is written to a file: :meth:`to_dict` without what every configuration has and nobody changed."""
        return {
            name: value
            for name, value in self.to_dict().items()
            if not (name in _COMMON and value == _COMMON[name])
            and not (name in _INHERITED and value in _INHERITED[name])
            and not (name == "dtype" and value is None)
        }

    def to_json_string(self) -> str:
        """The text of ``config.json``."""
        return json.dumps(self.to_diff_dict(), indent=2, sort_keys=True) + "\n"

    def update(self, values: Mapping[str, Any]) -> None:
        """Set several values."""
        for name, value in values.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())


class BlipTextConfig(PreTrainedConfig):
    """The text transformer. Its default of 8 heads is that library's; every published checkpoint has 12."""

    model_type = "blip_text_model"
    base_config_key = "text_config"
    fields: ClassVar[Mapping[str, Any]] = {
        "vocab_size": 30524,
        "hidden_size": 768,
        "encoder_hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "max_position_embeddings": 512,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "bos_token_id": 30522,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "sep_token_id": 102,
        "is_decoder": True,
        "use_cache": True,
        "label_smoothing": 0.0,
        "tie_word_embeddings": True,
    }

    def ours(self) -> TextConfig:
        """The sizes of our text transformer; raises :class:`ConfigError` for what it cannot be."""
        if not self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings=False: the output matrix of BLIP is its word embedding")
        return TextConfig(
            vocab_size=self.vocab_size,
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            mlp_width=self.intermediate_size,
            max_positions=self.max_position_embeddings,
            memory_width=self.encoder_hidden_size if self.is_decoder else None,
            activation=_activation(self.hidden_act),
            layer_norm_eps=self.layer_norm_eps,
            dropout=self.hidden_dropout_prob,
            attention_dropout=self.attention_probs_dropout_prob,
            pad_id=self.pad_token_id,
            sep_id=self.sep_token_id,
            dec_id=self.bos_token_id,
        )


class BlipVisionConfig(PreTrainedConfig):
    """The image encoder. Its LayerNorm eps of 1e-5 is that library's default; BLIP was trained with 1e-6."""

    model_type = "blip_vision_model"
    base_config_key = "vision_config"
    fields: ClassVar[Mapping[str, Any]] = {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "image_size": 384,
        "patch_size": 16,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "initializer_range": 1e-10,
    }

    def ours(self) -> VisionConfig:
        """The sizes of our image encoder, with the eps as stored; raises :class:`ConfigError` for what it cannot be."""
        for name in ("image_size", "patch_size"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name} {getattr(self, name)!r}: BLIP reads square images, so it is one number")
        return VisionConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            mlp_width=self.intermediate_size,
            activation=_activation(self.hidden_act),
            layer_norm_eps=self.layer_norm_eps,
            attention_dropout=self.attention_dropout,
        )


class BlipConfig(PreTrainedConfig):
    """A whole model: ``text_config`` and ``vision_config`` (objects, dictionaries or ``None``), and the heads.

    The width that cross-attention reads always becomes that of the image encoder, also in a text configuration that
    was handed in.
    """

    model_type = "blip"
    fields: ClassVar[Mapping[str, Any]] = {
        "text_config": None,
        "vision_config": None,
        "projection_dim": 512,
        "logit_scale_init_value": 2.6592,
        "image_text_hidden_size": 256,
        "label_smoothing": 0.0,
        "tie_word_embeddings": True,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
    }
    text_config: BlipTextConfig
    vision_config: BlipVisionConfig

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        given = dict(zip(self.fields, args, strict=False)) | values
        self.text_config = _part(given.get("text_config"), BlipTextConfig)
        self.vision_config = _part(given.get("vision_config"), BlipVisionConfig)
        self.text_config.encoder_hidden_size = self.vision_config.hidden_size

    @classmethod
    def from_text_vision_configs(
        cls, text_config: BlipTextConfig, vision_config: BlipVisionConfig, **kwargs: Any
    ) -> BlipConfig:
        """A whole model from its two parts: the constructor that 4.x has."""
        return cls(text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), **kwargs)

    def to_dict(self) -> dict[str, Any]:
        parts = {"text_config": self.text_config.to_dict(), "vision_config": self.vision_config.to_dict()}
        return {**super().to_dict(), **parts}

    def to_diff_dict(self) -> dict[str, Any]:
        parts = {"text_config": self.text_config.to_diff_dict(), "vision_config": self.vision_config.to_diff_dict()}
        return {**super().to_diff_dict(), **parts}


def _part(given: Any, kind: type[C]) -> C:
    if given is None or isinstance(given, Mapping):
        return kind(**dict(given or {}))
    if not isinstance(given, kind):
        raise TypeError(f"{kind.base_config_key} is a {kind.__name__}, a dictionary or None, not {type(given)}")
    return given


def _activation(name: str) -> Activation:
    if name not in _ACTIVATIONS:
        raise ConfigError(f"hidden_act {name!r} is not supported; one of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


def _wrong_kind(where: str, found: str, wanted: str) -> str:
    if found == "openblip":
        return f"{where} holds a model that transformers has no class for: load it with openblip.load"
    return f"{where} has model_type {found!r}, which {wanted} cannot hold"


_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# What every configuration of that library has; left out of a file while unchanged.
_COMMON: dict[str, Any] = {
    "architectures": None,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "name_or_path": "",
}

# What files carry from the base class of that library without meaning anything for BLIP, in the states they may have.
_INHERITED: dict[str, tuple[Any, ...]] = {
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "problem_type": (None,),
    "id2label": ({0: "LABEL_0", 1: "LABEL_1"}, {"0": "LABEL_0", "1": "LABEL_1"}, None),
    "label2id": ({"LABEL_0": 0, "LABEL_1": 1}, None),
}

# Settings of `generate` that configurations carried before they got a file of their own: inert since then.
_GENERATION = {
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "forced_bos_token_id"),
    *("return_dict_in_generate", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens"),
}

"""The configuration classes of `transformers`, and their conversion to configurations of `openblip.model`."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast, overload

from openblip.compat.transformers_api.files import PushToHub, StrPath, Values, local_folder, write_text
from openblip.errors import CheckpointError, ConfigError
from openblip.model.config import Activation, TextConfig, VisionConfig

if TYPE_CHECKING:
    import torch

ConfigT = TypeVar("ConfigT", bound="PreTrainedConfig")


class PreTrainedConfig(PushToHub):
    """Base class of the configurations.

    As in `transformers`, unknown values become attributes and are saved, except generation options of old files.

    Args:
        *args: Fields in the order of transformers 4.
        **values: Fields and other values by name.
    """

    model_type: ClassVar[str] = ""
    base_config_key: ClassVar[str] = ""
    fields: ClassVar[Mapping[str, Any]] = {}
    """All fields with their defaults, in the order of transformers 4."""
    sub_configs: ClassVar[Mapping[str, type[PreTrainedConfig]]] = {}
    """Classes of the subconfigurations."""
    attribute_map: ClassVar[Mapping[str, str]] = {}
    is_encoder_decoder = False
    chunk_size_feed_forward = 0
    problem_type: str | None = None
    base_model_tp_plan: ClassVar[Mapping[str, str] | None] = None
    """As in `transformers`: BLIP has no plan for tensors on several devices."""
    id2label: Mapping[int, str] | None = {0: "LABEL_0", 1: "LABEL_1"}
    label2id: Mapping[str, int] | None = {"LABEL_0": 0, "LABEL_1": 1}

    def __init__(self, *args: Any, **values: Any) -> None:
        if len(args) > len(self.fields):
            raise TypeError(f"{type(self).__name__} takes at most {len(self.fields)} values by position")
        for name, value in zip(self.fields, args, strict=False):
            if name in values:
                raise TypeError(f"{type(self).__name__} got {name!r} twice")
            values[name] = value
        for name in ("model_type", "transformers_version"):
            values.pop(name, None)
        self._attn_implementation = values.pop("attn_implementation", None)
        dtype, torch_dtype = values.pop("dtype", None), values.pop("torch_dtype", None)
        self._dtype = _dtype_name(dtype if dtype is not None else torch_dtype)
        for name, value in {**_COMMON, **self.fields, **values}.items():
            if name not in _GENERATION:
                setattr(self, name, value)

    if TYPE_CHECKING:  # fields exist at run time only

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    @property
    def dtype(self) -> torch.dtype | None:
        """The stored floating-point type of the weights, or `None`."""
        import torch

        return cast("torch.dtype | None", getattr(torch, self._dtype) if self._dtype else None)

    @dtype.setter
    def dtype(self, value: torch.dtype | str | None) -> None:
        self._dtype = _dtype_name(value)
        for name in self.sub_configs:
            if name in vars(self):
                getattr(self, name).dtype = value

    torch_dtype = dtype
    """Name of `dtype` in transformers 4."""

    @property
    def _attn_implementation(self) -> str | None:
        """The chosen implementation of attention; "eager" in a model without a choice. All are equal here."""
        return cast("str | None", vars(self).get("_attn_implementation_internal"))

    @_attn_implementation.setter
    def _attn_implementation(self, value: str | Mapping[str, str] | None) -> None:
        choices = value if isinstance(value, Mapping) else dict.fromkeys(("", *self.sub_configs), value)
        self._attn_implementation_internal = choices.get("", self._attn_implementation)
        for name in self.sub_configs:
            subconfig = vars(self).get(name)
            if isinstance(subconfig, PreTrainedConfig) and name in choices:
                subconfig._attn_implementation = choices[name]

    @property
    def use_return_dict(self) -> bool:
        """`return_dict`, under its name in transformers 4."""
        return bool(self.return_dict)

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ConfigT],
        pretrained_model_name_or_path: StrPath,
        *,
        return_unused_kwargs: Literal[False] = ...,
        **kwargs: Any,
    ) -> ConfigT: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ConfigT],
        pretrained_model_name_or_path: StrPath,
        *,
        return_unused_kwargs: Literal[True],
        **kwargs: Any,
    ) -> tuple[ConfigT, Values]: ...

    @classmethod
    def from_pretrained(
        cls: type[ConfigT], pretrained_model_name_or_path: StrPath, *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> ConfigT | tuple[ConfigT, Values]:
        """Load `config.json`. Text and vision classes load their part of a full configuration.

        Args:
            pretrained_model_name_or_path: Local folder or file, or hub id.
            return_unused_kwargs: Also return the arguments that are not fields.
            **kwargs: Fields to override, and the location of the files (`revision`, `cache_dir`, `subfolder`, ...).

        Returns:
            The configuration, and unused arguments with `return_unused_kwargs`.

        Raises:
            CheckpointError: If the file is missing, damaged, or of another model.
        """
        values, kwargs = cls.get_config_dict(pretrained_model_name_or_path, **kwargs)
        ours = values.get("openblip")
        if isinstance(ours, Mapping) and ours.get("stem") is not None and cls.base_config_key != "text_config":
            raise CheckpointError(
                "transformers has no place for the CNN stem of the hybrid ViT in "
                f"{pretrained_model_name_or_path}: use openblip.load"
            )
        if cls.base_config_key and cls.base_config_key in values:
            values = dict(values[cls.base_config_key])
        model_type = values.get("model_type", cls.model_type)
        if model_type == "openblip":
            raise CheckpointError(
                f"transformers has no class for the model of {pretrained_model_name_or_path}: use openblip.load"
            )
        if model_type != cls.model_type:
            raise CheckpointError(
                f"model_type of {pretrained_model_name_or_path} must be {cls.model_type!r} for {cls.__name__}, "
                f"got {model_type!r}"
            )
        if return_unused_kwargs:
            return cls.from_dict(values, return_unused_kwargs=True, **kwargs)
        return cls.from_dict(values, **kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path: StrPath, **kwargs: Any) -> tuple[Values, Values]:
        """Return the content of `config.json`, and the arguments that do not locate the file.

        Args:
            pretrained_model_name_or_path: Local folder or file, or hub id.
            **kwargs: Arguments of `from_pretrained`.

        Returns:
            The content of `config.json`, and the arguments that do not locate the file.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        folder, kwargs = local_folder(pretrained_model_name_or_path, kwargs)
        path = folder / "config.json" if folder.is_dir() else folder
        if not path.is_file():
            raise CheckpointError(f"{folder} has no config.json")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise CheckpointError(f"{path} must contain a JSON object")
        return values, kwargs

    @overload
    @classmethod
    def from_dict(
        cls: type[ConfigT], config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[False] = ..., **kwargs: Any
    ) -> ConfigT: ...

    @overload
    @classmethod
    def from_dict(
        cls: type[ConfigT], config_dict: Mapping[str, Any], *, return_unused_kwargs: Literal[True], **kwargs: Any
    ) -> tuple[ConfigT, Values]: ...

    @classmethod
    def from_dict(
        cls: type[ConfigT], config_dict: Mapping[str, Any], *, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> ConfigT | tuple[ConfigT, Values]:
        """Create a configuration from a dictionary.

        Args:
            config_dict: Content of a `config.json`.
            return_unused_kwargs: Also return the arguments that are not fields.
            **kwargs: Fields to override.

        Returns:
            The configuration, and unused arguments with `return_unused_kwargs`.
        """
        config = cls(**dict(config_dict))
        unused = {}
        for name, value in kwargs.items():
            if name in ("dtype", "torch_dtype") and value == "auto":
                continue
            if name == "attn_implementation":
                config._attn_implementation = value
                continue
            if not hasattr(config, name):
                unused[name] = value
                continue
            current = getattr(config, name)
            if isinstance(current, PreTrainedConfig) and isinstance(value, dict):
                value = type(current)(**{**current.to_dict(), **value})
            setattr(config, name, value)
        return (config, unused) if return_unused_kwargs else config

    def save_pretrained(self, save_directory: StrPath, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write `config.json`, which `transformers` reads, too.

        Args:
            save_directory: Folder to write to.
            push_to_hub: Upload the folder to the hub.
            **kwargs: Arguments of `push_to_hub`.
        """
        folder = Path(save_directory)
        write_text(folder / "config.json", self.to_json_string())
        self._push(folder, push_to_hub, kwargs)

    def to_dict(self) -> Values:
        """Return all values, including subconfigurations, as JSON values.

        Returns:
            All values, including subconfigurations, as JSON values.
        """
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return {**copy.deepcopy(values), "dtype": self._dtype, "model_type": self.model_type}

    def to_diff_dict(self) -> Values:
        """Return the values that are written to a file: `to_dict` without unchanged values of the base class.

        Returns:
            The values that are written to a file: `to_dict` without unchanged values of the base class.
        """
        values = {}
        for name, value in self.to_dict().items():
            is_common = name == "name_or_path" or (name in _COMMON and value == _COMMON[name])
            is_inherited = name in _INHERITED and value in _INHERITED[name]
            if not is_common and not is_inherited and (name != "dtype" or value is not None):
                values[name] = value
        return values

    def to_json_string(self, use_diff: bool = True) -> str:
        """Return the content of `config.json`.

        Args:
            use_diff: Omit unchanged values of the base class.

        Returns:
            The content of `config.json`.
        """
        values = self.to_diff_dict() if use_diff else self.to_dict()
        return json.dumps(values, indent=2, sort_keys=True) + "\n"

    def to_json_file(self, json_file_path: StrPath, use_diff: bool = True) -> None:
        """Write the values to a file.

        Args:
            json_file_path: The file.
            use_diff: Omit unchanged values of the base class.
        """
        write_text(Path(json_file_path), self.to_json_string(use_diff))

    @classmethod
    def from_json_file(cls: type[ConfigT], json_file: StrPath) -> ConfigT:
        """Read the values from a file.

        Args:
            json_file: The file.

        Returns:
            The configuration.
        """
        return cls(**json.loads(Path(json_file).read_text(encoding="utf-8")))

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> PreTrainedConfig:
        """Return the configuration of the text transformer, or the configuration itself if there is none.

        Args:
            decoder: Ignored; encoders and decoders share a configuration.
            encoder: Ignored; encoders and decoders share a configuration.

        Returns:
            The configuration.
        """
        return cast("PreTrainedConfig", vars(self).get("text_config", self))

    @property
    def num_labels(self) -> int:
        """Number of labels of a classifier, which BLIP does not have."""
        return len(self.id2label or ())

    @num_labels.setter
    def num_labels(self, value: int) -> None:
        self.id2label = {number: f"LABEL_{number}" for number in range(value)}
        self.label2id = {label: number for number, label in self.id2label.items()}

    def update_from_string(self, update_str: str) -> None:
        """Set values from a text such as "hidden_size=10,hidden_act=relu".

        Args:
            update_str: Values by name.

        Raises:
            ConfigError: A name is unknown, or a value has another type.
        """
        for pair in update_str.split(","):
            name, _, text = pair.partition("=")
            current = getattr(self, name, None)
            if isinstance(current, bool):
                setattr(self, name, text.lower() in ("true", "1", "y", "yes"))
            elif isinstance(current, int | float | str):
                setattr(self, name, type(current)(text))
            else:
                raise ConfigError(f"{name} must name a number, a text or a bool of the configuration")

    def update(self, config_dict: Mapping[str, Any]) -> None:
        """Set values.

        Args:
            config_dict: Values by name.
        """
        for name, value in config_dict.items():
            setattr(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, type(self)) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"

    def __iter__(self) -> Iterator[str]:
        return iter(self.to_dict())


class BlipTextConfig(PreTrainedConfig):
    """Configuration of the text transformer.

    `transformers` has a default of 8 heads; all published checkpoints have 12.
    """

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

    def to_model_config(self) -> TextConfig:
        """Return the configuration of OpenBLIP's text transformer.

        Returns:
            The configuration of OpenBLIP's text transformer.

        Raises:
            ConfigError: If there is no such transformer.
        """
        if not self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings must be true: the output matrix of BLIP is its word embedding")
        return TextConfig(
            vocab_size=self.vocab_size,
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            mlp_width=self.intermediate_size,
            max_positions=self.max_position_embeddings,
            memory_width=self.encoder_hidden_size if self.is_decoder else None,
            activation=activation_name(self.hidden_act),
            layer_norm_eps=self.layer_norm_eps,
            dropout=self.hidden_dropout_prob,
            attention_dropout=self.attention_probs_dropout_prob,
            pad_id=self.pad_token_id,
            sep_id=self.sep_token_id,
            dec_id=self.bos_token_id,
        )


class BlipVisionConfig(PreTrainedConfig):
    """Configuration of the image encoder.

    `transformers` has a default LayerNorm eps of 1e-5; BLIP was trained with 1e-6.
    """

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

    def to_model_config(self) -> VisionConfig:
        """Return the configuration of OpenBLIP's image encoder, with the stored eps.

        Returns:
            The configuration of OpenBLIP's image encoder, with the stored eps.

        Raises:
            ConfigError: If there is no such encoder.
        """
        for name in ("image_size", "patch_size"):
            if not isinstance(getattr(self, name), int):
                raise ConfigError(f"{name} must be one number for square images, got {getattr(self, name)!r}")
        return VisionConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            width=self.hidden_size,
            depth=self.num_hidden_layers,
            heads=self.num_attention_heads,
            mlp_width=self.intermediate_size,
            activation=activation_name(self.hidden_act),
            layer_norm_eps=self.layer_norm_eps,
            attention_dropout=self.attention_dropout,
        )


class BlipConfig(PreTrainedConfig):
    """Configuration of a model: `text_config` and `vision_config` (objects, dictionaries or `None`), and heads.

    `text_config.encoder_hidden_size` is always set to the width of the image encoder.
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
    sub_configs: ClassVar[Mapping[str, type[PreTrainedConfig]]] = {
        "text_config": BlipTextConfig,
        "vision_config": BlipVisionConfig,
    }
    text_config: BlipTextConfig
    vision_config: BlipVisionConfig

    def __init__(self, *args: Any, **values: Any) -> None:
        super().__init__(*args, **values)
        fields = dict(zip(self.fields, args, strict=False)) | values
        self.text_config = _subconfig(fields.get("text_config"), BlipTextConfig)
        self.vision_config = _subconfig(fields.get("vision_config"), BlipVisionConfig)
        self.text_config.encoder_hidden_size = self.vision_config.hidden_size
        if self._attn_implementation is not None:
            self._attn_implementation = self._attn_implementation  # of both subconfigurations too

    @classmethod
    def from_text_vision_configs(
        cls, text_config: BlipTextConfig, vision_config: BlipVisionConfig, **kwargs: Any
    ) -> BlipConfig:
        """Create a configuration from the configurations of text and image encoder; a constructor of transformers 4.

        Args:
            text_config: Configuration of the text transformer.
            vision_config: Configuration of the image encoder.
            **kwargs: Other fields.

        Returns:
            The configuration.
        """
        return cls(text_config=text_config.to_dict(), vision_config=vision_config.to_dict(), **kwargs)

    def to_dict(self) -> Values:
        """Return all values, including subconfigurations, as JSON values.

        Returns:
            All values, including subconfigurations, as JSON values.
        """
        subconfigs = {"text_config": self.text_config.to_dict(), "vision_config": self.vision_config.to_dict()}
        return {**super().to_dict(), **subconfigs}

    def to_diff_dict(self) -> Values:
        """Return the values that are written to a file: `to_dict` without unchanged values of the base class.

        Returns:
            The values that are written to a file: `to_dict` without unchanged values of the base class.
        """
        text_values, vision_values = self.text_config.to_diff_dict(), self.vision_config.to_diff_dict()
        return {**super().to_diff_dict(), "text_config": text_values, "vision_config": vision_values}


def _subconfig(value: Any, config_class: type[ConfigT]) -> ConfigT:
    if value is None or isinstance(value, Mapping):
        return config_class(**dict(value or {}))
    if not isinstance(value, config_class):
        name, key = config_class.__name__, config_class.base_config_key
        raise TypeError(f"{key} must be a {name}, a dictionary or None, got {type(value)}")
    return value


def activation_name(name: str) -> Activation:
    """Return our name of an activation; raises `ConfigError` for an unknown one."""
    if name not in _ACTIVATIONS:
        raise ConfigError(f"hidden_act must be one of {', '.join(_ACTIVATIONS)}, got {name!r}")
    return _ACTIVATIONS[name]


def _dtype_name(dtype: torch.dtype | str | None) -> str | None:
    return None if dtype is None else str(dtype).removeprefix("torch.")


_ACTIVATIONS: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

# Values of every configuration of transformers. They are written only if they were changed.
_COMMON: dict[str, Any] = {
    "architectures": None,
    "output_hidden_states": False,
    "output_attentions": False,
    "return_dict": True,
    "name_or_path": "",
}

# Values of the base class of transformers that have no meaning for BLIP, with the values that are not written.
_INHERITED: dict[str, tuple[Any, ...]] = {
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "problem_type": (None,),
    "id2label": ({0: "LABEL_0", 1: "LABEL_1"}, {"0": "LABEL_0", "1": "LABEL_1"}, None),
    "label2id": ({"LABEL_0": 0, "LABEL_1": 1}, None),
}

# Options of `generate` that old configurations contain. They have no effect.
_GENERATION = {
    *("max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
    *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores", "forced_bos_token_id"),
    *("return_dict_in_generate", "forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
    *("suppress_tokens", "begin_suppress_tokens"),
}

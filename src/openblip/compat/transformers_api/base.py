"""What all models of this API share: files, devices, embeddings, and the argument order of version 4."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import torch
from torch import Tensor, nn

from openblip.checkpoints.layouts import nearest
from openblip.checkpoints.storage import (
    INDEX,
    PICKLE,
    SAFETENSORS,
    listed,
    read_stored,
    replacing_folder,
    write_pickle,
    write_safetensors,
)
from openblip.compat.transformers_api.config import PreTrainedConfig
from openblip.compat.transformers_api.files import StrPath, local_folder, write_text
from openblip.compat.transformers_api.naming import HubNamed
from openblip.errors import CheckpointError, InputError
from openblip.model.config import ModelKind

M = TypeVar("M", bound="PreTrainedModel")
F = TypeVar("F", bound=Callable[..., Any])

_log = logging.getLogger(__name__)
_STALE = (SAFETENSORS + INDEX, PICKLE + INDEX)
# Accepted and without effect here: what they ask for is always so, or concerns that library's own machinery.
_WITHOUT_EFFECT = ("low_cpu_mem_usage", "weights_only", "use_safetensors", "_fast_init", "disable_mmap")


class PreTrainedModel(HubNamed):
    """Base of the models: a configuration, and files that ``transformers`` and we read alike."""

    config_class: ClassVar[type[PreTrainedConfig]]
    task: ClassVar[ModelKind]
    config: Any

    # Files

    @classmethod
    def from_pretrained(
        cls: type[M],
        name_or_path: StrPath,
        *model_args: Any,
        config: PreTrainedConfig | StrPath | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | None = None,
        ignore_mismatched_sizes: bool = False,
        allow_missing: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Load a local folder or hub id; the model is in evaluation mode.

        Weights must be exactly those of the class: anything missing, unknown or misshapen raises
        :class:`CheckpointError`. ``allow_missing=True`` leaves missing ones at their random start and unknown ones out,
        with a warning; ``ignore_mismatched_sizes=True`` treats misshapen ones as missing.

        ``dtype`` (or ``torch_dtype``, its name in 4.x) is a floating type, or "auto" for the stored one, which is the
        default. ``device_map`` names one device. ``kwargs`` change fields of the configuration, say where to find the
        files (``revision``, ``cache_dir``, ``subfolder`` ...), or go to the constructor.
        """
        folder, kwargs = local_folder(name_or_path, kwargs)
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        if attn_implementation not in (None, "eager", "sdpa"):
            raise InputError(f"attn_implementation={attn_implementation!r}: 'eager' or 'sdpa' (both are the same here)")
        settled, kwargs = cls._settle(folder, config, kwargs)
        tensors = cls._own_tensors(dict(read_stored(folder).tensors), settled)
        kind = _floating_type(dtype if dtype is not None else torch_dtype, settled, tensors)
        settled.dtype = kind
        with torch.device("cpu" if allow_missing or ignore_mismatched_sizes else "meta"):
            model = cls(settled, *model_args, **kwargs)
        model.to(kind)
        info = model._fill(
            {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()},
            str(folder),
            allow_missing=allow_missing,
            drop_misshapen=ignore_mismatched_sizes,
        )
        settled.name_or_path = str(name_or_path)
        model._read_beside(folder)
        model.eval()
        if device_map is not None:
            model.to(_one_device(device_map))
        return (model, info) if output_loading_info else model

    @classmethod
    def _settle(
        cls, folder: Path, config: PreTrainedConfig | StrPath | None, kwargs: dict[str, Any]
    ) -> tuple[PreTrainedConfig, dict[str, Any]]:
        """The configuration, changed by ``kwargs``, and those of them that it has no field for."""
        if isinstance(config, PreTrainedConfig):
            return copy.deepcopy(config), kwargs
        found = cls.config_class.from_pretrained(config or folder, return_unused_kwargs=True, **kwargs)
        return cast("tuple[PreTrainedConfig, dict[str, Any]]", found)

    @classmethod
    def _own_tensors(cls, tensors: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
        """Those of a file's tensors that are meant for this class."""
        return tensors

    def _read_beside(self, folder: Path) -> None:
        """Read what else lies in the folder."""

    def _write_beside(self, folder: Path) -> None:
        """Write what else belongs into the folder."""

    def _fill(
        self, tensors: dict[str, Tensor], source: str, *, allow_missing: bool, drop_misshapen: bool
    ) -> dict[str, list[str]]:
        """Load hub-named tensors; what was missing, unexpected or mismatched, if that is allowed."""
        mismatched = []
        if drop_misshapen:
            own = self.state_dict()
            mismatched = [name for name, tensor in tensors.items() if name in own and own[name].shape != tensor.shape]
            tensors = {name: tensor for name, tensor in tensors.items() if name not in mismatched}
        try:
            result = self.load_state_dict(tensors, strict=False, assign=not (allow_missing or drop_misshapen))
        except RuntimeError as error:
            raise CheckpointError(f"{source} does not fit {type(self).__name__}: {error}") from error
        missing = [name for name in result.missing_keys if name not in mismatched]
        found = {"missing": missing, "unknown": list(result.unexpected_keys), "of another shape": mismatched}
        problems = [f"{len(names)} {kind} ({listed(names)})" for kind, names in found.items() if names]
        complaint = f"{source} does not fit {type(self).__name__}: tensors {'; '.join(problems)}"
        if (missing or result.unexpected_keys) and not allow_missing:
            advice = "To start from it all the same, pass allow_missing=True: missing ones are then random"
            raise CheckpointError(f"{complaint}. {_holds(tensors)}{advice}")
        if problems:
            _log.warning("%s; what is missing or of another shape is random now", complaint)
        return {
            "missing_keys": missing,
            "unexpected_keys": list(result.unexpected_keys),
            "mismatched_keys": mismatched,
        }

    def save_pretrained(
        self,
        save_directory: StrPath,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write ``config.json`` and ``model.safetensors`` (or ``pytorch_model.bin``), which ``transformers`` reads too.

        ``state_dict`` replaces the model's own weights; ``max_shard_size`` has no effect: all goes into one file.
        """
        if unknown := [name for name, value in kwargs.items() if value]:  # `push_to_hub=False` asks for nothing
            raise TypeError(f"save_pretrained has no option {', '.join(unknown)}")
        if not is_main_process:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"{folder} is a file; give a folder to save in")
        tensors = {name: tensor.detach().cpu() for name, tensor in (state_dict or self.state_dict()).items()}
        described = copy.deepcopy(self.config)
        described.architectures, described.dtype = [type(self).__name__], self.dtype
        with replacing_folder(
            folder, last="config.json", stale=(*_STALE, PICKLE if safe_serialization else SAFETENSORS)
        ) as fresh:
            if safe_serialization:
                stored = {name: tensor for name, tensor in tensors.items() if name not in self._tied_names()}
                write_safetensors(fresh / SAFETENSORS, stored)
            else:
                write_pickle(fresh / PICKLE, tensors)
            self._write_beside(fresh)
            write_text(fresh / "config.json", described.to_json_string())

    def _tied_names(self) -> set[str]:
        """The names under which a tensor is repeated."""
        parts = ((name, child) for name, child in self.named_children() if isinstance(child, PreTrainedModel))
        return {f"{name}.{tied}" for name, part in parts for tied in part._tied_names()}

    # What callers ask a model

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """How many numbers the model has, tied ones counted once."""
        chosen = (p for p in self.parameters() if p.requires_grad or not only_trainable)
        return sum(parameter.numel() for parameter in chosen)

    def get_input_embeddings(self) -> nn.Module:
        """The word embedding, or what stands for it in an image model."""
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Nothing: what is tied in that library is one tensor here."""

    def can_generate(self) -> bool:
        """Whether there is a ``generate``."""
        return hasattr(self, "generate")

    def _fresh(self, *layers: nn.Linear) -> None:
        """Draw the start of heads as that library does."""
        for layer in layers:
            nn.init.normal_(layer.weight, std=self.config.initializer_range)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _asked(self, given: Any, name: str) -> Any:
        """An argument, or what the configuration says where it was left out."""
        return getattr(self.config, name) if given is None else given


def accepts_order_of_4(*names: str) -> Callable[[F], F]:
    """Let a ``forward`` with the argument order of 5.23 be called in that of 4.x (``names``) too.

    It is recognised by more positional arguments than 5.23 has, or by a truth value where 5.23 has ``labels``.
    ``head_mask``, which 5.x dropped, may be ``None``.
    """

    def decorate(forward: F) -> F:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        today = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

        @wraps(forward)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            older = len(args) > len(today) or isinstance(dict(zip(today, args, strict=False)).get("labels"), bool)
            if older:
                if len(args) > len(names):
                    raise TypeError(f"{type(self).__name__} takes at most {len(names)} arguments by position")
                named = dict(zip(names, args, strict=False))
                if twice := named.keys() & kwargs.keys():
                    raise TypeError(f"{type(self).__name__} got {', '.join(sorted(twice))} twice")
                args, kwargs = (), {**named, **kwargs}
            if kwargs.pop("head_mask", None) is not None:
                raise InputError("head_mask is not supported: transformers 5 dropped it")
            return forward(self, *args, **kwargs)

        return cast(F, call)

    return decorate


def chosen_states(states: Sequence[Tensor], wanted: Any) -> tuple[Tensor | None, ...] | None:
    """The hidden states to return: all for ``True``; for places, those, with ``None`` in the place of the others."""
    if wanted is None or wanted is False:
        return None
    if wanted is True:
        return tuple(states)
    places = {place % len(states) for place in ([wanted] if isinstance(wanted, int) else wanted)}
    return tuple(state if place in places else None for place, state in enumerate(states))


# Which class holds what the hub's folders hold.
_CLASSES: dict[str, str] = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "retrieval": "BlipForImageTextRetrieval",
    "two_tower": "BlipModel",
    "text": "BlipTextModel",
    "vision": "BlipVisionModel",
}


def _holds(tensors: Mapping[str, Tensor]) -> str:
    """A sentence that names the class of a file's tensors, if there is one."""
    table, distance = nearest(tensors, "hub")
    return f"It holds a {_CLASSES[table.task]}. " if distance == 0 and table.task in _CLASSES else ""


def _floating_type(
    asked: torch.dtype | str | None, config: PreTrainedConfig, tensors: Mapping[str, Tensor]
) -> torch.dtype:
    if isinstance(asked, torch.dtype):
        return asked
    if asked not in (None, "auto"):
        found = getattr(torch, str(asked).removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise InputError(f"dtype={asked!r} is no floating type of torch")
        return found
    stored = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return config.dtype or next(stored, torch.float32)


def _one_device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise InputError("device_map: one device for the whole model, as in {'': 0}; BLIP is small")
        device_map = device_map[""]
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device_map)

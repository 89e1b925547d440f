"""Base of the model classes: files, devices, embeddings, and the argument order of transformers 4."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast, overload

import torch
from torch import Tensor, nn

from openblip.checkpoints.containers import read_tensors, write_pickle, write_safetensors
from openblip.checkpoints.folder import INDEX, PICKLE, SAFETENSORS
from openblip.compat.transformers_api.config import PreTrainedConfig
from openblip.compat.transformers_api.files import StrPath, local_folder, write_text
from openblip.compat.transformers_api.misfit import Misfit
from openblip.compat.transformers_api.naming import HubNamed
from openblip.compat.transformers_api.outputs import ModelOutput, OutputTuple
from openblip.errors import CheckpointError, InputError
from openblip.io.atomic import replace_folder
from openblip.model.config import ModelKind

ModelT = TypeVar("ModelT", bound="PreTrainedModel")
OutputT = TypeVar("OutputT", bound=ModelOutput)
ForwardT = TypeVar("ForwardT", bound=Callable[..., Any])

_STALE = (SAFETENSORS + INDEX, PICKLE + INDEX)
# Options that are accepted and ignored: always true here, or about internals of transformers.
_WITHOUT_EFFECT = ("low_cpu_mem_usage", "weights_only", "use_safetensors", "_fast_init", "disable_mmap")


class PreTrainedModel(HubNamed):
    """Base class of the models: a configuration, and files that `transformers` reads, too."""

    config_class: ClassVar[type[PreTrainedConfig]]
    task: ClassVar[ModelKind]
    config: Any

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        name_or_path: StrPath,
        *model_args: Any,
        output_loading_info: Literal[False] = ...,
        **kwargs: Any,
    ) -> ModelT: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ModelT], name_or_path: StrPath, *model_args: Any, output_loading_info: Literal[True], **kwargs: Any
    ) -> tuple[ModelT, dict[str, list[str]]]: ...

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
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
    ) -> ModelT | tuple[ModelT, dict[str, list[str]]]:
        """Load a model in evaluation mode.

        Args:
            name_or_path: Local folder or hub id.
            *model_args: Positional arguments of the constructor, after the configuration.
            config: Configuration, or where to read it; by default the folder's own.
            dtype: Floating type of the weights; "auto" (the default) is the stored type.
            torch_dtype: Name of `dtype` in transformers 4.
            device_map: Device to move the model to, or `{"": device}`.
            attn_implementation: "eager" or "sdpa", which are equal here.
            ignore_mismatched_sizes: Initialize tensors of another shape randomly instead of raising.
            allow_missing: Initialize missing tensors randomly and ignore unknown ones, with a warning, instead of
                raising.
            output_loading_info: Also return the names of missing, unexpected and mismatched tensors.
            **kwargs: Fields of the configuration, the location of files (`revision`, `cache_dir`, `subfolder`, ...),
                or arguments of the constructor.

        Returns:
            The model, with `output_loading_info=True` together with the names of tensors that did not fit.

        Raises:
            CheckpointError: Files are missing or damaged, or a tensor is missing, unknown or of another shape.
            InputError: An option is not supported.
        """
        folder, kwargs = local_folder(name_or_path, kwargs)
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        if attn_implementation not in (None, "eager", "sdpa"):
            raise InputError(f"attn_implementation must be 'eager' or 'sdpa' (equal here), got {attn_implementation!r}")
        if isinstance(config, PreTrainedConfig):
            model_config = copy.deepcopy(config)
        else:
            source = config or folder
            model_config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        tensors = cls._select_tensors(read_tensors(folder))
        weights_dtype = _weights_dtype(dtype if dtype is not None else torch_dtype, model_config, tensors)
        model_config.dtype = weights_dtype
        with torch.device("cpu" if allow_missing or ignore_mismatched_sizes else "meta"):
            model = cls(model_config, *model_args, **kwargs)
        model.to(weights_dtype)
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(weights_dtype) if tensor.is_floating_point() else tensor
        loading_info = model._load_tensors(
            tensors, str(folder), allow_missing=allow_missing, drop_misshapen=ignore_mismatched_sizes
        )
        model_config.name_or_path = str(name_or_path)
        model._read_extra_files(folder)
        model.eval()
        if device_map is not None:
            model.to(_single_device(device_map))
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def _select_tensors(cls, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file that this class loads, under the names that this class uses."""
        return tensors

    def _read_extra_files(self, folder: Path) -> None:
        """Read further files of a saved model."""

    def _write_extra_files(self, folder: Path) -> None:
        """Write further files of a saved model."""

    def _load_tensors(
        self, tensors: dict[str, Tensor], source: str, *, allow_missing: bool, drop_misshapen: bool
    ) -> dict[str, list[str]]:
        """Load hub-named tensors and return the names that were missing, unexpected or mismatched, if allowed."""
        mismatched = []
        if drop_misshapen:
            expected = self.state_dict()
            for name, tensor in tensors.items():
                if name in expected and expected[name].shape != tensor.shape:
                    mismatched.append(name)
            tensors = {name: tensor for name, tensor in tensors.items() if name not in mismatched}
        try:
            result = self.load_state_dict(tensors, strict=False, assign=not (allow_missing or drop_misshapen))
        except RuntimeError as error:
            raise CheckpointError(f"{source} does not fit {type(self).__name__}: {error}") from error
        missing = [name for name in result.missing_keys if name not in mismatched]
        unexpected = list(result.unexpected_keys)
        misfit = Misfit(source, type(self).__name__, missing, unexpected, mismatched)
        return misfit.report(tensors, fatal=bool(missing or unexpected) and not allow_missing)

    def save_pretrained(
        self,
        save_directory: StrPath,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        safe_serialization: bool = True,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors` (or `pytorch_model.bin`), which `transformers` reads, too.

        Args:
            save_directory: Folder to write to.
            is_main_process: Write nothing if `False`.
            state_dict: Tensors to write instead of the model's own.
            safe_serialization: Write safetensors rather than a pickle.
            max_shard_size: Ignored; all tensors are written to one file.
            **kwargs: Further options of `transformers`, which must be false.

        Raises:
            InputError: `save_directory` is a file.
        """
        unknown = [name for name, value in kwargs.items() if value]  # `push_to_hub=False` is fine
        if unknown:
            raise TypeError(f"save_pretrained has no option {', '.join(unknown)}")
        if not is_main_process:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"save_directory must be a folder, got the file {folder}")
        tensors = {name: tensor.detach().cpu() for name, tensor in (state_dict or self.state_dict()).items()}
        config = copy.deepcopy(self.config)
        config.architectures, config.dtype = [type(self).__name__], self.dtype
        stale = (*_STALE, PICKLE if safe_serialization else SAFETENSORS)
        with replace_folder(folder, final_file="config.json", stale=stale) as temporary:
            if safe_serialization:
                stored = {name: tensor for name, tensor in tensors.items() if name not in self._tied_names()}
                write_safetensors(temporary / SAFETENSORS, stored)
            else:
                write_pickle(temporary / PICKLE, tensors)
            self._write_extra_files(temporary)
            write_text(temporary / "config.json", config.to_json_string())

    def _tied_names(self) -> set[str]:
        """Return the second names of tensors that have two names."""
        names = set()
        for child_name, child in self.named_children():
            if isinstance(child, PreTrainedModel):
                names |= {f"{child_name}.{name}" for name in child._tied_names()}
        return names

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of the weights."""
        return next(parameter.dtype for parameter in self.parameters() if parameter.is_floating_point())

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of parameters; tied parameters count once.

        Args:
            only_trainable: Count only parameters that require gradients.

        Returns:
            The number of parameters; tied parameters count once.
        """
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_input_embeddings(self) -> nn.Module:
        """Return the word embedding, or the patch embedding of an image encoder.

        Returns:
            The word embedding, or the patch embedding of an image encoder.
        """
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Do nothing: tensors that are tied in `transformers` are one tensor here."""

    def can_generate(self) -> bool:
        """Return whether the model has a `generate` method.

        Returns:
            Whether the model has a `generate` method.
        """
        return hasattr(self, "generate")

    def _init_heads(self, *layers: nn.Linear) -> None:
        """Initialize heads as `transformers` does."""
        for layer in layers:
            nn.init.normal_(layer.weight, std=self.config.initializer_range)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _option(self, value: Any, name: str) -> Any:
        """Return an argument, or the configuration's value if the argument is `None`."""
        return getattr(self.config, name) if value is None else value

    def _finish(self, output: OutputT, return_dict: bool | None) -> OutputT | OutputTuple:
        """Return the output as `return_dict` requires."""
        return output if self._option(return_dict, "return_dict") else output.to_tuple()


def accepts_v4_order(*names: str) -> Callable[[ForwardT], ForwardT]:
    """Decorate a `forward` with the argument order of transformers 5.23 to accept the order of 4.x, too.

    A call in the order of 4.x has more positional arguments than 5.23 accepts, or a bool where 5.23 expects `labels`.
    `head_mask`, which transformers 5 removed, may be `None`.

    Args:
        *names: The arguments in the order of 4.x.

    Returns:
        The decorator.
    """

    def decorate(forward: ForwardT) -> ForwardT:
        parameters = list(inspect.signature(forward).parameters.values())[1:]
        v5_names = [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]

        @wraps(forward)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            labels = dict(zip(v5_names, args, strict=False)).get("labels")
            if len(args) > len(v5_names) or isinstance(labels, bool):
                if len(args) > len(names):
                    raise TypeError(f"{type(self).__name__} takes at most {len(names)} arguments by position")
                arguments = dict(zip(names, args, strict=False))
                duplicates = arguments.keys() & kwargs.keys()
                if duplicates:
                    raise TypeError(f"{type(self).__name__} got {', '.join(sorted(duplicates))} twice")
                args, kwargs = (), {**arguments, **kwargs}
            if kwargs.pop("head_mask", None) is not None:
                raise InputError("head_mask is not supported: transformers 5 removed it")
            return forward(self, *args, **kwargs)

        return cast(ForwardT, call)

    return decorate


def select_states(states: Sequence[Tensor], selection: Any) -> tuple[Tensor | None, ...] | None:
    """Return the hidden states that `output_hidden_states` selects.

    Args:
        states: All hidden states.
        selection: `True` for all, an index or a sequence of indices for some, false for none.

    Returns:
        A tuple as long as `states`, with `None` for states that are not selected; or `None` for none.
    """
    if selection is None or selection is False:
        return None
    if selection is True:
        return tuple(states)
    indices = {index % len(states) for index in ([selection] if isinstance(selection, int) else selection)}
    return tuple(state if index in indices else None for index, state in enumerate(states))


def strip_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names start with `prefix`, without the prefix.

    Args:
        tensors: Tensors by name.
        prefix: The prefix.

    Returns:
        The tensors whose names start with `prefix`, without the prefix.
    """
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _weights_dtype(
    dtype: torch.dtype | str | None, config: PreTrainedConfig, tensors: Mapping[str, Tensor]
) -> torch.dtype:
    """Return the dtype of the model's weights: the argument, or the stored type."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in (None, "auto"):
        named = getattr(torch, str(dtype).removeprefix("torch."), None)
        if not isinstance(named, torch.dtype):
            raise InputError(f"dtype must be a torch dtype or 'auto', got {dtype!r}")
        return named
    stored = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return config.dtype or next(stored, torch.float32)


def _single_device(device_map: Any) -> torch.device:
    if isinstance(device_map, Mapping):
        if set(device_map) != {""}:
            raise InputError(f"device_map must name one device for the whole model, as {{'': 0}}, got {device_map!r}")
        device_map = device_map[""]
    if device_map == "auto":
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device_map)

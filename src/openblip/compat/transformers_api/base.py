"""Base of the model classes: files, devices, and the argument order of transformers 4."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence, Set
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, cast, overload

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node

from openblip.checkpoints.containers import read_checkpoint, write_pickle, write_safetensors
from openblip.checkpoints.folder import INDEX, PICKLE, SAFETENSORS
from openblip.compat.transformers_api.config import PreTrainedConfig
from openblip.compat.transformers_api.files import PushToHub, StrPath, Values, local_folder, write_text
from openblip.compat.transformers_api.methods import ModelMethods, check_attn_implementation
from openblip.compat.transformers_api.misfit import Misfit
from openblip.compat.transformers_api.outputs import ModelOutput, OutputTuple
from openblip.compat.transformers_api.registration import join_transformers
from openblip.compat.transformers_api.text_layers import BlipTextEmbeddings
from openblip.errors import CheckpointError, InputError
from openblip.io.atomic import replace_folder
from openblip.model.config import ModelKind

ModelT = TypeVar("ModelT", bound="PreTrainedModel")
OutputT = TypeVar("OutputT", bound=ModelOutput)
ForwardT = TypeVar("ForwardT", bound=Callable[..., Any])

# Options that are accepted and ignored: always true here, or about internals of transformers.
_WITHOUT_EFFECT = (
    *("low_cpu_mem_usage", "weights_only", "use_safetensors", "_fast_init", "disable_mmap", "offload_state_dict"),
    *("use_kernels", "tqdm_class", "adapter_kwargs", "code_revision", "_commit_hash"),
)
_AUTOMATIC = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that accelerate infers
_DISPATCH = ("max_memory", "offload_folder", "offload_buffers")  # arguments of accelerate


class PreTrainedModel(PushToHub, ModelMethods):
    """Base class of the models: a configuration, and files that `transformers` reads, too.

    Args:
        config: Configuration of the model.
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    task: ClassVar[ModelKind]
    config: Any
    _keep_in_fp32_modules: ClassVar[Set[str]] = frozenset()  # none, as in `transformers`
    _keep_in_fp32_modules_strict: ClassVar[Set[str]] = frozenset()

    def __init__(self, config: PreTrainedConfig) -> None:
        join_transformers(PreTrainedModel)
        nn.Module.__init__(self)  # not `super()`: the next class may be the base class of transformers
        if not isinstance(config, self.config_class):
            raise TypeError(
                f"config of {type(self).__name__} must be a {self.config_class.__name__}, got {type(config)}"
            )
        self.config = config
        check_attn_implementation(config._attn_implementation)
        config._attn_implementation_internal = config._attn_implementation or "eager"

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        pretrained_model_name_or_path: StrPath | None,
        *model_args: Any,
        output_loading_info: Literal[False] = ...,
        **kwargs: Any,
    ) -> ModelT: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        pretrained_model_name_or_path: StrPath | None,
        *model_args: Any,
        output_loading_info: Literal[True],
        **kwargs: Any,
    ) -> tuple[ModelT, dict[str, set[str]]]: ...

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        pretrained_model_name_or_path: StrPath | None,
        *model_args: Any,
        config: PreTrainedConfig | StrPath | None = None,
        state_dict: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        attn_implementation: str | dict[str, str] | None = None,
        generation_config: Any = None,
        ignore_mismatched_sizes: bool = False,
        allow_missing: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> ModelT | tuple[ModelT, dict[str, set[str]]]:
        """Load a model in evaluation mode.

        Args:
            pretrained_model_name_or_path: Local folder or hub id; `None` with `config` and `state_dict`.
            *model_args: Positional arguments of the constructor, after the configuration.
            config: Configuration, or where to read it; by default the folder's own.
            state_dict: Tensors to load instead of the folder's.
            dtype: Floating type of the weights; "auto" (the default) is the stored type.
            torch_dtype: Name of `dtype` in transformers 4.
            device_map: Device to move the model to; or "auto" or a device per submodule, which needs `accelerate`.
            attn_implementation: "eager" or "sdpa", or one of them per subconfiguration. They are equal here.
            generation_config: Default options of `generate`, instead of the folder's.
            ignore_mismatched_sizes: Initialize tensors of another shape randomly instead of raising.
            allow_missing: Initialize missing tensors randomly and ignore unknown ones, with a warning, instead of
                raising.
            output_loading_info: Also return the names of missing, unexpected and mismatched tensors.
            **kwargs: Fields of the configuration, the location of files (`revision`, `cache_dir`, `subfolder`, ...),
                arguments of `device_map` (`max_memory`, `offload_folder`, `offload_buffers`), or arguments of the
                constructor.

        Returns:
            The model, with `output_loading_info=True` together with the names of tensors that did not fit.

        Raises:
            CheckpointError: Files are missing or damaged, or a tensor is missing, unknown or of another shape.
            InputError: An option is not supported.
        """
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        if kwargs.pop("quantization_config", None) is not None:
            raise InputError("quantization_config is not supported: replace the linear layers after loading")
        dispatch_options = {name: kwargs.pop(name) for name in _DISPATCH if kwargs.get(name) is not None}
        check_attn_implementation(attn_implementation)
        folder: Path | None = None
        if pretrained_model_name_or_path is not None:
            folder, kwargs = local_folder(pretrained_model_name_or_path, kwargs)
        elif not isinstance(config, PreTrainedConfig) or state_dict is None:
            raise InputError("pretrained_model_name_or_path may be None only with a config object and a state_dict")
        if isinstance(config, PreTrainedConfig):
            model_config = copy.deepcopy(config)
        else:
            source = config or cast(Path, folder)
            model_config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        if attn_implementation is not None:
            model_config._attn_implementation = attn_implementation
        stored = read_checkpoint(cast(Path, folder)).tensors if state_dict is None else dict(state_dict)
        tensors = cls._select_tensors(stored)
        weights_dtype = _weights_dtype(dtype if dtype is not None else torch_dtype, model_config, tensors)
        model_config.dtype = weights_dtype
        with torch.device("cpu" if allow_missing or ignore_mismatched_sizes else "meta"):
            model = cls(model_config, *model_args, **kwargs)
        model.to(weights_dtype)
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(weights_dtype) if tensor.is_floating_point() else tensor
        loading_info = model._load_tensors(
            tensors, str(folder or "state_dict"), allow_missing=allow_missing, drop_misshapen=ignore_mismatched_sizes
        )
        for module in model.modules():
            if isinstance(module, BlipTextEmbeddings):
                module.reset_position_ids()
        model_config.name_or_path = str(pretrained_model_name_or_path or "")
        if folder is not None:
            model._read_extra_files(folder)
        if generation_config is not None:
            model.generation_config = generation_config
        model.eval()
        if device_map is not None:
            _dispatch(model, device_map, dispatch_options)
        return (model, loading_info) if output_loading_info else model

    @classmethod
    def _from_config(cls: type[ModelT], config: PreTrainedConfig, **kwargs: Any) -> ModelT:
        """Return a model with random weights; `AutoModel.from_config` calls it."""
        dtype = kwargs.pop("dtype", kwargs.pop("torch_dtype", None))
        config, attn_implementation = copy.deepcopy(config), kwargs.pop("attn_implementation", None)
        if attn_implementation is not None:
            config._attn_implementation = attn_implementation
        model = cls(config, **kwargs)
        return model if dtype in (None, "auto") else model.to(_named_dtype(dtype))

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
    ) -> dict[str, set[str]]:
        """Load tensors and return the names that were missing, unexpected or mismatched, if allowed."""
        expected = self.state_dict()
        mismatched = [name for name in expected if name in tensors and expected[name].shape != tensors[name].shape]
        if mismatched and not drop_misshapen:
            name = mismatched[0]
            raise CheckpointError(
                f"{source} does not fit {type(self).__name__}: size mismatch for {name}: expected "
                f"{tuple(expected[name].shape)}, got {tuple(tensors[name].shape)}"
            )
        tensors = {name: tensor for name, tensor in tensors.items() if name not in mismatched}
        try:
            result = self.load_state_dict(tensors, strict=False, assign=not (allow_missing or drop_misshapen))
        except RuntimeError as error:
            raise CheckpointError(f"{source} does not fit {type(self).__name__}: {error}") from error
        missing = [name for name in result.missing_keys if name not in mismatched]
        missing = [name for name in missing if name not in self.all_tied_weights_keys]
        unexpected = list(result.unexpected_keys)
        misfit = Misfit(source, type(self).__name__, missing, unexpected, mismatched)
        groups = misfit.report(tensors, fatal=bool(missing or unexpected) and not allow_missing)
        return {name: set(names) for name, names in groups.items()}  # sets, as in transformers 5

    def save_pretrained(
        self,
        save_directory: StrPath,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        max_shard_size: int | str = "50GB",
        variant: str | None = None,
        token: str | bool | None = None,
        save_peft_format: bool = True,
        save_original_format: bool = True,
        *,
        safe_serialization: bool = True,
        save_function: Callable[..., None] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write `config.json` and `model.safetensors` (or `pytorch_model.bin`), which `transformers` reads, too.

        Args:
            save_directory: Folder to write to.
            is_main_process: Write nothing if `False`.
            state_dict: Tensors to write instead of the model's own.
            push_to_hub: Upload the folder to the hub.
            max_shard_size: Size from which the weights are split into several files, such as "5GB".
            variant: Name to insert into the names of weight files.
            token: Token for the hub.
            save_peft_format: Ignored; adapters are saved by `peft`.
            save_original_format: Ignored; there is one format.
            safe_serialization: Write safetensors rather than a pickle.
            save_function: Ignored, as in transformers 5: files are written completely or not at all.
            **kwargs: Arguments of `push_to_hub`: `repo_id`, `commit_message`, `private`, ...

        Raises:
            InputError: `save_directory` is a file.
        """
        if not push_to_hub and (unknown := [name for name, value in kwargs.items() if value]):
            raise TypeError(f"save_pretrained has no option {', '.join(unknown)}")
        if not is_main_process:
            return
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"save_directory must be a folder, got the file {folder}")
        tensors = {name: tensor.detach().cpu() for name, tensor in (state_dict or self.state_dict()).items()}
        config = copy.deepcopy(self.config)
        config.architectures, config._dtype = [type(self).__name__], str(self.dtype).removeprefix("torch.")
        weights_name = _with_variant(SAFETENSORS if safe_serialization else PICKLE, variant)
        stale = [path.name for path in folder.glob("*") if _is_weight_file(path.name) and path.name != weights_name]
        with replace_folder(folder, final_file="config.json", stale=stale) as temporary:
            if safe_serialization:
                tensors = {name: tensor for name, tensor in tensors.items() if not self._is_copy(name, tensors)}
            _write_weights(temporary, weights_name, tensors, max_shard_size)
            self._write_extra_files(temporary)
            write_text(temporary / "config.json", config.to_json_string())
        if push_to_hub:
            self._upload(folder, kwargs.pop("repo_id", folder.name), token=token, **kwargs)

    def _is_copy(self, name: str, tensors: Mapping[str, Tensor]) -> bool:
        """Return whether a tensor is tied to another one, so that a file needs only the other."""
        original = tensors.get(self.all_tied_weights_keys.get(name, ""))
        tensor = tensors[name]
        if original is None or original.shape != tensor.shape:
            return False
        return original.data_ptr() == tensor.data_ptr() or torch.equal(original, tensor)

    @classmethod
    def can_generate(cls) -> bool:
        """Return whether the class has a `generate` method.

        Returns:
            Whether the class has a `generate` method.
        """
        bases = [base for base in cls.__mro__ if base.__module__.startswith("openblip.")]
        return "generate" in vars(cls) or any("generate" in vars(base) for base in bases)

    def train(self: ModelT, mode: bool = True) -> ModelT:
        """Set training mode, or evaluation mode.

        Args:
            mode: Training mode.

        Returns:
            The model.
        """
        join_transformers(PreTrainedModel)
        return nn.Module.train(self, mode)

    def _option(self, value: Any, name: str) -> Any:
        """Return an argument, or the configuration's value if the argument is `None`."""
        return getattr(self.config, name) if value is None else value

    def _finish(self, output: OutputT, return_dict: bool | None) -> OutputT | OutputTuple:
        """Return the output as `return_dict` requires."""
        return output if self._option(return_dict, "return_dict") else output.to_tuple()


def check_arguments(model: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Raise `TypeError` for arguments of `forward` that do not exist.

    Trainers pass `num_items_in_batch`; as in `transformers`, the losses of BLIP are means and ignore it.

    Args:
        model: The model.
        arguments: Further arguments by name.
    """
    unknown = [name for name, value in arguments.items() if name not in _IGNORED_ARGUMENTS and value is not None]
    if unknown:
        raise TypeError(f"{type(model).__name__}.forward got an unexpected keyword argument {', '.join(unknown)}")


_IGNORED_ARGUMENTS = ("num_items_in_batch", "cache_position", "head_mask")


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
        return _named_dtype(dtype)
    stored = (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point())
    return config.dtype or next(stored, torch.float32)


def _named_dtype(dtype: torch.dtype | str | None) -> torch.dtype:
    named = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(named, torch.dtype):
        raise InputError(f"dtype must be a torch dtype or 'auto', got {dtype!r}")
    return named


def _dispatch(model: PreTrainedModel, device_map: Any, options: Values) -> None:
    """Move a model to a device or, by accelerate, its submodules to several devices."""
    if isinstance(device_map, Mapping) and len(set(map(str, device_map.values()))) == 1:
        device_map = next(iter(device_map.values()))
    if device_map in _AUTOMATIC and torch.cuda.device_count() < 2:
        device_map = "cuda" if torch.cuda.is_available() else "cpu"
    if isinstance(device_map, str | int | torch.device) and device_map not in (*_AUTOMATIC, "disk"):
        model.to(torch.device(device_map))
        return
    try:
        accelerate: Any = import_module("accelerate")
    except ImportError as error:
        raise InputError("device_map with several devices needs accelerate: pip install accelerate") from error
    max_memory = options.pop("max_memory", None)
    if isinstance(device_map, str):
        no_split = sorted(
            {name for m in model.modules() if isinstance(m, ModelMethods) for name in m._no_split_modules}
        )
        device_map = accelerate.infer_auto_device_map(model, max_memory=max_memory, no_split_module_classes=no_split)
    accelerate.dispatch_model(
        model,
        device_map=dict(device_map),
        offload_dir=options.get("offload_folder"),
        offload_buffers=options.get("offload_buffers", False),
        skip_keys=model._skip_keys_device_placement,
        force_hooks=True,
    )


def _with_variant(name: str, variant: str | None) -> str:
    if variant is None:
        return name
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{variant}.{suffix}"


def _is_weight_file(name: str) -> bool:
    return name.startswith(("model", "pytorch_model")) and name.endswith((".safetensors", ".bin", INDEX))


def _write_weights(folder: Path, name: str, tensors: dict[str, Tensor], max_shard_size: int | str) -> None:
    """Write a weight file or, if the tensors exceed the size, several files with an index."""
    stem, _, suffix = name.rpartition(".")
    pattern = stem + "{suffix}." + suffix
    shards = split_torch_state_dict_into_shards(tensors, filename_pattern=pattern, max_shard_size=max_shard_size)
    for filename, names in shards.filename_to_tensors.items():
        shard = {tensor_name: tensors[tensor_name] for tensor_name in names}
        if suffix == "safetensors":
            write_safetensors(folder / filename, shard)
        else:
            write_pickle(folder / filename, shard)
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        write_text(folder / (name + INDEX), json.dumps(index, indent=2, sort_keys=True) + "\n")


def _register_output(output_class: type[Any]) -> None:
    """Tell torch.export how to take an output apart."""
    register_pytree_node(
        output_class,
        lambda output: (list(output.values()), tuple(output.keys())),
        lambda values, names: output_class(**dict(zip(names, values, strict=True))),
        serialized_type_name=f"{output_class.__module__}.{output_class.__name__}",
    )


for _output_class in ModelOutput.__subclasses__():
    _register_output(_output_class)

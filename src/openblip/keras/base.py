"""Base of the Keras classes: inputs as dictionaries, tuples or keywords, files, and training by `fit`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, overload

import numpy as np

from openblip.checkpoints.folder import INDEX, PICKLE, SAFETENSORS
from openblip.checkpoints.layouts import hub
from openblip.compat.transformers_api.config import PreTrainedConfig
from openblip.compat.transformers_api.files import StrPath, local_folder, write_text
from openblip.compat.transformers_api.misfit import Misfit
from openblip.compat.transformers_api.outputs import ModelOutput, OutputTuple
from openblip.compat.transformers_api.tensors import is_tensor
from openblip.errors import CheckpointError, InputError
from openblip.io.atomic import replace_folder
from openblip.io.jsonlines import Json
from openblip.keras.backend import BACKEND, Tensor, dtype_scope, keras, ops, weights_follow
from openblip.keras.weights import H5, Arrays, Weight, name_weights, read_weights, write_safetensors
from openblip.model.config import ModelKind

ModelT = TypeVar("ModelT", bound="TFBlipPreTrainedModel")
OutputT = TypeVar("OutputT", bound=ModelOutput)

_STALE = (SAFETENSORS + INDEX, PICKLE, PICKLE + INDEX, H5, H5 + INDEX)
# Options that are accepted and ignored: always true here, or about internals of transformers.
_WITHOUT_EFFECT = ("from_pt", "use_safetensors", "low_cpu_mem_usage", "weights_only", "attn_implementation")


class TFBlipPreTrainedModel(keras.Model):
    """Base class of the models: a configuration, and files that `transformers` and the classes of PyTorch read, too.

    Inputs are keywords, a dictionary (such as the output of a processor), or a tuple in the order of `call`.

    Args:
        config: Sizes of the model.
        dtype: Name of a dtype policy of Keras, such as "float32" or "mixed_bfloat16".
    """

    config_class: ClassVar[type[PreTrainedConfig]]
    task: ClassVar[ModelKind]
    weight_names: ClassVar[Mapping[str, str]]
    """Names of the model's parts in the table of hub names."""
    prefix_in_model: ClassVar[str] = ""
    """Prefix of the weights of this class in the file of a larger model."""
    config: Any

    def __init__(self, config: PreTrainedConfig, *, dtype: str | None = None, name: str | None = None) -> None:
        if not isinstance(config, self.config_class):
            raise InputError(f"config must be a {self.config_class.__name__}, got {type(config).__name__}")
        with dtype_scope(dtype):
            super().__init__(name=name)
            self.config = config
            self.add_layers()
        self.built = True

    def add_layers(self) -> None:
        """Create all layers with their weights."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model with keywords, with a dictionary, or with a tuple."""
        return super().__call__(**self._bind(args, kwargs))

    def stateless_call(
        self,
        trainable_variables: Any,
        non_trainable_variables: Any,
        *args: Any,
        return_losses: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Call the model with given values of its variables, as JAX needs it.

        Args:
            trainable_variables: Values of `trainable_variables`.
            non_trainable_variables: Values of `non_trainable_variables`.
            *args: Inputs as in a call.
            return_losses: Also return losses of layers.
            **kwargs: Inputs as in a call.

        Returns:
            The output, new values of the variables that are not trained and, if asked for, losses.
        """
        inputs = self._bind(args, kwargs)  # Keras goes past `__call__` here
        return super().stateless_call(
            trainable_variables, non_trainable_variables, return_losses=return_losses, **inputs
        )

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return all inputs by name."""
        names = [name for name in inspect.signature(self.call).parameters if name not in ("self", "kwargs")]
        values: dict[str, Any] = {}
        if args and isinstance(args[0], Mapping):
            if len(args) > 1:
                raise TypeError(f"{type(self).__name__} takes a dictionary as its only positional input")
            values, args = dict(args[0]), ()
        elif len(args) == 1 and isinstance(args[0], list | tuple) and args[0] and all(map(_is_input, args[0])):
            args = tuple(args[0])
        if len(args) > len(names):
            raise TypeError(f"{type(self).__name__} takes at most {len(names)} inputs by position, got {len(args)}")
        for group in (dict(zip(names, args, strict=False)), kwargs):
            if duplicates := values.keys() & group.keys():
                raise TypeError(f"{type(self).__name__} got {', '.join(sorted(duplicates))} twice")
            values.update(group)
        if unknown := sorted(values.keys() - set(names)):
            raise TypeError(f"{type(self).__name__} has no input {', '.join(unknown)}; it has {', '.join(names)}")
        return {name: _to_input(name, value) for name, value in values.items()}

    def build(self, *_args: Any) -> None:
        """Do nothing: all weights exist from the start."""

    def get_config(self) -> dict[str, Json]:
        """Return the configuration, for `model.save`.

        Returns:
            The configuration, for `model.save`.
        """
        return {"config": self.config.to_dict(), "name": self.name}

    @classmethod
    def from_config(cls: type[ModelT], config: Any, custom_objects: Any = None) -> ModelT:
        """Create a model with random weights.

        Args:
            config: A configuration, or the result of `get_config`.
            custom_objects: Ignored.

        Returns:
            The model.
        """
        if isinstance(config, PreTrainedConfig):
            return cls(config)
        return cls(cls.config_class.from_dict(config["config"]), name=config.get("name"))

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ModelT], name_or_path: StrPath, *, output_loading_info: Literal[False] = ..., **kwargs: Any
    ) -> ModelT: ...

    @overload
    @classmethod
    def from_pretrained(
        cls: type[ModelT], name_or_path: StrPath, *, output_loading_info: Literal[True], **kwargs: Any
    ) -> tuple[ModelT, dict[str, list[str]]]: ...

    @classmethod
    def from_pretrained(
        cls: type[ModelT],
        name_or_path: StrPath,
        *,
        config: PreTrainedConfig | StrPath | None = None,
        dtype: str | None = None,
        ignore_mismatched_sizes: bool = False,
        allow_missing: bool = False,
        output_loading_info: bool = False,
        **kwargs: Any,
    ) -> ModelT | tuple[ModelT, dict[str, list[str]]]:
        """Load a model from `model.safetensors` or `tf_model.h5`.

        Args:
            name_or_path: Local folder or hub id.
            config: Configuration, or where to read it; by default the folder's own.
            dtype: Name of a dtype policy of Keras. The default is Keras' own, which is "float32".
            ignore_mismatched_sizes: Initialize tensors of another shape randomly instead of raising.
            allow_missing: Initialize missing tensors randomly and ignore unknown ones, with a warning, instead of
                raising.
            output_loading_info: Also return the names of missing, unexpected and mismatched tensors.
            **kwargs: Fields of the configuration, or the location of files (`revision`, `cache_dir`, `subfolder`, ...).

        Returns:
            The model, with `output_loading_info=True` together with the names of tensors that did not fit.

        Raises:
            CheckpointError: Files are missing or damaged, or a tensor is missing, unknown or of another shape.
            TypeError: There is no such option.
        """
        folder, kwargs = local_folder(name_or_path, kwargs)
        for name in _WITHOUT_EFFECT:
            kwargs.pop(name, None)
        if isinstance(config, PreTrainedConfig):
            model_config = copy.deepcopy(config)
        else:
            source = config or folder
            model_config, kwargs = cls.config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        if kwargs:
            raise TypeError(f"from_pretrained has no option {', '.join(kwargs)}")
        arrays = read_weights(folder)
        if cls.prefix_in_model and any(name.startswith(cls.prefix_in_model) for name in arrays):
            arrays = {
                name.removeprefix(cls.prefix_in_model): array
                for name, array in arrays.items()
                if name.startswith(cls.prefix_in_model)
            }
        if allow_missing or ignore_mismatched_sizes:
            model = cls(model_config, dtype=dtype)
        else:
            with weights_follow():
                model = cls(model_config, dtype=dtype)
        loading_info = model._load(arrays, str(folder), allow_missing, ignore_mismatched_sizes)
        model_config.dtype = model._weights_dtype()
        model_config.name_or_path = str(name_or_path)
        model._read_extra_files(folder)
        return (model, loading_info) if output_loading_info else model

    def _load(self, arrays: Arrays, source: str, allow_missing: bool, drop_misshapen: bool) -> dict[str, list[str]]:
        """Load hub-named arrays and return the names that were missing, unexpected or mismatched, if allowed."""
        weights, table = self.hub_weights(), hub.TABLES[self.task]
        unexpected, mismatched, loaded = [], [], set()
        for name, array in arrays.items():
            match = table.ours(name)
            if match is not None and match[0].kind == "constant":
                continue
            if match is not None and match[0].kind == "tied":
                original = arrays.get(hub.hub_name(self.task, match[1]))
                if original is not None and not np.array_equal(array, original):
                    raise CheckpointError(f"{source}: {name} must equal the tensor that it is tied to")
                continue
            if name not in weights:
                unexpected.append(name)
            elif weights[name].shape != array.shape:
                mismatched.append(name)
            else:
                weights[name].assign(array)
                loaded.add(name)
        missing = [name for name in weights if name not in loaded and name not in mismatched]
        fatal = (not allow_missing and bool(missing or unexpected)) or (not drop_misshapen and bool(mismatched))
        return Misfit(source, type(self).__name__, missing, unexpected, mismatched).report(list(arrays), fatal=fatal)

    def hub_weights(self) -> dict[str, Weight]:
        """Return all weights by their hub names.

        Returns:
            All weights by their hub names.
        """
        return name_weights(self, self.task, self.weight_names)

    def save_pretrained(self, save_directory: StrPath, **kwargs: Any) -> None:
        """Write `config.json` and `model.safetensors`, which `transformers` and the classes of PyTorch read, too.

        Args:
            save_directory: Folder to write to.
            **kwargs: Further options of `transformers`, which must be false.

        Raises:
            InputError: `save_directory` is a file.
            TypeError: An option is not supported.
        """
        if unknown := [name for name, value in kwargs.items() if value and name != "safe_serialization"]:
            raise TypeError(f"save_pretrained has no option {', '.join(unknown)}")
        folder = Path(save_directory)
        if folder.is_file():
            raise InputError(f"save_directory must be a folder, got the file {folder}")
        weights = self.hub_weights()
        config = copy.deepcopy(self.config)
        config.architectures, config._dtype = [type(self).__name__.removeprefix("TF")], self._weights_dtype()
        config.name_or_path = ""
        with replace_folder(folder, final_file="config.json", stale=_STALE) as temporary:
            write_safetensors(temporary / SAFETENSORS, {name: weight.to_file() for name, weight in weights.items()})
            self._write_extra_files(temporary)
            write_text(temporary / "config.json", config.to_json_string())

    def export(
        self, filepath: StrPath, format: Literal["tf_saved_model", "litert"] = "tf_saved_model", **options: Any
    ) -> None:
        """Write a model for programs without OpenBLIP.

        Args:
            filepath: The folder of a SavedModel, or the LiteRT file.
            format: "tf_saved_model" calls `export_saved_model`, and "litert" calls `export_litert`.
            **options: Options of that function.

        Raises:
            InputError: There is no such format, or the model or the back end does not allow it.
        """
        from openblip.keras.export import export_saved_model  # they import the models
        from openblip.keras.litert import export_litert

        if format == "tf_saved_model":
            export_saved_model(self, filepath, **options)
        elif format == "litert":
            export_litert(self, filepath, **options)
        else:
            raise InputError(
                f"format must be 'tf_saved_model' or 'litert', got {format!r}: for ONNX and OpenVINO, run "
                "`openblip export`"
            )

    def _weights_dtype(self) -> str:
        """Return the name of the type that the weights are stored in."""
        return str(next(iter(self.hub_weights().values())).variable.dtype)

    def _read_extra_files(self, folder: Path) -> None:
        """Read further files of a saved model."""

    def _write_extra_files(self, folder: Path) -> None:
        """Write further files of a saved model."""

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Tensor:
        """Return the model's own loss, which `fit` and `evaluate` use: labels are an input of the model.

        Args:
            x: Inputs by name, labels included.
            y: Must be `None`.
            y_pred: Output of the model.
            sample_weight: Must be `None`.
            training: Whether the model is trained.

        Returns:
            The loss, a scalar.

        Raises:
            InputError: The labels are not an input, or the model has no loss.
        """
        if y is not None or sample_weight is not None:
            raise InputError("labels must be among the inputs, as x={..., 'labels': labels}, not in y or sample_weight")
        loss = y_pred.get("loss") if isinstance(y_pred, ModelOutput) else None
        if loss is None:
            raise InputError(f"{type(self).__name__} must be given labels (or return_loss=True) to compute a loss")
        return ops.mean(loss)

    def predict_step(self, *args: Any) -> Any:
        """Return a batch's output as a dictionary, which `predict` concatenates.

        Args:
            *args: Data and, with JAX, state.

        Returns:
            The output and, with JAX, the state.
        """
        result = super().predict_step(*args)
        if BACKEND == "jax":
            return _to_dict(result[0]), *result[1:]
        return _to_dict(result)

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Return the number of parameters.

        Args:
            only_trainable: Count only trainable parameters.

        Returns:
            The number of parameters.
        """
        variables = self.trainable_variables if only_trainable else self.variables
        return int(sum(np.prod(variable.shape) for variable in variables if "seed" not in variable.path))

    def _option(self, value: Any, name: str) -> Any:
        """Return an argument, or the configuration's value if the argument is `None`."""
        return getattr(self.config, name) if value is None else value

    def _finish(self, output: OutputT, return_dict: bool | None) -> OutputT | OutputTuple:
        """Return the output as `return_dict` requires."""
        return output if self._option(return_dict, "return_dict") else output.to_tuple()


def _is_input(value: object) -> bool:
    """Return whether an entry of a tuple is an input of its own, rather than a row of numbers."""
    return value is None or is_tensor(value) or isinstance(value, np.ndarray | keras.KerasTensor)


def _to_input(name: str, value: Any) -> Any:
    """Return rows of numbers as an array; Keras would take the numbers for inputs of their own."""
    if isinstance(value, list | tuple) and name != "past_key_values":
        array = np.asarray(value)
        return array.astype(np.int32) if array.dtype == np.int64 else array
    return value


def _to_dict(output: Any) -> Any:
    """Return the tensors of an output by name. States of all layers are a list, which `predict` can concatenate."""
    if not isinstance(output, ModelOutput):
        return output
    return {name: _to_dict(value) for name, value in output.items() if name != "loss"}

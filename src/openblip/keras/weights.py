"""Weights of Keras models under their hub names: reading safetensors and `tf_model.h5`, and writing safetensors.

Names come from the table in `openblip.checkpoints.layouts.hub`, as for the classes of PyTorch. A linear layer of Keras
stores the transpose of a linear layer of PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from openblip.checkpoints.folder import INDEX, SAFETENSORS, ModelFolder, Reader
from openblip.checkpoints.layouts import hub
from openblip.errors import CheckpointError
from openblip.extras import install_hint
from openblip.io import atomic
from openblip.keras.backend import keras, ops
from openblip.keras.vision import PatchEmbed
from openblip.model.config import ModelKind

H5 = "tf_model.h5"

Array = NDArray[Any]
Arrays = dict[str, Array]


@dataclass(frozen=True)
class Weight:
    """A variable of a model, and how files store it.

    Attributes:
        variable: The variable of Keras.
        shape: Shape in a file.
        transposed: Whether a file stores the transpose.
    """

    variable: keras.Variable
    shape: tuple[int, ...]
    transposed: bool = False

    def to_file(self) -> Array:
        """Return the values as files store them.

        Returns:
            The values as files store them.
        """
        values = cast(Array, ops.convert_to_numpy(self.variable.value))
        return np.ascontiguousarray(values.T if self.transposed else values).reshape(self.shape)  # scalars, too

    def assign(self, values: Array) -> None:
        """Set the variable.

        Args:
            values: Values as files store them.
        """
        values = values.astype(np.float32, copy=False)
        if self.transposed:
            values = values.reshape(self.shape[0], -1).T
        self.variable.assign(values.reshape(self.variable.shape))


def iter_weights(layer: Any, prefix: str = "") -> Iterator[tuple[str, Weight]]:
    """Yield all weights of a layer, by the names that `openblip.model` gives them.

    Args:
        layer: The layer, or a list of layers.
        prefix: Prefix of all names.

    Yields:
        Names and weights.
    """
    if isinstance(layer, keras.Variable):
        yield prefix, Weight(layer, tuple(layer.shape))
    elif isinstance(layer, list):
        for number, child in enumerate(layer):
            yield from iter_weights(child, f"{prefix}.{number}")
    elif isinstance(layer, keras.layers.Dense):
        width_in, width = layer.kernel.shape
        yield f"{prefix}.weight", Weight(layer.kernel, (width, width_in), transposed=True)
        if layer.bias is not None:
            yield f"{prefix}.bias", Weight(layer.bias, tuple(layer.bias.shape))
    elif isinstance(layer, PatchEmbed):
        shape = (layer.kernel.shape[1], 3, layer.patch_size, layer.patch_size)
        yield f"{prefix}.weight", Weight(layer.kernel, shape, transposed=True)
        yield f"{prefix}.bias", Weight(layer.bias, tuple(layer.bias.shape))
    elif isinstance(layer, keras.layers.LayerNormalization):
        yield f"{prefix}.weight", Weight(layer.gamma, tuple(layer.gamma.shape))
        yield f"{prefix}.bias", Weight(layer.beta, tuple(layer.beta.shape))
    elif isinstance(layer, keras.layers.Embedding):
        yield f"{prefix}.weight", Weight(layer.embeddings, tuple(layer.embeddings.shape))
    elif isinstance(layer, keras.layers.Layer):
        for name, child in vars(layer).items():
            if not name.startswith("_"):
                yield from iter_weights(child, f"{prefix}.{name}" if prefix else name)


def name_weights(model: keras.Model, task: ModelKind, parts: Mapping[str, str]) -> dict[str, Weight]:
    """Return the weights of a model by their hub names.

    Args:
        model: The model.
        task: Kind of the model, whose rows of the name table apply.
        parts: Our names in the table for the parts of the model.

    Returns:
        The weights by their hub names.
    """
    weights = {}
    for name, weight in iter_weights(model):
        part = next((part for part in parts if name == part or name.startswith(f"{part}.")), None)
        if part is not None:
            ours = f"{parts[part]}{name.removeprefix(part)}".removeprefix(".")
            weights[hub.hub_name(task, ours)] = weight
    return weights


def read_weights(path: Path) -> Arrays:
    """Return the arrays of a hub folder or a weight file, by their hub names.

    Args:
        path: The folder, or a `.safetensors` or `.h5` file.

    Returns:
        The arrays by name.

    Raises:
        CheckpointError: If there are no weights, or a file is damaged.
    """
    if path.is_file():
        if path.suffix == ".h5":
            return read_h5(path)
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"{path} is damaged or incomplete: {error}. Download or write it again") from error
    stored = (SAFETENSORS, SAFETENSORS + INDEX, H5, H5 + INDEX)
    if not any((path / name).is_file() for name in stored) and any(path.glob("pytorch_model*.bin")):
        raise CheckpointError(
            f"{path} must have {SAFETENSORS} or {H5} for Keras, got a pickle of PyTorch: where PyTorch is installed, "
            "load it by the class without TF in its name, and write safetensors by save_pretrained"
        )
    readers: Mapping[str, Reader[Array]] = {SAFETENSORS: load_file, H5: read_h5}
    return ModelFolder.open(path).read(readers).tensors


def write_safetensors(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write a safetensors file that `transformers` and the classes of PyTorch read, completely or not at all.

    Args:
        path: The file.
        arrays: The arrays by name.
    """
    with atomic.replace_path(path) as temporary:
        save_file(dict(arrays), temporary, metadata={"format": "pt"})


def read_h5(path: Path) -> Arrays:
    """Return the arrays of a `tf_model.h5` that transformers 4 wrote, by their hub names and in their shapes there.

    Args:
        path: The file.

    Returns:
        The arrays by name.

    Raises:
        CheckpointError: If the file is damaged or is not such a file.
    """
    try:
        import h5py
    except ImportError as error:
        raise CheckpointError(f"{path} needs h5py: {install_hint('tensorflow')}") from error
    arrays: Arrays = {}
    try:
        with h5py.File(path, "r") as file:
            for layer in _names(file.attrs, "layer_names"):
                for name in _names(file[layer].attrs, "weight_names"):
                    theirs, change = _from_h5_name(name)
                    values = np.asarray(file[layer][name])
                    arrays[theirs] = change(values)
    except (OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged, or not weights of transformers 4: {error}") from error
    return arrays


def _names(attributes: Mapping[str, Any], name: str) -> list[str]:
    """Return a list of names, which long lists store in chunks."""
    if name in attributes:
        chunks = [attributes[name]]
    else:
        numbers = sorted(int(key.removeprefix(name)) for key in attributes if re.fullmatch(name + r"\d+", key))
        chunks = [attributes[f"{name}{number}"] for number in numbers]
    return [value.decode() if isinstance(value, bytes) else str(value) for chunk in chunks for value in chunk]


# The last part of a variable's name in TensorFlow, the one in PyTorch, and the change of the values.
_H5_PARTS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "kernel": ("weight", lambda values: values.T if values.ndim == 2 else values.transpose(3, 2, 0, 1)),
    "gamma": ("weight", lambda values: values),
    "beta": ("bias", lambda values: values),
    "embeddings": ("weight", lambda values: values),
}


def _from_h5_name(name: str) -> tuple[str, Callable[[Array], Array]]:
    """Return the hub name of a variable, and what changes its values to their shape there.

    A name is `tf_blip_model/blip/text_model/encoder/layer_._3/.../kernel:0`: the model, the path, the variable. `_._`
    separates a list from the number of an entry.
    """
    parts = name.split(":")[0].replace("_._", "/").split("/")[1:]
    if parts and parts[0] == "blip":
        parts = parts[1:]
    last, change = _H5_PARTS.get(parts[-1], (parts[-1], lambda values: values))
    if len(parts) > 1 and parts[-2].endswith("_embeddings") and parts[-1] == "weight":
        last = "weight"
    return ".".join([*parts[:-1], last]), change

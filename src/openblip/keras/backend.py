"""The back end of Keras: TensorFlow or JAX, compiled functions, and values that are known while a model is traced."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from openblip.compat.transformers_api import outputs
from openblip.extras import install_hint

BACKENDS = ("tensorflow", "jax")

try:
    import keras as keras
    from keras import ops as ops
except ImportError as error:
    name = os.environ.get("KERAS_BACKEND", BACKENDS[0])
    raise ImportError(
        f"openblip.keras needs Keras 3 with TensorFlow or JAX, got KERAS_BACKEND={name!r} without it: "
        f"{install_hint('jax' if name == 'jax' else 'tensorflow')}"
    ) from error

Tensor: TypeAlias = Any
"""A tensor of the back end: `tf.Tensor` or `jax.Array`."""

BACKEND: str = keras.backend.backend()

if BACKEND not in BACKENDS:
    raise ImportError(
        f"KERAS_BACKEND must be 'tensorflow' or 'jax' for openblip.keras, got {BACKEND!r}: set it before Python starts "
        "(the classes of PyTorch are in openblip itself)"
    )


def known_values(tensor: Tensor) -> NDArray[Any] | None:
    """Return the values of a tensor, or `None` while a function is traced, when they are not known yet.

    Args:
        tensor: A tensor, an array or nested lists.

    Returns:
        The values of a tensor, or `None` while a function is traced.
    """
    if isinstance(tensor, keras.KerasTensor):
        return None
    if BACKEND == "jax":
        import jax

        return None if isinstance(tensor, jax.core.Tracer) else np.asarray(tensor)
    import tensorflow as tf

    symbolic = isinstance(tensor, tf.Tensor) and not hasattr(tensor, "numpy")
    return None if symbolic else np.asarray(tensor)


class Compiled:
    """A function of a model and of arrays, compiled once per shape.

    TensorFlow traces it with `tf.function`, by XLA with `jit_compile=True`; JAX compiles it with `jax.jit`, with the
    model's variables as arguments, so that later changes of the weights count.

    Args:
        model: The model whose variables the function reads.
        function: The function, of tensors, and lists of these.
        jit_compile: Whether TensorFlow compiles by XLA; JAX always does.
    """

    def __init__(self, model: keras.Model, function: Callable[..., Any], *, jit_compile: bool = False) -> None:
        self._model = model
        if BACKEND == "jax":
            import jax

            def run(values: Sequence[Tensor], *args: Any) -> Any:
                pairs = list(zip(model.variables, values, strict=True))
                with keras.StatelessScope(state_mapping=pairs):
                    return function(*args)

            self._run = jax.jit(run)
        else:
            import tensorflow as tf

            self._run = tf.function(function, jit_compile=jit_compile)

    def __call__(self, *args: Any) -> Any:
        if BACKEND == "jax":
            return self._run([variable.value for variable in self._model.variables], *args)
        return self._run(*args)


@contextlib.contextmanager
def dtype_scope(dtype: str | None) -> Iterator[None]:
    """Build layers with a dtype policy, such as "float32" or "mixed_bfloat16".

    Args:
        dtype: Name of the policy; `None` for Keras' own.
    """
    previous = keras.config.dtype_policy()
    if dtype is not None:
        keras.config.set_dtype_policy(dtype)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


_without_initial_weights = False


@contextlib.contextmanager
def weights_follow() -> Iterator[None]:
    """Build layers whose weights are about to be loaded: drawing random ones would take seconds at base size."""
    global _without_initial_weights
    _without_initial_weights = True
    try:
        yield
    finally:
        _without_initial_weights = False


def normal(std: float) -> keras.initializers.Initializer | Literal["zeros"]:
    """Return the initializer of a matrix.

    Args:
        std: Standard deviation.

    Returns:
        The initializer of a matrix.
    """
    return "zeros" if _without_initial_weights else keras.initializers.TruncatedNormal(stddev=std)


def lowest(dtype: Any) -> float:
    """Return the lowest finite number of a floating-point type, which hides a position from attention.

    Args:
        dtype: The type.

    Returns:
        The lowest finite number.
    """
    name = keras.backend.standardize_dtype(dtype)
    return -3.3895313892515355e38 if name == "bfloat16" else float(np.finfo(name).min)  # NumPy has no bfloat16


def stack_rows(rows: Sequence[Sequence[int]]) -> Tensor:
    """Return rows of one length as a tensor of token ids.

    Args:
        rows: The rows.

    Returns:
        The rows as a tensor.
    """
    return ops.convert_to_tensor(np.asarray(rows, dtype=np.int32))


def _register_outputs() -> None:
    """Let JAX pass outputs in and out of compiled functions. TensorFlow finds `__tf_flatten__` by itself."""
    if BACKEND != "jax":
        return
    import jax

    for kind in vars(outputs).values():
        if isinstance(kind, type) and issubclass(kind, outputs.ModelOutput) and kind is not outputs.ModelOutput:
            names = [field.name for field in fields(kind)]  # type: ignore[arg-type]  # every subclass is a dataclass
            jax.tree_util.register_dataclass(kind, data_fields=names, meta_fields=[])


_register_outputs()

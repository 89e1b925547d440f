"""Record what the classes of PyTorch return, for the tests of Keras: python -m tests.keras.record_fixtures"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

import openblip
from openblip.compat.transformers_api.outputs import ModelOutput
from openblip.compat.transformers_api.text_layers import TextCache
from tests.keras.cases import (
    CALLS,
    CONFIGS,
    FIXTURES,
    GENERATIONS,
    LEARNING_RATE,
    SEP,
    STEPS,
    TRAINING,
    WEIGHT_DECAY,
    Case,
)

Arrays = dict[str, NDArray[Any]]


def make_model(name: str) -> Any:
    """A model with weights loud enough that different inputs give different outputs."""
    kind = getattr(openblip, name)
    model = kind(kind.config_class(**CONFIGS[name])).eval()
    generator = torch.Generator().manual_seed(len(name))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25)
            elif key != "logit_scale":
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            if key.endswith("predictions.bias"):
                parameter[SEP] = 2.5  # texts end after a few tokens
    return model


def load_model(name: str) -> Any:
    """The recorded model."""
    return getattr(openblip, name).from_pretrained(FIXTURES / name)


def flatten(prefix: str, value: Any) -> Arrays:
    """The arrays of an output by name."""
    if value is None or isinstance(value, TextCache):
        return {}
    if isinstance(value, ModelOutput):
        return {
            key: array for name, entry in value.items() for key, array in flatten(f"{prefix}.{name}", entry).items()
        }
    if isinstance(value, tuple):
        return {f"{prefix}.{i}": array for i, entry in enumerate(value) for array in flatten("", entry).values()}
    return {prefix: np.ascontiguousarray(value.detach().numpy())}


def run(model: Any, case: Case) -> Arrays:
    """The results of a call."""
    inputs = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in case.inputs.items()}
    output = (getattr(model, case.method) if case.method else model)(**inputs)
    if case.method in ("get_text_features", "get_image_features"):
        output = output.pooler_output
    return flatten(case.name, output)


def train(model: Any, name: str) -> Arrays:
    """The gradients of one step, and the losses of all steps."""
    inputs = {key: torch.from_numpy(value) for key, value in TRAINING[name].items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    losses, gradients = [], {}
    for step in range(STEPS + 1):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        losses.append(float(loss.detach()))
        if step == 0:
            gradients = {
                f"gradient.{key}": parameter.grad.numpy().copy()
                for key, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        optimizer.step()
    return {**gradients, "losses": np.array(losses, np.float32)}


def record(name: str) -> Arrays:
    """All results of a recorded model."""
    arrays: Arrays = {}
    model = load_model(name)
    with torch.no_grad():
        for case in (*CALLS, *GENERATIONS):
            if case.model == name:
                arrays.update(run(model, case))
    if name in TRAINING:
        arrays.update(train(model, name))
    return arrays


def main() -> None:
    """Write the fixtures. Existing weights stay: the results of transformers 4.46.3 were recorded with them."""
    torch.manual_seed(0)
    for name in CONFIGS:
        folder: Path = FIXTURES / name
        if not (folder / "model.safetensors").exists():
            make_model(name).save_pretrained(folder)
        save_file(record(name), folder / "results.safetensors")


if __name__ == "__main__":
    main()

"""Record what the TensorFlow classes of transformers 4.46.3 return for the toy models, and write toy `tf_model.h5`.

Run it in an environment of its own, without OpenBLIP, in the root of the repository:

    python -m venv tf446
    tf446/bin/pip install transformers==4.46.3 "tensorflow-cpu==2.21.*" "tf-keras==2.21.*" safetensors pillow
    TF_USE_LEGACY_KERAS=1 tf446/bin/python -m tests.keras.record_tf446

The cases are those that both compute alike: transformers counts positions over padding on the left, cannot search with
beams over images, does not repeat a single text or image, and embeds labels of -100.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import transformers
from safetensors.numpy import load_file, save_file

from tests.keras.cases import (
    ANSWERS,
    CALLS,
    CONFIGS,
    FIXTURES,
    GENERATIONS,
    IDS,
    PIXELS,
    STATES,
    TF446,
    TF446_H5,
    Case,
)

Arrays = dict[str, Any]


def load(name: str) -> Any:
    """The recorded toy model in TensorFlow. `from_pretrained` cannot build encoders that stand alone."""
    kind = getattr(transformers, f"TF{name}")
    config = kind.config_class.from_pretrained(FIXTURES / name)
    getattr(config, "vision_config", config).num_channels = 3
    model = kind(config)
    arrays = load_file(FIXTURES / name / "model.safetensors")
    for key in [key for key in arrays if key.endswith("cls.predictions.bias")]:  # what safetensors omit
        head = key.removesuffix("bias")
        arrays[head + "decoder.bias"] = arrays[key]
        words = head.removesuffix("cls.predictions.") + "bert.embeddings.word_embeddings.weight"
        arrays[head + "decoder.weight"] = arrays[words]
    inputs = {key: tf.constant(value) for key, value in INPUTS[name].items()}
    utils = import_module("transformers.modeling_tf_pytorch_utils")
    return utils.load_pytorch_state_dict_in_tf2_model(model, arrays, tf_inputs=inputs)


_IDS, _PIXELS = {"input_ids": IDS.astype(np.int32)}, {"pixel_values": PIXELS}
INPUTS: dict[str, Arrays] = {
    "BlipVisionModel": _PIXELS,
    "BlipTextModel": {**_IDS, "encoder_hidden_states": STATES},
    "BlipModel": {**_IDS, **_PIXELS},
    "BlipForConditionalGeneration": {**_IDS, **_PIXELS},
    "BlipForImageTextRetrieval": {**_IDS, **_PIXELS},
    "BlipForQuestionAnswering": {**_IDS, **_PIXELS, "labels": ANSWERS.astype(np.int32)},
}


def flatten(prefix: str, value: Any) -> Arrays:
    """The arrays of an output by name, as `tests.keras.toys` names them."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        entries = [(key, entry) for key, entry in value.items() if key != "past_key_values"]
        return {key: array for name, entry in entries for key, array in flatten(f"{prefix}.{name}", entry).items()}
    if isinstance(value, tuple):
        return {f"{prefix}.{i}": array for i, entry in enumerate(value) for array in flatten("", entry).values()}
    return {prefix: np.ascontiguousarray(value.numpy())}


def run(model: Any, case: Case) -> Arrays:
    """The results of a call."""
    inputs = {key: tf.constant(value) if isinstance(value, np.ndarray) else value for key, value in case.inputs.items()}
    inputs = {
        key: tf.cast(value, tf.int32) if tf.is_tensor(value) and value.dtype == tf.int64 else value
        for key, value in inputs.items()
    }
    if case.method:
        return flatten(case.name, getattr(model, case.method)(**inputs))
    options = {key: inputs.pop(key) for key in list(inputs) if not tf.is_tensor(inputs[key])}
    return flatten(case.name, model(inputs, **options))


def main() -> None:
    """Write the fixtures."""
    assert transformers.__version__ == "4.46.3"
    for name in sys.argv[1:] or CONFIGS:
        print(name, flush=True)
        model = load(name)
        arrays: Arrays = {}
        for case in (*CALLS, *GENERATIONS):
            if case.model == name and case.id in TF446:
                arrays.update(run(model, case))
        save_file(arrays, FIXTURES / name / "tf446.safetensors")
        if name in TF446_H5:
            with tempfile.TemporaryDirectory() as temporary:
                model.save_pretrained(temporary, safe_serialization=False)
                folder = FIXTURES / f"{name}-h5"
                folder.mkdir(exist_ok=True)
                for file in ("config.json", "tf_model.h5"):
                    shutil.copy(Path(temporary) / file, folder / file)


if __name__ == "__main__":
    main()

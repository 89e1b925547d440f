"""One contestant of `benchmarks.keras_latency`, in a process and an environment of its own.

    python -m benchmarks.keras_worker KIND FOLDER NEW_TOKENS

It loads the captioner in FOLDER, and captions one image for each line that it reads: it prints seconds and tokens.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Caption = Callable[[Any], Any]


def load_torch(folder: str, options: dict[str, Any]) -> Caption:
    """OpenBLIP's class of PyTorch."""
    import torch

    from openblip import BlipForConditionalGeneration

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = BlipForConditionalGeneration.from_pretrained(folder)
    return lambda pixels: model.generate(torch.from_numpy(pixels), **options)


def load_keras(folder: str, options: dict[str, Any], jit_compile: bool | None = None) -> Caption:
    """OpenBLIP's class of Keras; KERAS_BACKEND chooses the back end."""
    from openblip.keras import TFBlipForConditionalGeneration

    model = TFBlipForConditionalGeneration.from_pretrained(folder)
    return lambda pixels: model.generate(pixels, jit_compile=jit_compile, **options)


def load_peer(folder: str, options: dict[str, Any]) -> Caption:
    """The TensorFlow class of transformers 4."""
    import tensorflow as tf

    transformers: Any = importlib.import_module("transformers")  # 4.46.3, whose types the main environment lacks
    config = transformers.BlipConfig.from_pretrained(folder)
    config.vision_config.num_channels = 3
    model = transformers.TFBlipForConditionalGeneration.from_pretrained(folder, config=config)
    # Its lengths count the prompt, which is [DEC].
    lengths = {"max_length": options["max_new_tokens"] + 1, "min_length": options["min_new_tokens"] + 1}
    return lambda pixels: model.generate(tf.constant(pixels), **lengths)


LOADERS: dict[str, Callable[[str, dict[str, Any]], Caption]] = {
    "torch": load_torch,
    "tensorflow": load_keras,
    "tensorflow-xla": lambda folder, options: load_keras(folder, options, jit_compile=True),
    "jax": load_keras,
    "transformers-tensorflow": load_peer,
}


def main() -> None:
    """Load, and answer lines."""
    kind, folder, count = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print on standard output, too
    caption = LOADERS[kind](folder, {"max_new_tokens": int(count), "min_new_tokens": int(count)})
    with open(f"{folder}/config.json", encoding="utf-8") as file:  # noqa: PTH123  # also runs without openblip
        size = json.load(file)["vision_config"]["image_size"]
    pixels = np.random.RandomState(0).standard_normal((1, 3, size, size)).astype(np.float32)
    print("ready", file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        tokens = np.asarray(caption(pixels))
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "tokens": tokens[0].tolist()}), file=answers, flush=True)


if __name__ == "__main__":
    main()

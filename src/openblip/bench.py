"""The measurement behind `openblip doctor --bench`: which engine and precision are fastest on this machine.

Every setting captions one image with 3 beams, by `pocket` and by a random model of base width with 2 of its 12 layers,
which takes a sixth of the time and converts in seconds. The rate of a setting is the geometric mean of both.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from openblip.blip import load
from openblip.decoding import Decoding, generate_grouped
from openblip.engine.choice import Setting, has_openvino
from openblip.engine.create import create_engine
from openblip.engine.protocols import Captions
from openblip.errors import OpenBlipError
from openblip.model.build import build_model
from openblip.model.config import preset
from openblip.processor import processor_class

TOKENS = 16
_LAYERS = 2
_REPEATS = 3


def measure_settings(*, seconds: float = 50.0, small: bool = False) -> Iterator[tuple[Setting, float | str]]:
    """Measure the settings of this machine, the likely ones first.

    Args:
        seconds: Time after which no further setting starts.
        small: Leave out the model of base width, for tests.

    Yields:
        Each setting with its captions per second, or with the reason why it was not measured.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="openblip-bench-") as folder:
        for setting in candidates():
            if time.perf_counter() - start > seconds:
                yield setting, f"no time left after {seconds:.0f} s"
                continue
            try:
                times = [_time_pocket(setting)]
                if not small:
                    times.append(_time_base(setting, Path(folder)))
            except (OpenBlipError, RuntimeError) as error:
                yield setting, str(error).splitlines()[0]
                continue
            yield setting, 1 / math.prod(times) ** (1 / len(times))


def candidates() -> list[Setting]:
    """Return the settings that this machine may run fast, the likely ones first."""
    settings: list[Setting] = [("torch", "fp32")]
    if has_openvino():
        settings += [("openvino", "int8"), ("openvino", "fp32")]
    if processor_class() in ("amx", "avx512_bf16"):
        settings.append(("torch", "bf16"))
    if processor_class() != "other":
        settings.append(("torch", "int8"))
    return settings


def _time_pocket(setting: Setting) -> float:
    engine, precision = setting
    blip = load("pocket", task="caption", engine=engine, precision=precision, device="cpu")
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    return _best(lambda: blip.caption(image, num_beams=3, min_new_tokens=TOKENS, max_new_tokens=TOKENS))


def _time_base(setting: Setting, folder: Path) -> float:
    engine_name, precision = setting
    config = preset("caption")
    vision, text = replace(config.vision, depth=_LAYERS), replace(config.text, depth=_LAYERS)
    config = replace(config, vision=vision, text=text)
    torch.manual_seed(0)
    cpu = torch.device("cpu")
    engine = create_engine(
        engine_name, precision, cpu, build_model(config), config, cache=folder, key=lambda: "bench"
    ).require(Captions)
    pixels = torch.randn(1, 3, config.vision.image_size, config.vision.image_size)
    text = config.text
    options = Decoding(
        num_beams=3, max_new_tokens=TOKENS, min_new_tokens=TOKENS, eos_id=text.sep_id, pad_id=text.pad_id
    )

    def caption() -> None:
        start = engine.prepare_captions(engine.encode_images(pixels), TOKENS + 1)
        generate_grouped(start, [[text.dec_id]], options)

    return _best(caption)


def _best(call: Callable[[], object]) -> float:
    """Return the seconds of the fastest of a few calls, after one that compiles and allocates."""
    call()
    times = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)

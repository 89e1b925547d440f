"""Conversion of a model to OpenVINO, part by part, into a folder of the cache.

A part is the computation between two decisions in Python: the image encoder, the projection of image states to
cross-attention keys and values, one decoder step over its caches, a text encoder.

Shapes: see [`parts`][openblip.engine.parts]. The sizes in the examples are arbitrary; only sizes that the weights
determine are fixed by the conversion.
"""

from __future__ import annotations

import hashlib
import logging
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from openblip.engine.openvino.compiled import has_bf16, import_extra
from openblip.engine.parts import (
    GroundedEncoder,
    ImageEmbedding,
    Match,
    PackedStep,
    Projection,
    Step,
    TextEmbedding,
    Vision,
)
from openblip.io.atomic import create_folder
from openblip.model.config import ModelConfig, TextConfig
from openblip.model.text import LanguageHead, TextTransformer

FORMAT = 5  # increase when the parts, their names or their inputs change

Part: TypeAlias = tuple[nn.Module, tuple[Tensor, ...]]  # a module and example inputs


def cache_name(key: str, config: ModelConfig, precision: str, calibration: Tensor | None) -> str:
    """Return the name of a converted model's folder: a digest of all that determines its content."""
    version = import_extra("openvino").__version__
    digest = hashlib.sha256(f"{FORMAT} {key} {config} {precision} {version}".encode())
    if calibration is not None:
        digest.update(calibration.numpy().tobytes())
    return digest.hexdigest()[:32]


def convert_model(
    folder: Path, model: nn.Module, config: ModelConfig, precision: str, calibration: Tensor | None
) -> None:
    """Convert all parts of a model into `folder`, unless it exists.

    The folder appears complete or not at all, even when several processes convert the same model at once.
    """
    if folder.is_dir():
        return
    # NNCF prints progress, and stdout is for results.
    with create_folder(folder) as temporary, redirect_stdout(sys.stderr):
        for name, (module, example) in _make_parts(model.float().eval(), config, memory_dtype(precision)).items():
            converted = _convert(module, example)
            if precision == "int8":
                converted = _quantize(converted, name, calibration)
            import_extra("openvino").save_model(converted, temporary / f"{name}.xml", compress_to_fp16=False)


def _convert(module: nn.Module, example: tuple[Tensor, ...]) -> Any:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns about every check of sizes
        return import_extra("openvino").convert_model(module.eval(), example_input=example)


def _quantize(model: Any, name: str, calibration: Tensor | None) -> Any:
    nncf = import_extra("nncf")
    nncf.set_log_level(logging.WARNING)
    if name == "memory" and has_bf16():  # one product per image: unpacking 8-bit weights costs more than it saves
        return model
    if name == "vision" and calibration is not None:
        images = nncf.Dataset([image[None].numpy() for image in calibration])
        return nncf.quantize(model, images, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration))
    return nncf.compress_weights(model, mode=nncf.CompressWeightsMode.INT8_SYM)


def memory_dtype(precision: str) -> torch.dtype:
    """Return the type of cross-attention keys and values.

    Below fp32 it is bf16 on processors that compute in bf16. A decoder step reads all of them, so it takes less time.
    """
    return torch.bfloat16 if precision != "fp32" and has_bf16() else torch.float32


def _make_parts(model: Any, config: ModelConfig, dtype: torch.dtype) -> dict[str, Part]:
    """Return the parts of a model by name; keys and values of memories have the given type."""
    side, tokens, width = config.vision.image_size, config.vision.tokens, config.vision.width
    states = torch.zeros(2, tokens, width)
    ids, bias = torch.zeros(4, 5, dtype=torch.long), torch.zeros(4, 1, 1, 5)
    # The transformer whose cross-attention is over the image.
    if config.task == "vqa":
        text = model.encoder
    elif config.task == "caption":
        text = model.decoder
    else:
        text = model.text
    memory = _example_memory(text.config, tokens, dtype)
    parts: dict[str, Part] = {
        "vision": (Vision(model.vision), (torch.zeros(2, 3, side, side),)),
        "memory": (Projection(text, dtype), (states,)),
    }
    if config.task in ("caption", "pretrain"):
        parts["step"] = _make_step(text, model.lm_head, memory)
    if config.task == "vqa":
        question_memory = _example_memory(model.decoder.config, 5, dtype)
        parts["question_encoder"] = (GroundedEncoder(text), (ids, bias, *memory))
        parts["question_memory"] = (Projection(model.decoder, dtype), (torch.zeros(2, 5, config.text.width),))
        parts["step"] = _make_step(model.decoder, model.lm_head, question_memory)
        packed_ids, packed_bias = torch.zeros(1, 3, dtype=torch.long), torch.zeros(1, 1, 3, 3)
        packed_inputs = (packed_ids, torch.arange(3), packed_bias, torch.zeros(2, 1, 1, 5), *question_memory)
        parts["packed_step"] = (PackedStep(model.decoder, model.lm_head), packed_inputs)
    if config.task in ("retrieval", "pretrain"):
        parts["match"] = (Match(model), (ids, bias, *memory))
        parts["text_embedding"] = (TextEmbedding(model), (ids, bias))
        parts["image_embedding"] = (ImageEmbedding(model), (states[:, :1],))
    return parts


def _example_memory(config: TextConfig, length: int, dtype: torch.dtype) -> list[Tensor]:
    shape = (2, config.heads, length, config.width // config.heads)
    return [torch.zeros(shape, dtype=dtype) for _ in range(2 * config.depth)]


def _make_step(text: TextTransformer, head: LanguageHead, memory: list[Tensor]) -> Part:
    config = text.config
    cache = torch.zeros(config.depth, 4, config.heads, 7, config.width // config.heads)
    ids, positions, bias = torch.zeros(4, 3, dtype=torch.long), torch.arange(3), torch.zeros(1, 1, 3, 10)
    padding = torch.zeros(2, 1, 1, memory[0].shape[2])
    return Step(text, head), (ids, positions, cache, cache.clone(), bias, padding, *memory)

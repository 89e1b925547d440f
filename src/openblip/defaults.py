"""Names and defaults of the loading options, without torch, for the library and the command line alike."""

from __future__ import annotations

from typing import Literal, TypeAlias

EngineName: TypeAlias = Literal["auto", "torch", "compiled", "openvino"]
Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]
PrecisionOption: TypeAlias = Literal["fp32", "bf16", "fp16", "int8", "auto"]
Decode: TypeAlias = Literal["fast", "exact"]

ENGINE: EngineName = "auto"
PRECISION: Precision = "fp32"
DEVICE = "auto"
DECODE: Decode = "fast"
NUM_WORKERS = 2

"""Features of this machine's processor, without torch."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

ProcessorClass: TypeAlias = Literal["amx", "avx512_bf16", "vnni", "other"]

_CPUINFO = Path("/proc/cpuinfo")
_BF16 = {"avx512_bf16", "bf16"}  # the latter on Arm
_INT8 = {"avx512_vnni", "avx_vnni", "i8mm"}


@cache
def flags() -> frozenset[str]:
    """Return the instruction sets of the processor, as Linux names them; empty on other systems."""
    return frozenset((_field("flags") or _field("Features")).split())


@cache
def is_intel() -> bool:
    """Return whether the processor is Intel's, as far as Linux reports it."""
    return _field("vendor_id") == "GenuineIntel"


@cache
def is_amd() -> bool:
    """Return whether the processor is AMD's, as far as Linux reports it."""
    return _field("vendor_id") == "AuthenticAMD"


def processor_class() -> ProcessorClass:
    """Return the class of the processor that decides which engine and precision are fastest.

    Returns:
        "amx" for bf16 and int8 in matrix units, "avx512_bf16" for bf16 in vector units (also Arm's), "vnni" for int8
        only, and "other" for neither or an unknown processor.
    """
    if {"amx_bf16", "amx_int8"} <= flags():
        return "amx"
    if _BF16 & flags():
        return "avx512_bf16"
    return "vnni" if _INT8 & flags() else "other"


def processor_name() -> str:
    """Return the model name of the processor, or the empty string."""
    return _field("model name")


def _field(name: str) -> str:
    """Return the first value of a field of the system's description of its processors, or the empty string."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")

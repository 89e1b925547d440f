"""The machine in words: what a reader must know to judge a figure, and nothing that tells whose it is."""

from __future__ import annotations

import os
import platform
import resource
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

LIBRARIES = ("openblip", "torch", "transformers", "openvino", "nncf", "numpy", "pillow", "tokenizers")
WORTH_NAMING = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve", "bf16", "i8mm")


def describe(threads: int) -> dict[str, object]:
    """Processor, cores, memory, GPU, and versions of libraries; no names, no paths."""
    described: dict[str, object] = {
        "processor": _cpu_field("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in WORTH_NAMING if flag in _flags()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gib": _memory(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }
    if torch.cuda.is_available():
        described["gpu"] = torch.cuda.get_device_name()
    return described


def begin(threads: int) -> dict[str, Any]:
    """What every record opens with; from here on PyTorch takes so many threads, and libraries keep quiet."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", module="torch|transformers|openvino|nncf")
    return {"machine": describe(threads), "date": time.strftime("%Y-%m-%d")}


def has_fast_bf16() -> bool:
    """Whether the CPU computes in bfloat16 by itself; elsewhere bf16 is several times slower than fp32."""
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & _flags())


def peak_memory() -> int:
    """The most bytes this process ever held.

    From the kernel's record of this very process: ``getrusage`` also counts what a parent held before the fork.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if platform.system() == "Darwin" else 1024
    )


def resident_memory() -> int:
    """Bytes this process holds now; where the kernel does not say, the most it ever held."""
    return _status("VmRSS") or peak_memory()


def _status(field: str) -> int | None:
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def _flags() -> set[str]:
    return set((_cpu_field("flags") or _cpu_field("Features") or "").split())


def _cpu_field(name: str) -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None

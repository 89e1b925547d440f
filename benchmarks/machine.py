"""Description of the machine, as far as a figure depends on it: no host names, no users, no paths."""

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

LIBRARIES = ("openblip", "faiss-cpu", "torch", "transformers", "openvino", "nncf", "numpy", "pillow", "tokenizers")
INSTRUCTION_SETS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
    "i8mm",
)


def describe(threads: int) -> dict[str, object]:
    """Return processor, cores, memory, GPU and versions of libraries."""
    description: dict[str, object] = {
        "processor": _cpu_field("model name") or platform.processor() or platform.machine(),
        "instructions": [flag for flag in INSTRUCTION_SETS if flag in _flags()],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": threads,
        "memory_gib": _memory(),
        "system": platform.system(),
        "python": platform.python_version(),
        "libraries": {name: version for name in LIBRARIES if (version := _version(name))},
    }
    if torch.cuda.is_available():
        description["gpu"] = torch.cuda.get_device_name()
    return description


def begin(threads: int) -> dict[str, Any]:
    """Set the number of threads, silence warnings of libraries, and return the first entries of a record."""
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", module="torch|transformers|openvino|nncf")
    return {"machine": describe(threads), "date": time.strftime("%Y-%m-%d")}


def has_fast_bf16() -> bool:
    """Return whether the CPU computes in bfloat16. On other CPUs, bf16 is several times slower than fp32."""
    return bool({"amx_bf16", "avx512_bf16", "bf16"} & _flags())


def peak_memory() -> int:
    """Return the peak memory of this process in bytes.

    The kernel's status file is preferred, because `getrusage` includes the memory of the parent before the fork.
    """
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if platform.system() == "Darwin" else 1024
    )


def resident_memory() -> int:
    """Return the current memory of this process in bytes, or the peak if the system does not report it."""
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

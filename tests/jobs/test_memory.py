"""Out-of-memory errors of numpy, torch, OpenVINO and the system."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from openblip.jobs.memory import out_of_memory


def error_of(function: Callable[[], object]) -> Exception:
    """Return the error of a function that requests more memory than any machine has."""
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("the memory was allocated")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        error_of(lambda: np.empty(2**62, np.uint8)),
        error_of(lambda: torch.empty(2**60, dtype=torch.uint8)),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of ..."),
        RuntimeError("MPS backend out of memory (MPS allocated: 5.05 GB, other allocations: 2.01 GB)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("Exception from src/inference/src/cpp/infer_request.cpp:223:\nstd::bad_alloc"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: not enough memory: you tried to"),
    ],
    ids=["python", "numpy", "torch", "cuda", "mps", "cublas", "openvino", "windows"],
)
def test_every_out_of_memory_error_is_recognized(error: Exception) -> None:
    assert out_of_memory(error)
    wrapped = RuntimeError("the compiled graph failed")
    wrapped.__cause__ = error
    assert out_of_memory(wrapped)
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_memory_that_really_runs_out_halves_the_batch() -> None:
    """The system refuses memory to torch's allocator, in a process with a limit."""
    program = (
        "import json, resource, torch\n"
        "from openblip.jobs.items import open_items\n"
        "from openblip.jobs.run import BatchAnnotator, Run\n"
        "sizes = []\n"
        "def annotate(batch):\n"
        "    sizes.append(len(batch))\n"
        "    torch.empty(len(batch), 2**28, dtype=torch.uint8)\n"
        "    return [[{'text': item.key}] for item in batch]\n"
        "items = open_items([f'{n}.png' for n in range(8)])\n"
        "have = int(next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (have + 3 * 2**28, -1))\n"
        "run = Run(items, 'm')\n"
        "list(run.run(BatchAnnotator(annotate, 8)))\n"
        "print(json.dumps([run.counts['computed'], sizes]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [8, [8, 4, 2, 2, 2, 2]]

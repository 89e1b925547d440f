"""Benchmarks, one file each. A benchmark is loaded when it is first used."""

from __future__ import annotations

import importlib
from pathlib import Path

from openblip.errors import EvaluationError
from openblip.evaluation.protocols.base import Benchmark, Protocol

# The module and the name of each protocol.
_REFERENCES = {
    "coco-caption": ("coco_caption", "PROTOCOL"),
    "nocaps": ("nocaps", "PROTOCOL"),
    "flickr30k-caption": ("flickr30k_caption", "PROTOCOL"),
    "vqa-v2": ("vqa_v2", "PROTOCOL"),
    "okvqa": ("okvqa", "PROTOCOL"),
    "aokvqa": ("aokvqa", "PROTOCOL"),
    "ocr-vqa": ("ocr_vqa", "PROTOCOL"),
    "coco-retrieval": ("coco_retrieval", "PROTOCOL"),
    "flickr30k-retrieval": ("flickr30k_retrieval", "PROTOCOL"),
    "nlvr2": ("nlvr2", "PROTOCOL"),
    "refcoco-testa": ("refcoco", "TEST_A"),
    "refcoco-testb": ("refcoco", "TEST_B"),
    "msrvtt-retrieval": ("msrvtt_retrieval", "PROTOCOL"),
    "msrvtt-qa": ("msrvtt_qa", "PROTOCOL"),
    "msvd-qa": ("msvd_qa", "PROTOCOL"),
    "visdial": ("visdial", "PROTOCOL"),
}
NAMES = tuple(_REFERENCES)


def find(name: str) -> Protocol:
    """Return a protocol.

    Args:
        name: One of `NAMES`.

    Returns:
        The protocol.

    Raises:
        EvaluationError: If there is no such benchmark. The message lists the names.
    """
    if name not in _REFERENCES:
        raise EvaluationError(f"the benchmark must be {', '.join(NAMES)} or own, got {name!r}")
    module, attribute = _REFERENCES[name]
    protocol: Protocol = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
    return protocol


def open_benchmark(name: str, folder: Path, preset: str = "paper") -> Benchmark:
    """Return a benchmark whose files all exist.

    Args:
        name: One of `NAMES`.
        folder: The folder of the benchmark's files.
        preset: The reference implementation whose settings to use: "paper", "lavis" or "mmpretrain".

    Returns:
        The benchmark, ready for [`openblip.evaluation.run.run_benchmark`][openblip.evaluation.run.run_benchmark].

    Raises:
        EvaluationError: If there is no such benchmark or preset, or if files are missing.
    """
    return Benchmark(find(name), preset, folder)

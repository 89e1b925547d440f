"""The benchmarks, one file each."""

from __future__ import annotations

from openblip.errors import EvaluationError
from openblip.evaluation.protocols import (
    aokvqa,
    coco_caption,
    coco_retrieval,
    flickr30k_caption,
    flickr30k_retrieval,
    msrvtt_qa,
    msrvtt_retrieval,
    msvd_qa,
    nlvr2,
    nocaps,
    ocr_vqa,
    okvqa,
    refcoco,
    visdial,
    vqa_v2,
)
from openblip.evaluation.protocols.base import Protocol

_MODULES = (
    coco_caption, nocaps, flickr30k_caption, vqa_v2, okvqa, aokvqa, ocr_vqa, coco_retrieval, flickr30k_retrieval,
    nlvr2, msrvtt_retrieval, msrvtt_qa, msvd_qa, visdial,
)  # fmt: skip
PROTOCOLS: dict[str, Protocol] = {
    one.name: one for one in (*(module.PROTOCOL for module in _MODULES), refcoco.TEST_A, refcoco.TEST_B)
}


def find(name: str) -> Protocol:
    """A protocol by its name. Raises :class:`EvaluationError` that lists the names."""
    if name not in PROTOCOLS:
        raise EvaluationError(f"there is no benchmark {name!r}; there are {', '.join(PROTOCOLS)}, and own")
    return PROTOCOLS[name]

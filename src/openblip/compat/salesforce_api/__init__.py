"""Drop-in API for the original repository, `salesforce/BLIP`: the functions and signatures of its `models/`.

Scripts that vendored it run with the import changed: `from openblip.compat.salesforce_api import blip_decoder`. Models
are `nn.Module`s, `state_dict` has the names of the published files, and `forward` returns losses as there. Neither
`timm`, `fairscale` nor an old `transformers` is needed.
"""

from __future__ import annotations

from openblip.compat.salesforce_api.models import (
    BLIP_ITM,
    BLIP_NLVR,
    BLIP_VQA,
    BLIP_Base,
    BLIP_Decoder,
    BLIP_Pretrain,
    BLIP_Retrieval,
    blip_decoder,
    blip_feature_extractor,
    blip_itm,
    blip_nlvr,
    blip_pretrain,
    blip_retrieval,
    blip_vqa,
    init_tokenizer,
    load_checkpoint,
)

__all__ = [
    "BLIP_ITM",
    "BLIP_NLVR",
    "BLIP_VQA",
    "BLIP_Base",
    "BLIP_Decoder",
    "BLIP_Pretrain",
    "BLIP_Retrieval",
    "blip_decoder",
    "blip_feature_extractor",
    "blip_itm",
    "blip_nlvr",
    "blip_pretrain",
    "blip_retrieval",
    "blip_vqa",
    "init_tokenizer",
    "load_checkpoint",
]

"""Checkpoints that a model of another task may start from, and those that BLIP's pretraining started from.

The latter are a ViT with the names of timm (DeiT) and bert-base-uncased. They are read, never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from openblip.checkpoints.layouts import parts
from openblip.checkpoints.layouts.table import Group, Table, merged
from openblip.model.config import ModelKind

# For each module of the source, the modules of the target that it fills. Longer names come before shorter ones. A
# source module that fills nothing is dropped; a target module that nothing fills stays fresh.
Rules = Mapping[str, Sequence[str]]

_DECODER_ATTENTION: Rules = {
    "text.layers.#.decoder_attn": ["decoder.layers.#.self_attn"],
    "text.layers.#.decoder_norm": ["decoder.layers.#.self_norm"],
}
_VISION: Rules = {"vision": ["vision"]}
_PROJECTIONS: Rules = {name: [name] for name in ("vision_proj", "text_proj", "itm_head", "temperature")}


def _pretrained(*encoders: str, decoder: bool) -> Rules:
    """Return the rules from a pretrained stack: encoders get the encoder's self-attention, a decoder the decoder's."""
    attention = {
        f"text.layers.#.self_{kind}": [f"{name}.layers.#.self_{kind}" for name in encoders] for kind in ("attn", "norm")
    }
    stacks = [*encoders, *(["decoder"] if decoder else [])]
    head: Rules = {"lm_head": ["lm_head"]} if decoder else {}
    return {**_VISION, **(_DECODER_ATTENTION if decoder else _NO_DECODER), **attention, "text": stacks, **head}


_NO_DECODER: Rules = {"text.layers.#.decoder_attn": [], "text.layers.#.decoder_norm": []}


def _compared(source: str) -> Rules:
    """Return the rules to NLVR2, whose two image attentions are copies of the single one of the source."""
    twins: Rules = {
        f"{source}.layers.#.cross_attn": ["text.layers.#.cross_attn.first", "text.layers.#.cross_attn.second"]
    }
    return {**_VISION, **twins, source: ["text"]}


RULES: Mapping[tuple[ModelKind, ModelKind], Rules] = {
    ("caption", "pretrain"): _pretrained(decoder=True),
    ("vqa", "pretrain"): _pretrained("encoder", decoder=True),
    ("retrieval", "pretrain"): {**_pretrained("text", decoder=False), **_PROJECTIONS},
    ("nlvr", "pretrain"): {**_NO_DECODER, **_compared("text")},
    ("grounding", "pretrain"): _pretrained("text", "fusion", decoder=True),
    ("nlvr", "retrieval"): _compared("text"),
    ("nlvr", "caption"): _compared("decoder"),
    ("two_tower", "retrieval"): {**_VISION, "text": ["text"]},
}


DROPPED = "=dropped"

DEIT = Table(
    "timm",
    "vision transformer",
    (
        Group("image encoder", parts.TIMM_VISION),
        Group("classifier", {"head": DROPPED, "pre_logits.fc": DROPPED}, "derivable", "constant"),
    ),
)


def _bert(prefix: str) -> Table:
    text = merged(parts.EMBEDDINGS, parts.self_attention(), parts.MLP)
    dot = f"{prefix}." if prefix else ""
    return Table(
        "bert",
        "masked language model",
        (
            Group("text transformer", {f"{dot}{theirs}": ours for theirs, ours in text.items()}),
            Group(
                "language head",
                {
                    "cls.predictions.transform.dense": "lm_head.dense",
                    "cls.predictions.transform.LayerNorm": "lm_head.norm",
                    "cls.predictions.bias": "lm_head.bias",
                },
                "optional",
            ),
            Group(
                "tied copies of the language head",
                {
                    "cls.predictions.decoder.weight": "embeddings.word.weight",
                    "cls.predictions.decoder.bias": "lm_head.bias",
                },
                "derivable",
                "tied",
            ),
            Group(
                "tensors that BLIP does not use",
                {
                    f"{dot}embeddings.token_type_embeddings": DROPPED,
                    f"{dot}embeddings.position_ids": DROPPED,
                    f"{dot}pooler": DROPPED,
                    "cls.seq_relationship": DROPPED,
                },
                "derivable",
                "constant",
            ),
        ),
    )


BERT = (_bert("bert"), _bert(""))

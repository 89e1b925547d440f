"""What BLIP's pretraining started from: a ViT in timm's names (DeiT), and bert-base-uncased. Read, never written."""

from __future__ import annotations

from openblip.checkpoints.layouts import parts
from openblip.checkpoints.layouts.table import Group, Table, merged

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
                "what BLIP has no use for",
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

"""The names that families have in common: BERT's for text, timm's for vision."""

from __future__ import annotations

from openblip.checkpoints.layouts.table import Group, merged, prefixed

_SELF = {
    "encoder.layer.#.attention.self.query": "query",
    "encoder.layer.#.attention.self.key": "key",
    "encoder.layer.#.attention.self.value": "value",
    "encoder.layer.#.attention.output.dense": "out",
}


def self_attention(attention: str = "self_attn", norm: str = "self_norm") -> dict[str, str]:
    """A layer's self-attention and the norm after it; the decoder's has other names of ours in a pretrained model."""
    return {theirs: f"layers.#.{attention}.{ours}" for theirs, ours in _SELF.items()} | {
        "encoder.layer.#.attention.output.LayerNorm": f"layers.#.{norm}"
    }


EMBEDDINGS = {
    "embeddings.word_embeddings": "embeddings.word",
    "embeddings.position_embeddings": "embeddings.position",
    "embeddings.LayerNorm": "embeddings.norm",
}

CROSS_ATTENTION = {
    "encoder.layer.#.crossattention.self.query": "layers.#.cross_attn.query",
    "encoder.layer.#.crossattention.self.key": "layers.#.cross_attn.key",
    "encoder.layer.#.crossattention.self.value": "layers.#.cross_attn.value",
    "encoder.layer.#.crossattention.output.dense": "layers.#.cross_attn.out",
    "encoder.layer.#.crossattention.output.LayerNorm": "layers.#.cross_norm",
}

TWIN_CROSS_ATTENTION = {
    f"encoder.layer.#.crossattention.self{i}.{part}": f"layers.#.cross_attn.{ours}.{part}"
    for i, ours in enumerate(("first", "second"))
    for part in ("query", "key", "value")
} | {
    "encoder.layer.#.crossattention.output.dense0": "layers.#.cross_attn.first.out",
    "encoder.layer.#.crossattention.output.dense1": "layers.#.cross_attn.second.out",
    "encoder.layer.#.crossattention.output.merge_layer": "layers.#.cross_attn.merge",
    "encoder.layer.#.crossattention.output.LayerNorm": "layers.#.cross_norm",
}

MLP = {
    "encoder.layer.#.intermediate.dense": "layers.#.mlp.fc1",
    "encoder.layer.#.output.dense": "layers.#.mlp.fc2",
    "encoder.layer.#.output.LayerNorm": "layers.#.mlp_norm",
}

# What encoder and decoder have in common in a pretrained model (paper, table 3): everything but self-attention.
SHARED = merged(EMBEDDINGS, CROSS_ATTENTION, MLP)
TEXT = merged(SHARED, self_attention())
TWIN_TEXT = merged(EMBEDDINGS, self_attention(), TWIN_CROSS_ATTENTION, MLP)

HEAD = {"transform.dense": "dense", "transform.LayerNorm": "norm", "bias": "bias"}

TIMM_VISION = {
    "cls_token": "cls_token",
    "pos_embed": "pos_embed",
    "patch_embed.proj": "patch_embed",
    "blocks.#.norm1": "blocks.#.norm1",
    "blocks.#.attn.qkv": "blocks.#.attn.qkv",
    "blocks.#.attn.proj": "blocks.#.attn.proj",
    "blocks.#.norm2": "blocks.#.norm2",
    "blocks.#.mlp.fc1": "blocks.#.mlp.fc1",
    "blocks.#.mlp.fc2": "blocks.#.mlp.fc2",
    "norm": "norm",
}


def position_ids(*text_prefixes: str) -> Group:
    """The buffer of position numbers that text stacks used to store."""
    names = {f"{prefix}.embeddings.position_ids" if prefix else "embeddings.position_ids" for prefix in text_prefixes}
    return Group("position numbers", dict.fromkeys(sorted(names), "=positions"), "derivable", "constant")


def language_head(theirs: str, word: str) -> tuple[Group, Group]:
    """The LM head at ``theirs``, and the two names under which it repeats the word embedding and its own bias."""
    head = Group("language head", prefixed(HEAD, theirs, "lm_head"))
    tied = {f"{theirs}.decoder.weight": f"{word}.weight", f"{theirs}.decoder.bias": "lm_head.bias"}
    return head, Group("tied copies of the language head", tied, "derivable", "tied")


def decoder_stack(theirs: str, ours: str) -> Group:
    """A text decoder: embeddings and layers."""
    return Group("text decoder", prefixed(TEXT, theirs, ours))

"""Names that several families use: BERT's for text, timm's for vision."""

from __future__ import annotations

from openblip.checkpoints.layouts.table import Group, merged, prefixed

_SELF = {
    "encoder.layer.#.attention.self.query": "query",
    "encoder.layer.#.attention.self.key": "key",
    "encoder.layer.#.attention.self.value": "value",
    "encoder.layer.#.attention.output.dense": "out",
}


def self_attention(attention: str = "self_attn", norm: str = "self_norm") -> dict[str, str]:
    """Return the names of a layer's self-attention and the norm after it.

    Args:
        attention: Our name of the attention; the decoder of a pretrained model has another one.
        norm: Our name of the norm.
    """
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
    f"encoder.layer.#.crossattention.self{i}.{name}": f"layers.#.cross_attn.{ours}.{name}"
    for i, ours in enumerate(("first", "second"))
    for name in ("query", "key", "value")
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

# Encoder and decoder of a pretrained model share everything but self-attention (Li et al. 2022, table 3).
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
    """Return the buffer of position numbers that older text stacks store."""
    names = {f"{prefix}.embeddings.position_ids" if prefix else "embeddings.position_ids" for prefix in text_prefixes}
    return Group("position numbers", dict.fromkeys(sorted(names), "=positions"), "derivable", "constant")


def language_head(theirs: str, word: str) -> tuple[Group, Group]:
    """Return the LM head at `theirs`, and its two tied names: of the word embedding and of the head's bias."""
    head = Group("language head", prefixed(HEAD, theirs, "lm_head"))
    tied = {f"{theirs}.decoder.weight": f"{word}.weight", f"{theirs}.decoder.bias": "lm_head.bias"}
    return head, Group("tied copies of the language head", tied, "derivable", "tied")


def decoder_stack(theirs: str, ours: str) -> Group:
    """Return the embeddings and layers of a text decoder."""
    return Group("text decoder", prefixed(TEXT, theirs, ours))

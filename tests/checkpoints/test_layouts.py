"""The tables of renames: complete at the published sizes, free of torch, and the same either way."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from typing import Any, Literal

import pytest
import torch

from openblip.checkpoints import layouts
from openblip.checkpoints.layouts import FAMILIES, TABLES, Family, hub, table
from openblip.errors import CheckpointError
from openblip.model.build import build_model
from openblip.model.config import MODEL_KINDS, ModelKind, preset
from tests.checkpoints.checkpoint_toys import toy_config

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [(family, task) for family in FAMILIES for task in TABLES[family]]


@cache
def shapes(task: ModelKind, size: Literal["toy", "base", "large"] = "toy") -> dict[str, torch.Size]:
    """Our names, and shapes, at toy or a published size; at either, two depths of NLVR2's layers merge or do not."""
    config = toy_config(task) if size == "toy" else preset(task, size, image_size=384)
    return {name: tensor.shape for name, tensor in build_model(config, device="meta").state_dict().items()}


def test_tables_need_no_torch() -> None:
    code = "import openblip.checkpoints.layouts.hub_config, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_every_tensor_has_one_name_that_leads_back(family: Family, task: ModelKind) -> None:
    layout = table(family, task)
    written: dict[str, str] = {}
    for ours in shapes(task):
        matches = layout.theirs(ours)
        if (family, task, ours) == ("hub", "retrieval", "temperature"):
            assert matches == []  # it lives in config.json
            continue
        assert matches[0][0].kind == "name"
        assert sum(group.kind == "name" for group, _ in matches) == 1
        for group, theirs in matches:
            assert theirs not in written, "two tensors under one name"
            written[theirs] = ours
            back = layout.ours(theirs)
            assert back is not None
            assert back == (group, ours)
    assert layout.distance(written) == 0


# reference: entries of published files and of transformers' models in memory
@pytest.mark.parametrize(
    ("family", "task", "size", "stored", "tied", "buffers"),
    [
        ("hub", "caption", "base", 471, 2, 0),
        ("hub", "vqa", "base", 787, 2, 0),
        ("hub", "retrieval", "base", 472, 0, 0),
        ("hub", "two_tower", "base", 471, 0, 0),
        ("hub", "caption", "large", 615, 2, 0),
        ("salesforce", "caption", "base", 471, 2, 1),  # 474 with everything
        ("mmpretrain", "caption", "base", 471, 2, 1),
        ("salesforce", "nlvr", "base", 150 + 4 + 6 * 34 + 6 * 36 + 4, 0, 1),
    ],
)
def test_counts_of_published_files(
    family: Family, task: ModelKind, size: Literal["base", "large"], stored: int, tied: int, buffers: int
) -> None:
    layout = table(family, task)
    kinds = [group.kind for ours in shapes(task, size) for group, _ in layout.theirs(ours)]
    assert (kinds.count("name"), kinds.count("tied")) == (stored, tied)
    if buffers:
        assert sum(len(group.names) for group in layout.groups if group.kind == "constant") == buffers


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval", "two_tower", "text", "vision"])
def test_hub_names_are_those_of_transformers(task: ModelKind) -> None:
    import transformers as hf

    classes = {
        "caption": hf.BlipForConditionalGeneration,
        "vqa": hf.BlipForQuestionAnswering,
        "retrieval": hf.BlipForImageTextRetrieval,
        "two_tower": hf.BlipModel,
    }
    sizes = toy_config(task)
    text: dict[str, Any] = {"num_hidden_layers": sizes.text.depth, "vocab_size": 600, "hidden_size": 64}
    text |= {"intermediate_size": 80, "max_position_embeddings": 24, "encoder_hidden_size": 128}
    vision: dict[str, Any] = {"num_hidden_layers": sizes.vision.depth, "hidden_size": 128, "num_attention_heads": 2}
    vision |= {"intermediate_size": 96, "image_size": 48}
    with torch.device("meta"):
        peer: Any
        if task == "text":
            peer = hf.BlipTextModel(hf.BlipTextConfig(**text))
        elif task == "vision":
            peer = hf.BlipVisionModel(hf.BlipVisionConfig(**vision))
        else:
            more: dict[str, Any] = {"projection_dim": 32, "image_text_hidden_size": 32}
            peer = classes[task](hf.BlipConfig(text_config=text, vision_config=vision, **more))
    theirs = {name: tensor.shape for name, tensor in peer.state_dict().items()}
    wanted = toy_config(task, memory_width=128) if task == "vqa" else sizes  # as that library builds it
    ours = {name: tensor.shape for name, tensor in build_model(wanted, device="meta").state_dict().items()}
    ours.pop("temperature", None)
    renamed = {hub.hub_name(task, name): shape for name, shape in ours.items()}
    tied = {alias: ours[name] for alias, name in hub.tied_names(task).items()}
    assert renamed | tied == theirs
    for alias, name in hub.tied_names(task).items():
        assert hub.our_name(task, alias) == name


@pytest.mark.parametrize(
    ("task", "ours", "theirs"),
    [
        ("caption", "vision.blocks.11.attn.qkv", "vision_model.encoder.layers.11.self_attn.qkv"),
        (
            "vqa",
            "encoder.layers.3.self_attn.query.lora_A.default.weight",
            "text_encoder.encoder.layer.3.attention.self.query.lora_A.default.weight",
        ),
        (
            "pretrain",
            "text.layers.0.decoder_attn.value.base_layer.bias",
            "text_decoder.bert.encoder.layer.0.attention.self.value.base_layer.bias",
        ),
        (
            "nlvr",
            "text.layers.7.cross_attn.second.out.weight",
            "text_encoder.encoder.layer.7.crossattention.output.dense1.weight",
        ),
        ("grounding", "fusion.layers.1.mlp_norm.bias", "multimodal_encoder.encoder.layer.1.output.LayerNorm.bias"),
        ("retrieval", "itm_head.weight", "itm_head.weight"),
        ("text", "pooler.weight", "pooler.dense.weight"),
    ],
)
def test_names_below_a_module(task: ModelKind, ours: str, theirs: str) -> None:
    assert hub.hub_name(task, ours) == theirs
    assert hub.our_name(task, theirs) == ours


def test_names_that_no_table_has() -> None:
    with pytest.raises(CheckpointError, match=r"no name for 'decoder.layers.x'"):
        hub.hub_name("caption", "decoder.layers.x")
    with pytest.raises(CheckpointError, match="must be a tensor of a hub model"):
        hub.our_name("caption", "text_decoder.bert.pooler.dense.weight")
    with pytest.raises(CheckpointError, match="must be a tensor of a hub model"):
        hub.our_name("caption", "text_decoder.bert.embeddings.position_ids")


# Names as the other libraries' source builds them (reference tables, sections 2 to 7); none is derived from a table.
@pytest.mark.parametrize(
    ("family", "task", "theirs", "ours"),
    [
        ("mmpretrain", "caption", "visual_encoder.layers.4.ffn.layers.0.0.bias", "vision.blocks.4.mlp.fc1.bias"),
        ("mmpretrain", "caption", "visual_encoder.layers.4.ffn.layers.1.weight", "vision.blocks.4.mlp.fc2.weight"),
        ("mmpretrain", "caption", "visual_encoder.ln1.weight", "vision.norm.weight"),
        ("mmpretrain", "caption", "visual_encoder.layers.0.ln1.weight", "vision.blocks.0.norm1.weight"),
        ("mmpretrain", "caption", "visual_encoder.patch_embed.projection.bias", "vision.patch_embed.bias"),
        (
            "mmpretrain",
            "caption",
            "seq_gen_head.decoder.cls.predictions.transform.LayerNorm.bias",
            "lm_head.norm.bias",
        ),
        (
            "mmpretrain",
            "vqa",
            "multimodal_backbone.encoder.layer.0.crossattention.self.key.weight",
            "encoder.layers.0.cross_attn.key.weight",
        ),
        (
            "mmpretrain",
            "vqa",
            "vqa_head.decoder.bert.embeddings.word_embeddings.weight",
            "decoder.embeddings.word.weight",
        ),
        ("mmpretrain", "retrieval", "vision_neck.weight", "vision_proj.weight"),
        ("mmpretrain", "retrieval", "text_neck.bias", "text_proj.bias"),
        ("mmpretrain", "retrieval", "multimodal_head.fc.weight", "itm_head.weight"),
        ("mmpretrain", "retrieval", "head.queue_ptr", "queue.pointer"),
        ("mmpretrain", "retrieval", "vision_backbone_m.cls_token", "momentum.vision.cls_token"),
        ("mmpretrain", "retrieval", "head.temp", "temperature"),
        ("mmpretrain", "nlvr", "head.2.bias", "head.out.bias"),
        (
            "mmpretrain",
            "nlvr",
            "multimodal_backbone.encoder.layer.9.crossattention.output.merge_layer.weight",
            "text.layers.9.cross_attn.merge.weight",
        ),
        ("salesforce", "retrieval", "ptr_queue", "queue.pointer"),
        ("lavis", "retrieval", "queue_ptr", "queue.pointer"),
        ("salesforce", "pretrain", "queue_ptr", "queue.pointer"),
        (
            "salesforce",
            "pretrain",
            "text_encoder_m.encoder.layer.2.attention.output.dense.weight",
            "momentum.text.layers.2.self_attn.out.weight",
        ),
        (
            "lavis",
            "nlvr",
            "text_encoder.encoder.layer.0.crossattention.self1.query.bias",
            "text.layers.0.cross_attn.second.query.bias",
        ),
        ("lavis", "nlvr", "cls_head.0.weight", "head.dense.weight"),
    ],
)
def test_names_in_the_pth_families(family: Family, task: ModelKind, theirs: str, ours: str) -> None:
    match = table(family, task).ours(theirs)
    assert match is not None
    assert match[1] == ours


def test_each_family_writes_its_own_pointer() -> None:
    pointer = {family: table(family, "retrieval").theirs("queue.pointer")[0][1] for family in FAMILIES[1:]}
    assert pointer == {"salesforce": "ptr_queue", "lavis": "queue_ptr", "mmpretrain": "head.queue_ptr"}


def test_which_family_has_what() -> None:
    assert set(TABLES["hub"]) == set(MODEL_KINDS)
    assert set(TABLES["salesforce"]) == set(TABLES["lavis"]) == {"caption", "vqa", "retrieval", "nlvr", "pretrain"}
    assert set(TABLES["mmpretrain"]) == {"caption", "vqa", "retrieval", "nlvr", "grounding"}
    with pytest.raises(CheckpointError, match=r"salesforce family has no model for 'grounding'.* hub and mmpretrain"):
        table("salesforce", "grounding")
    with pytest.raises(CheckpointError, match=r"checkpoint family must be one of .* got 'timm'"):
        layouts.table("timm", "caption")  # type: ignore[arg-type]


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_names_tell_the_model(family: Family, task: ModelKind) -> None:
    names = [theirs for ours in shapes(task) for _, theirs in table(family, task).theirs(ours)]
    best, distance = layouts.nearest(names)
    assert (best.task, distance) == (task, 0)
    assert {best.family, family} in ({family}, {"salesforce", "lavis"})  # those two share a layout

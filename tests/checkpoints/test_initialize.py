"""Starting one task from another's checkpoint: by declared rules, reported in full, and meaningful."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from openblip.checkpoints.initialize import InitReport, initialize
from openblip.checkpoints.layouts.starts import RULES
from openblip.checkpoints.read import load
from openblip.checkpoints.write import save
from openblip.errors import CheckpointError
from openblip.model.answerer import Answerer
from openblip.model.build import build_model
from openblip.model.captioner import Captioner
from openblip.model.comparer import Comparer
from openblip.model.config import ModelConfig, ModelKind
from openblip.model.grounder import Grounder
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.model.vision import resize_positions
from tests.checkpoints.checkpoint_toys import golden, recorded, same_state, toy_config, toy_model
from tests.conftest import GOLDEN

pytestmark = pytest.mark.usefixtures("one_thread")


def fresh(task: ModelKind, like: ModelConfig | None = None, **changes: object) -> nn.Module:
    """A new model of the toy sizes, or of those of another configuration."""
    config = dataclasses.replace(like or toy_config(task), task=task, decoder_memory_width=None, **changes)  # type: ignore[arg-type]
    torch.manual_seed(11)
    return build_model(config).eval()


def complete(report: InitReport, model: nn.Module, before: nn.Module) -> None:
    """Every tensor is reported once, and what is called fresh was not touched."""
    names = [*report.derived, *report.fresh]
    assert sorted(names) == sorted(model.state_dict())
    old = before.state_dict()
    for name, tensor in model.state_dict().items():
        if name in report.fresh:
            assert torch.equal(tensor, old[name]), name


def start(model: nn.Module, source: object) -> InitReport:
    before = copy.deepcopy(model)
    report = initialize(model, source)  # type: ignore[arg-type]
    complete(report, model, before)
    return report


@torch.no_grad()
def test_a_captioner_from_pretraining_says_what_the_pretrained_decoder_says() -> None:
    source, expected = golden("pretrain"), recorded("pretrain")
    model = fresh("caption", source.config)
    report = start(model, GOLDEN / "pretrain.weights.safetensors")
    assert isinstance(model, Captioner)
    assert not report.fresh
    image = model.encode_image(expected["pixel_values"])
    logits = model.logits(expected["lm_input_ids"], expected["attention_mask"], image)
    real = expected["attention_mask"][:2].bool()
    torch.testing.assert_close(logits[:2][real], expected["lm_logits_first2"][real], atol=1e-4, rtol=0)
    assert report.derived["decoder.layers.1.self_attn.query.weight"] == (
        "text_decoder.bert.encoder.layer.1.attention.self.query.weight"
    )
    for name in ("text_encoder.encoder.layer.0.attention.self.key.bias", "itm_head.weight", "temp", "image_queue"):
        assert name in report.dropped
    assert "visual_encoder_m.cls_token" in report.dropped
    assert str(report).startswith(f"all weights; {len(report.dropped)} unused weights: ")


@torch.no_grad()
def test_a_matcher_and_an_answerer_from_pretraining() -> None:
    source = toy_model("pretrain")
    assert isinstance(source, Pretrainer)
    pixels, ids = torch.randn(2, 3, 48, 48), torch.randint(5, 600, (2, 7))
    image = source.encode_image(pixels)
    matcher = fresh("retrieval")
    report = start(matcher, source)
    assert isinstance(matcher, Matcher)
    assert not report.fresh
    assert torch.equal(matcher.match_logits(ids, None, image), source.match_logits(ids, None, image))
    assert torch.equal(matcher.embed_text(ids, None), source.embed_text(ids, None))
    assert torch.equal(matcher.temperature, source.temperature)
    assert set(report.dropped) == {name for name in source.state_dict() if "decoder_" in name or "lm_head" in name}

    answerer = fresh("vqa")
    report = start(answerer, source)
    assert isinstance(answerer, Answerer)
    # the question encoder is the pretrained one; the decoder reads 64-wide states, the source read 128-wide ones
    assert torch.equal(answerer.encode_question(ids, None, image), source.text.encode_grounded(ids, None, image))
    assert set(report.fresh) == {
        f"decoder.layers.{i}.cross_attn.{part}.weight" for i in range(3) for part in ("key", "value")
    }
    # without anything to read, the decoder says what the pretrained one says
    ours = answerer.to_logits(answerer.decoder.decode(ids, None, None))
    assert torch.equal(ours, source.to_logits(source.text.decode(ids, None, None)))


def test_the_answer_decoder_is_whole_where_widths_agree() -> None:
    config = dataclasses.replace(toy_config("pretrain"), vision=toy_config("grounding").vision)
    report = start(fresh("vqa", config), toy_model("pretrain", config=config))
    assert not report.fresh


@torch.no_grad()
@pytest.mark.parametrize("task", ["pretrain", "retrieval", "caption"])
def test_a_comparer_of_one_image_twice_is_the_single_image_model(task: ModelKind) -> None:
    """Where the two attentions are merged by the mean, copies of one give what the one gave."""
    config = toy_config("nlvr")
    unmerged = dataclasses.replace(config, text=dataclasses.replace(config.text, merge_from=3))
    model, source = fresh("nlvr", unmerged), toy_model(task)
    report = start(model, source)
    assert isinstance(model, Comparer)
    assert set(report.fresh) == {f"head.{part}.{kind}" for part in ("dense", "out") for kind in ("weight", "bias")}
    pixels, ids = torch.randn(2, 3, 48, 48), torch.randint(5, 600, (2, 7))
    image = model.encode_image(pixels)
    stack = source.decoder if isinstance(source, Captioner) else source.text
    alone = stack.encode_grounded(ids, None, image)  # type: ignore[operator, union-attr]
    both = model.text.encode_grounded(ids, None, (image, image))
    torch.testing.assert_close(both, alone, atol=1e-5, rtol=1e-5)
    merged = start(fresh("nlvr"), source).fresh
    assert {name for name in merged if ".merge." in name} == {
        "text.layers.2.cross_attn.merge.weight",
        "text.layers.2.cross_attn.merge.bias",
    }


@torch.no_grad()
def test_a_grounder_from_pretraining() -> None:
    config = dataclasses.replace(toy_config("pretrain"), vision=toy_config("grounding").vision)
    source, model = toy_model("pretrain", config=config), fresh("grounding", config)
    report = start(model, source)
    assert isinstance(model, Grounder)
    assert isinstance(source, Pretrainer)
    assert not report.fresh
    ids, image = torch.randint(5, 600, (2, 7)), torch.randn(2, 10, 64)
    assert torch.equal(model.text.encode(ids), source.text.encode(ids))
    assert torch.equal(model.fusion.encode_grounded(ids, None, image), source.text.encode_grounded(ids, None, image))
    assert torch.equal(model.logits(ids, image), source.logits(ids, None, image))


@pytest.mark.parametrize("family", ["salesforce", "hub"])
def test_a_file_and_a_model_give_the_same(family: str, tmp_path: Path) -> None:
    source = toy_model("pretrain")
    path = save(source, tmp_path / "source.pth" if family == "salesforce" else tmp_path / "folder", to=family)  # type: ignore[arg-type]
    from_file, from_model, from_loaded = fresh("vqa"), fresh("vqa"), fresh("vqa")
    report = start(from_file, path)
    start(from_model, source)
    start(from_loaded, load(path, tokenizer=False))
    assert same_state(from_file, from_model)
    assert same_state(from_file, from_loaded)
    assert report.derived["vision.norm.bias"] in ("visual_encoder.norm.bias", "vision_model.post_layernorm.bias")


def test_the_same_task_at_another_image_size() -> None:
    source, config = toy_model("caption"), toy_config("caption")
    model = fresh("caption", dataclasses.replace(config, vision=dataclasses.replace(config.vision, image_size=80)))
    report = start(model, source)
    assert not report.fresh
    assert not report.dropped
    assert isinstance(model, Captioner)
    assert isinstance(source, Captioner)
    assert report.notes == ["vision.pos_embed resized from 10 to 26 positions"]
    assert torch.equal(model.vision.pos_embed, resize_positions(source.vision.pos_embed, 5, 5))


def test_every_declared_rule_fills_all_but_what_it_names() -> None:
    """No rule leaves a tensor fresh but heads, merges and what a two-tower model alone has."""
    own = ("head.", "text.pooler.", "visual_projection.", "text_projection.", "logit_scale")
    for target, source in RULES:
        config = dataclasses.replace(toy_config("pretrain"), vision=toy_config("grounding").vision)
        report = start(fresh(target, config), toy_model(source, config=dataclasses.replace(config, task=source)))
        left = [name for name in report.fresh if ".merge." not in name and not name.startswith(own)]
        assert not left, (target, source)


def test_no_rule_no_start() -> None:
    model = fresh("caption")
    before = copy.deepcopy(model)
    with pytest.raises(
        CheckpointError,
        match=r"from a checkpoint for caption, pretrain, .* for 'retrieval', from which no rule leads",
    ):
        initialize(model, toy_model("retrieval"))
    assert same_state(model, before)


def test_sizes_that_do_not_fit_change_nothing() -> None:
    config = toy_config("retrieval")
    wider = dataclasses.replace(config, text=dataclasses.replace(config.text, mlp_width=96))
    model = fresh("retrieval", wider)
    before = copy.deepcopy(model)
    with pytest.raises(
        CheckpointError, match=r"mlp.fc1.weight must have the shape \(96, 64\) of the model, got \(80, 64\)"
    ):
        initialize(model, toy_model("pretrain"))
    assert same_state(model, before)


def test_a_torn_source_is_refused_as_when_loading(tmp_path: Path) -> None:
    path = save(toy_model("pretrain"), tmp_path / "source.pth", to="salesforce")
    content = torch.load(path, weights_only=True)
    del content["model"]["visual_encoder.blocks.1.norm1.bias"]
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(visual_encoder.blocks.1.norm1.bias\)"):
        initialize(fresh("caption"), path)


# --- what pretraining started from --------------------------------------------------------------------------------


Start = tuple[Path, dict[str, Tensor]]


def deit(folder: Path, change: Callable[[dict[str, Tensor]], object] = lambda _: None) -> Start:
    """A toy DeiT file: timm names without a prefix, a classifier, positions of a 2 x 2 grid."""
    names = {
        "cls_token": (1, 1, 128), "pos_embed": (1, 5, 128), "patch_embed.proj.weight": (128, 3, 16, 16),
        "patch_embed.proj.bias": (128,), "norm.weight": (128,), "norm.bias": (128,),
        "head.weight": (10, 128), "head.bias": (10,),
    }  # fmt: skip
    for i in range(2):
        for part, shape in {
            "norm1": (128,), "norm2": (128,), "attn.qkv": (384, 128), "attn.proj": (128, 128), "mlp.fc1": (96, 128),
            "mlp.fc2": (128, 96),
        }.items():  # fmt: skip
            names |= {f"blocks.{i}.{part}.weight": shape, f"blocks.{i}.{part}.bias": shape[:1]}
    tensors = {name: torch.randn(shape) for name, shape in names.items()}
    change(tensors)
    torch.save({"model": tensors}, folder / "deit.pth")
    return folder / "deit.pth", tensors


def bert(folder: Path, *, old: bool, prefix: str = "bert.", rows: int = 598) -> Start:
    """A toy bert-base-uncased: token types, a pooler, no cross-attention, two rows fewer; norms called gamma, beta."""
    weight, bias = (".gamma", ".beta") if old else (".weight", ".bias")
    shapes: dict[str, tuple[int, ...]] = {
        f"{prefix}embeddings.word_embeddings.weight": (rows, 64),
        f"{prefix}embeddings.position_embeddings.weight": (24, 64),
        f"{prefix}embeddings.token_type_embeddings.weight": (2, 64),
        f"{prefix}pooler.dense.weight": (64, 64), f"{prefix}pooler.dense.bias": (64,),
    }  # fmt: skip
    norms = [f"{prefix}embeddings.LayerNorm"]
    for i in range(3):
        layer = f"{prefix}encoder.layer.{i}"
        for part in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}.{part}.weight": (64, 64), f"{layer}.{part}.bias": (64,)}
        shapes |= {f"{layer}.intermediate.dense.weight": (80, 64), f"{layer}.intermediate.dense.bias": (80,)}
        shapes |= {f"{layer}.output.dense.weight": (64, 80), f"{layer}.output.dense.bias": (64,)}
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    if prefix:
        shapes |= {"cls.predictions.bias": (rows,), "cls.seq_relationship.weight": (2, 64)}
        shapes |= {"cls.predictions.transform.dense.weight": (64, 64), "cls.predictions.transform.dense.bias": (64,)}
        norms += ["cls.predictions.transform.LayerNorm"]
    for norm in norms:
        shapes |= {norm + weight: (64,), norm + bias: (64,)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "bert.safetensors")
    return folder / "bert.safetensors", tensors


def test_pretraining_starts_from_deit_and_bert(tmp_path: Path) -> None:
    model = fresh("pretrain")
    before = copy.deepcopy(model)
    path, vision = deit(tmp_path)
    report = start(model, path)
    assert isinstance(model, Pretrainer)
    assert set(report.derived) == {name for name in model.state_dict() if name.startswith("vision.")}
    assert set(report.dropped) == {"head.weight", "head.bias"}
    assert torch.equal(model.vision.pos_embed, resize_positions(vision["pos_embed"], 3, 3))
    state = model.state_dict()
    assert torch.equal(state["vision.blocks.1.attn.qkv.weight"], vision["blocks.1.attn.qkv.weight"])

    path, text = bert(tmp_path, old=True)
    report = initialize(model, path)
    for name in report.fresh:
        assert name.startswith("vision.") or ".cross_" in name or name in (
            "temperature", "vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias",
            "itm_head.weight", "itm_head.bias",
        ), name  # fmt: skip
    assert set(report.dropped) == {
        "bert.embeddings.token_type_embeddings.weight", "bert.pooler.dense.weight", "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
    }  # fmt: skip
    state, old = model.state_dict(), before.state_dict()
    for part in ("self_attn", "decoder_attn"):
        assert torch.equal(
            state[f"text.layers.2.{part}.out.weight"], text["bert.encoder.layer.2.attention.output.dense.weight"]
        )
    assert torch.equal(
        state["text.layers.1.self_norm.weight"], text["bert.encoder.layer.1.attention.output.LayerNorm.gamma"]
    )
    assert torch.equal(
        state["text.layers.1.decoder_norm.bias"], text["bert.encoder.layer.1.attention.output.LayerNorm.beta"]
    )
    word = state["text.embeddings.word.weight"]
    assert torch.equal(word[:598], text["bert.embeddings.word_embeddings.weight"])
    assert torch.equal(word[598:], old["text.embeddings.word.weight"][598:])
    assert torch.equal(state["lm_head.bias"], torch.cat([text["cls.predictions.bias"], torch.zeros(2)]))
    assert any("the last 2 rows, [DEC] and [ENC], are fresh" in note for note in report.notes)
    assert report.derived["text.layers.1.self_norm.weight"].endswith("LayerNorm.gamma")


def test_every_stack_of_vqa_starts_from_a_bare_bert(tmp_path: Path) -> None:
    path, text = bert(tmp_path, old=False, prefix="")
    model = fresh("vqa")
    report = start(model, path)
    for stack in ("encoder", "decoder"):
        loaded = model.state_dict()[f"{stack}.layers.0.mlp.fc1.weight"]
        assert torch.equal(loaded, text["encoder.layer.0.intermediate.dense.weight"])
    assert "lm_head.dense.weight" in report.fresh


def test_starts_that_do_not_fit_or_are_torn(tmp_path: Path) -> None:
    path, _ = bert(tmp_path, old=False, rows=590)
    with pytest.raises(CheckpointError, match=r"word.weight must have the shape \(600, 64\) of .* got \(590, 64\)"):
        initialize(fresh("pretrain"), path)
    path, _ = deit(tmp_path, lambda tensors: tensors.pop("blocks.1.norm2.weight"))
    with pytest.raises(CheckpointError, match=r"deit.pth is not complete: nothing in it fills vision.blocks.1.norm2"):
        initialize(fresh("pretrain"), path)
    path, _ = deit(tmp_path, lambda tensors: tensors.update({"blocks.0.gamma_1": torch.zeros(3)}))
    with pytest.raises(
        CheckpointError, match=r"must be a plain vision transformer, got 1 unknown tensors .*\(blocks.0.gamma_1\)"
    ):
        initialize(fresh("pretrain"), path)


def test_loading_a_start_says_what_it_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"vision transformer' .timm.: to start a model from it"):
        load(deit(tmp_path)[0], task="caption", tokenizer=False)
    with pytest.raises(CheckpointError, match=r"masked language model' .bert.: to start a model from it"):
        load(bert(tmp_path, old=False)[0], task="caption", tokenizer=False)

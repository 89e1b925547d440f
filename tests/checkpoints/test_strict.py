"""Loading is strict: whatever is missing, unknown, misshapen, torn or dangerous is an error that says so."""

from __future__ import annotations

import functools
import json
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from openblip.checkpoints import containers, hub
from openblip.checkpoints.layouts import TABLES, Family, table
from openblip.checkpoints.read import load
from openblip.checkpoints.write import save
from openblip.errors import CheckpointError, ConfigError, DownloadError, InputError, UnsupportedTaskError
from openblip.model.config import ModelKind
from tests.checkpoints.checkpoint_toys import (
    HEADS,
    VOCABULARY,
    golden,
    rewrite,
    same_state,
    toy_config,
    toy_model,
)
from tests.conftest import GOLDEN
from tests.toys import toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture(scope="module")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("strict")


@functools.cache
def _toy_file(folder: Path, family: Family, task: ModelKind) -> Path:
    """A toy checkpoint of a family, written once: a ``.pth``, or a folder."""
    name = f"{family}-{task}"
    return save(toy_model(task), folder / (name if family == "hub" else f"{name}.pth"), to=family)


def changed(name: str, target: Path, change: Change) -> Path:
    """A golden checkpoint after ``change``."""
    return rewrite(GOLDEN / f"{name}.weights.safetensors", target / f"{name}.safetensors", change)


def reading(path: Path, **more: Any) -> object:
    return load(path, **{"config": HEADS, "tokenizer": False, **more})


WHAT: dict[str, tuple[Family, ModelKind]] = {
    "caption": ("salesforce", "caption"),
    "vqa": ("salesforce", "vqa"),
    "retrieval": ("salesforce", "retrieval"),
    "pretrain": ("salesforce", "pretrain"),
    "nlvr": ("salesforce", "nlvr"),
    "grounding": ("mmpretrain", "grounding"),
}


@functools.cache
def names(name: str) -> list[str]:
    """The tensors of a golden checkpoint."""
    return sorted(load_file(GOLDEN / f"{name}.weights.safetensors"))


# --- names and shapes ---------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_lost_tensor_is_missed_by_name(data: st.DataObject, tmp_path: Path) -> None:
    """Of a required group as of an optional one, which must be whole; what is derivable may go."""
    name = data.draw(st.sampled_from(sorted(WHAT)))
    lost = data.draw(st.sampled_from(names(name)))
    family, task = WHAT[name]
    match = table(family, task).ours(lost)
    assert match is not None
    path = changed(name, tmp_path, lambda tensors: tensors.pop(lost))
    alone = match[0].need == "optional" and len(match[0].names) == 1  # a group of one is whole or absent either way
    if match[0].need == "derivable" or alone:
        reading(path)
        return
    with pytest.raises(CheckpointError, match=rf"missing.*{lost}"):
        reading(path, task=data.draw(st.sampled_from([None, task])))


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_wrong_shape_is_named(data: st.DataObject, tmp_path: Path) -> None:
    name = data.draw(st.sampled_from(["caption", "retrieval", "pretrain", "nlvr"]))
    # Sizes are read off the first layer, so that a lone wrong tensor elsewhere is the odd one.
    odd = data.draw(st.sampled_from([key for key in names(name) if ".1." in key]))
    path = changed(name, tmp_path, lambda all_: all_.update({odd: all_[odd][..., :-1].clone()}))
    with pytest.raises(CheckpointError, match=rf"1 of a wrong shape \({odd}: stored"):
        reading(path)


@pytest.mark.parametrize(
    "extra",
    [
        "text_decoder.bert.pooler.dense.weight",
        "visual_encoder.blocks.3.attn.qkv.scale",
        "visual_encoder.blocks.3.attn.qkv",
        "visual_encoder.blocks.03.attn.qkv.weight",
        "visual_encoder_m.norm.weight",
        "text_decoder.bert.encoder.layer.0.attention.self.query.lora_A.weight",
        "fc.weight",
    ],
)
def test_an_unknown_tensor_is_an_error(extra: str, tmp_path: Path) -> None:
    path = changed("caption", tmp_path, lambda tensors: tensors.update({extra: torch.zeros(2)}))
    with pytest.raises(CheckpointError, match=rf"1 unknown \({extra}\)"):
        reading(path)


def test_a_layer_more_in_one_of_two_stacks_is_an_error(tmp_path: Path) -> None:
    def grow(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.startswith("text_decoder.bert.encoder.layer.2.")]:
            tensors[name.replace("layer.2", "layer.3")] = tensors[name]

    with pytest.raises(CheckpointError, match=r"unknown \(text_decoder.bert.encoder.layer.3"):
        reading(changed("vqa", tmp_path, grow))


def test_optional_groups_are_whole_or_absent(tmp_path: Path) -> None:
    def without(*prefixes: str) -> Change:
        return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefixes)]

    momentum = ("visual_encoder_m.", "text_encoder_m.", "vision_proj_m.", "text_proj_m.")
    queues = ("image_queue", "text_queue", "ptr_queue")
    complete = golden("retrieval").model
    for prefixes in (momentum, queues, ("idx_queue",), (*momentum, *queues, "idx_queue")):
        model = load(changed("retrieval", tmp_path, without(*prefixes)), config=HEADS, tokenizer=False).model
        assert same_state(model, complete)
    # as LAVIS saves: no momentum parameters, but the buffer of their text encoder
    assert reading(changed("retrieval", tmp_path, without(*momentum[:1], *momentum[2:], "text_encoder_m.e")))
    with pytest.raises(
        CheckpointError, match=r"vision_proj_m.* from an optional group, momentum copies, which must be complete or"
    ):
        reading(changed("retrieval", tmp_path, without("vision_proj_m.")))
    with pytest.raises(CheckpointError, match=r"1 missing \(text_queue\) from an optional group, queues"):
        reading(changed("retrieval", tmp_path, without("text_queue")))
    shared = [
        name
        for name in load_file(GOLDEN / "pretrain.weights.safetensors")
        if name.startswith("text_decoder.bert.") and ".attention." not in name
    ]
    loaded = load(changed("pretrain", tmp_path, without(*shared)), config=HEADS, tokenizer=False)
    assert same_state(loaded.model, golden("pretrain").model)
    assert "not stored, derived: weights that the text decoder shares with the encoder" in loaded.notes
    with pytest.raises(CheckpointError, match="from an optional group, weights that the text decoder shares"):
        reading(changed("pretrain", tmp_path, without(shared[5])))


def test_nothing_is_left_out_in_silence() -> None:
    assert set(golden("retrieval").notes) == {
        "training state, dropped: momentum copies (90 tensors)",
        "training state, dropped: queues (3 tensors)",
        "training state, dropped: queue of image ids (1 tensors)",
        "checked and left out: position numbers",
    }
    assert "training state, kept: queues (3 tensors)" in golden("retrieval", training=True).notes
    assert "checked and left out: coordinate tokens" in golden("grounding").notes


def test_misshapen_training_state_is_an_error(tmp_path: Path) -> None:
    for name, wrong in (("text_queue", torch.zeros(32, 23)), ("visual_encoder_m.norm.bias", torch.zeros(47))):
        with pytest.raises(CheckpointError, match=rf"wrong shape \({name}"):
            reading(changed("retrieval", tmp_path, lambda tensors, n=name, w=wrong: tensors.update({n: w})))  # type: ignore[misc]


def test_either_name_of_the_pointer_is_read(tmp_path: Path) -> None:
    def move(tensors: dict[str, Tensor]) -> None:
        tensors["queue_ptr"] = tensors.pop("ptr_queue")

    loaded = load(changed("retrieval", tmp_path, move), config=HEADS, tokenizer=False, training=True)
    assert loaded.family == "lavis"
    assert int(loaded.training["queue.pointer"]) == 20
    both = changed("retrieval", tmp_path, lambda tensors: tensors.update(queue_ptr=torch.tensor([3])))
    with pytest.raises(CheckpointError, match="ptr_queue and queue_ptr must be equal, but they differ"):
        reading(both)


# --- repeats and constants ----------------------------------------------------------------------------------------


def test_tied_copies_that_differ_are_overruled_aloud(tmp_path: Path) -> None:
    """As in old ``.bin`` files, whose output matrix was trained apart by accident: the word embedding wins."""
    path = changed(
        "caption", tmp_path, lambda tensors: tensors["text_decoder.cls.predictions.decoder.weight"].add_(1.0)
    )
    with pytest.warns(UserWarning, match=r"decoder.weight differs from .*word_embeddings.weight"):
        loaded = load(path, config=HEADS, tokenizer=False)
    assert any("differs" in note for note in loaded.notes)
    assert same_state(loaded.model, golden("caption").model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        golden("caption")


def test_encoder_and_decoder_of_a_pretrained_model_must_share(tmp_path: Path) -> None:
    name = "text_decoder.bert.encoder.layer.1.crossattention.self.key.weight"
    path = changed("pretrain", tmp_path, lambda tensors: tensors[name].add_(0.1))
    with pytest.raises(CheckpointError, match=rf"{name} and text_encoder.*key.weight must be one tensor"):
        reading(path)


def test_stored_constants_are_checked(tmp_path: Path) -> None:
    for name in ("grounding_head.bbox_prob_mask", "grounding_head.target_ids", "text_encoder.embeddings.position_ids"):
        path = changed("grounding", tmp_path, lambda tensors, n=name: tensors[n][..., 5].add_(1))  # type: ignore[misc]
        with pytest.raises(CheckpointError, match=rf"{name} must be what a model for 'grounding' computes"):
            reading(path)


def test_coordinate_tokens_that_are_not_stored_have_the_published_places(tmp_path: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in ("prefix_ids", "target_ids", "bbox_prob_mask"):
            del tensors[f"grounding_head.{name}"]

    config = load(changed("grounding", tmp_path, drop), config=HEADS, tokenizer=False).config
    assert (config.box_start_id, config.box_bins) == (344, 640)


# --- the wrong task -----------------------------------------------------------------------------------------------


def test_each_task_refuses_every_other_and_names_it(toy_folder: Path) -> None:
    families: tuple[Family, ...] = ("hub", "salesforce", "mmpretrain")  # LAVIS has Salesforce's layout
    for family, stored in [(one, task) for one in families for task in TABLES[one]]:
        path = _toy_file(toy_folder, family, stored)
        for wanted in TABLES[family]:
            if wanted != stored and (family != "hub" or wanted in ("caption", "retrieval")):
                with pytest.raises(CheckpointError) as caught:
                    load(path, task=wanted, tokenizer=False)
                assert f"{stored!r}" in str(caught.value).replace(str(path), ""), (family, stored, wanted)


@pytest.mark.parametrize(
    ("name", "task", "advice"),
    [
        ("caption", "vqa", "It is a checkpoint for 'caption' .salesforce.: load it with task='caption'"),
        ("pretrain", "caption", "It is a checkpoint for 'pretrain' .salesforce.: .*openblip.checkpoints.initialize"),
        ("pretrain", "retrieval", "openblip.checkpoints.initialize"),
        ("grounding", "caption", "It is a checkpoint for 'grounding' .mmpretrain.: load it"),
    ],
)
def test_the_advice(name: str, task: ModelKind, advice: str) -> None:
    with pytest.raises(CheckpointError, match=advice):
        reading(GOLDEN / f"{name}.weights.safetensors", task=task)


def test_the_wrong_task_is_told_before_a_vocabulary_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable() -> Path:
        raise DownloadError("no network")

    monkeypatch.setattr(hub, "bert_vocabulary", unreachable)
    with pytest.raises(CheckpointError, match="It is a checkpoint for 'caption'"):
        load(GOLDEN / "caption.pth", task="vqa", config=HEADS)
    with pytest.raises(DownloadError):
        load(GOLDEN / "caption.pth", config=HEADS)


def test_lavis_classification_is_named_and_refused(tmp_path: Path) -> None:
    def classify(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if not name.startswith(("visual_encoder.", "text_encoder."))]:
            del tensors[name]
        tensors |= {"cls_head.0.weight": torch.zeros(48, 48), "cls_head.0.bias": torch.zeros(48)}
        tensors |= {"cls_head.2.weight": torch.zeros(5, 48), "cls_head.2.bias": torch.zeros(5)}

    path = changed("retrieval", tmp_path, classify)
    for task in (None, "nlvr"):
        with pytest.raises(
            CheckpointError, match=r"checkpoint for 'classification' .lavis., which OpenBLIP does not support"
        ):
            reading(path, task=task)


def test_what_is_no_blip_at_all(tmp_path: Path) -> None:
    save_file({f"features.{i}.weight": torch.zeros(3) for i in range(20)}, tmp_path / "vgg.safetensors")
    for task in (None, "caption"):
        with pytest.raises(CheckpointError, match="no BLIP checkpoint that this version knows"):
            reading(tmp_path / "vgg.safetensors", task=task)
    save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="must hold tensors, got none"):
        reading(tmp_path / "empty.safetensors")
    with pytest.raises(InputError, match=r"task must be one of .* got 'captions'; did you mean caption"):
        reading(GOLDEN / "caption.pth", task="captions")


# --- files --------------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.9999), name=st.sampled_from(["caption.pth", "caption.weights.safetensors"]))
def test_a_torn_file_is_an_error_that_names_it(share: float, name: str, tmp_path: Path) -> None:
    complete = (GOLDEN / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(complete[: int(len(complete) * share)])
    with pytest.raises(CheckpointError, match=rf"{name} is (damaged|not a checkpoint)"):
        reading(path)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\noid sha256:00", b"<html></html>"]
)
def test_what_comes_in_place_of_a_file(content: bytes, tmp_path: Path) -> None:
    for name in ("model.pth", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
            reading(tmp_path / name)


class _Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)  # type: ignore[return-value]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_runs_code_is_refused(zipped: bool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    content = {"model": {"x": torch.zeros(1)}, "config": _Evil(mark)}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil.pth would run code while it is read.*refused"):
        reading(tmp_path / "evil.pth")
    assert not mark.exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match=r"would run code|damaged"):
        reading(tmp_path / "plain.pth")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "must hold tensors by name, got a list"),
        (torch.zeros(3), "must hold tensors by name, got a Tensor"),
        ({"model": {"x": torch.zeros(1), "steps": 5}}, "some entries are not tensors: steps"),
        ({"optimizer": {}}, "some entries are not tensors: optimizer"),
        ({}, "must hold tensors, got none"),
    ],
)
def test_a_pickle_of_something_else(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=message):
        reading(tmp_path / "odd.pth")


def test_a_bare_pth_and_the_old_format(tmp_path: Path) -> None:
    tensors = torch.load(GOLDEN / "caption.pth", weights_only=True)["model"]
    torch.save(tensors, tmp_path / "bare.pth")
    torch.save({"model": tensors}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("bare.pth", "old.pth"):
        loaded = load(tmp_path / name, config=HEADS, tokenizer=False)
        assert same_state(loaded.model, golden("caption").model)


def test_paths_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"there is no checkpoint at .*nothing.pth"):
        reading(tmp_path / "nothing.pth")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(CheckpointError, match=r"a weight file must end in .safetensors"):
        reading(tmp_path / "weights.h5")
    with pytest.raises(CheckpointError, match=r"must have model.safetensors or pytorch_model.bin.*TensorFlow"):
        reading(tmp_path)
    (tmp_path / "model_base.pth").touch()
    with pytest.raises(CheckpointError, match=r"to load model_base.pth, give its path"):
        reading(tmp_path)


def test_one_task_of_a_bundle(toy_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle.json").write_text(json.dumps({"retrieval": str(_toy_file(toy_folder, "hub", "retrieval"))}))
    for path in (tmp_path, tmp_path / "bundle.json"):
        assert load(path, task="retrieval", tokenizer=False).config.task == "retrieval"
        with pytest.raises(CheckpointError, match="is a bundle of retrieval: choose one"):
            load(path)
        with pytest.raises(UnsupportedTaskError, match="no model for 'caption'"):
            load(path, task="caption")


# --- sizes and vocabulary -----------------------------------------------------------------------------------------


def test_heads_are_64_wide_unless_given(toy_folder: Path) -> None:
    path = _toy_file(toy_folder, "salesforce", "caption")
    config = load(path, tokenizer=False).config
    assert (config.vision.heads, config.text.heads) == (2, 1)
    config = load(path, tokenizer=False, config={"text": {"heads": 4}}).config
    assert (config.vision.heads, config.text.heads) == (2, 4)
    with pytest.raises(CheckpointError, match=r'vision is 48 wide.*config=\{"vision": \{"heads"'):
        load(GOLDEN / "caption.pth", tokenizer=False)


def test_a_whole_configuration_may_be_given(toy_folder: Path) -> None:
    path = _toy_file(toy_folder, "salesforce", "caption")
    assert load(path, tokenizer=False, config=toy_config("caption")).config == toy_config("caption")
    with pytest.raises(CheckpointError, match=r"configuration must be for 'caption', as .*, got 'vqa'"):
        load(path, tokenizer=False, config=toy_config("vqa"))


@pytest.mark.parametrize("config", [{"txt": {}}, {"text": {"layers": 3}}, {"vision": {"size": 3}}])
def test_unknown_fields_of_a_configuration(config: dict[str, Any], toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no (txt|layers|size); it has"):
        load(_toy_file(toy_folder, "hub", "caption"), tokenizer=False, config=config)


def test_a_contradicting_configuration_is_a_wrong_shape(toy_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="of a wrong shape"):
        load(_toy_file(toy_folder, "hub", "caption"), tokenizer=False, config={"text": {"mlp_width": 96}})
    with pytest.raises(CheckpointError, match="unknown"):
        load(_toy_file(toy_folder, "salesforce", "caption"), tokenizer=False, config={"text": {"depth": 2}})


def test_the_image_size_resizes_momentum_twins_too(tmp_path: Path) -> None:
    loaded = golden("retrieval", config={"image_size": 96}, training=True)
    assert loaded.training["momentum.vision.pos_embed"].shape == (1, 37, 48)
    assert loaded.model.vision.pos_embed.shape == (1, 37, 48)  # type: ignore[union-attr]
    assert sum("from 17 to 37 positions" in note for note in loaded.notes) == 2
    # what cannot be a grid of patches stays an error
    broken = changed(
        "caption", tmp_path, lambda t: t.update({"visual_encoder.pos_embed": t["visual_encoder.pos_embed"][:, :16]})
    )
    with pytest.raises(
        CheckpointError, match=r"no BLIP model has a visual_encoder.pos_embed of the shape \(1, 16, 48\)"
    ):
        reading(broken)


def test_the_vocabulary_must_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = VOCABULARY.read_text(encoding="utf-8").splitlines()
    for count in (597, 500):
        (tmp_path / "vocab.txt").write_text("\n".join(lines[:count]) + "\n", encoding="utf-8")
        with pytest.raises(
            CheckpointError, match=rf"must have the 600 tokens of the word embeddings in .*, got {count + 2}"
        ):
            reading(GOLDEN / "caption.pth", tokenizer=tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match="got 726"):
        reading(GOLDEN / "caption.pth", tokenizer=GOLDEN / "vocab_grounding.txt")
    monkeypatch.setattr(hub, "bert_vocabulary", lambda: VOCABULARY)
    loaded = load(GOLDEN / "caption.pth", config=HEADS)
    assert loaded.tokenizer is not None
    assert loaded.config.text.dec_id == loaded.tokenizer.dec_id == 598
    given = load(GOLDEN / "caption.pth", config=HEADS, tokenizer=toy_tokenizer())
    assert given.config == loaded.config


# --- shards and pickles of the hub --------------------------------------------------------------------------------


def sharded(source: Path, target: Path, *, pickled: bool) -> Path:
    """A copy of a hub folder with its weights in three shards."""
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    target.mkdir()
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    stem, suffix = ("pytorch_model", "bin") if pickled else ("model", "safetensors")
    weight_map: dict[str, str] = {}
    for i in range(3):
        file = f"{stem}-{i + 1:05}-of-00003.{suffix}"
        shard = {name: tensors[name].clone() for name in names[i::3]}
        weight_map |= dict.fromkeys(shard, file)
        if pickled:
            torch.save(shard, target / file)
        else:
            save_file(shard, target / file, metadata={"format": "pt"})
    (target / f"{stem}.{suffix}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return target


@pytest.mark.parametrize("pickled", [False, True])
def test_shards(pickled: bool, toy_folder: Path, tmp_path: Path) -> None:
    source = _toy_file(toy_folder, "hub", "vqa")
    folder = sharded(source, tmp_path / "shards", pickled=pickled)
    assert same_state(load(folder, tokenizer=False).model, load(source, tokenizer=False).model)
    index = next(folder.glob("*.index.json"))
    assert same_state(load(index, tokenizer=False).model, load(source, tokenizer=False).model)
    content = json.loads(index.read_text())
    name = next(iter(content["weight_map"]))
    content["weight_map"]["text_decoder.ghost"] = content["weight_map"].pop(name)
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"must have the tensors that .* states; wrong are .*text_decoder.ghost"):
        load(folder)
    content["weight_map"]["text_decoder.ghost"] = "../../etc/weights.bin"
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="must name files in its folder"):
        load(folder)
    content["weight_map"][name] = content["weight_map"].pop("text_decoder.ghost")
    content["weight_map"][name] = next(folder.glob("*-00001-*")).name
    next(folder.glob("*-00002-*")).unlink()
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"refers to .*00002-of-00003.*, which does not exist"):
        load(folder)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="must have a weight_map"):
        load(folder)


def test_an_old_bin_with_everything_that_was_stored_then(toy_folder: Path, tmp_path: Path) -> None:
    source = _toy_file(toy_folder, "hub", "vqa")
    tensors = load_file(source / "model.safetensors")
    tensors["text_decoder.cls.predictions.decoder.weight"] = tensors[
        "text_decoder.bert.embeddings.word_embeddings.weight"
    ]
    tensors["text_decoder.cls.predictions.decoder.bias"] = tensors["text_decoder.cls.predictions.bias"]
    for stack in ("text_encoder", "text_decoder.bert"):
        tensors[f"{stack}.embeddings.position_ids"] = torch.arange(24)[None]
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    assert same_state(load(tmp_path, tokenizer=False).model, load(source, tokenizer=False).model)


# --- precision and memory -----------------------------------------------------------------------------------------


def test_the_stored_type_never_decides_the_precision(tmp_path: Path) -> None:
    half = save(toy_model("retrieval"), tmp_path / "half", dtype=torch.float16)
    stored = load_file(half / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    assert json.loads((half / "config.json").read_text())["dtype"] == "float16"
    model = load(half, tokenizer=False).model
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    assert torch.equal(model.itm_head.weight, stored["itm_head.weight"].float())  # type: ignore[union-attr, arg-type]
    wanted = load(half, tokenizer=False, dtype=torch.bfloat16).model
    assert {tensor.dtype for tensor in wanted.state_dict().values()} == {torch.bfloat16}


def test_writing_is_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(toy_model("caption"), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(containers, "save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    for target, family in ((folder, "hub"), (tmp_path / "new", "hub"), (tmp_path / "new.pth", "lavis")):
        with pytest.raises(OSError, match="disk full"):
            save(toy_model("caption", seed=1), target, to=family)  # type: ignore[arg-type]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_cut_between_files_leaves_no_mixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save(toy_model("caption"), tmp_path / "model")
    replace = Path.replace

    def stop_at_weights(path: Path, target: Path) -> Path:
        if path.name == "model.safetensors":
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop_at_weights)
    with pytest.raises(KeyboardInterrupt):
        save(toy_model("caption", seed=1), folder)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"must hold config.json, got none"):
        load(folder, tokenizer=False)
    assert not list(tmp_path.glob(".*"))

"""What is written is read back bit for bit: every family, every task; and hub folders to and from transformers."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers as hf
from torch import Tensor, nn

from openblip.checkpoints.layouts import FAMILIES, TABLES, Family
from openblip.checkpoints.layouts.hub_config import FORMAT_VERSION
from openblip.checkpoints.read import LoadedModel, load
from openblip.checkpoints.write import config_of, save
from openblip.errors import CheckpointError, InputError
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.config import Activation, ModelConfig, ModelKind, TextConfig
from openblip.model.matcher import Matcher
from openblip.model.text import TextTransformer
from openblip.model.two_tower import TwoTower
from openblip.model.vision import VisionTransformer
from openblip.preprocess.settings import ImageSettings
from tests.checkpoints.checkpoint_toys import golden, same_state, toy_config, toy_model
from tests.toys import toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = [(family, task) for family in FAMILIES for task in TABLES[family]]


def as_written(config: ModelConfig, family: Family) -> ModelConfig:
    """What of a configuration a family can hold: the sizes of its model, and in a hub folder what is no size."""
    task, usual = config.task, ModelConfig(task=config.task)
    text = dataclasses.replace(config.text, merge_from=config.text.merge_from if task == "nlvr" else 6)
    vision = config.vision
    if family != "hub":
        ids = TextConfig()
        text = dataclasses.replace(text, cls_id=ids.cls_id, sep_id=ids.sep_id, dec_id=ids.dec_id, enc_id=ids.enc_id)
        drops = family != "mmpretrain" and task in ("vqa", "nlvr")  # a training setting of Salesforce's code
        vision = dataclasses.replace(vision, drop_path=0.1 if drops else 0.0)
    has_embeddings = task in ("retrieval", "pretrain", "two_tower") or (
        family == "hub" and task not in ("text", "vision")
    )
    boxes = config if task == "grounding" else usual
    return dataclasses.replace(
        config,
        text=usual.text if task == "vision" else text,
        vision=vision,
        embed_width=config.embed_width if has_embeddings else usual.embed_width,
        box_bins=boxes.box_bins,
        box_start_id=boxes.box_start_id,
    )


@pytest.mark.parametrize(("family", "task"), PAIRS)
def test_every_family_and_task(family: Family, task: ModelKind, tmp_path: Path) -> None:
    model = toy_model(task)
    path = save(model, tmp_path / ("folder" if family == "hub" else "file.pth"), to=family)
    loaded = load(path, tokenizer=False)
    assert same_state(loaded.model, model)
    assert all(tensor.dtype == torch.float32 for tensor in loaded.model.state_dict().values())
    assert loaded.config == as_written(config_of(model), family)
    assert loaded.prompt == ("a picture of " if task == "caption" else None)
    assert loaded.family in ((family, "salesforce") if family == "lavis" else (family,))  # those two share a layout


def test_how_boxes_are_read_is_kept(tmp_path: Path) -> None:
    model = toy_model("grounding", config=dataclasses.replace(toy_config("grounding"), box_reading="median"))
    folder = save(model, tmp_path / "folder", to="hub")
    assert load(folder, tokenizer=False).config.box_reading == "median"
    description = json.loads((folder / "config.json").read_text())
    description["openblip"]["box_reading"] = "mean"
    (folder / "config.json").write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="box_reading must be likeliest or median, got 'mean'"):
        load(folder, tokenizer=False)


@pytest.mark.parametrize("memory_width", [None, 128])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_width_of_the_answer_decoders_memory(family: Family, memory_width: int | None, tmp_path: Path) -> None:
    """As wide as the question states, which works, or as the image's, as transformers builds it for ViT-L."""
    model = toy_model("vqa", config=toy_config("vqa", memory_width=memory_width))
    loaded = load(save(model, tmp_path / ("folder" if family == "hub" else "file.pth"), to=family), tokenizer=False)
    assert same_state(loaded.model, model)
    assert loaded.config.decoder_memory_width == memory_width
    if family == "hub":
        kind = json.loads((tmp_path / "folder" / "config.json").read_text())["model_type"]
        assert kind == ("openblip" if memory_width is None else "blip")


@pytest.mark.parametrize("target", ["lavis", "mmpretrain"])
def test_training_state_goes_along(target: Family, tmp_path: Path) -> None:
    loaded = golden("retrieval", training=True)
    assert len(loaded.training) == 90 + 4
    path = save(loaded, tmp_path / "file.pth", to=target)
    config = {"text": {"heads": 4}, "vision": {"heads": 4}}
    again = load(path, config=config, tokenizer=False, training=True)
    assert again.family == target
    assert again.training.keys() == loaded.training.keys()
    assert all(torch.equal(again.training[name], tensor) for name, tensor in loaded.training.items())
    with pytest.raises(CheckpointError, match=r"hub family has no name for '(momentum|queue)"):
        save(loaded, tmp_path / "folder")
    assert load(save(dataclasses.replace(loaded, training={}), tmp_path / "folder"), tokenizer=False)


@pytest.mark.parametrize(
    ("family", "task"), [("salesforce", "grounding"), ("mmpretrain", "pretrain"), ("lavis", "text")]
)
def test_a_family_refuses_what_it_does_not_have(family: Family, task: ModelKind, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"the {family} family has no model for '{task}'"):
        save(toy_model(task), tmp_path / "file.pth", to=family)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_of_ours(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="must be one of OpenBLIP, got a Linear"):
        save(nn.Linear(2, 2), tmp_path / "x")


# --- our folders --------------------------------------------------------------------------------------------------


def saved(task: ModelKind, folder: Path, **more: Any) -> LoadedModel:
    save(toy_model(task), folder, tokenizer=toy_tokenizer(), **more)
    return load(folder)


def test_a_folder_keeps_tokenizer_prompt_and_pictures(tmp_path: Path) -> None:
    settings = ImageSettings(size=48, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    loaded = saved("caption", tmp_path / "one", image=settings, prompt="")
    again = load(save(loaded, tmp_path / "two"))
    for one in (loaded, again):
        assert (one.image, one.prompt) == (settings, "")
        assert one.tokenizer is not None
        assert one.tokenizer.encode_prompt("a dog") == toy_tokenizer().encode_prompt("a dog")
        assert (one.config.text.dec_id, one.config.text.enc_id, one.config.text.cls_id) == (598, 599, 2)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }


def test_a_folder_keeps_the_temperature_to_the_last_bit(tmp_path: Path) -> None:
    loaded = saved("retrieval", tmp_path / "one")
    model = toy_model("retrieval")
    assert isinstance(model, Matcher)
    assert isinstance(loaded.model, Matcher)
    assert torch.equal(loaded.model.temperature, model.temperature)


def test_an_image_size_in_the_way_of_the_model_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    saved("caption", folder)
    file = folder / "preprocessor_config.json"
    file.write_text(file.read_text().replace("48", "96"))
    loaded = load(folder)
    assert loaded.image.size == 48
    assert any("says 96 pixels per side; the model needs 48" in note for note in loaded.notes)
    with pytest.raises(InputError, match="must have the 48 pixels per side of the model, got 96"):
        save(loaded, tmp_path / "two", image=ImageSettings(size=96))


def test_processor_config_counts_before_preprocessor_config(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    saved("caption", folder)
    nested = {"image_processor": ImageSettings(size=48, mean=(0.1, 0.2, 0.3)).to_processor_config()}
    (folder / "processor_config.json").write_text(json.dumps(nested))
    assert load(folder).image.mean == (0.1, 0.2, 0.3)
    save(toy_model("caption"), folder)
    assert not (folder / "processor_config.json").exists(), "a stale file would speak for the new model"


def test_a_processor_config_of_text_alone_leaves_pictures_to_the_other_file(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    saved("caption", folder, image=ImageSettings(size=48, mean=(0.1, 0.2, 0.3)))
    (folder / "processor_config.json").write_text('{"processor_class": "BlipProcessor"}')
    assert load(folder).image.mean == (0.1, 0.2, 0.3)


def test_an_odd_processor_is_an_error_unless_pictures_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    saved("caption", folder)
    (folder / "preprocessor_config.json").write_text('{"do_center_crop": true}')
    with pytest.raises(CheckpointError, match=r"preprocessor_config.json: do_center_crop must be false"):
        load(folder)
    assert load(folder, image=ImageSettings(size=48)).image == ImageSettings(size=48)


def test_a_folder_without_tokenizer_files(tmp_path: Path) -> None:
    save(toy_model("caption"), tmp_path / "one")
    assert load(tmp_path / "one").tokenizer is None
    loaded = load(tmp_path / "one", tokenizer=toy_tokenizer())
    assert loaded.tokenizer is not None


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    saved("caption", folder)
    file = folder / "config.json"
    content = json.loads(file.read_text())
    for version, message in (
        (FORMAT_VERSION + 1, "must be at most 1, got 2: upgrade"),
        (None, "must name a format version"),
    ):
        content["openblip"]["format_version"] = version
        file.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=message):
            load(folder)
    del content["openblip"]
    file.write_text(json.dumps(content | {"model_type": "openblip"}))
    with pytest.raises(CheckpointError, match="must have the key 'openblip'"):
        load(folder)
    file.write_text(json.dumps(content | {"model_type": "blip-2"}))
    with pytest.raises(CheckpointError, match="must be of a BLIP model, got model_type 'blip-2'"):
        load(folder)


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("text_config", "num_attention_heads", 5, "the number of heads, got 64 and 5"),
        ("text_config", "hidden_size", "wide", "hidden_size of config.json must be one whole number, got 'wide'"),
        ("vision_config", "layer_norm_eps", "small", "layer_norm_eps of config.json must be a number, got 'small'"),
        ("openblip", "drop_path", [0.1], r"drop_path of config.json must be a number, got \[0.1\]"),
        ("openblip", "prompt", 7, "prompt of config.json must be a text, got 7"),
        ("openblip", "task", "draw", "task of config.json must be one of caption, vqa.* got 'draw'"),
    ],
)
def test_a_configuration_that_makes_no_sense(
    section: str, key: str, value: object, message: str, tmp_path: Path
) -> None:
    save(toy_model("caption"), tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    raw[section][key] = value
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=f"{tmp_path}.*{message}"):
        load(tmp_path)


# --- transformers -------------------------------------------------------------------------------------------------

CLASSES: dict[ModelKind, Any] = {
    "caption": hf.BlipForConditionalGeneration,
    "vqa": hf.BlipForQuestionAnswering,
    "retrieval": hf.BlipForImageTextRetrieval,
    "two_tower": hf.BlipModel,
    "text": hf.BlipTextModel,
    "vision": hf.BlipVisionModel,
}
TEXT: dict[str, Any] = {
    "vocab_size": 600, "hidden_size": 32, "encoder_hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 20, "bos_token_id": 598, "sep_token_id": 3,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 48, "intermediate_size": 56, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 48,
    "patch_size": 16,
}  # fmt: skip
IDS = torch.tensor([[598, 5, 6, 7, 3], [598, 9, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@functools.cache
def peer(task: ModelKind, **text: Any) -> Any:
    """A model of transformers with loud weights."""
    torch.manual_seed(3)
    model: Any
    vision = VISION | ({"hidden_size": 32, "num_attention_heads": 2} if task == "vqa" else {})
    if task == "text":
        model = hf.BlipTextModel(hf.BlipTextConfig(**TEXT | text))
    elif task == "vision":
        model = hf.BlipVisionModel(hf.BlipVisionConfig(**VISION))
    else:
        config = hf.BlipConfig(
            text_config=TEXT | text, vision_config=vision, image_text_hidden_size=24, projection_dim=20
        )
        model = CLASSES[task](config)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.2 + (1.0 if parameter.ndim < 2 else 0.0)
    model.tie_weights()
    return model.eval()


@torch.no_grad()
def outputs(task: ModelKind, model: Any) -> list[Tensor]:
    """What the peer computes, whatever the task."""
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(5))
    if task == "vision":
        return [model(pixels).last_hidden_state]
    if task == "text":
        image = torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(6))
        grounded = model(IDS, MASK, encoder_hidden_states=image)
        return [model(IDS, MASK).pooler_output, grounded.last_hidden_state]
    if task == "caption":
        return [model(pixel_values=pixels, input_ids=IDS, attention_mask=MASK).logits]
    if task == "vqa":
        image = model.vision_model(pixels).last_hidden_state
        states = model.text_encoder(IDS, MASK, encoder_hidden_states=image).last_hidden_state
        # that library's 5.23 passes the mask of the question by, so it is left out on either side
        return [states[MASK.bool()], model.text_decoder(IDS, MASK, encoder_hidden_states=states).logits]
    if task == "retrieval":
        inputs = {"input_ids": IDS, "pixel_values": pixels, "attention_mask": MASK}
        return [model(**inputs).itm_score, model(**inputs, use_itm_head=False).itm_score]
    result = model(input_ids=IDS, pixel_values=pixels, attention_mask=MASK)
    return [result.image_embeds, result.text_embeds]


@torch.no_grad()
def our_outputs(task: ModelKind, model: nn.Module) -> list[Tensor]:
    """The same by our model."""
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(5))
    if isinstance(model, VisionTransformer):
        return [model(pixels)]
    if isinstance(model, TextTransformer):
        image = torch.randn(2, 6, 48, generator=torch.Generator().manual_seed(6))
        return [model.pool(model.encode(IDS, MASK)), model.encode_grounded(IDS, MASK, image)]
    if isinstance(model, Captioner):
        return [model.logits(IDS, MASK, model.encode_image(pixels))]
    if isinstance(model, Answerer):
        states = model.encode_question(IDS, MASK, model.encode_image(pixels))
        return [states[MASK.bool()], model.logits(IDS, MASK, states)]
    if isinstance(model, Matcher):
        image = model.encode_image(pixels)
        cosine = model.embed_image(image) @ model.embed_text(IDS, MASK).T
        return [model.match_logits(IDS, MASK, image), cosine]
    assert isinstance(model, TwoTower)
    image, text = model.embed_image(model.encode_image(pixels)), model.embed_text(IDS, MASK)
    return [nn.functional.normalize(image, dim=-1), nn.functional.normalize(text, dim=-1)]


def agree(task: ModelKind, ours: nn.Module, theirs: Any) -> None:
    for one, other in zip(our_outputs(task, ours), outputs(task, theirs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("task", CLASSES)
def test_folders_of_transformers_load_here(task: ModelKind, tmp_path: Path) -> None:
    theirs = peer(task)
    theirs.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert (loaded.config.task, loaded.family) == (task, "hub")
    assert loaded.config.vision.layer_norm_eps == (1e-6 if task == "text" else 1e-5)  # as its configuration says
    agree(task, loaded.model, theirs)


@pytest.mark.parametrize("task", CLASSES)
def test_our_folders_load_in_transformers(task: ModelKind, tmp_path: Path) -> None:
    peer(task).save_pretrained(tmp_path / "theirs")
    model = load(tmp_path / "theirs").model
    save(model, tmp_path / "ours")
    theirs, report = CLASSES[task].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    agree(task, model, theirs.eval())
    if task in ("caption", "vqa"):
        assert theirs.generation_config.pad_token_id == 0
        assert theirs.generation_config.bos_token_id == 598
    written = theirs.config.to_dict()
    for key in ("text_config", "vision_config"):
        expected = json.loads((tmp_path / "theirs" / "config.json").read_text()).get(key, {})
        ignored = {"eos_token_id", "initializer_range", "projection_dim"}
        assert {k: v for k, v in written.get(key, {}).items() if k in expected and k not in ignored} == {
            k: v for k, v in expected.items() if k not in ignored
        }


@pytest.mark.parametrize("task", ["nlvr", "grounding", "pretrain", "vqa"])
def test_transformers_refuses_what_it_would_load_in_part(task: ModelKind, tmp_path: Path) -> None:
    save(toy_model(task), tmp_path)
    with pytest.raises(ValueError, match="model type `openblip`"):
        hf.AutoModel.from_pretrained(tmp_path)
    kind: ModelKind
    for kind in ("caption", "vqa", "retrieval", "two_tower"):
        with pytest.raises(Exception, match="projection_dim"):
            CLASSES[kind].from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("hidden_act", "ours"),
    [("gelu", "gelu"), ("gelu_new", "gelu_tanh"), ("quick_gelu", "quick_gelu"), ("relu", "relu"), ("silu", "silu")],
)
def test_activations(hidden_act: str, ours: Activation, tmp_path: Path) -> None:
    theirs = peer("caption", hidden_act=hidden_act)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert loaded.config.text.activation == ours
    agree("caption", loaded.model, theirs)
    written = json.loads((save(loaded, tmp_path / "ours") / "config.json").read_text())["text_config"]["hidden_act"]
    inputs = torch.linspace(-3, 3, 50)
    torch.testing.assert_close(hf.activations.ACT2FN[written](inputs), hf.activations.ACT2FN[hidden_act](inputs))


def test_an_unknown_activation_is_named(tmp_path: Path) -> None:
    peer("caption", hidden_act="mish").save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"hidden_act of config.json must be one of gelu.* got 'mish'"):
        load(tmp_path)


def test_a_text_model_that_is_no_decoder_has_no_cross_attention(tmp_path: Path) -> None:
    theirs = peer("text", is_decoder=False)
    theirs.save_pretrained(tmp_path / "theirs")
    loaded = load(tmp_path / "theirs")
    assert loaded.config.text.memory_width is None
    again = load(save(loaded, tmp_path / "ours"))
    assert again.config == loaded.config
    with torch.no_grad():
        ours = cast(TextTransformer, again.model).encode(IDS, MASK)
        torch.testing.assert_close(ours, theirs(IDS, MASK).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_sharded_folders_of_transformers(tmp_path: Path) -> None:
    theirs = peer("retrieval")
    theirs.save_pretrained(tmp_path, max_shard_size="100KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    agree("retrieval", load(tmp_path).model, theirs)


# --- published checkpoints ----------------------------------------------------------------------------------------


def published_folder(folder: Path, **text: Any) -> ModelConfig:
    """A captioner as the hub has them, but small: eps 1e-5, and whatever number of heads is written down."""
    peer("caption", hidden_size=128, **text).save_pretrained(folder)
    return load(folder).config


@pytest.mark.parametrize(
    "place",
    [
        "models--Salesforce--blip-image-captioning-base/snapshots/82a37760796d32b1411fe092ab5d4e227313294b",
        "blip-image-captioning-base",
    ],
)
def test_published_checkpoints_run_as_they_were_trained(place: str, tmp_path: Path) -> None:
    """ViT eps 1e-6, and 64-wide heads: the hub said 8 heads until April 2023, which shapes cannot tell from 12."""
    folder = tmp_path / place
    config = published_folder(folder, num_attention_heads=8)
    assert (config.vision.layer_norm_eps, config.text.heads) == (1e-6, 2)
    notes = load(folder).notes
    assert any("LayerNorm eps 1e-06 in the ViT, not 1e-05" in note for note in notes)
    assert any("trained with 2 text heads, not 8" in note for note in notes)
    library = load(folder, published_eps=False)
    assert (library.config.vision.layer_norm_eps, library.config.text.heads) == (1e-5, 8)
    again = load(save(library, tmp_path / "again" / "blip-image-captioning-base")).config
    assert (again.vision.layer_norm_eps, again.text.heads) == (1e-5, 8), "a folder of ours says what it means"


def test_a_checkpoint_tuned_from_a_published_one(tmp_path: Path) -> None:
    config = published_folder(tmp_path, num_attention_heads=8)
    assert (config.vision.layer_norm_eps, config.text.heads) == (1e-5, 8)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text()) | {"_name_or_path": "Salesforce/blip-image-captioning-base"}
    file.write_text(json.dumps(raw))
    config = load(tmp_path).config
    assert (config.vision.layer_norm_eps, config.text.heads) == (1e-6, 8)


def test_heads_that_a_configuration_leaves_out(tmp_path: Path) -> None:
    """Eight, as in that library; one may still say otherwise."""
    published_folder(tmp_path, num_attention_heads=8)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    del raw["text_config"]["num_attention_heads"]
    file.write_text(json.dumps(raw))
    loaded = load(tmp_path)
    library = hf.BlipConfig.from_pretrained(tmp_path).to_dict()
    assert loaded.config.text.heads == library["text_config"]["num_attention_heads"] == 8
    assert any("number of text heads" in note for note in loaded.notes)
    assert load(tmp_path, config={"text": {"heads": 2}}).config.text.heads == 2


def test_a_configuration_of_2022_with_fields_that_mean_nothing(tmp_path: Path) -> None:
    theirs = peer("caption")
    theirs.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    raw = json.loads(file.read_text())
    raw |= {"torch_dtype": "float32", "transformers_version": None, "_commit_hash": None}
    raw["text_config"] |= {"num_beams": 1, "top_k": 50, "add_cross_attention": False, "label2id": {"LABEL_0": 0}}
    raw["vision_config"] |= {"num_channels": 3, "dropout": 0.0, "image_size": [48, 48]}
    file.write_text(json.dumps(raw))
    agree("caption", load(tmp_path).model, theirs)
    raw["vision_config"]["image_size"] = [48, 64]
    file.write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match=r"image_size of config.json must be one whole number, got \[48, 64\]"):
        load(tmp_path)

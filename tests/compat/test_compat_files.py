"""Folders that either library wrote, read by the other; and everything that must not be read."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from openblip.checkpoints.read import load
from openblip.checkpoints.write import save
from openblip.errors import CheckpointError, DownloadError, InputError
from tests.compat.compat_toys import CLASSES, WHOLE, Ours, Theirs, close, ids, pair, pixels

pytestmark = pytest.mark.usefixtures("one_thread")


def _inputs(name: str) -> dict[str, Any]:
    text, image = {"input_ids": ids()}, {"pixel_values": pixels()}
    both = {**text, **image}
    return {
        "BlipTextModel": text,
        "BlipVisionModel": image,
        "BlipForQuestionAnswering": {**both, "labels": ids(2, 4)},
    }.get(name, both)


@pytest.mark.parametrize("name", CLASSES)
def test_each_library_reads_the_files_of_the_other(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name)
    expected = theirs(**_inputs(name))
    theirs.save_pretrained(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    for folder in ("theirs", "ours"):
        for library in (Ours, Theirs):
            model = getattr(library, name).from_pretrained(tmp_path / folder)
            assert not model.training
            close(model(**_inputs(name)), expected)
    written = [{path.name for path in (tmp_path / folder).iterdir()} for folder in ("ours", "theirs")]
    assert written[0] == written[1]
    tensors = [load_file(tmp_path / folder / "model.safetensors") for folder in ("ours", "theirs")]
    assert tensors[0].keys() == tensors[1].keys()
    assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
    configs = [json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("ours", "theirs")]
    assert configs[1].pop("transformers_version")
    assert configs[0] == configs[1]


@pytest.mark.parametrize("name", WHOLE[:2])
def test_other_file_formats(name: str, tmp_path: Path) -> None:
    theirs, ours = pair(name)
    expected = theirs(**_inputs(name))
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    ours.save_pretrained(tmp_path / "pickle", safe_serialization=False)
    assert (tmp_path / "pickle" / "pytorch_model.bin").is_file()
    for folder in ("shards", "pickle"):
        close(getattr(Ours, name).from_pretrained(tmp_path / folder)(**_inputs(name)), expected)
    close(getattr(Theirs, name).from_pretrained(tmp_path / "pickle")(**_inputs(name)), expected)
    # A folder that is written again holds what was written last, and nothing that would speak for it.
    ours.save_pretrained(tmp_path / "shards")
    assert not (tmp_path / "shards" / "model.safetensors.index.json").exists()
    ours.save_pretrained(tmp_path / "pickle")
    assert not (tmp_path / "pickle" / "pytorch_model.bin").exists()


def test_weights_are_split_by_size(tmp_path: Path) -> None:
    theirs, ours = pair("BlipVisionModel")
    for name, model in (("theirs", theirs), ("ours", ours)):
        model.save_pretrained(tmp_path / name, max_shard_size="20KB")
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("theirs", "ours")]
    assert names[0] == names[1]
    assert len(names[0]) > 3
    for name in ("theirs", "ours"):
        close(Ours.BlipVisionModel.from_pretrained(tmp_path / name)(pixels()), theirs(pixels()))
    close(Theirs.BlipVisionModel.from_pretrained(tmp_path / "ours")(pixels()), theirs(pixels()))


def test_saving_a_state_dict_and_to_invalid_folders(tmp_path: Path) -> None:
    _, ours = pair("BlipVisionModel")
    changed = {name: tensor * 2 for name, tensor in ours.state_dict().items()}
    ours.save_pretrained(tmp_path / "model", state_dict=changed)
    reloaded = Ours.BlipVisionModel.from_pretrained(tmp_path / "model").state_dict()
    assert all(torch.equal(reloaded[name], tensor) for name, tensor in changed.items())
    ours.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder"):
        ours.save_pretrained(tmp_path / "file")
    ours.save_pretrained(tmp_path / "model", push_to_hub=False)
    with pytest.raises(TypeError, match="shard"):
        ours.save_pretrained(tmp_path / "model", shard="5GB")


@pytest.mark.parametrize("stored", [torch.float32, torch.float16, torch.bfloat16])
def test_floating_types(stored: torch.dtype, tmp_path: Path) -> None:
    theirs, _ = pair("BlipForImageTextRetrieval")
    theirs.to(stored).save_pretrained(tmp_path)
    cases: list[tuple[dict[str, Any], torch.dtype]] = [
        ({}, stored),
        ({"dtype": "auto"}, stored),
        ({"torch_dtype": torch.float16}, torch.float16),
        ({"dtype": torch.float32}, torch.float32),
        ({"torch_dtype": "bfloat16"}, torch.bfloat16),
    ]
    for options, expected in cases:
        ours, stored_there = (
            getattr(library, "BlipForImageTextRetrieval").from_pretrained(tmp_path, **options)  # noqa: B009
            for library in (Ours, Theirs)
        )
        assert ours.dtype == stored_there.dtype == expected
        assert {p.dtype for p in ours.parameters()} == {expected}
        assert ours.config.dtype == stored_there.config.dtype == expected
    with pytest.raises(InputError, match="float17"):
        Ours.BlipForImageTextRetrieval.from_pretrained(tmp_path, dtype="float17")
    # Without a word in the configuration the tensors tell.
    config = json.loads((tmp_path / "config.json").read_text())
    del config["dtype"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert Ours.BlipForImageTextRetrieval.from_pretrained(tmp_path).dtype == stored


def test_configuration_fields_and_constructor_arguments(tmp_path: Path) -> None:
    theirs, _ = pair("BlipForConditionalGeneration")
    theirs.save_pretrained(tmp_path)
    load = Ours.BlipForConditionalGeneration.from_pretrained
    model = load(tmp_path, output_attentions=True, text_config={"label_smoothing": 0.3}, low_cpu_mem_usage=True)
    assert model.config.output_attentions is True
    assert model.text_decoder.label_smoothing == 0.3
    config = Ours.BlipConfig.from_pretrained(tmp_path, label_smoothing=0.2)
    assert load(tmp_path, config=config).config.label_smoothing == 0.2
    assert load(tmp_path, config=tmp_path / "config.json").config == load(tmp_path).config
    assert load(str(tmp_path), device_map="cpu").device.type == "cpu"
    assert load(tmp_path, device_map={"": "cpu"}, attn_implementation="sdpa").device.type == "cpu"
    assert load(tmp_path.parent, subfolder=tmp_path.name).num_parameters() == theirs.num_parameters()
    _, info = load(tmp_path, output_loading_info=True)
    assert info == {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    for options, error in (
        ({"foo": 1}, TypeError),
        ({"attn_implementation": "flash_attention_2"}, InputError),
        ({"quantization_config": {"load_in_8bit": True}}, InputError),
    ):
        with pytest.raises(error):
            load(tmp_path, **options)


def test_the_stored_layer_norm_eps_is_used(tmp_path: Path) -> None:
    theirs, _ = pair("BlipVisionModel")
    theirs.save_pretrained(tmp_path)
    assert Ours.BlipVisionModel.from_pretrained(tmp_path).post_layernorm.eps == theirs.post_layernorm.eps == 1e-5


def test_submodels_load_from_the_full_model(tmp_path: Path) -> None:
    """Difference `submodel-folder`: 5.23 starts such a part from random weights, with a warning."""
    theirs, ours = pair("BlipModel")
    theirs.save_pretrained(tmp_path / "towers")
    close(Ours.BlipVisionModel.from_pretrained(tmp_path / "towers")(pixels()), theirs.vision_model(pixels()))
    close(Ours.BlipTextModel.from_pretrained(tmp_path / "towers")(ids()), theirs.text_model(ids()))
    vqa_model, _ = pair("BlipForQuestionAnswering")
    vqa_model.save_pretrained(tmp_path / "vqa")
    close(Ours.BlipVisionModel.from_pretrained(tmp_path / "vqa")(pixels()), vqa_model.vision_model(pixels()))
    with pytest.raises(CheckpointError, match="BlipTextModel"):
        Ours.BlipTextModel.from_pretrained(tmp_path / "vqa")
    assert ours is not None


def test_missing_and_unknown_weights_are_errors(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Difference `missing-weights`: 5.23 initializes missing weights randomly, drops unknown ones, and logs both."""
    theirs, _ = pair("BlipForImageTextRetrieval")
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        Ours.BlipModel.from_pretrained(tmp_path)
    message = str(caught.value)
    assert "missing (" in message
    assert "unknown (" in message
    assert "contains a BlipForImageTextRetrieval" in message
    assert "allow_missing=True" in message
    with caplog.at_level(logging.WARNING):
        model, info = Ours.BlipModel.from_pretrained(tmp_path, allow_missing=True, output_loading_info=True)
    assert "random" in caplog.text
    assert "logit_scale" in info["missing_keys"]
    assert "text_model.pooler.dense.weight" in info["missing_keys"]
    assert "itm_head.weight" in info["unexpected_keys"]
    close(model.vision_model(pixels()), theirs.vision_model(pixels()))
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_misshapen_weights_are_errors(tmp_path: Path) -> None:
    theirs, _ = pair("BlipForImageTextRetrieval")
    theirs.save_pretrained(tmp_path)
    load = Ours.BlipForImageTextRetrieval.from_pretrained
    with pytest.raises(CheckpointError, match=r"size mismatch for vision_proj\.weight"):
        load(tmp_path, image_text_hidden_size=8)
    model, info = load(tmp_path, image_text_hidden_size=8, ignore_mismatched_sizes=True, output_loading_info=True)
    assert model.vision_proj.weight.shape == (8, 32)
    assert set(info["mismatched_keys"]) == {
        f"{tower}_proj.{kind}" for tower in ("vision", "text") for kind in ("weight", "bias")
    }
    assert info["missing_keys"] == set()
    with pytest.raises(CheckpointError, match="pass allow_missing=True"):
        Ours.BlipModel.from_pretrained(tmp_path, ignore_mismatched_sizes=True)


def test_folders_of_openblip(tmp_path: Path) -> None:
    """What `openblip` itself writes and reads is the same folder; what only its part says is carried along."""
    for name, task in (
        ("BlipForConditionalGeneration", "caption"),
        ("BlipForQuestionAnswering", "vqa"),
        ("BlipForImageTextRetrieval", "retrieval"),
        ("BlipModel", "two_tower"),
        ("BlipTextModel", "text"),
        ("BlipVisionModel", "vision"),
    ):
        _, ours = pair(name)
        ours.save_pretrained(tmp_path / task)
        loaded = load(tmp_path / task, tokenizer=False, published_eps=False)
        assert loaded.config.task == task
        save(loaded, tmp_path / f"{task}-again", prompt="see: " if task == "caption" else None)
        reloaded = getattr(Ours, name).from_pretrained(tmp_path / f"{task}-again")
        close(reloaded(**_inputs(name)), ours(**_inputs(name)))
        reloaded.save_pretrained(tmp_path / f"{task}-third")
        third = load(tmp_path / f"{task}-third", tokenizer=False, published_eps=False)
        assert third.config == load(tmp_path / f"{task}-again", tokenizer=False, published_eps=False).config
        assert task != "caption" or third.prompt == "see: "


def test_old_files(tmp_path: Path) -> None:
    """Pickles of 2022 hold position numbers and the tied copies; ``torch_dtype`` stands in their configuration."""
    theirs, _ = pair("BlipForConditionalGeneration")
    theirs.save_pretrained(tmp_path)
    state = dict(theirs.state_dict()) | {"text_decoder.bert.embeddings.position_ids": torch.arange(40)[None]}
    (tmp_path / "model.safetensors").unlink()
    torch.save(state, tmp_path / "pytorch_model.bin")
    config = json.loads((tmp_path / "config.json").read_text())
    config["torch_dtype"] = config.pop("dtype")
    config["text_config"] |= {"max_length": 20, "num_beams": 1, "is_encoder_decoder": False, "torch_dtype": None}
    config["vision_config"] |= {"num_channels": 3, "dropout": 0.0, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = Ours.BlipForConditionalGeneration.from_pretrained(tmp_path)
    close(model(pixels(), ids()), theirs(pixels(), ids()))


def test_damaged_and_missing_checkpoints(tmp_path: Path) -> None:
    theirs, _ = pair("BlipForConditionalGeneration")
    load = Ours.BlipForConditionalGeneration.from_pretrained
    with pytest.raises(CheckpointError):
        load(tmp_path / "nothing-here")
    with pytest.raises(CheckpointError):
        load(tmp_path)
    theirs.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load(tmp_path)
    weights.unlink()
    with pytest.raises(CheckpointError, match="must have model"):
        load(tmp_path)
    save_file({"other.weight": torch.zeros(1)}, weights)
    with pytest.raises(CheckpointError, match="missing"):
        load(tmp_path)


def test_hub_ids_need_the_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    for options in ({}, {"local_files_only": True}):
        with pytest.raises(DownloadError, match="some-body/some-blip"):
            Ours.BlipForConditionalGeneration.from_pretrained("some-body/some-blip", **options)


def test_processor_files_next_to_the_weights(tmp_path: Path) -> None:
    """One folder for all, written in either order."""
    _, ours = pair("BlipForConditionalGeneration")
    vocabulary = Path(__file__).parents[1] / "golden" / "vocab.txt"
    processor = Ours.BlipProcessor(Ours.BlipImageProcessor(size=32), Ours.BlipTokenizer(vocabulary))
    for writer, second in ((ours, processor), (processor, ours)):
        folder = tmp_path / type(writer).__name__
        writer.save_pretrained(folder)
        second.save_pretrained(folder)
        assert Ours.BlipProcessor.from_pretrained(folder).image_processor.size["height"] == 32
        close(Ours.BlipForConditionalGeneration.from_pretrained(folder)(pixels(), ids()), ours(pixels(), ids()))
        assert not [name for name in os.listdir(folder) if name.startswith(".") or name.endswith(".tmp")]  # noqa: PTH208

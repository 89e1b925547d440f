"""The configuration classes, compared with those of transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from openblip.errors import CheckpointError, ConfigError
from tests.compat.compat_toys import Ours, Theirs, our_config, their_config

NAMES = ("BlipTextConfig", "BlipVisionConfig", "BlipConfig")


def _written(config: Any, folder: Path) -> dict[str, Any]:
    config.save_pretrained(folder)
    values: dict[str, Any] = json.loads((folder / "config.json").read_text())
    values.pop("transformers_version", None)
    return values


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_files_are_equal(name: str, tmp_path: Path) -> None:
    ours, theirs = getattr(Ours, name)(), getattr(Theirs, name)()
    assert _written(ours, tmp_path / "ours") == _written(theirs, tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        assert getattr(Ours, name).from_pretrained(tmp_path / folder) == ours
        assert getattr(Theirs, name).from_pretrained(tmp_path / folder).to_diff_dict() == theirs.to_diff_dict()
    values = theirs.to_dict()
    for field in getattr(Ours, name).fields:
        if field not in ("text_config", "vision_config"):
            assert getattr(ours, field) == values[field]


def test_changed_and_unknown_values_are_preserved(tmp_path: Path) -> None:
    values = their_config().to_dict() | {"colour": "blue", "torch_dtype": "float16", "max_length": 30}
    ours, theirs = Ours.BlipConfig(**values), Theirs.BlipConfig(**values)
    assert _written(ours, tmp_path / "ours") == _written(theirs, tmp_path / "theirs")
    assert ours.colour == "blue"
    assert ours.dtype == ours.torch_dtype == torch.float16
    assert not hasattr(ours, "max_length")  # settings of generate in a configuration have been inert since 5.0
    assert ours != Ours.BlipConfig()


@pytest.mark.parametrize("library", [Theirs, Ours], ids=["transformers", "ours"])
def test_the_implementation_of_attention_is_a_property_of_configs(library: Any, tmp_path: Path) -> None:
    """`None` without a choice, "eager" in a model, never saved; a choice is passed on to the subconfigurations."""
    parts = {name: {"num_hidden_layers": 1, "hidden_size": 24} for name in ("text_config", "vision_config")}

    def read(config: Any) -> list[str | None]:
        return [each._attn_implementation for each in (config, config.text_config, config.vision_config)]

    config = library.BlipConfig(**parts)
    assert read(config) == [None] * 3
    model = library.BlipModel(config)
    assert read(model.config) == ["eager"] * 3
    model.set_attn_implementation("eager")
    model.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()
    config = library.BlipConfig(**parts, attn_implementation="eager")
    assert read(config) == ["eager"] * 3
    assert config == library.BlipConfig(**parts)
    assert read(library.BlipConfig.from_pretrained(tmp_path, attn_implementation="eager")) == ["eager"] * 3
    assert read(library.BlipModel.from_pretrained(tmp_path, attn_implementation={"text_config": "eager"}).config) == (
        ["eager"] * 3
    )


def test_subconfigs_as_objects_dictionaries_or_none() -> None:
    text, vision = Ours.BlipTextConfig(hidden_size=48), Ours.BlipVisionConfig(hidden_size=96)
    config = Ours.BlipConfig(text_config=text, vision_config=vision)
    assert config.text_config is text
    assert text.encoder_hidden_size == 96
    other_config = Ours.BlipConfig.from_text_vision_configs(text, vision, projection_dim=7)
    assert other_config.text_config.hidden_size == 48
    assert other_config.vision_config.hidden_size == 96
    assert other_config.projection_dim == 7
    assert other_config.text_config is not text
    assert Ours.BlipConfig(text_config={"hidden_size": 24}).text_config.hidden_size == 24
    assert Ours.BlipConfig({"hidden_size": 24}, None, 9).projection_dim == 9  # places, as 4.x had them
    assert Ours.BlipTextConfig(100, 24).vocab_size == 100
    with pytest.raises(TypeError, match="text_config"):
        Ours.BlipConfig(text_config=vision)
    with pytest.raises(TypeError, match="twice"):
        Ours.BlipTextConfig(100, vocab_size=100)


def test_a_subconfig_loads_from_the_full_config(tmp_path: Path) -> None:
    their_config().save_pretrained(tmp_path)
    assert Ours.BlipTextConfig.from_pretrained(tmp_path).vocab_size == 60
    assert Ours.BlipVisionConfig.from_pretrained(tmp_path / "config.json").image_size == 32
    config, unused = Ours.BlipConfig.from_pretrained(
        tmp_path, label_smoothing=0.1, text_config={"hidden_size": 8}, foo=3, return_unused_kwargs=True
    )
    assert (config.label_smoothing, config.text_config.hidden_size, unused) == (0.1, 8, {"foo": 3})
    assert config.text_config.vocab_size == 60


def test_foreign_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Ours.BlipConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(CheckpointError, match="bert"):
        Ours.BlipConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "openblip"}')
    with pytest.raises(CheckpointError, match=r"openblip\.load"):
        Ours.BlipConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="JSON"):
        Ours.BlipConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("vision_config", {"image_size": [32, 32]}),
        ("vision_config", {"hidden_act": "swiglu"}),
        ("vision_config", {"num_attention_heads": 5}),
        ("text_config", {"num_attention_heads": 7}),
        ("text_config", {"tie_word_embeddings": False}),
    ],
)
def test_invalid_models_are_refused(part: str, change: dict[str, Any]) -> None:
    config = our_config(their_config())
    getattr(config, part).update(change)
    with pytest.raises(ConfigError):
        Ours.BlipForConditionalGeneration(config)

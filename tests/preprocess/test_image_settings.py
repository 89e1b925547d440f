"""Image settings from and to the hub's files, as transformers 4 and 5 write and read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, BlipProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from openblip.errors import ConfigError
from openblip.preprocess.image import resize, to_tensor
from openblip.preprocess.settings import CLIP_MEAN, CLIP_STD, ImageSettings

# As the hub has it for Salesforce/blip-vqa-base and its kin.
HUB: dict[str, Any] = {
    "do_normalize": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "BlipImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "processor_class": "BlipProcessor",
    "size": {"height": 480, "width": 480},
}


def test_the_hubs_file() -> None:
    assert ImageSettings.from_processor_config(HUB) == ImageSettings(480, CLIP_MEAN, CLIP_STD)
    assert ImageSettings.from_processor_config({**HUB, "size": 384}) == ImageSettings()
    assert ImageSettings.from_processor_config({"image_processor": HUB, "processor_class": "BlipProcessor"}).size == 480
    assert ImageSettings.from_processor_config({}) == ImageSettings()
    nothing: dict[str, Any] = dict.fromkeys(HUB)
    assert ImageSettings.from_processor_config({**nothing, "do_resize": True}) == ImageSettings()


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"do_normalize": False},
        {"do_rescale": False},
        {"do_rescale": False, "do_normalize": False},
        {"rescale_factor": 1 / 127.5},
        {"image_mean": [0.5, 0.25, 0.125], "image_std": [0.5, 0.3, 0.2]},
        {"image_mean": 0.5, "image_std": 0.5},
        {"resample": 3, "size": 32},
    ],
)
def test_unusual_settings_mean_the_same_as_in_transformers(changed: dict[str, Any]) -> None:
    config = {**HUB, "size": {"height": 32, "width": 32}, **changed}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    ours = ImageSettings.from_processor_config(config)
    actual = to_tensor(resize(picture, ours.size)[None], ours)
    theirs = BlipImageProcessorPil(**_as_lists(config))
    expected = theirs(picture, return_tensors="pt")["pixel_values"].float()
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


def _as_lists(config: dict[str, Any]) -> dict[str, Any]:
    """transformers' PIL path wants a list where it accepts a number elsewhere."""
    return {k: [v] * 3 if k in ("image_mean", "image_std") and isinstance(v, float) else v for k, v in config.items()}


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"resample": 2}, "resample must be 3 .bicubic., got 2"),
        ({"do_resize": False}, "do_resize"),
        ({"do_center_crop": True}, "do_center_crop"),
        ({"do_pad": True}, "do_pad"),
        ({"size": {"height": 384, "width": 512}}, "equal height and width"),
        ({"size": {"shortest_edge": 384}}, "equal height and width"),
        ({"size": "384"}, "equal height and width"),
        ({"size": 0}, "at least 1 pixel, got 0"),
        ({"image_mean": [0.5, 0.5]}, "image_mean"),
        ({"image_std": "none"}, "image_std"),
        ({"image_std": [0.5, 0.0, 0.5]}, "positive"),
        ({"image_mean": [0.5, float("nan"), 0.5]}, "finite"),
        ({"rescale_factor": 0}, "rescale_factor"),
    ],
)
def test_what_this_transform_does_not_do_is_refused(changed: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        ImageSettings.from_processor_config({**HUB, **changed})


def test_transformers_reads_what_we_write(tmp_path: Path) -> None:
    ours = ImageSettings(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(ours.to_processor_config()))
    assert ImageSettings.from_processor_config(json.loads((tmp_path / "preprocessor_config.json").read_text())) == ours
    theirs = AutoImageProcessor.from_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    expected = theirs(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(to_tensor(resize(picture, 64)[None], ours), expected, atol=1e-6, rtol=0)


def test_we_read_what_transformers_writes(tmp_path: Path, golden: Path) -> None:
    from transformers import BertTokenizer

    ours = ImageSettings(64, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    config = ours.to_processor_config()
    image = BlipImageProcessorPil(size=config["size"], image_mean=config["image_mean"], image_std=config["image_std"])
    image.save_pretrained(tmp_path / "image")
    written = json.loads((tmp_path / "image" / "preprocessor_config.json").read_text())
    assert ImageSettings.from_processor_config(written) == ours
    full = BlipProcessor(image, BertTokenizer(str(golden / "vocab.txt")))  # type: ignore[no-untyped-call]
    full.save_pretrained(tmp_path / "full")
    written = json.loads((tmp_path / "full" / "processor_config.json").read_text())
    assert "image_processor" in written
    assert ImageSettings.from_processor_config(written) == ours

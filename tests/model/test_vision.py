"""The image encoder against PyTorch's own layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.errors import InputError
from openblip.model.config import VisionConfig
from openblip.model.layers import Trace, drop_path
from openblip.model.vision import Block, VisionTransformer, resize_positions

TOY = VisionConfig(image_size=32, patch_size=8, width=24, depth=3, heads=4, mlp_width=40)


def loud(module: nn.Module) -> nn.Module:
    """Weights drawn wide, so that a mistake shows."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return module.eval()


def test_a_block_is_pytorch_s_pre_norm_layer() -> None:
    ours = loud(Block(TOY, 0.0))
    theirs = nn.TransformerEncoderLayer(
        24, 4, 40, dropout=0.0, activation="gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).eval()
    names = {"attn.qkv.": "self_attn.in_proj_", "attn.proj.": "self_attn.out_proj.",
             "mlp.fc1.": "linear1.", "mlp.fc2.": "linear2."}  # fmt: skip
    weights = ours.state_dict()
    for mine, reference in names.items():
        weights = {name.replace(mine, reference): tensor for name, tensor in weights.items()}
    theirs.load_state_dict(weights)
    x = torch.randn(2, 10, 24)
    torch.testing.assert_close(ours(x), theirs(x))


def test_the_whole_encoder_recomputed() -> None:
    model = loud(VisionTransformer(TOY))
    assert isinstance(model, VisionTransformer)
    pixels = torch.randn(2, 3, 32, 32)
    patches = F.unfold(pixels, 8, stride=8).transpose(1, 2)  # (B, 16, 192)
    tokens = F.linear(patches, model.patch_embed.weight.flatten(1), model.patch_embed.bias)
    x = torch.cat([model.cls_token.expand(2, -1, -1), tokens], 1) + model.pos_embed
    for block in model.blocks:
        x = block(x)
    torch.testing.assert_close(model(pixels), F.layer_norm(x, (24,), model.norm.weight, model.norm.bias, 1e-6))


def test_a_trace_records_without_changing_the_result() -> None:
    model = loud(VisionTransformer(TOY))
    pixels = torch.randn(2, 3, 32, 32)
    trace = Trace(attention=True)
    torch.testing.assert_close(model(pixels, trace=trace), model(pixels))
    assert [h.shape for h in trace.hidden] == [(2, 17, 24)] * 4
    assert [w.shape for w in trace.self_weights] == [(2, 4, 17, 17)] * 3
    torch.testing.assert_close(trace.self_weights[0].sum(-1), torch.ones(2, 4, 17))
    assert trace.self_weights[0].requires_grad  # Grad-CAM differentiates by them


def test_another_size_needs_to_be_asked_for() -> None:
    model = VisionTransformer(TOY)
    with pytest.raises(InputError, match="32 x 32 pixels, got 48 x 40"):
        model(torch.randn(1, 3, 48, 40))
    assert model(torch.randn(1, 3, 48, 40), any_size=True).shape == (1, 6 * 5 + 1, 24)


def test_positions_keep_the_class_token_and_the_stored_grid() -> None:
    stored = torch.randn(1, 17, 24)
    assert resize_positions(stored, 4, 4) is stored
    resized = resize_positions(stored, 6, 3)
    assert resized.shape == (1, 19, 24)
    torch.testing.assert_close(resized[:, 0], stored[:, 0])
    with pytest.raises(InputError, match="square"):
        resize_positions(torch.randn(1, 16, 24), 4, 4)


def test_drop_path_drops_whole_rows_and_keeps_the_mean() -> None:
    x = torch.ones(4000, 3, 2)
    dropped = drop_path(x, 0.25, training=True)
    rows = dropped.flatten(1)
    torch.testing.assert_close(torch.unique(rows), torch.tensor([0, 1 / 0.75]))
    assert rows.eq(rows[:, :1]).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.05)
    assert drop_path(x, 0.25, training=False) is x


def test_drop_path_grows_with_depth() -> None:
    model = VisionTransformer(VisionConfig(image_size=32, width=24, depth=5, heads=4, mlp_width=40, drop_path=0.2))
    rates: list[float] = [block.path_rate for block in model.blocks if isinstance(block, Block)]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


def test_fresh_weights_follow_the_published_initialisation() -> None:
    model = VisionTransformer(VisionConfig(image_size=32, width=96, depth=2, heads=4, mlp_width=384))
    qkv: Tensor = model.get_parameter("blocks.0.attn.qkv.weight")
    assert qkv.std().item() == pytest.approx(0.02, rel=0.1)
    assert model.get_parameter("blocks.0.attn.qkv.bias").abs().max() == 0
    assert model.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)

"""Packed weights never outlive what they were made of: a change between two `generate` calls takes effect."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from openblip import BlipConfig, BlipForConditionalGeneration
from openblip.model import packing
from openblip.model.packing import Packing, apply_linear, packing_of

PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
OPTIONS: dict[str, Any] = {
    "num_beams": 3, "max_new_tokens": 5, "min_new_tokens": 5, "return_dict_in_generate": True, "output_logits": True,
}  # fmt: skip


@pytest.fixture(autouse=True)
def always_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pack weights of any size, for any number of rows."""
    monkeypatch.setattr(packing, "_smallest", lambda dtype: 1)
    monkeypatch.setattr(packing, "_fewest_rows", lambda: 1)
    monkeypatch.setattr(packing, "_STRIDE", 5)


@pytest.fixture
def model() -> BlipForConditionalGeneration:
    text = {
        "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "encoder_hidden_size": 32, "max_position_embeddings": 16, "bos_token_id": 58, "sep_token_id": 59,
        "eos_token_id": 59, "pad_token_id": 0, "initializer_range": 0.3,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32,
        "patch_size": 16,
    }  # fmt: skip
    torch.manual_seed(0)
    return BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision)).eval()


def logits(model: BlipForConditionalGeneration) -> Tensor:
    return torch.stack(list(model.generate(PIXELS, **OPTIONS).logits))  # type: ignore[union-attr]


def dense(model: Any) -> Any:
    return model.text_decoder.bert.encoder.layer[1].intermediate.dense


def write_in_place(model: Any) -> None:
    with torch.no_grad():
        dense(model).weight.mul_(-1)


def write_data(model: Any) -> None:
    dense(model).weight.data.mul_(-1)


def write_a_row_of_data(model: Any) -> None:
    dense(model).weight.data[7] *= -9


def write_a_column_of_data(model: Any) -> None:
    dense(model).weight.data[:, 3] *= -9


def assign_data(model: Any) -> None:
    dense(model).weight.data = -dense(model).weight.data


def merge_as_peft(model: Any) -> None:
    dense(model).weight.data += torch.arange(-24.0, 24.0)[:, None] @ torch.arange(32.0)[None] / 99


def replace_parameter(model: Any) -> None:
    dense(model).weight = nn.Parameter(-dense(model).weight.detach())


def replace_module(model: Any) -> None:
    torch.manual_seed(1)
    model.text_decoder.bert.encoder.layer[1].intermediate.dense = nn.Linear(32, 48)


def replace_forward(model: Any) -> None:
    layer = dense(model)
    layer.forward = lambda x: -nn.functional.linear(x, layer.weight)


def add_hook(model: Any) -> None:
    dense(model).register_forward_hook(lambda _module, _inputs, output: -output)


def add_pre_hook(model: Any) -> None:
    dense(model).register_forward_pre_hook(lambda _module, inputs: (-inputs[0],))


def add_adapter(model: Any) -> None:
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(2)
    config = peft.LoraConfig(target_modules=["intermediate.dense"], init_lora_weights=False)
    peft.get_peft_model(model, config).eval()


def merge_adapter(model: Any) -> None:
    peft: Any = pytest.importorskip("peft")
    torch.manual_seed(2)
    adapted = peft.get_peft_model(
        model, peft.LoraConfig(target_modules=["intermediate.dense"], init_lora_weights=False)
    ).eval()
    adapted.merge_and_unload()


def parametrize(model: Any) -> None:
    torch.nn.utils.parametrizations.weight_norm(dense(model))
    with torch.no_grad():
        dense(model).parametrizations.weight.original0.mul_(-1)


def load_state(model: Any) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    name = "text_decoder.bert.encoder.layer.1.intermediate.dense.weight"
    model.load_state_dict(state | {name: -state[name]})


def convert(model: Any) -> None:
    model.to(torch.bfloat16).to(torch.float32)


def train_a_step(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ids = torch.tensor([[58, 5, 6, 59], [58, 7, 8, 59]])
    model.train()
    model(pixel_values=PIXELS, input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    model.eval()


CHANGES = [
    write_in_place, write_data, write_a_row_of_data, write_a_column_of_data, assign_data, merge_as_peft,
    replace_parameter, replace_module, replace_forward, add_hook, add_pre_hook, add_adapter, merge_adapter, parametrize,
    load_state, convert, train_a_step,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_between_two_calls_takes_effect(
    model: BlipForConditionalGeneration, monkeypatch: pytest.MonkeyPatch, change: Callable[[Any], None]
) -> None:
    reference = deepcopy(model)
    before = logits(model)
    assert len(packing_of(model.text_decoder)) > 10
    change(model)
    change(reference)
    after = logits(model)
    monkeypatch.setattr(packing, "_is_useful", lambda weight: False)
    torch.testing.assert_close(after, logits(reference), atol=1e-4, rtol=1e-4)
    assert not packing_of(reference.text_decoder)
    assert (after - before).abs().max() > 1e-3, "the change has no effect"


def test_half_precision_is_packed_in_both_parts(model: BlipForConditionalGeneration) -> None:
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("the processor has no bf16")
    model.to(torch.bfloat16)
    model.generate(PIXELS.bfloat16(), max_new_tokens=3)
    assert len(packing_of(model.vision_model)) == 8
    assert len(packing_of(model.text_decoder)) > 10


def test_autograd_training_and_autocast_use_the_parameters() -> None:
    layer, x, weights = nn.Linear(8, 8), torch.randn(3, 8), Packing()
    with weights.active(layer):
        torch.autograd.backward(apply_linear(layer.eval(), x).sum())
    assert layer.weight.grad is not None
    with torch.no_grad():
        with weights.active(layer):
            apply_linear(layer.train(), x)
        with torch.autocast("cpu"), weights.active(layer):
            assert apply_linear(layer.eval(), x).dtype == torch.bfloat16
        assert len(weights) == 0
        with weights.active(layer):
            torch.testing.assert_close(apply_linear(layer, x), layer(x))
        assert len(weights) == 1
        apply_linear(layer, x)  # outside of the block: nothing is packed
    del layer
    assert len(weights) == 0, "the copy outlives its layer"

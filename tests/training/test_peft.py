"""Adapters in the format of PEFT: ours load in `peft` on the classes of `transformers`, and theirs load here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import openblip
from openblip.checkpoints import read, write
from openblip.checkpoints.adapter import load_adapter, read_adapter
from openblip.model.config import ModelKind
from openblip.preprocess.settings import ImageSettings
from openblip.training.config import LoraSettings
from openblip.training.lora import LoraLinear, add_lora, merge_lora, save_adapter
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

Hub: Any = transformers
CLASSES: dict[ModelKind, str] = {
    "caption": "BlipForConditionalGeneration",
    "vqa": "BlipForQuestionAnswering",
    "retrieval": "BlipForImageTextRetrieval",
}
HEADS: dict[ModelKind, tuple[str, ...]] = {"caption": ("lm_head",), "vqa": (), "retrieval": ("itm_head",)}
IDS = torch.tensor([[598, 20, 30, 3], [598, 40, 21, 3]])


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub folder of each toy model."""
    folder = tmp_path_factory.mktemp("bases")
    for kind in CLASSES:
        write.save(toy_model(kind), folder / kind, tokenizer=toy_tokenizer(), image=ImageSettings(SIZE))
    return folder


def randomize(parameters: dict[str, nn.Parameter]) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def our_logits(model: Any, kind: ModelKind, pixels: Tensor) -> Tensor:
    """Logits of decoder or ITM head."""
    states = model.encode_image(pixels)
    mask = torch.ones_like(IDS)
    if kind == "retrieval":
        return model.match_logits(IDS, mask, states)
    memory = model.encode_question(IDS, mask, states) if kind == "vqa" else states
    return model.logits(IDS, None, memory)


def hub_logits(model: Any, kind: ModelKind, pixels: Tensor) -> Tensor:
    """The same logits by the class of `transformers`."""
    mask = torch.ones_like(IDS)
    if kind == "retrieval":
        return model(input_ids=IDS, pixel_values=pixels, attention_mask=mask).itm_score
    states = model.vision_model(pixels).last_hidden_state
    if kind == "vqa":
        states = model.text_encoder(input_ids=IDS, attention_mask=mask, encoder_hidden_states=states).last_hidden_state
    return model.text_decoder(input_ids=IDS, encoder_hidden_states=states, is_decoder=True).logits


@pytest.mark.parametrize("kind", CLASSES)
@torch.no_grad()
def test_peft_loads_our_adapter(kind: ModelKind, bases: Path, tmp_path: Path) -> None:
    settings = LoraSettings(r=2, alpha=3.0, modules_to_save=HEADS[kind])
    model = read.load(bases / kind).model
    add_lora(model, settings)
    randomize({name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad})
    save_adapter(model, tmp_path / "adapter", settings, base=str(bases / kind))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    expected = our_logits(model.eval(), kind, pixels)
    base = getattr(Hub, CLASSES[kind]).from_pretrained(bases / kind).eval()
    assert not torch.allclose(hub_logits(base, kind, pixels), expected, atol=1e-2)
    adapted = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(hub_logits(adapted.base_model.model, kind, pixels), expected, atol=1e-4, rtol=1e-4)
    assert sum(isinstance(module, LoraLinear) for module in model.modules()) == sum(
        hasattr(module, "lora_A") for module in adapted.modules()
    )


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("rslora", [False, True])
@torch.no_grad()
def test_we_load_an_adapter_of_peft(kind: ModelKind, rslora: bool, bases: Path, tmp_path: Path) -> None:
    base = getattr(Hub, CLASSES[kind]).from_pretrained(bases / kind).eval()
    config = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=rslora,
        target_modules=["query", "qkv", "projection"],
        rank_pattern={"qkv": 2},
        alpha_pattern={"qkv": 5},
        modules_to_save=["itm_head"] if kind == "retrieval" else None,
    )
    adapted = peft.get_peft_model(base, config).eval()
    randomize({name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad})
    adapted.save_pretrained(str(tmp_path / "adapter"))
    pixels = torch.randn(2, 3, SIZE, SIZE)
    expected = hub_logits(adapted.base_model.model, kind, pixels)
    model = read.load(bases / kind).model
    load_adapter(model, tmp_path / "adapter")
    torch.testing.assert_close(our_logits(model, kind, pixels), expected, atol=1e-4, rtol=1e-4)


def test_load_accepts_the_folder_of_an_adapter(bases: Path, tmp_path: Path) -> None:
    """The base is found by the adapter's own record, and the temperature comes back."""
    settings = LoraSettings(r=2)
    model: Any = read.load(bases / "retrieval").model
    add_lora(model, settings)
    del model.temperature
    model.temperature = nn.Parameter(torch.tensor(0.25))
    randomize({name: parameter for name, parameter in model.named_parameters() if ".lora_b" in name})
    save_adapter(model, tmp_path / "adapter", settings, base=str(bases / "retrieval"))
    loaded = read.load(tmp_path / "adapter")
    assert float(loaded.model.state_dict()["temperature"]) == 0.25
    merged = merge_lora(model).state_dict()
    assert all(torch.equal(tensor, merged[name]) for name, tensor in loaded.model.state_dict().items())
    assert read_adapter(tmp_path / "adapter").base == str(bases / "retrieval")
    image = toy_image(0)
    match = openblip.load(str(tmp_path / "adapter")).match(image, "a dog")
    base_match = openblip.load(str(bases / "retrieval")).match(image, "a dog")
    assert match.probability != base_match.probability

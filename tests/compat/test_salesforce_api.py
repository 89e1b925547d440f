"""The original repository's API gives what the original recorded: losses, captions, scores, names."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import openblip
from openblip.compat import salesforce_api as blip
from openblip.errors import InputError
from tests.checkpoints.checkpoint_toys import recorded
from tests.conftest import GOLDEN

pytestmark = pytest.mark.usefixtures("one_thread")


def golden(name: str, kind: Any, **options: Any) -> tuple[Any, dict[str, Tensor], dict[str, Any]]:
    """A model with a recorded checkpoint, the recorded tensors, and the recorded document."""
    document = json.loads((GOLDEN / f"{name}.json").read_text())
    heads = document["med"]["num_attention_heads"]
    config = {"text": {"heads": heads}, "vision": {"heads": document["vit"]["heads"]}}
    facade = openblip.load(GOLDEN / f"{name}.weights.safetensors", config=config, tokenizer=GOLDEN / "vocab.txt")
    return kind(facade.pipeline(facade.tasks[0]).model, **options), recorded(name), document


def test_captioner() -> None:
    model, io, facts = golden("caption", blip.BLIP_Decoder)
    assert nn.Module in type(model).__mro__
    assert model.training
    assert (model.prompt, model.prompt_length) == (facts["prompt"], facts["prompt_length"])
    loss = model.eval()(io["pixel_values"], facts["captions"])
    assert float(loss) == pytest.approx(facts["loss"], rel=1e-5)
    model.train()(io["pixel_values"], facts["captions"]).backward()
    assert model.visual_encoder.blocks[0].attn.qkv.weight.grad is not None
    call = facts["generation"][1]
    options = {name: call[name] for name in ("num_beams", "max_length", "min_length", "repetition_penalty")}
    captions = model.generate(io["pixel_values"], sample=False, **options)
    assert captions[:2] == call["texts"][:2]
    assert model.training
    assert len(model.generate(io["pixel_values"], sample=True, top_p=0.9, max_length=20, min_length=5)) == len(captions)
    with pytest.raises(InputError, match=r"\(B, 3, 64, 64\)"):
        model.generate(torch.zeros(1, 3, 32, 32))


def test_answerer() -> None:
    model, io, facts = golden("vqa", blip.BLIP_VQA)
    model.eval()
    images, questions = io["pixel_values"], facts["questions"]
    loss = model(images, questions, facts["answers"], facts["n"], torch.tensor(facts["weights"]))
    assert float(loss) == pytest.approx(facts["loss"], rel=1e-5)
    rank = facts["rank"]
    best = model(images, questions, rank["candidates"], train=False, inference="rank", k_test=rank["k"])
    assert [rank["candidates"][i] for i in best.tolist()] == rank["answers"]
    assert model(images, questions, train=False, inference="generate")[1] == facts["generate"]["texts"][1]
    with pytest.raises(InputError, match="answer, n and weights"):
        model(images, questions)


def test_matcher() -> None:
    model, io, facts = golden("retrieval", blip.BLIP_ITM)
    model.eval()
    images, texts = io["pixel_values"], facts["texts"]
    close: dict[str, Any] = {"atol": 1e-4, "rtol": 0}
    with torch.no_grad():
        torch.testing.assert_close(model(images, texts, match_head="itc"), io["itc_sim"], **close)
        pairs = model(images, facts["itm_cls_pair_texts"], match_head="itm")
    torch.testing.assert_close(pairs, io["itm_logits_cls_pairs"], **close)
    with pytest.raises(InputError, match="match_head"):
        model(images, texts, match_head="both")


def test_comparer() -> None:
    model, io, facts = golden("nlvr", blip.BLIP_NLVR)
    model.eval()
    images = io["pixel_values"]
    targets = torch.tensor(facts["targets"])
    loss = model(images, facts["texts"], targets)
    assert float(loss) == pytest.approx(facts["loss"], rel=1e-5)
    logits = model(images, facts["texts"], targets, train=False)
    assert float(nn.functional.cross_entropy(logits, targets)) == pytest.approx(facts["loss"], rel=1e-5)


def test_pretrainer() -> None:
    facts = json.loads((GOLDEN / "pretrain.json").read_text())
    options = {"queue_size": facts["queue_size"], "momentum": facts["momentum"]}
    model, io, _ = golden("pretrain", blip.BLIP_Pretrain, **options)
    weights = load_file(GOLDEN / "pretrain.weights.safetensors")
    model.prepare_training()
    assert not any(model.load_state_dict(weights))
    for module in model.modules():  # the recorded step has no dropout
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    ita, _, lm = model(io["pixel_values"], facts["texts"], facts["alpha"])
    assert float(ita) == pytest.approx(facts["loss_ita"], rel=1e-4)
    assert float(lm) == pytest.approx(facts["loss_lm"], rel=1e-4)
    state = model.state_dict()
    assert int(state["queue_ptr"]) == facts["ptr_after"]
    assert {name for name in weights if "position_ids" not in name} == set(state)


def test_retrieval() -> None:
    model, io, facts = golden("retrieval", blip.BLIP_Retrieval, queue_size=24)
    images, texts = io["pixel_values"], facts["texts"][::2]
    losses = model.eval()(images, texts, 0.4, torch.arange(len(images)))
    assert all(torch.isfinite(loss) for loss in losses)
    assert model.temp.requires_grad
    assert "image_queue" in model.state_dict()


def test_features() -> None:
    model, io, _ = golden("pretrain", blip.BLIP_Base)
    model.eval()
    images = io["pixel_values"]
    image, text, both = (model(images, ["a man"] * len(images), mode=mode) for mode in ("image", "text", "multimodal"))
    assert image.shape[0] == text.shape[0] == both.shape[0] == len(images)
    assert text.shape == both.shape
    assert not torch.allclose(text, both)
    with pytest.raises(InputError, match="mode"):
        model(images, "a", mode="video")


def test_names_of_the_state(tmp_path: Path) -> None:
    model, io, facts = golden("caption", blip.BLIP_Decoder)
    weights = load_file(GOLDEN / "caption.weights.safetensors")
    assert {name for name in weights if "position_ids" not in name} == set(model.state_dict())
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert not any(model.load_checkpoint(tmp_path / "model.pth"))
    assert float(model.eval()(io["pixel_values"], facts["captions"])) == pytest.approx(facts["loss"], rel=1e-5)


def test_scripts_that_vendored_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As kohya-ss/sd-scripts and stable-diffusion-webui create and call the captioner."""
    monkeypatch.setattr("openblip.compat.salesforce_api.models.hub.bert_vocabulary", lambda: GOLDEN / "vocab.txt")
    med = {"vocab_size": 598, "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    (tmp_path / "med_config.json").write_text(json.dumps({**med, "intermediate_size": 64}))
    torch.manual_seed(0)
    model = blip.blip_decoder(
        pretrained="", image_size=32, vit="base", vit_grad_ckpt=True, med_config=str(tmp_path / "med_config.json")
    )
    model = model.eval().to("cpu")
    with torch.no_grad():
        captions = model.generate(torch.randn(2, 3, 32, 32), sample=False, num_beams=1, max_length=12, min_length=5)
    assert len(captions) == 2
    with pytest.raises(TypeError, match="colour"):
        blip.blip_decoder(colour="red")
    with pytest.raises(InputError, match="vit must be"):
        blip.blip_decoder(vit="huge")
    with pytest.raises(InputError, match="med_config"):
        blip.blip_decoder(med_config=str(tmp_path / "none.json"))
    assert blip.init_tokenizer().enc_token_id == 599


# The calls of programs that vendored the repository, in their order.


def caption_a_training_set(weights: str, folder: Path, images: Tensor) -> list[str]:
    """As kohya-ss/sd-scripts: a batch at a time, `med_config` next to the script, a beam search or samples."""
    (folder / "med_config.json").write_text(json.dumps({"num_attention_heads": 4}))
    model = blip.blip_decoder(pretrained=weights, image_size=64, vit="base", med_config=str(folder / "med_config.json"))
    model.eval()
    model = model.to("cpu")
    with torch.no_grad():
        captions = model.generate(torch.stack(list(images)), sample=False, num_beams=3, max_length=20, min_length=5)
        samples = model.generate(torch.stack(list(images)), sample=True, top_p=0.9, max_length=20, min_length=5)
    assert len(samples) == len(captions)
    return list(captions)


def interrogate_in_a_web_interface(weights: str, folder: Path, images: Tensor) -> list[str]:
    """As stable-diffusion-webui: one image, in the model's type, and the model in memory only while it is used."""
    model = blip.blip_decoder(
        pretrained=weights, image_size=64, vit="base", med_config=str(folder / "configs" / "med_config.json")
    )
    model.eval()
    captions = []
    for image in images:
        model = model.to(torch.device("cpu"))
        dtype = next(model.parameters()).dtype
        with torch.no_grad():
            pixels = image.unsqueeze(0).type(dtype).to("cpu")
            captions.append(model.generate(pixels, sample=False, num_beams=3, min_length=5, max_length=20)[0])
    return list(captions)


def interrogate_for_prompts(weights: str, folder: Path, images: Tensor) -> list[str]:
    """As clip-interrogator up to 0.4: the folder of `med_config` is found by the file of the function."""
    configs = Path(inspect.getfile(blip.blip_decoder)).parents[1] / "configs"
    model = blip.blip_decoder(
        pretrained=weights, image_size=64, vit="base", med_config=str(configs / "med_config.json")
    )
    model.eval()
    model = model.to("cpu")
    with torch.no_grad():
        captions = [
            model.generate(image[None], sample=False, num_beams=3, max_length=20, min_length=5) for image in images
        ]
    return [texts[0] for texts in captions]


@pytest.mark.parametrize(
    "program",
    [caption_a_training_set, interrogate_in_a_web_interface, interrogate_for_prompts],
    ids=lambda p: p.__name__,
)
def test_programs_that_vendored_the_repository(
    program: Callable[[str, Path, Tensor], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = openblip.load

    def load_toy(source: str, **options: Any) -> openblip.Blip:
        heads = {"text": {"heads": 4}, "vision": {"heads": 4}}  # the checkpoint does not say them
        options["config"] = {**options["config"], **heads}
        return load(source, tokenizer=GOLDEN / "vocab.txt", **options)

    monkeypatch.setattr("openblip.compat.salesforce_api.models.facade.load", load_toy)
    call = json.loads((GOLDEN / "caption.json").read_text())["generation"][1]
    assert (call["num_beams"], call["max_length"], call["min_length"]) == (3, 20, 5)
    images = recorded("caption")["pixel_values"][:2]
    assert program(str(GOLDEN / "caption.pth"), tmp_path, images) == call["texts"][:2]

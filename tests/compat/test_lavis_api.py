"""LAVIS's entry points give what the originals recorded, and what our facade gives for the same weights."""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

import openblip
from openblip.compat import lavis_api as lavis
from openblip.compat.lavis_api import processors
from openblip.compat.lavis_api.models import BaseModel
from openblip.compat.lavis_api.zoo import load_model
from openblip.errors import InputError, UnsupportedTaskError
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from tests.checkpoints.checkpoint_toys import recorded
from tests.conftest import GOLDEN
from tests.toys import toy_image

pytestmark = pytest.mark.usefixtures("one_thread")

Kind = TypeVar("Kind", bound=BaseModel)


def golden(name: str, kind: type[Kind], heads: int = 4) -> tuple[Kind, dict[str, Tensor], dict[str, Any]]:
    """Return a model with a recorded checkpoint, the recorded tensors, and the recorded document."""
    config = {"text": {"heads": heads}, "vision": {"heads": 4}}
    blip = openblip.load(GOLDEN / f"{name}.weights.safetensors", config=config, tokenizer=GOLDEN / "vocab.txt")
    document = json.loads((GOLDEN / f"{name}.json").read_text())
    return kind(blip.pipeline(blip.tasks[0]).model), recorded(name), document


@pytest.mark.parametrize("entry", [1, 4, 6])
def test_captions_equal_recorded_ones(entry: int) -> None:
    """Difference `prompt-removal`: the text of the recorded ids after the prompt, not of what 13 characters leave."""
    model, inputs, recorded = golden("caption", lavis.BlipCaption)
    call = recorded["generation"][entry]
    options = {name: call[name] for name in ("num_beams", "max_length", "min_length", "repetition_penalty")}
    captions = model.generate({"image": inputs["pixel_values"]}, **options)
    assert captions == [model.task_model.tokenizer.decode(ids[4:]) for ids in inputs[call["ids_tensor"]]]
    assert captions[:2] == call["texts"][:2]
    assert captions[3] != call["texts"][3]


def test_captions_of_an_image_differ() -> None:
    """Difference `num-captions`."""
    model, inputs, _ = golden("caption", lavis.BlipCaption)
    images = {"image": inputs["pixel_values"][:2]}
    several = model.generate(images, num_captions=2)
    assert several[::2] == model.generate(images)
    assert len(set(several)) == 4
    sampled = model.generate(images, use_nucleus_sampling=True, num_captions=3)
    assert len(sampled) == 6
    with pytest.raises(InputError, match="max_length must be greater than the prompt's 4 tokens"):
        model.generate(images, max_length=4)


def test_answers_equal_recorded_ones() -> None:
    """Difference `question-padding`: the longest question is answered as recorded, all others as if alone."""
    model, inputs, recorded = golden("vqa", lavis.BlipVQA)
    questions = recorded["questions"]
    answers = model.predict_answers(
        {"image": inputs["pixel_values"], "text_input": questions}, inference_method="generate"
    )
    assert answers[1] == recorded["generate"]["texts"][1]
    for number, question in enumerate(questions):
        sample = {"image": inputs["pixel_values"][number, None], "text_input": question}
        assert model.predict_answers(sample, inference_method="generate") == [answers[number]]


def test_ranked_answers_equal_recorded_ones() -> None:
    model, inputs, recorded = golden("vqa", lavis.BlipVQA)
    ranked = recorded["rank"]
    samples = {"image": inputs["pixel_values"], "text_input": recorded["questions"]}
    answers = model.predict_answers(samples, answer_list=ranked["candidates"], num_ans_candidates=ranked["k"])
    assert answers == ranked["answers"]
    with pytest.raises(InputError, match="answer_list"):
        model.predict_answers(samples)
    with pytest.raises(InputError, match="guess"):
        model.predict_answers(samples, inference_method="guess")


def test_match_scores_equal_recorded_ones() -> None:
    model, inputs, recorded = golden("retrieval", lavis.BlipITM)
    samples = {"image": inputs["pixel_values"], "text_input": recorded["texts"]}
    torch.testing.assert_close(model(samples, match_head="itc"), inputs["itc_sim"], atol=1e-5, rtol=0)
    pairs = {"image": inputs["pixel_values"], "text_input": recorded["texts"][::2]}
    expected = inputs["itm_logits_enc_all_pairs"][range(6), range(0, 12, 2)]
    torch.testing.assert_close(model(pairs), expected, atol=1e-4, rtol=0)
    with pytest.raises(InputError, match="for each of 6 images, got 12"):
        model(samples)


def test_retrieval_scores_equal_recorded_ones() -> None:
    model, inputs, recorded = golden("retrieval", lavis.BlipRetrieval)

    class Loader(list[dict[str, Tensor]]):
        dataset = SimpleNamespace(text=recorded["texts"])

    loader = Loader({"image": pixels} for pixels in inputs["pixel_values"].split(4))  # type: ignore[no-untyped-call]
    for scores, name in zip(
        model.compute_sim_matrix(loader, SimpleNamespace(k_test=recorded["k_test"])),
        ("score_i2t", "score_t2i"),
        strict=True,
    ):
        assert ((scores == -100) == (inputs[name].numpy() == -100)).all()
        np.testing.assert_allclose(scores, inputs[name], atol=1e-4)
    with pytest.raises(InputError, match="k_test"):
        model.compute_sim_matrix(loader, {})


def test_nlvr_logits_equal_recorded_ones() -> None:
    model, inputs, recorded = golden("nlvr", lavis.BlipNLVR)
    left_images, right_images = inputs["pixel_values"].chunk(2)
    samples = {
        "image0": left_images,
        "image1": right_images,
        "text_input": recorded["texts"],
        "label": inputs["targets"],
    }
    outputs = model.predict(samples)
    torch.testing.assert_close(outputs["predictions"], inputs["logits"], atol=1e-4, rtol=0)
    assert outputs["targets"] is inputs["targets"]


def test_heat_maps_equal_recorded_ones() -> None:
    model, inputs, recorded = golden("gradcam", lavis.BlipITM, heads=12)
    pixels = inputs["pixel_values_48"].repeat_interleave(8, 2).repeat_interleave(8, 3)
    tokens = model.tokenizer(recorded["texts"], padding="longest", return_tensors="pt")
    assert torch.equal(tokens["input_ids"], inputs["input_ids"])
    maps, logits = lavis.compute_gradcam(model, pixels, recorded["texts"], tokens, block_num=recorded["block_num"])
    torch.testing.assert_close(logits, inputs["itm_logits"], atol=1e-4, rtol=0)
    for number, heat in enumerate(maps):
        torch.testing.assert_close(heat, inputs[f"gradcam{number}"], atol=1e-6, rtol=1e-4)


def test_features_equal_those_of_the_model() -> None:
    model, inputs, _ = golden("pretrain", lavis.BlipFeatureExtractor)
    network: Any = model.module
    texts = ["a man", "two dogs on the beach", "a cat", "a bus"]
    sample = {"image": inputs["pixel_values"], "text_input": texts}
    image, text = model.extract_features(sample, mode="image"), model.extract_features(sample, mode="text")
    with torch.no_grad():
        states = network.encode_image(inputs["pixel_values"])
        torch.testing.assert_close(image.image_embeds, states)
        assert image.image_embeds_proj is not None
        torch.testing.assert_close(image.image_embeds_proj[:, 0], network.embed_image(states))
        tokens = model.task_model.tokenizer.encode(texts)
        assert text["text_embeds_proj"].shape[:2] == tokens.ids.shape
        torch.testing.assert_close(text["text_embeds_proj"][:, 0], network.embed_text(tokens.ids, tokens.mask))
        both = model(sample)
        ids = model.task_model.tokenizer.encode(texts, "enc").ids
        torch.testing.assert_close(
            both.multimodal_embeds[:, 0], network.text.encode_grounded(ids, tokens.mask, states)[:, 0]
        )
    assert (image.keys(), text.keys()) == (["image_embeds", "image_embeds_proj"], ["text_embeds", "text_embeds_proj"])
    assert both.keys() == ["image_embeds", "multimodal_embeds"]
    with pytest.raises(KeyError):
        both["text_embeds"]
    with pytest.raises(InputError, match="mode"):
        model.extract_features(sample, mode="sound")
    with pytest.raises(InputError, match="text_input"):
        model.extract_features({"image": inputs["pixel_values"]}, mode="text")


def test_predictions_do_not_use_dropout() -> None:
    """Difference `training-mode`."""
    model, inputs, _ = golden("caption", lavis.BlipCaption)
    images = {"image": inputs["pixel_values"]}
    expected = model.generate(images)
    assert model.train() is model
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    assert model.generate(images) == expected
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.to("cpu").device.type == "cpu"
    with pytest.raises(InputError, match=r"\(B, 3, 64, 64\)"):
        model.generate({"image": torch.zeros(1, 3, 32, 32)})


def test_losses_equal_recorded_ones() -> None:
    model, inputs, recorded = golden("caption", lavis.BlipCaption)
    output = model({"image": inputs["pixel_values"], "text_input": recorded["captions"]})
    assert output.keys() == ["loss", "loss_lm"]
    assert float(output["loss"]) == pytest.approx(recorded["loss"], rel=1e-5)
    vqa, inputs, recorded = golden("vqa", lavis.BlipVQA)
    samples = {"image": inputs["pixel_values"], "text_input": recorded["questions"], "answer": recorded["answers"]}
    loss = vqa({**samples, "n_answers": torch.tensor(recorded["n"]), "weight": torch.tensor(recorded["weights"])}).loss
    assert float(loss) == pytest.approx(recorded["loss"], rel=1e-5)
    features, _, _ = golden("pretrain", lavis.BlipFeatureExtractor)
    assert features.eval() is features
    with pytest.raises(UnsupportedTaskError, match="no loss"):
        BaseModel.forward(features)


def test_models_are_modules() -> None:
    model, _, _ = golden("caption", lavis.BlipCaption)
    assert "visual_encoder.blocks.0.attn.qkv.weight" in model.state_dict()
    assert not any(model.load_state_dict(model.state_dict()))
    assert model.visual_encoder is model.module.vision
    assert model.text_decoder is model.module.decoder
    with pytest.raises(AttributeError, match="encoder"):
        _ = model.text_encoder
    assert lavis.registry.get_model_class("blip_caption") is lavis.BlipCaption
    assert lavis.registry.get_model_class("albef") is None
    config = {"vis_processor": {"eval": {"name": "blip_image_eval", "image_size": 32}}, "text_processor": {}}
    images, texts = lavis.load_preprocess(config)
    assert images["eval"](toy_image(1)).shape == (3, 32, 32)
    assert texts["eval"]("A Cat") == "A Cat"


def test_processors() -> None:
    """Difference `random-crops`."""
    picture = toy_image(1)
    plain = lavis.load_processor("blip_image_eval").build(image_size=48)(picture)
    pixels = to_tensor(resize(load_image(picture), 48)[None], ImageSettings(size=48))[0]
    assert torch.equal(plain, pixels)
    train = lavis.load_processor("blip_image_train", {"image_size": 48})
    random.seed(3)
    view, other_view = train(picture), train(picture)
    assert view.shape == other_view.shape == (3, 48, 48)
    assert not torch.equal(view, other_view)
    random.seed(3)
    assert torch.equal(train(picture), view)
    assert (
        lavis.load_processor("blip_caption").build(prompt="a photo of ")("A Dog (brown).") == "a photo of a dog brown"
    )
    assert lavis.load_processor("blip_question")("Where is it?!") == "where is it?"
    with pytest.raises(InputError, match="processor must be one of"):
        lavis.load_processor("blip2_image_eval")
    with pytest.raises(InputError, match="max_scale"):
        lavis.load_processor("blip_image_train").build(max_scale=0.9)


def test_processor_classes() -> None:
    picture = toy_image(1)
    plain = processors.BlipImageEvalProcessor(image_size=48)
    assert torch.equal(plain(picture), lavis.load_processor("blip_image_eval").build(image_size=48)(picture))
    processor = lavis.BlipImageEvalProcessor(48, mean=[0.5] * 3, std=[0.25] * 3)
    usual = ImageSettings()
    back = plain(picture) * torch.tensor(usual.std)[:, None, None] + torch.tensor(usual.mean)[:, None, None]
    torch.testing.assert_close(processor(picture), (back - 0.5) / 0.25)
    random.seed(3)
    view = lavis.BlipImageTrainProcessor(48, min_scale=0.2)(picture)
    random.seed(3)
    assert torch.equal(lavis.BlipImageTrainProcessor.from_config({"image_size": 48, "min_scale": 0.2})(picture), view)
    caption = lavis.BlipCaptionProcessor.from_config({"name": "blip_caption", "prompt": "a ", "max_words": 2})
    assert (caption("Big dogs run."), caption.pre_caption("Big dogs run.")) == ("a big dogs", "big dogs")
    assert lavis.BlipQuestionProcessor(max_words=2)("Where is it?") == "where is"
    assert lavis.BlipQuestionProcessor.from_config().max_words == 50


def test_temperature_and_special_tokens() -> None:
    for name, kind in (("pretrain", lavis.BlipFeatureExtractor), ("retrieval", lavis.BlipRetrieval)):
        model, _, _ = golden(name, kind)
        assert model.temp is model.task_model.module.temperature
        assert model.temp.shape == ()
        ids = model.task_model.tokenizer.encode(["a man"], "enc").ids
        assert model.tokenizer.enc_token_id == int(ids[0, 0])
        assert model.tokenizer.bos_token_id == model.task_model.tokenizer.dec_id
    assert not hasattr(golden("caption", lavis.BlipCaption)[0], "temp")


def _smoothing(length: int, deviation: float = 0.02 * 60) -> NDArray[np.float64]:
    """What a Gaussian, cut at four deviations, makes of each place of a row that is mirrored at its ends."""
    radius = int(4 * deviation + 0.5)
    matrix = np.zeros((length, length))
    for row in range(length):
        for step in range(-radius, radius + 1):
            neighbor = row + step
            neighbor = -1 - neighbor if neighbor < 0 else 2 * length - 1 - neighbor if neighbor >= length else neighbor
            matrix[row, neighbor] += np.exp(-0.5 * (step / deviation) ** 2)
    return matrix / matrix.sum(1, keepdims=True)


def test_heat_maps_are_drawn_over_images() -> None:
    """Difference `heat-map`."""
    generator = np.random.default_rng(0)
    picture, heat = generator.random((40, 60, 3)), generator.random((3, 3)).astype(np.float32)
    original = heat.copy()
    alone = lavis.getAttMap(picture, heat, blur=False, overlap=False)
    large = np.asarray(
        Image.fromarray((heat - heat.min()) / np.ptp(heat)).resize((60, 40), Image.Resampling.BICUBIC)
    ).clip(0, 1)
    np.testing.assert_allclose(alone, large, atol=1e-6)
    smooth = lavis.getAttMap(picture, torch.from_numpy(heat), overlap=False)
    blurred = _smoothing(40) @ large @ _smoothing(60).T
    np.testing.assert_allclose(smooth, (blurred - blurred.min()) / np.ptp(blurred), atol=1e-6)
    drawing = lavis.getAttMap(picture, heat)
    opacity = smooth[..., None] ** 0.7
    colours = (drawing - picture * (1 - opacity)) / np.where(opacity > 0, opacity, 1)
    for position, color in ((smooth.argmin(), (0, 0, 0)), (smooth.argmax(), (0.5, 0, 0))):
        np.testing.assert_allclose(colours.reshape(-1, 3)[position], color, atol=1e-6)
    middle = abs(smooth - 0.5) < 0.1
    np.testing.assert_allclose(colours[middle][:, 1], 1, atol=1e-6)
    assert np.array_equal(heat, original)
    np.testing.assert_array_equal(lavis.getAttMap(picture, np.ones((3, 3))), picture)
    with pytest.raises(InputError, match="attMap"):
        lavis.getAttMap(picture[..., 0], heat)


def test_the_zoo_equals_the_published_table() -> None:
    """Difference `blip-only`."""
    assert dict(lavis.model_zoo) == {
        "blip_caption": ["base_coco", "large_coco"],
        "blip_feature_extractor": ["base"],
        "blip_image_text_matching": ["base", "large"],
        "blip_nlvr": ["nlvr"],
        "blip_pretrain": ["base"],
        "blip_retrieval": ["coco", "flickr"],
        "blip_vqa": ["vqav2", "okvqa", "aokvqa"],
    }
    assert len(lavis.model_zoo) == 12
    with pytest.raises(UnsupportedTaskError, match="blip_classification"):
        load_model("blip_classification")
    with pytest.raises(InputError, match="architecture must be one of"):
        load_model("albef_vqa", "vqav2")
    with pytest.raises(InputError, match="got 'coco'"):
        load_model("blip_caption", "coco")

"""Heat maps, against LAVIS's recorded ones and Grad-CAM on the models of transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

import openblip
from openblip import Blip, InputError, UnsupportedTaskError
from openblip.engine.base import BaseEngine
from openblip.preprocess.image import ImageSettings, load_image, resize, to_tensor
from tests.pipelines.pipeline_toys import IMAGES, TEXTS, assert_close, count_images, encode_pixels, load_golden
from tests.toys import SIZE

pytestmark = pytest.mark.usefixtures("one_thread")


def test_heat_equals_the_recorded_one() -> None:
    """Layer 6 of 12, the default."""
    blip, tensors, strings = load_golden("gradcam", heads=12)
    pixels = tensors["pixel_values_48"].repeat_interleave(8, 2).repeat_interleave(8, 3)
    for index, explanation in enumerate(blip.explain(encode_pixels(blip, pixels), strings["texts"])):
        rows = tensors[f"gradcam{index}"]
        assert rows[0].max() > 0.01
        maps = rows[2 : 2 + len(explanation.words)]
        torch.testing.assert_close(torch.tensor(explanation.start), rows[0], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(explanation.overall), rows[1], atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(torch.tensor(explanation.maps), maps, atol=1e-6, rtol=1e-4)
        probability = tensors["itm_logits"].softmax(-1)[index, 1].item()
        assert explanation.probability == pytest.approx(probability, abs=1e-5)
        assert " ".join(explanation.words).replace(" ,", ",") == strings["texts"][index]


def compute_heat(score: Tensor, weights: Tensor) -> np.ndarray:
    """Return heat (T, G, G) of attention weights (1, H, T, N + 1) by LAVIS's formula."""
    (gradient,) = torch.autograd.grad(score, weights, retain_graph=True)
    heat = (weights * gradient.clamp(min=0))[0, :, :, 1:].mean(0)
    return cast(np.ndarray, heat.detach().unflatten(-1, (2, 2)).numpy())  # type: ignore[no-untyped-call]


def load_peer(folder: Path, name: str, index: int) -> tuple[Any, Tensor]:
    """Return a model of transformers, and its states of a toy image, with gradients."""
    import transformers

    model = getattr(transformers, name).from_pretrained(folder).eval()
    pixels = to_tensor(resize(load_image(IMAGES[index]), SIZE)[None], ImageSettings(size=SIZE))
    return model, model.vision_model(pixels).last_hidden_state


@pytest.mark.parametrize("layer", [0, 1])
def test_heat_of_a_match_equals_transformers(folder: Path, blip: Blip, layer: int) -> None:
    peer, states = load_peer(folder / "retrieval", "BlipForImageTextRetrieval", 2)
    pipeline = blip.pipeline("retrieval")
    ids = torch.tensor(pipeline.with_enc(pipeline.tokenize([TEXTS[1]])))
    output = peer.text_encoder(
        input_ids=ids, encoder_hidden_states=states, is_decoder=False, output_attentions=True, return_dict=True
    )
    heat = compute_heat(peer.itm_head(output.last_hidden_state[:, 0])[0, 1], output.cross_attentions[layer])
    explanation = blip.explain(IMAGES[2], TEXTS[1], layer=layer)
    assert heat[0].max() > 0
    assert_close(explanation.start, heat[0])
    assert_close(explanation.overall, heat[1:-1].mean(0))
    assert_close(explanation.probability, blip.match(IMAGES[2], TEXTS[1]).probability)
    pieces = pipeline.model.tokenizer.pieces(ids[0, 1:-1])
    assert len(explanation.words) == len(pieces) - sum(piece.startswith("##") for piece in pieces)
    assert "".join(explanation.words) == "".join(pieces).replace("##", "")


@pytest.mark.parametrize("layer", [0, 1])
def test_heat_of_a_caption_equals_transformers(folder: Path, blip: Blip, layer: int) -> None:
    peer, states = load_peer(folder / "caption", "BlipForConditionalGeneration", 1)
    tokenizer = blip.pipeline("caption").model.tokenizer
    prompt = tokenizer.encode_prompt("a picture of ")
    ids = torch.tensor([[*prompt, *tokenizer.encode_prompt("children play on the street")[1:]]])
    output = peer.text_decoder(input_ids=ids, encoder_hidden_states=states, output_attentions=True, return_dict=True)
    logprobs = output.logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    indices = range(len(prompt) - 1, ids.shape[1] - 1)
    heat = [compute_heat(logprobs[index], output.cross_attentions[layer])[index] for index in indices]
    explanation = blip.explain(IMAGES[1], "Children play on the street.", task="caption", layer=layer)
    assert_close(explanation.overall, np.mean(heat, 0))
    assert_close(explanation.maps[-1], heat[-1])
    assert_close(explanation.probability, logprobs[list(indices)].sum().exp().item())
    assert explanation.start is None


@pytest.mark.parametrize("layer", [0, 1])
def test_heat_of_an_answer_equals_transformers(folder: Path, blip: Blip, layer: int) -> None:
    peer, states = load_peer(folder / "vqa", "BlipForQuestionAnswering", 3)
    pipeline = blip.pipeline("vqa")
    ids = torch.tensor([pipeline.tokenize_question("what is on the table?")])
    answer = torch.tensor(pipeline.tokenize_answers(["a yellow bus"]))
    question = peer.text_encoder(
        input_ids=ids, encoder_hidden_states=states, is_decoder=False, output_attentions=True, return_dict=True
    )
    output = peer.text_decoder(input_ids=answer, encoder_hidden_states=question.last_hidden_state, return_dict=True)
    logprob = output.logits.log_softmax(-1)[0, :-1].gather(1, answer[0, 1:, None]).sum()
    heat = compute_heat(logprob, question.cross_attentions[layer])
    explanation = blip.explain(IMAGES[3], "what is on the table?", task="vqa", answer="a yellow bus", layer=layer)
    assert_close(explanation.start, heat[0])
    assert_close(explanation.overall, heat[1:-1].mean(0))
    assert_close(explanation.probability, logprob.exp().item())
    assert (explanation.text, explanation.answer) == ("what is on the table?", "a yellow bus")


def test_the_default_is_the_model_s_own_caption_or_answer(blip: Blip) -> None:
    assert blip.explain(IMAGES[0], task="caption").text == blip.caption(IMAGES[0]).text
    answer = blip.ask(IMAGES[0], "what is it?")
    explanation = blip.explain(IMAGES[0], "what is it?", task="vqa")
    assert explanation.answer == answer.text
    assert_close(explanation, blip.explain(IMAGES[0], "what is it?", task="vqa", answer=answer.text))


def test_the_pieces_of_a_word_share_a_map(blip: Blip) -> None:
    tokenizer = blip.pipeline("retrieval").model.tokenizer
    words = ("snowman", "dogs", "cats", "bottles")
    word = next(word for word in words if len(tokenizer.pieces(tokenizer.encode(word).ids[0])) > 3)
    assert blip.explain(IMAGES[0], f"a {word}").words == ("a", word)


def test_an_image_is_encoded_once_for_all_its_texts(blip: Blip) -> None:
    with count_images(blip, "retrieval") as counter:
        explanations = blip.explain(IMAGES[0], TEXTS * 5, layer=0)
    assert counter.count == 1
    assert_close(explanations, [blip.explain(IMAGES[0], text, layer=0) for text in TEXTS] * 5)


def test_explanations_need_gradients(folder: Path) -> None:
    quantized = openblip.load(folder, precision="int8", engine="torch")
    with pytest.raises(InputError, match="fp32"):
        quantized.explain(IMAGES[0], "a cat", layer=0)

    class OtherEngine(BaseEngine):
        """An engine without explanations."""

        name = "other"

    other = openblip.load(folder)
    other.pipeline("retrieval").model.engine = cast(Any, OtherEngine(torch.device("cpu"), frozenset()))
    with pytest.raises(InputError, match="engine='torch'"):
        other.explain(IMAGES[0], "a cat")


def test_explanations_work_in_inference_mode_and_leave_no_gradients(blip: Blip) -> None:
    expected = blip.explain(IMAGES[0], "a cat", layer=0)
    with torch.inference_mode():
        assert_close(blip.explain(IMAGES[0], "a cat", layer=0), expected)
    assert all(parameter.grad is None for parameter in blip.pipeline("retrieval").model.module.parameters())


@pytest.mark.parametrize(
    "call",
    [
        lambda blip: blip.explain(IMAGES[0], "a cat", task="dance"),
        lambda blip: blip.explain(IMAGES[0]),
        lambda blip: blip.explain(IMAGES[0], task="vqa"),
        lambda blip: blip.explain(IMAGES[0], "a cat", layer=2),
        lambda blip: blip.explain(IMAGES[0], "a cat", answer="yes"),
        lambda blip: blip.explain(IMAGES[0], "!"),
        lambda blip: blip.explain(IMAGES[0], "!", task="caption"),
        lambda blip: blip.explain(IMAGES[0], "a," * 31, task="caption"),
    ],
)
def test_wrong_arguments_are_named(blip: Blip, call: Callable[[Blip], Any]) -> None:
    with pytest.raises(InputError):
        call(blip)


def test_a_task_without_a_model_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedTaskError):
        openblip.load(folder / "caption").explain(IMAGES[0], "a cat")

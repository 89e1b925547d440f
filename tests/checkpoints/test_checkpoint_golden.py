"""Golden checkpoints, loaded from the original key names, give the states that the original implementations gave."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from openblip.checkpoints.read import load
from openblip.checkpoints.write import save
from openblip.model.answerer import Answerer
from openblip.model.captioner import Captioner
from openblip.model.comparer import Comparer
from openblip.model.grounder import Grounder
from openblip.model.matcher import Matcher
from openblip.model.pretrainer import Pretrainer
from openblip.model.vision import resize_positions
from tests.checkpoints.checkpoint_toys import HEADS, VOCABULARY, golden, recorded
from tests.conftest import GOLDEN

pytestmark = pytest.mark.usefixtures("one_thread", "_no_grad")


@pytest.fixture
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", ["caption.weights.safetensors", "caption.pth"])
def test_caption(file: str) -> None:
    loaded = load(GOLDEN / file, config=HEADS, tokenizer=VOCABULARY)
    model, expected = loaded.model, recorded("caption")
    assert isinstance(model, Captioner)
    assert not model.training
    assert (loaded.config.task, loaded.family, loaded.prompt) == ("caption", "salesforce", "a picture of ")
    text = loaded.config.text
    assert (text.cls_id, text.sep_id, text.dec_id, text.enc_id) == (2, 3, 598, 599)
    image = model.encode_image(expected["pixel_values"])
    close(image, expected["image_embeds"])
    close(model.logits(expected["input_ids"], expected["attention_mask"], image), expected["logits"])


def test_caption_at_another_image_size() -> None:
    loaded = golden("caption", config={"image_size": 96})
    model, expected = loaded.model, recorded("caption")
    assert isinstance(model, Captioner)
    assert loaded.config.vision.image_size == loaded.image.size == 96
    assert any("from 17 to 37 positions" in note for note in loaded.notes)
    close(model.vision.pos_embed, expected["pos_embed_96"])
    close(model.encode_image(expected["pixel_values_96"]), expected["image_embeds_96"])


@pytest.mark.parametrize("case", ["4to6", "6to4", "4to7", "3to8", "4to4"])
def test_position_resizing(case: str) -> None:
    expected = recorded("position")
    grid = int(case[-1])
    close(resize_positions(expected[f"pos_{case}.input"], grid, grid), expected[f"pos_{case}.output"])


def test_answer() -> None:
    loaded = golden("vqa")
    model, expected = loaded.model, recorded("vqa")
    assert isinstance(model, Answerer)
    assert loaded.prompt is None
    image = model.encode_image(expected["pixel_values"])
    close(image, expected["image_embeds"])
    states = model.encode_question(expected["question_ids"], expected["question_mask"], image)
    real = expected["question_mask"].bool()
    close(states[real], expected["question_states"][real])
    times = expected["n"]
    states, mask = states.repeat_interleave(times, 0), expected["question_mask"].repeat_interleave(times, 0)
    close(model.logits(expected["answer_ids"], expected["answer_mask"], states, mask), expected["answer_logits"])


def test_match() -> None:
    loaded = golden("retrieval")
    model, expected = loaded.model, recorded("retrieval")
    assert isinstance(model, Matcher)
    assert (loaded.config.task, loaded.config.embed_width) == ("retrieval", 32)
    assert float(model.temperature) == pytest.approx(0.07)
    image = model.encode_image(expected["pixel_values"])
    close(image, expected["image_embeds"])
    close(model.text.encode(expected["text_ids"], expected["text_mask"])[:, 0], expected["text_hidden"][:, 0])
    image_feat, text_feat = model.embed_image(image), model.embed_text(expected["text_ids"], expected["text_mask"])
    close(image_feat, expected["image_feat"])
    close(text_feat, expected["text_feat"])
    close(image_feat @ text_feat.T, expected["itc_sim"])
    texts = len(expected["text_ids"])
    for index, states in enumerate(image):
        memory = states.expand(texts, -1, -1)
        logits = model.match_logits(expected["text_ids_enc"], expected["text_mask"], memory)
        close(logits, expected["itm_logits_enc_all_pairs"][index])
    pairs = slice(0, None, 2)
    close(
        model.match_logits(expected["text_ids"][pairs], expected["text_mask"][pairs], image),
        expected["itm_logits_cls_pairs"],
    )


def test_match_of_lavis_without_temperature() -> None:
    loaded = golden("gradcam")
    model, expected = loaded.model, recorded("gradcam")
    assert isinstance(model, Matcher)
    assert "not stored, left at its default: temperature" in loaded.notes
    pixels = expected["pixel_values_48"].repeat_interleave(8, 2).repeat_interleave(8, 3)
    image = model.encode_image(pixels)
    ids = expected["input_ids"].clone()
    ids[:, 0] = loaded.config.text.enc_id  # recorded as they came, with [CLS]
    close(model.match_logits(ids, expected["attention_mask"], image), expected["itm_logits"])
    text = model.embed_text(expected["input_ids"], expected["attention_mask"])
    close(model.embed_image(image) @ text.T, expected["itc_sim"])


def test_pretrain() -> None:
    loaded = golden("pretrain")
    model, expected = loaded.model, recorded("pretrain")
    assert isinstance(model, Pretrainer)
    assert isinstance(model.temperature, torch.nn.Parameter)
    image = model.encode_image(expected["pixel_values"])
    logits = model.logits(expected["lm_input_ids"], expected["attention_mask"], image)
    real = expected["attention_mask"][:2].bool()
    close(logits[:2][real], expected["lm_logits_first2"][real])
    # The weights of hard negatives hold the temperature, an online embedding and a momentum embedding.
    momentum = golden("pretrain", training=True).training
    assert {name for name in momentum if name.startswith("queue.")} == {"queue.image", "queue.text", "queue.pointer"}
    assert int(momentum["queue.pointer"]) == 4
    slow = copy.deepcopy(model)
    for name, tensor in slow.state_dict().items():
        if (twin := momentum.get(f"momentum.{name}")) is not None:
            tensor.lerp_(twin, 0.995)  # the step that the original takes before it reads them
    tokens = expected["input_ids"], expected["attention_mask"]
    fast_image, slow_image = model.embed_image(image), slow.embed_image(slow.encode_image(expected["pixel_values"]))
    pairs = {
        "negative_weights_i2t": fast_image @ slow.embed_text(*tokens).T,
        "negative_weights_t2i": model.embed_text(*tokens) @ slow_image.T,
    }
    for name, similarity in pairs.items():
        close(((similarity / model.temperature).softmax(1) + 1e-4).fill_diagonal_(0), expected[name])


def test_compare() -> None:
    loaded = golden("nlvr")
    model, expected = loaded.model, recorded("nlvr")
    assert isinstance(model, Comparer)
    assert loaded.config.text.merge_from == 6
    first, second = model.encode_image(expected["pixel_values"]).chunk(2)
    hidden = model.text.encode_grounded(expected["input_ids"], expected["attention_mask"], (first, second))
    real = expected["attention_mask"].bool()
    close(hidden[real], expected["hidden"][real])
    close(model.logits(expected["input_ids"], expected["attention_mask"], (first, second)), expected["logits"])
    close(
        model.logits(expected["input_ids"], expected["attention_mask"], (second, first)),
        expected["logits_swapped_pair"],
    )


def test_ground() -> None:
    loaded = golden("grounding")
    model, expected = loaded.model, recorded("grounding")
    assert isinstance(model, Grounder)
    assert (loaded.family, loaded.config.box_start_id, loaded.config.box_bins) == ("mmpretrain", 82, 640)
    image = model.encode_image(expected["pixel_values"])
    close(image, expected["image_embeds"])
    real = expected["text_mask"].bool()
    close(model.text.encode(expected["text_ids"], expected["text_mask"])[real], expected["text_states"][real])
    close(model.fuse(expected["text_ids"], expected["text_mask"], image)[real], expected["multimodal_states"][real])
    memory = model.make_memory(expected["text_ids"], expected["text_mask"], image)
    close(model.logits(expected["decoder_input_ids"], memory), expected["decoder_logits"])


@pytest.mark.parametrize("name", ["caption", "vqa", "retrieval", "pretrain", "nlvr", "grounding"])
def test_writing_gives_back_the_original_file(name: str, tmp_path: Path) -> None:
    """Every name, momentum copy, queue, tied tensor and buffer that the original implementation stored, bit for bit."""
    loaded = golden(name, training=True)
    container = "state_dict" if loaded.family == "mmpretrain" else "model"
    written = torch.load(save(loaded, tmp_path / "again.pth", to=loaded.family), weights_only=True)[container]
    original = load_file(GOLDEN / f"{name}.weights.safetensors")
    assert written.keys() == original.keys()
    for key, tensor in original.items():
        assert written[key].dtype == tensor.dtype, key
        assert torch.equal(written[key], tensor), key

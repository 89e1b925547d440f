"""Captions: prompts, probabilities, samples, and options that contradict each other."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from openblip import Blip, InputError
from openblip.decoding import Decoding, generate
from openblip.engine.protocols import Captions
from openblip.model.captioner import Captioner
from tests.pipelines.pipeline_toys import IMAGES, PROMPTS, assert_close, encode_directly

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_text_omits_the_default_prompt_and_includes_the_caller_s(blip: Blip) -> None:
    default, prompted = blip.caption(IMAGES[0]), blip.caption(IMAGES[0], prompt="a picture of ")
    assert prompted.text == f"a picture of {default.text}"
    assert prompted.logprob == default.logprob
    assert blip.caption(IMAGES[0], prompt="").logprob != default.logprob


def test_prompts_of_items_come_before_the_prompt_of_the_pipeline(blip: Blip) -> None:
    pipeline = blip.pipeline("caption", prompt="a cat")
    results = list(pipeline.run([(IMAGES[0], None), (IMAGES[0], "a dog"), (IMAGES[0], "")]))
    assert_close(results, [blip.caption(IMAGES[0], prompt=prompt) for prompt in ("a cat", "a dog", "")])


def test_logprob_is_the_probability_of_the_new_tokens_by_the_network(blip: Blip) -> None:
    model = blip.pipeline("caption").model
    options: dict[str, Any] = {
        "num_beams": 4, "repetition_penalty": 1.7, "no_repeat_ngram_size": 2, "max_new_tokens": 7,
    }  # fmt: skip
    decoding = Decoding(eos_id=model.tokenizer.sep_id, pad_id=model.tokenizer.pad_id, **options)
    states = encode_directly(blip, "caption", 1)
    session = model.engine.require(Captions).prepare_captions(states, decoding.capacity(1))([0])
    start = torch.tensor([[model.tokenizer.dec_id]])
    ids = torch.cat([start, torch.tensor([generate(session, start, decoding)[0][0].ids])], dim=1)
    with torch.no_grad():
        scores = cast(Captioner, model.module).logits(ids, None, states)[0, :-1].log_softmax(-1)
    expected = scores.gather(1, ids[0, 1:, None]).sum().item()
    caption = blip.caption(IMAGES[1], prompt="", **options)
    assert caption.logprob == pytest.approx(expected, abs=1e-4)
    assert caption.score == pytest.approx(scores.gather(1, ids[0, 1:, None]).mean().item(), abs=1e-5)
    assert caption.confidence is None, "the toy has no calibration"
    assert caption.text == model.tokenizer.decode(ids[0])
    assert caption.finished == (ids[0, -1] == model.tokenizer.sep_id)


def test_a_seeded_sample_depends_on_its_image_alone(blip: Blip) -> None:
    options: dict[str, Any] = {"do_sample": True, "temperature": 2.0}
    caption = blip.caption(IMAGES[2], seed=11, **options)
    captions = blip.caption([*IMAGES, IMAGES[2]], seed=11, **options)
    assert_close([captions[2], captions[5]], [caption, caption])
    assert blip.caption(IMAGES[2], seed=12, **options) != caption


def test_the_default_of_num_beams_depends_on_sampling(blip: Blip) -> None:
    assert blip.pipeline("caption").decoding.num_beams == 3
    sampling = blip.pipeline("caption", do_sample=True).decoding
    assert (sampling.num_beams, sampling.top_p, sampling.top_k, sampling.temperature) == (1, 0.9, 0, 1.0)


RANKED_OPTIONS: list[dict[str, Any]] = [
    {"num_beams": 4, "n": 4}, {"num_beams": 5, "n": 5, "max_new_tokens": 4}, {"num_beams": 4, "n": 4, "prompt": ""},
    {"num_beams": 4, "n": 4, "length_penalty": 0.0}, {"num_beams": 4, "n": 4, "length_penalty": 2.0},
    {"num_beams": 4, "n": 4, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
    {"do_sample": True, "seed": 1, "n": 6, "temperature": 2.0}, {"do_sample": True, "seed": 2, "n": 6, "top_k": 5},
    {"num_beams": 4, "n": 4, "trim": True, "max_new_tokens": 4}, {"num_beams": 5, "n": 3, "require": ["cat"]},
]  # fmt: skip


@pytest.mark.parametrize("options", RANKED_OPTIONS, ids=str)
def test_captions_are_ranked_with_the_likeliest_first(
    blip: Blip, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Required words come first, and with `trim` finished captions; equals are ranked by likelihood per length."""
    model = blip.pipeline("caption").model
    bias = cast(Captioner, model.module).lm_head.bias
    ends = torch.zeros_like(bias).index_fill(0, torch.tensor(model.tokenizer.sep_id), 4.0)
    monkeypatch.setattr(bias, "data", bias.data + ends)  # captions of several lengths
    power = options.get("length_penalty", 1.0)
    for best in blip.caption(IMAGES, **options):
        captions = [best, *best.alternatives]
        lengths = [round(caption.logprob / caption.score) for caption in captions]
        costs = [-caption.logprob / length**power for caption, length in zip(captions, lengths, strict=True)]
        unfinished = [options.get("trim", False) and not caption.finished for caption in captions]
        order = [(c.unmet, late, cost) for c, late, cost in zip(captions, unfinished, costs, strict=True)]
        assert order == sorted(order)
        if not {"length_penalty", "trim", "require"} & options.keys():
            scores = [caption.score for caption in captions]
            assert scores == sorted(scores, reverse=True)


def test_alternatives_are_the_other_captions(blip: Blip) -> None:
    best = blip.caption(IMAGES[0], num_beams=4, n=3)
    captions = [best, *best.alternatives]
    assert blip.caption(IMAGES[0], num_beams=4).text in [caption.text for caption in captions]
    assert len({caption.text for caption in captions}) == 3
    assert all(caption.alternatives == () for caption in best.alternatives)


def test_required_words_and_trimming_change_the_choice_but_not_the_number(blip: Blip) -> None:
    plain = blip.caption(IMAGES[0], max_new_tokens=6)
    word = next(word for word in ("cat", "dog", "train", "street") if word not in plain.text)
    required = blip.caption(IMAGES[0], require=[word], n=2, max_new_tokens=6)
    assert len(required.alternatives) == 1
    assert required.unmet == (word not in required.text.split())
    assert len(blip.caption(IMAGES[0], trim=True, n=2, max_new_tokens=6).alternatives) == 1
    forbidden = blip.caption(IMAGES, forbid=[plain.text.split()[-1]], max_new_tokens=6)
    assert all(plain.text.split()[-1] not in caption.text.split() for caption in forbidden)
    assert not blip.caption(IMAGES[0], prompt=f"a {word}", require=[word]).unmet, "the prompt contains it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 0}, "num_beams"), ({"n": 4}, "n must be"), ({"num_beams": 1, "n": 2}, "n must be"),
        ({"top_p": 0.9}, "do_sample"), ({"top_k": 0}, "do_sample"), ({"temperature": 1.0}, "do_sample"),
        ({"seed": 1}, "do_sample"), ({"do_sample": True, "num_beams": 5}, "num_beams"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, "min_new_tokens"), ({"repetition_penalty": 0.0}, "repetition"),
        ({"num_beams": 1, "length_penalty": 2.0}, "length_penalty"), ({"do_sample": True, "top_p": 1.5}, "top_p"),
        ({"forbid": "cat"}, "list of words"), ({"require": "cat"}, "require"), ({"require": [[]]}, "require"),
        ({"require": ["cat"], "forbid": ["cat"]}, "require"), ({"forbid": [""]}, "spell"),
        ({"prompt": 7}, "one image takes one prompt, got int"), ({"prompt": "a " * 80}, "fewer than 64 tokens"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(blip: Blip, options: dict[str, Any], message: str) -> None:
    """A value that equals the default is refused too where it would have no effect."""
    with pytest.raises(InputError, match=message):
        blip.caption(IMAGES[0], **options)


def test_prompts_of_several_lengths_share_a_batch(blip: Blip) -> None:
    expected = [blip.caption(image, prompt=prompt) for image, prompt in zip(IMAGES, PROMPTS, strict=False)]
    assert_close(blip.caption(IMAGES[:4], prompt=PROMPTS), expected)

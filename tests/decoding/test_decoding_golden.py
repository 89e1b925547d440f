"""Decoding reproduces what the original implementations recorded, from their own weights and states."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from openblip.decoding import Decoding, generate, rank_answers, stack_hypotheses
from openblip.engine.eager import EagerSession
from tests.decoding.decoding_toys import Toy, golden_decoder

pytestmark = pytest.mark.usefixtures("one_thread")
GOLDEN = Path(__file__).parents[1] / "golden"
EOS = 3


@cache
def caption() -> tuple[Toy, dict[str, Tensor]]:
    text, head, io = golden_decoder(GOLDEN, "caption", "text_decoder.")
    return Toy(text, head, io["image_embeds"]), io


@cache
def answer() -> tuple[Toy, dict[str, Tensor]]:
    text, head, io = golden_decoder(GOLDEN, "vqa", "text_decoder.")
    return Toy(text, head, io["question_states"], io["question_mask"]), io


def read(name: str) -> dict[str, object]:
    return json.loads((GOLDEN / f"{name}.json").read_text())


GENERATION = json.loads((GOLDEN / "caption.json").read_text())["generation"]


@pytest.mark.parametrize("entry", GENERATION, ids=lambda entry: entry["ids_tensor"])
def test_captions_and_scores(entry: dict[str, object]) -> None:
    toy, io = caption()
    prompts = io["input_ids"][:, :4]
    options = Decoding(
        num_beams=int(str(entry["num_beams"])),
        max_new_tokens=int(str(entry["max_length"])) - 4,
        min_new_tokens=max(0, int(str(entry["min_length"])) - 4),
        repetition_penalty=float(str(entry["repetition_penalty"])),
        eos_id=EOS,
        pad_id=0,
    )
    results = toy.generate(prompts, options)
    expected = io[str(entry["ids_tensor"])]
    actual = stack_hypotheses(prompts, results, 0)
    assert torch.equal(actual, expected[:, : actual.shape[1]])
    assert not expected[:, actual.shape[1] :].any()
    for item, (best,) in enumerate(results):
        assert best.logprob == pytest.approx(toy.logprob(prompts[item].tolist(), best.ids, item), abs=1e-4)
        assert best.finished == (best.ids[-1] == EOS)
    if "scores_tensor" in entry:
        scores = torch.tensor([best.score for (best,) in results])
        torch.testing.assert_close(scores, io[str(entry["scores_tensor"])], atol=1e-4, rtol=0)


def test_sample_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorded path: at every step the second likeliest token of what was to be drawn from."""
    toy, io = caption()
    recorded: list[Tensor] = []

    def second(probs: Tensor, count: int) -> Tensor:
        recorded.append(probs)
        best = probs.topk(2)
        return best.indices.gather(1, (best.values[:, 1:] > 0).long())

    monkeypatch.setattr(torch, "multinomial", second)
    options = Decoding(
        num_beams=1,
        do_sample=True,
        top_p=0.9,
        top_k=50,
        repetition_penalty=1.1,
        max_new_tokens=16,
        min_new_tokens=1,
        eos_id=EOS,
        pad_id=0,
    )
    prompts = io["input_ids"][:, :4]
    actual = stack_hypotheses(prompts, toy.generate(prompts, options), 0)
    assert torch.equal(actual, io["sample_ids"])
    torch.testing.assert_close(torch.stack(recorded[:3]), io["sample_probs_first3"], atol=1e-4, rtol=0)


def test_answers_by_generation() -> None:
    """Recorded with a question mask of ones, so the padding of shorter questions was read too."""
    toy, io = answer()
    unmasked = Toy(toy.text, toy.head, toy.states)
    prompts = io["answer_ids"][:1, :1].expand(3, 1)
    options = Decoding(num_beams=3, max_new_tokens=9, min_new_tokens=0, eos_id=EOS, pad_id=0)
    results = unmasked.generate(prompts, options)
    actual = stack_hypotheses(prompts, results, 0)
    assert torch.equal(actual, io["generate_ids"][:, : actual.shape[1]])
    assert not io["generate_ids"][:, actual.shape[1] :].any()
    scores = torch.tensor([best.score for (best,) in results])
    torch.testing.assert_close(scores, io["generate_scores"], atol=1e-4, rtol=0)


def candidates(io: dict[str, Tensor]) -> list[list[int]]:
    return [ids[mask.bool()].tolist() for ids, mask in zip(io["candidate_ids"], io["candidate_mask"], strict=True)]


def test_answers_by_the_original_ranking() -> None:
    toy, io = answer()
    scores = rank_answers(toy.packed_decoder(), candidates(io), shortlist=5, smoothing=0.1)
    picked = io["rank_topk_ids"]
    assert torch.equal(scores.argmax(1), io["rank_max_ids"])
    assert torch.equal(scores.isfinite().nonzero()[:, 1].view(3, 5), picked.sort(1).values)
    torch.testing.assert_close(scores.gather(1, picked), io["rank_log_prob_sums"], atol=1e-4, rtol=0)


def test_smoothed_answer_losses() -> None:
    """Scores of given answers are minus the recorded training losses, one answer at a time."""
    toy, io = answer()
    owner = torch.repeat_interleave(torch.arange(3), io["n"])
    for row, (ids, mask) in enumerate(zip(io["answer_ids"], io["answer_mask"], strict=True)):
        score = rank_answers(toy.packed_decoder(), [ids[mask.bool()].tolist()], smoothing=0.1)
        assert -float(score[owner[row], 0]) == pytest.approx(float(io["answer_losses"][row]), abs=1e-4)


def test_constrained_box_tokens() -> None:
    text, head, io = golden_decoder(GOLDEN, "grounding", "grounding_head.decoder.")
    states = torch.cat([io["image_embeds"], io["multimodal_states"]], 1)
    mask = torch.cat([torch.ones(states.shape[0], io["image_embeds"].shape[1]).long(), io["text_mask"]], 1)
    tokens = json.loads((GOLDEN / "grounding.json").read_text())["tokens"]
    boxes = tuple(range(tokens["first_bin"], tokens["last_bin"] + 1))
    options = Decoding(num_beams=1, max_new_tokens=4, min_new_tokens=4, allowed_ids=boxes, eos_id=EOS, pad_id=0)
    session = EagerSession(text, head, text.project(states, mask), options.capacity(1))
    prompts = torch.full((3, 1), tokens["prefix"])
    actual = generate(session, prompts, options)
    assert [best.ids for (best,) in actual] == io["pred_box_ids"].tolist()

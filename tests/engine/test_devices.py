"""Every tensor of an engine is on the engine's device: the meta device, where tensors have shapes and no numbers.

An operation that mixes it with the CPU raises an error, as on a GPU, so these tests find tensors that were created on
the wrong device. What reads numbers, such as the end of a search, cannot run there.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from openblip.decoding.beam import _RULES, _Search
from openblip.decoding.logits import Processors
from openblip.decoding.options import Decoding, ScoreRule
from openblip.engine.eager import EagerEngine
from openblip.tasks import TaskName
from tests.toys import SIZE, toy_config, toy_model

META = torch.device("meta")
IMAGES, TEXTS, LENGTH = 2, 4, 6


def meta_engine(task: TaskName) -> EagerEngine:
    return EagerEngine(toy_model(task), META, torch.float16)


def texts() -> tuple[Tensor, Tensor]:
    """Ids and mask (B, T) on the CPU, as pipelines pass them."""
    return torch.randint(5, 90, (TEXTS, LENGTH)), torch.ones(TEXTS, LENGTH, dtype=torch.long)


def pixels() -> Tensor:
    return torch.randn(IMAGES, 3, SIZE, SIZE)


def check(*tensors: Tensor) -> None:
    assert {tensor.device for tensor in tensors} == {META}


def test_mixed_devices_are_found() -> None:
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(2, device=META) + torch.ones(2)


@pytest.mark.parametrize("task", ["caption", "pretrain"])
def test_sessions_of_captions(task: TaskName) -> None:
    engine = meta_engine(task)
    states = engine.encode_images(pixels())
    session = engine.prepare_captions(states, 8)([0, 1])
    logits = session.step(torch.ones(IMAGES, 2, dtype=torch.long, device=META))
    session.widen(3)
    session.reorder(torch.tensor([0, 0, 1, 3, 5, 4], device=META))
    session.keep(torch.tensor([1], device=META))
    check(states, logits, session.step(torch.ones(3, 1, dtype=torch.long, device=META)))


def test_questions_and_answers() -> None:
    engine = meta_engine("vqa")
    ids, mask = texts()
    states = engine.encode_images(pixels())
    questions = engine.encode_questions(ids, mask, engine.project_images(states))
    session = engine.prepare_answers(questions, mask, 8)([0, 2])
    check(questions, session.step(torch.ones(2, 1, dtype=torch.long, device=META)))


@pytest.mark.parametrize("task", ["retrieval", "pretrain"])
def test_matches_and_embeddings(task: TaskName) -> None:
    engine = meta_engine(task)
    ids, mask = texts()
    states = engine.encode_images(pixels())
    memory = engine.project_images(states)
    captioned = engine.project_captioned_images(states, ids[:IMAGES], mask[:IMAGES])
    check(
        engine.embed_images(states),
        engine.embed_texts(ids, mask),
        engine.match(ids, mask, memory),
        engine.match_log_odds(ids, mask, states),
        engine.match(ids, mask, captioned),
    )


def test_comparisons() -> None:
    engine = meta_engine("nlvr")
    ids, mask = texts()
    left, right = engine.encode_images(pixels()), engine.encode_images(pixels())
    check(engine.compare_logits(ids, mask, left, right))


def test_explanations_of_matches() -> None:
    engine = meta_engine("retrieval")
    ids, mask = texts()
    check(*engine.explain_match(ids, mask, engine.encode_images(pixels())[:1], 0))


@pytest.mark.parametrize("rule", ["total", "generated"])
def test_bookkeeping_of_beams(rule: ScoreRule) -> None:
    vocab_size = toy_config("caption").text.vocab_size
    options = Decoding(
        num_beams=3, max_new_tokens=4, eos_id=3, pad_id=0, score_rule=rule, forbid_ids=(7,), repetition_penalty=1.5,
        no_repeat_ngram_size=2,
    )  # fmt: skip
    prompts = torch.ones(IMAGES, 2, dtype=torch.long, device=META)
    search = _Search.start(prompts, options, _RULES[options.score_rule](options, 2), None)
    process = Processors(options)
    for step in (1, 2):
        logprobs = torch.randn(len(search.history(step)), vocab_size, device=META).log_softmax(-1)
        parents = search.advance(logprobs, process(logprobs, search.history(step), step - 1), step, None)
        check(parents, search.running.tokens, search.complete.score, search.done)

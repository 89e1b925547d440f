"""Self-critical training: its gradient by enumeration, its reward by the metric, and that it raises the reward."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from openblip.data.collate import pack_texts
from openblip.data.tasks.caption import CaptionData
from openblip.errors import ConfigError, TrainingError
from openblip.evaluation.metrics.captions import CiderScorer, cider
from openblip.model.build import build_model
from openblip.model.captioner import Captioner
from openblip.model.config import ModelConfig, TextConfig, VisionConfig
from openblip.preprocess.text import clean_caption
from openblip.training.config.loss import CaptionLoss
from openblip.training.objectives.caption import CaptionBatch, CaptionObjective
from openblip.training.objectives.gather import Gather
from openblip.training.objectives.self_critical import SelfCritic, advantages, unpack_captions
from tests.toys import toy_model, toy_tokenizer

PAD, SEP, DEC = 0, 1, 2
WORDS = (3, 4)


def tiny_captioner(seed: int = 0) -> Captioner:
    """A captioner of two words, so that all its captions of up to two tokens can be listed."""
    torch.manual_seed(seed)
    text = TextConfig(
        vocab_size=5, width=8, depth=1, heads=2, mlp_width=16, max_positions=24, memory_width=8, dropout=0.0,
        attention_dropout=0.0, pad_id=PAD, cls_id=PAD, sep_id=SEP, dec_id=DEC, enc_id=DEC,
    )  # fmt: skip
    vision = VisionConfig(image_size=16, patch_size=8, width=8, depth=1, heads=2, mlp_width=16)
    model = build_model(ModelConfig(task="caption", vision=vision, text=text))
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5)
    return cast(Captioner, model.double())


def captions() -> list[list[int]]:
    """All captions of at most two tokens; one that is not ended by [SEP] is cut off."""
    tokens = range(5)
    return [[SEP], *([first, second] for first in tokens if first != SEP for second in tokens)]


def reward(ids: Sequence[int], references: Sequence[Sequence[int]]) -> float:
    return 0.3 * len(ids) + sum(token in WORDS[:1] for token in ids) + len(references[0])


def log_probability(model: Captioner, ids: list[int], image_tokens: Tensor) -> Tensor:
    """The log-probability of one caption, by the plain forward pass."""
    logits = model.logits(torch.tensor([[DEC, *ids[:-1]]]), None, image_tokens).log_softmax(-1)[0]
    return sum((logits[step, token] for step, token in enumerate(ids)), torch.zeros((), dtype=torch.float64))


def gradients(model: Captioner, value: Tensor) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    values = torch.autograd.grad(value, list(model.parameters()), allow_unused=True, retain_graph=True)
    return {name: gradient for name, gradient in zip(names, values, strict=True) if gradient is not None}


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """Over all pairs of samples, weighted by their probability, the loss has the gradient of minus the mean reward."""
    model = tiny_captioner()
    critic = SelfCritic(model, reward, [DEC], samples=2, max_new_tokens=2)
    references = [[[3, 4]]]
    image_tokens = model.encode_image(torch.randn(1, 3, 16, 16, dtype=torch.float64))
    every = captions()
    probabilities = [log_probability(model, ids, image_tokens).exp() for ids in every]
    torch.testing.assert_close(sum(probabilities), torch.ones((), dtype=torch.float64))
    rewards = critic.judge([every], references)[0].double()
    expected = sum(p * r for p, r in zip(probabilities, rewards, strict=True))
    exact = gradients(model, -cast(Tensor, expected))

    total = torch.zeros((), dtype=torch.float64)
    for (i, first), (j, second) in itertools.product(enumerate(every), repeat=2):
        weight = (probabilities[i] * probabilities[j]).detach()
        total = total + weight * critic.loss([[first, second]], rewards[[i, j]][None], image_tokens)
    estimated = gradients(model, total)
    assert estimated.keys() == exact.keys()
    assert max(gradient.abs().max() for gradient in exact.values()) > 1e-3
    for name, gradient in exact.items():
        torch.testing.assert_close(estimated[name], gradient, rtol=1e-4, atol=1e-7)


def test_an_advantage_compares_a_sample_with_the_others() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0]])
    torch.testing.assert_close(advantages(rewards), torch.tensor([[1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5]]))


def batch_of(texts: list[list[int]], counts: list[int]) -> CaptionBatch:
    """Packed references of one image or more."""
    longest = max(map(len, texts))
    ids = torch.tensor([text + [PAD] * (longest - len(text)) for text in texts])
    mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in texts])
    pixels = torch.randn(len(counts), 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return CaptionBatch(pixels=pixels, **pack_texts(ids, mask, counts, PAD))


def test_references_come_back_from_packed_rows() -> None:
    batch = batch_of([[DEC, 3, SEP], [DEC, 3, 4, SEP], [DEC, 4, SEP]], [2, 1])
    assert batch.rows is not None
    assert unpack_captions(batch.rows, 1) == [[[3, SEP], [3, 4, SEP]], [[4, SEP]]]


def test_training_raises_the_reward() -> None:
    model = tiny_captioner()
    critic = SelfCritic(
        model, lambda ids, references: float(list(ids) in references), [DEC], samples=8, max_new_tokens=3
    )
    objective = CaptionObjective(model, prompt_length=1, critic=critic)
    batch = batch_of([[DEC, 3, 4, SEP]], [1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    history = []
    for _ in range(60):
        losses = objective(batch)
        optimizer.zero_grad()
        losses["cider"].backward()
        optimizer.step()
        history.append(float(losses["reward"]))
    assert sum(history[-10:]) / 10 > 0.9 > 0.5 > sum(history[:5]) / 5


def test_lm_is_added_with_its_weight() -> None:
    model = tiny_captioner()
    batch = batch_of([[DEC, 3, 4, SEP]], [1])
    critic = SelfCritic(model, reward, [DEC])
    losses = CaptionObjective(model, prompt_length=1, critic=critic, lm_weight=0.5)(batch)
    torch.testing.assert_close(losses["lm"], 0.5 * CaptionObjective(model, prompt_length=1)(batch)["lm"])
    assert "lm" not in CaptionObjective(model, prompt_length=1, critic=critic)(batch)


def test_the_recipe_s_reward_is_cider_in_words() -> None:
    tokenizer = toy_tokenizer()
    captions = [["A dog on the grass.", "a dog"], ["a cat on the sofa"], ["two people on the beach"]]
    data = CaptionData(tokenizer=tokenizer, prompt="", texts_per_image=2, packed=True)
    model = cast(Captioner, toy_model("caption"))
    objective = CaptionObjective.from_settings(model, CaptionLoss(kind="cider"), data, Gather())
    assert objective.critic is not None
    references = [[*tokenizer.spell(clean_caption(text)), tokenizer.sep_id] for text in captions[0]]
    with pytest.raises(TrainingError, match="must be fitted"):
        objective.critic.reward(references[1], references)
    objective.prepare(captions)
    words = [[[*clean_caption(text).split(), "END"] for text in texts] for texts in captions]
    scorer = CiderScorer.fit(words)
    for ids, hypothesis in ((references[1], ["a", "dog", "END"]), (references[1][:-1], ["a", "dog"])):
        assert objective.critic.reward(ids, references) == pytest.approx(scorer.score(hypothesis, words[0]))
    assert objective.critic.reward(references[1], references) > objective.critic.reward(references[1][:-1], references)
    with pytest.raises(ConfigError, match="packed"):
        CaptionObjective.from_settings(model, CaptionLoss(kind="cider"), replace(data, packed=False), Gather())


def test_the_scorer_gives_cider_of_the_set_it_was_fitted_to() -> None:
    references = [[["a", "dog", "runs"], ["the", "dog"]], [["a", "cat"]], [["a", "red", "car", "stops", "here"]]]
    hypotheses = [["a", "dog"], ["a", "cat"], ["a", "car", "stops", "here"]]
    scorer = CiderScorer.fit(references)
    scores = [scorer.score(text, targets) for text, targets in zip(hypotheses, references, strict=True)]
    assert scores == cider(hypotheses, references)
    assert scorer.score(["a", "cat"], references[0]) < scores[1]


def test_one_sample_has_nothing_to_be_compared_with() -> None:
    with pytest.raises(ConfigError, match="samples must be at least 2"):
        replace(CaptionLoss(), samples=1)

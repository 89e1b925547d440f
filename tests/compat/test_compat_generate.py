"""`generate`, compared with transformers token for token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from openblip.errors import InputError
from tests.compat.compat_toys import CLS, DEC, PAD, SEP, Ours, close, ids, padded, pair, pixels, their_config

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:Using the model-agnostic default"),
    pytest.mark.filterwarnings("ignore:Unfeasible length constraints"),
]

CAPTIONER, ANSWERER = "BlipForConditionalGeneration", "BlipForQuestionAnswering"
LOUD = 0.3  # weights so wide that texts are varied and some end early

BEAMS: list[dict[str, Any]] = [{"num_beams": beams} for beams in (1, 2, 3, 4, 5)]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"max_length": 9},
    {"max_new_tokens": 3},
    {"max_new_tokens": 3, "max_length": 30},
    {"min_length": 12},
    {"min_new_tokens": 8},
    {"min_new_tokens": 4, "min_length": 15},
    {"repetition_penalty": 1.5},
    {"repetition_penalty": 0.7},
    {"no_repeat_ngram_size": 2},
    {"no_repeat_ngram_size": 1, "min_new_tokens": 6},
    {"suppress_tokens": [7, 9, 11, 20, 33]},
    {"use_cache": False},
]
BEAM_OPTIONS: list[dict[str, Any]] = [
    {"num_return_sequences": 3},
    {"length_penalty": 2.0},
    {"length_penalty": 0.0},
    {"length_penalty": -1.5},
    {"early_stopping": True},
    {"early_stopping": True, "length_penalty": 0.3},
    {"early_stopping": "never"},
    {"early_stopping": "never", "length_penalty": -1.0},
    {"num_return_sequences": 2, "min_length": 10, "repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
]
SAMPLING: list[dict[str, Any]] = [
    {"do_sample": True},
    {"do_sample": True, "top_k": 5},
    {"do_sample": True, "top_k": 0, "top_p": 0.7},
    {"do_sample": True, "temperature": 2.0, "num_return_sequences": 3},
    {"do_sample": True, "temperature": 0.5, "repetition_penalty": 1.4, "min_length": 9},
    {"do_sample": True, "num_beams": 3},
    {"do_sample": True, "num_beams": 2, "num_return_sequences": 2, "top_p": 0.8},
]


def _id(options: dict[str, Any]) -> str:
    return "-".join(f"{name}={value}" for name, value in options.items()) or "defaults"


def _given(name: str, *, prompt: bool, rows: int = 3) -> dict[str, Any]:
    inputs: dict[str, Any] = {"pixel_values": pixels(rows)}
    if prompt or name == ANSWERER:
        inputs["input_ids"] = ids(rows, 5)
        inputs["attention_mask"] = torch.ones(rows, 5, dtype=torch.long)
    return inputs


def _same(models: tuple[Any, Any], inputs: dict[str, Any], options: dict[str, Any]) -> Tensor:
    """Both generate the same; what they do."""
    theirs, ours = models
    torch.manual_seed(5)
    actual = ours.generate(**inputs, **options)
    copied = {name: value.clone() if isinstance(value, Tensor) else value for name, value in inputs.items()}
    torch.manual_seed(5)
    expected = theirs.generate(**copied, **options)
    assert actual.dtype == expected.dtype
    assert actual.tolist() == expected.tolist()
    return torch.as_tensor(actual)


@pytest.fixture(scope="module")
def models() -> dict[str, list[tuple[Any, Any]]]:
    return {name: [pair(name, seed=seed, scale=LOUD) for seed in (1, 2)] for name in (CAPTIONER, ANSWERER)}


@pytest.mark.parametrize("beams", BEAMS, ids=_id)
@pytest.mark.parametrize("options", OPTIONS, ids=_id)
def test_captions(models: dict[str, list[tuple[Any, Any]]], beams: dict[str, Any], options: dict[str, Any]) -> None:
    turn = (beams["num_beams"] + OPTIONS.index(options)) % 2  # with and without a prompt, in turn
    _same(models[CAPTIONER][turn], _given(CAPTIONER, prompt=turn == 0), {**beams, **options})


@pytest.mark.parametrize("beams", BEAMS, ids=_id)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[1], OPTIONS[4], OPTIONS[7]], ids=_id)
def test_answers(models: dict[str, list[tuple[Any, Any]]], beams: dict[str, Any], options: dict[str, Any]) -> None:
    turn = (beams["num_beams"] + OPTIONS.index(options)) % 2
    _same(models[ANSWERER][turn], _given(ANSWERER, prompt=True), {**beams, **options})


@pytest.mark.parametrize("beams", [2, 3, 5])
@pytest.mark.parametrize("options", BEAM_OPTIONS, ids=_id)
def test_beam_search(models: dict[str, list[tuple[Any, Any]]], beams: int, options: dict[str, Any]) -> None:
    options = {"num_beams": beams, **options}
    options["num_return_sequences"] = min(options.get("num_return_sequences", 1), beams)
    for turn, (name, pairs) in enumerate(models.items()):
        _same(pairs[(turn + beams) % 2], _given(name, prompt=True), options)


@pytest.mark.parametrize("options", SAMPLING, ids=_id)
@pytest.mark.parametrize("name", [CAPTIONER, ANSWERER])
def test_sampling_with_a_seed(models: dict[str, list[tuple[Any, Any]]], name: str, options: dict[str, Any]) -> None:
    _same(models[name][SAMPLING.index(options) % 2], _given(name, prompt=False), options)


def test_rows_end_at_different_steps(models: dict[str, list[tuple[Any, Any]]]) -> None:
    """What the tests above rest on: some rows end early, some late, and texts differ."""
    lengths, texts = set(), set()
    for both in models[CAPTIONER]:
        for row in _same(both, _given(CAPTIONER, prompt=False), {"num_beams": 2}).tolist():
            assert row[0] == DEC
            lengths.add(row.index(SEP) if SEP in row else len(row))
            texts.add(tuple(row))
    assert len(lengths) > 2
    assert len(texts) > 3


def test_default_prompt_and_length(models: dict[str, list[tuple[Any, Any]]]) -> None:
    """[DEC] alone, and 20 new tokens unless the model has fewer positions."""
    both = models[CAPTIONER][0]
    sequences = _same(both, {"pixel_values": pixels()}, {"min_new_tokens": 20})
    assert sequences.shape == (2, 21)
    # A long prompt: the positions of the model, 40, are the end.
    sequences = _same(both, {"pixel_values": pixels(), "input_ids": ids(2, 30)}, {"min_new_tokens": 11})
    assert sequences.shape == (2, 40)


def test_prompts_as_lists_with_the_first_token_replaced(models: dict[str, list[tuple[Any, Any]]]) -> None:
    theirs, ours = models[CAPTIONER][0]
    prompt = ids(2, 4)
    sequences = ours.generate(pixels(), prompt.tolist())
    assert sequences.tolist() == theirs.generate(pixels(), prompt.tolist()).tolist()
    assert sequences[:, :3].tolist() == [[DEC, *row[1:3]] for row in prompt.tolist()]
    assert prompt[:, 0].tolist() == [CLS, CLS]


@pytest.mark.parametrize("beams", [1, 3])
def test_one_image_for_many_prompts(models: dict[str, list[tuple[Any, Any]]], beams: int) -> None:
    """Difference `broadcasting`: with beams, or one prompt for many images, 5.23 fails."""
    theirs, ours = models[CAPTIONER][0]
    prompts = ids(3, 5)
    if beams == 1:
        _same((theirs, ours), {"pixel_values": pixels(1), "input_ids": prompts}, {})
    alone = [ours.generate(pixels(1), prompts[i : i + 1], num_beams=beams, min_new_tokens=20) for i in range(3)]
    together = ours.generate(pixels(1), prompts, num_beams=beams, min_new_tokens=20)
    assert together.tolist() == torch.cat(alone).tolist()
    alone = [ours.generate(pixels(3)[i : i + 1], prompts[:1], num_beams=beams, min_new_tokens=20) for i in range(3)]
    together = ours.generate(pixels(3), prompts[:1], num_beams=beams, min_new_tokens=20)
    assert together.tolist() == torch.cat(alone).tolist()
    with pytest.raises(RuntimeError):
        theirs.generate(pixels(3), prompts[:1].clone())
    with pytest.raises(InputError, match="3 prompts must match 2"):
        ours.generate(pixels(2), prompts)


def test_other_image_sizes(models: dict[str, list[tuple[Any, Any]]]) -> None:
    for name, pairs in models.items():
        inputs = _given(name, prompt=True) | {"pixel_values": pixels(3, size=48), "interpolate_pos_encoding": True}
        _same(pairs[0], inputs, {"num_beams": 2})


@pytest.mark.parametrize("beams", [2, 4])
def test_scores_of_a_beam_search(models: dict[str, list[tuple[Any, Any]]], beams: int) -> None:
    options = {"num_beams": beams, "num_return_sequences": 2, "return_dict_in_generate": True, "output_scores": True}
    for name, pairs in models.items():
        theirs, ours = pairs[0]
        inputs = _given(name, prompt=False)
        actual, expected = ours.generate(**inputs, **options), theirs.generate(**inputs, **options)
        assert actual.sequences.tolist() == expected.sequences.tolist()
        close(actual["sequences_scores"], expected.sequences_scores, 1e-4)
        assert list(ours.generate(**inputs, return_dict_in_generate=True)) == ["sequences", "past_key_values"]


def test_the_text_decoder_by_itself(models: dict[str, list[tuple[Any, Any]]]) -> None:
    theirs, ours = (model.text_decoder for model in models[CAPTIONER][0])
    states = torch.randn(2, 5, 32)
    for options in ({}, {"eos_token_id": SEP, "pad_token_id": PAD}, {"eos_token_id": 9, "num_beams": 2}):
        inputs = {"input_ids": torch.tensor([[DEC, 7], [DEC, 8]]), "encoder_hidden_states": states}
        _same((theirs, ours), inputs, options)


@pytest.mark.parametrize(
    "options",
    [
        {"foo": 1},
        {"eos_token_id": 5},
        {"pad_token_id": 5},
        {"num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"max_length": 4},
        {"max_new_tokens": 0},
        {"num_beams": 2, "early_stopping": "sometimes"},
        {"num_beams": 0},
        {"num_beams": 2.0},
        {"do_sample": True, "temperature": 0.0},
        {"repetition_penalty": -1.0},
        {"max_new_tokens": 60, "min_new_tokens": 60},
    ],
    ids=_id,
)
def test_both_libraries_refuse(models: dict[str, list[tuple[Any, Any]]], options: dict[str, Any]) -> None:
    theirs, ours = models[CAPTIONER][0]
    for model, errors in ((ours, (ValueError, TypeError)), (theirs, Exception)):
        with pytest.raises(errors):
            model.generate(pixels(), ids(2, 5), **options)


@pytest.mark.parametrize(
    "options",
    [
        {"num_beam_groups": 2},
        {"diversity_penalty": 0.5},
        {"encoder_repetition_penalty": 1.2},
        {"guidance_scale": 2.0},
        {"assistant_model": object()},
        {"penalty_alpha": 0.6},
        {"custom_generate": "owner/name"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_unsupported_options_are_refused_by_name(
    models: dict[str, list[tuple[Any, Any]]], options: dict[str, Any]
) -> None:
    """Difference `generate-options`."""
    _, ours = models[CAPTIONER][0]
    with pytest.raises(InputError, match=next(iter(options))):
        ours.generate(pixels(), **options)
    neutral = {"typical_p": 1.0, "num_beam_groups": 1, "encoder_repetition_penalty": 1.0, "min_p": None}
    ours.generate(pixels(), max_new_tokens=1, **neutral)


def test_steps_of_prompts_of_different_lengths_are_refused(models: dict[str, list[tuple[Any, Any]]]) -> None:
    """Difference `generate-options`: each length is decoded by itself, so steps of different lengths do not align."""
    _, ours = models[CAPTIONER][0]
    rows, mask = padded([4, 6], 6)
    inputs = {"pixel_values": pixels(), "input_ids": rows, "attention_mask": mask}
    with pytest.raises(InputError, match="equal length"):
        ours.generate(**inputs, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(
        ours.generate(**inputs, bad_words_ids=[[7]], suppress_tokens=None)[:, 0], torch.tensor([DEC] * 2)
    )


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}, {"length_penalty": 2.0}, {"early_stopping": True}],
    ids=_id,
)
def test_options_without_effect_warn(models: dict[str, list[tuple[Any, Any]]], options: dict[str, Any]) -> None:
    both = models[CAPTIONER][0]
    plain = _same(both, {"pixel_values": pixels()}, {})
    with pytest.warns(UserWarning, match=f"{next(iter(options))}=.* has no effect"):
        assert torch.equal(_same(both, {"pixel_values": pixels()}, options), plain)
    with pytest.warns(UserWarning, match="is greater than max_new_tokens"):
        _same(both, {"pixel_values": pixels()}, {"min_length": 30, "max_length": 10})


def test_generation_config(models: dict[str, list[tuple[Any, Any]]], tmp_path: Path) -> None:
    """Difference `generation-config`: 5.23 loads generation_config.json and does not use it."""
    theirs, _ = models[CAPTIONER][0]
    theirs.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "generation_config.json").read_text()) | {"max_length": 7, "num_beams": 3}
    (tmp_path / "generation_config.json").write_text(json.dumps(values))
    ours_reloaded = Ours.BlipForConditionalGeneration.from_pretrained(tmp_path)
    theirs_reloaded = type(theirs).from_pretrained(tmp_path)
    expected = theirs.generate(pixels(), max_length=7, num_beams=3).tolist()
    assert ours_reloaded.generate(pixels()).tolist() == expected
    assert theirs_reloaded.generate(pixels()).tolist() == theirs.generate(pixels()).tolist() != expected
    # Options of the call override a configuration in the call, which overrides the model's.
    assert ours_reloaded.generate(pixels(), num_beams=1).tolist() == theirs.generate(pixels(), max_length=7).tolist()
    overrides = Ours.GenerationConfig(num_beams=2, max_new_tokens=None)
    sequences = ours_reloaded.generate(pixels(), generation_config=overrides).tolist()
    assert sequences == theirs.generate(pixels(), max_length=7, num_beams=2).tolist()
    ours_reloaded.generation_config.num_beams = 1
    assert ours_reloaded.generate(pixels()).tolist() == theirs.generate(pixels(), max_length=7).tolist()
    ours_reloaded.generation_config.update(guidance_scale=1.5)
    with pytest.raises(InputError, match="guidance_scale"):
        ours_reloaded.generate(pixels())


def test_generation_config_files(tmp_path: Path) -> None:
    config = Ours.GenerationConfig(num_beams=3, top_p=None)
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "generation_config.json").read_text()) == {"num_beams": 3}
    assert Ours.GenerationConfig.from_pretrained(tmp_path) == config != Ours.GenerationConfig()


def test_half_precision_generates() -> None:
    for name in (CAPTIONER, ANSWERER):
        theirs, ours = pair(name, their_config(), seed=1, scale=LOUD)
        inputs = _given(name, prompt=True)
        actual = ours.to(torch.bfloat16).generate(**inputs, num_beams=2)
        expected = theirs.to(torch.bfloat16).generate(**inputs, num_beams=2)
        assert actual[:, 0].tolist() == expected[:, 0].tolist()
        assert actual.shape[0] == expected.shape[0]


def test_hooks_get_the_running_rows(models: dict[str, list[tuple[Any, Any]]]) -> None:
    """Difference `running-rows`: rows of texts that ended leave the batch, and beams share the states of an image."""
    _, ours = models[CAPTIONER][0]
    rows: list[int] = []
    memory: list[int] = []
    layer = ours.text_decoder.bert.encoder.layer[0]
    handles = [
        layer.register_forward_hook(lambda _m, _args, out: rows.append(len(out))),
        layer.crossattention.self.key.register_forward_hook(lambda _m, _args, out: memory.append(len(out))),
    ]
    sequences = ours.generate(pixels(3), num_beams=2, max_new_tokens=12)
    for handle in handles:
        handle.remove()
    assert memory == [3]
    assert rows[:2] == [3, 6]
    assert rows == sorted(rows[:1]) + sorted(rows[1:], reverse=True)
    assert len(sequences) == 3

"""`generate` returns PyTorch's tokens: greedy and by beams, with prompts and penalties; and it samples as it should."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

from openblip.decoding.options import Decoding  # noqa: E402
from openblip.errors import InputError  # noqa: E402
from openblip.keras import GenerationConfig, decoding  # noqa: E402
from tests.keras.cases import DEC, GENERATIONS, IDS, MASK, PAD, PIXELS, PROMPTS, SEP, Case  # noqa: E402
from tests.keras.toys import recorded  # noqa: E402

Load = Callable[[str], Any]


@pytest.mark.parametrize("case", GENERATIONS, ids=lambda case: case.id)
def test_tokens_equal_those_of_pytorch(case: Case, load: Load) -> None:
    tokens = load(case.model).generate(**case.inputs)
    assert np.array_equal(np.asarray(tokens), recorded(case.model)[case.name])


def test_rows_do_not_depend_on_the_batch(load: Load) -> None:
    """Each alone, without the padding that its neighbors caused."""
    model = load("BlipForConditionalGeneration")
    together = np.asarray(model.generate(PIXELS, PROMPTS, MASK, max_new_tokens=10))
    for row, length in enumerate(MASK.sum(1)):
        alone = np.asarray(model.generate(PIXELS[row : row + 1], PROMPTS[row : row + 1, :length], max_new_tokens=10))[0]
        assert together[row, : len(alone)].tolist() == alone.tolist()
        assert set(together[row, len(alone) :].tolist()) <= {PAD}


def test_xla_returns_the_same_tokens(load: Load) -> None:
    if keras.backend.backend() == "jax":
        pytest.skip("JAX always compiles by XLA")
    model = load("BlipForConditionalGeneration")
    tokens = model.generate(PIXELS, max_new_tokens=10, jit_compile=True)
    assert np.array_equal(np.asarray(tokens), recorded("BlipForConditionalGeneration")["greedy"])


def test_a_step_is_compiled_once_for_similar_requests(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    model.generate(PIXELS, max_new_tokens=5)
    traces: list[Any] = []
    original = model.text_decoder.logits

    def record(states: Any) -> Any:
        traces.append(states.shape)
        return original(states)

    model.text_decoder.logits = record
    try:
        model.generate(PIXELS, max_new_tokens=9)
        assert traces == [], "caches have room for a multiple of 16 tokens"
        model.generate(PIXELS, max_new_tokens=20)
        assert len(traces) == 2, "the prompt and the step, for a larger cache"
    finally:
        model.text_decoder.logits = original


def test_later_weights_count(load: Load) -> None:
    """A compiled step reads the variables at each call."""
    model = load("BlipForConditionalGeneration")
    bias = model.text_decoder.head.bias
    before = np.asarray(bias)
    model.generate(PIXELS, max_new_tokens=3)
    changed = before.copy()
    changed[77] = 100.0
    bias.assign(changed)
    try:
        assert np.asarray(model.generate(PIXELS, max_new_tokens=3)).tolist() == [[DEC, 77, 77, 77]] * 3
    finally:
        bias.assign(before)


def test_beams_return_their_scores(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    output = model.generate(
        PIXELS, num_beams=3, num_return_sequences=3, max_new_tokens=6, return_dict_in_generate=True, output_scores=True
    )
    assert output.sequences.shape[0] == 9
    scores = np.asarray(output.sequences_scores).reshape(3, 3)
    assert (np.diff(scores, axis=1) <= 0).all(), "the best first"
    # The score is the mean log-probability of the new tokens, by a forward pass over them.
    row: list[int] = np.asarray(output.sequences)[0].tolist()
    row = row[: row.index(SEP) + 1] if SEP in row else row
    logits = np.asarray(model(pixel_values=PIXELS[:1], input_ids=np.array([row])).logits)[0]
    logprobs = decoding.log_softmax(logits)
    total = sum(logprobs[position, token] for position, token in enumerate(row[1:]))
    assert abs(total / (len(row) - 1) - scores[0, 0]) < 1e-4


def test_stored_options_are_the_defaults(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    config = GenerationConfig(num_beams=3, max_new_tokens=10)
    tokens = model.generate(PIXELS, generation_config=config)
    assert np.array_equal(np.asarray(tokens), recorded("BlipForConditionalGeneration")["beams-3"])


def test_samples_with_a_seed_depend_on_their_image_only(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 6, "seed": 5}
    together = np.asarray(model.generate(PIXELS, **options))
    assert together.shape[0] == 6
    assert np.array_equal(together, np.asarray(model.generate(PIXELS, **options)))
    alone = np.asarray(model.generate(PIXELS[2:], **options))
    width = min(together.shape[1], alone.shape[1])
    assert np.array_equal(together[4:, :width], alone[:, :width])
    assert not np.array_equal(together, np.asarray(model.generate(PIXELS, **{**options, "seed": 6})))


def test_samples_without_a_seed_follow_the_global_one(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    rows = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        rows.append(np.asarray(model.generate(PIXELS, do_sample=True, max_new_tokens=4, top_k=0)).tolist())
    assert rows[0] == rows[1]
    sampled = model.generate(PIXELS, do_sample=True, num_beams=2, max_new_tokens=4, seed=1)
    assert sampled.shape[0] == 3


def test_draws_follow_the_probabilities() -> None:
    scores = np.log(np.array([[0.5, 0.25, 0.15, 0.1]], np.float32)).repeat(4000, 0)
    options = Decoding(num_beams=1, do_sample=True, top_p=1.0, eos_id=3, pad_id=0, max_new_tokens=1, min_new_tokens=0)
    np.random.seed(0)
    counts = np.bincount(decoding.Draws(options, None).tokens(scores, 0), minlength=4) / 4000
    assert np.abs(counts - [0.5, 0.25, 0.15, 0.1]).max() < 0.03
    pairs = decoding.Draws(options, None).candidates(scores, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert np.abs(np.bincount(pairs[:, 0], minlength=4) / 4000 - [0.5, 0.25, 0.15, 0.1]).max() < 0.03


def test_filters_keep_the_likeliest_tokens() -> None:
    scores = np.log(np.array([[0.1, 0.5, 0.25, 0.15]], np.float32))

    def kept(**values: Any) -> list[int]:
        options = Decoding(num_beams=1, do_sample=True, eos_id=3, pad_id=0, **{"top_p": 1.0, **values})
        return np.isfinite(decoding.filter_for_sampling(scores, options))[0].nonzero()[0].tolist()

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [1, 2]
    assert kept(top_p=0.5) == [1]
    assert kept(top_p=0.7) == [1, 2]
    assert kept(top_k=3, top_p=0.99) == [1, 2, 3]
    assert kept(temperature=0.1, top_p=0.9) == [1]


def test_impossible_requests_are_errors(load: Load) -> None:
    model = load("BlipForConditionalGeneration")
    with pytest.raises(InputError, match="generate has no option beams"):
        model.generate(PIXELS, beams=3)
    with pytest.raises(InputError, match="seed needs do_sample=True"):
        model.generate(PIXELS, seed=1)
    with pytest.raises(InputError, match="at most 48 tokens"):
        model.generate(PIXELS, max_new_tokens=60)
    with pytest.raises(InputError, match="2 prompts must match 3 images"):
        model.generate(PIXELS, PROMPTS[:2])
    with pytest.raises(InputError, match="row 2 is only padding"):
        load("BlipForQuestionAnswering").generate(IDS, PIXELS, MASK * [[1], [1], [0]])

"""At base size (ViT-B/16 at 384 pixels, 12 text layers), outputs and tokens equal those of PyTorch.

`TORCH_PYTHON` is the Python of an environment with PyTorch and OpenBLIP; `make test-slow` sets it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

from openblip.keras import (  # noqa: E402
    TFBlipForConditionalGeneration,
    TFBlipForImageTextRetrieval,
    TFBlipForQuestionAnswering,
)
from tests.keras.base_cases import BEAMS, NEW_TOKENS, PIXELS, QUESTIONS  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("TORCH_PYTHON" not in os.environ, reason="TORCH_PYTHON must name a Python with PyTorch"),
]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models, and PyTorch's results."""
    out = tmp_path_factory.mktemp("base")
    program = [os.environ["TORCH_PYTHON"], "-m", "tests.keras.record_base", str(out)]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out


def assert_close(found: Any, expected: Any) -> None:
    """Within 1e-4, in fp32."""
    difference = float(np.abs(np.asarray(found) - expected).max())
    print(f"largest difference {difference:.1e}")
    assert difference < 1e-4


def test_a_captioner_of_base_size(base: Path) -> None:
    results = np.load(base / "results.npz")
    model = TFBlipForConditionalGeneration.from_pretrained(base / "captioner")
    assert model.num_parameters() == 223_971_644
    assert_close(model(PIXELS, QUESTIONS).logits, results["logits"])
    for beams in BEAMS:
        tokens = model.generate(PIXELS, num_beams=beams, max_new_tokens=NEW_TOKENS)
        assert np.array_equal(np.asarray(tokens), results[f"caption-{beams}"]), beams


def test_an_answerer_of_base_size(base: Path) -> None:
    results = np.load(base / "results.npz")
    model = TFBlipForQuestionAnswering.from_pretrained(base / "answerer")
    assert_close(model(QUESTIONS, PIXELS, labels=QUESTIONS).loss, results["answer-loss"])
    for beams in BEAMS:
        tokens = model.generate(QUESTIONS, PIXELS, num_beams=beams, max_new_tokens=NEW_TOKENS)
        assert np.array_equal(np.asarray(tokens), results[f"answer-{beams}"]), beams


def test_a_matcher_of_base_size(base: Path) -> None:
    results = np.load(base / "results.npz")
    model = TFBlipForImageTextRetrieval.from_pretrained(base / "matcher")
    output = model(QUESTIONS, PIXELS)
    assert_close(output.itm_score, results["itm"])
    assert_close(output.last_hidden_state, results["states"])
    assert_close(output.question_embeds, results["text"])
    assert_close(model(QUESTIONS, PIXELS, use_itm_head=False).itm_score, results["itc"])

"""Evaluations that are killed are resumed: nothing is computed twice, and the results are the same."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import openblip
from openblip.evaluation import protocols, run
from tests.evaluation import evaluation_toys as toys

SCRIPT = Path(__file__).with_name("killed_runs.py")


def run_with_kills(benchmark: str, bundle: Path, data: Path, out: Path, kills: list[int]) -> list[str]:
    """Return the computations of the engine in processes that were killed one after another."""
    log = out.with_suffix(".log")
    log.unlink(missing_ok=True)
    arguments = [benchmark, bundle, data, out, log, *kills]
    root = str(SCRIPT.parents[2])
    subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], check=True, cwd=root)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("end")] == [f"end {-signal.SIGKILL}"] * len(kills) + ["end 0"]
    return [line for line in lines if not line.startswith("end")]


@pytest.mark.slow
def test_retrieval_resumes_after_kills(tmp_path: Path) -> None:
    bundle, data, out = toys.make_bundle(tmp_path / "toy"), toys.make_six(tmp_path / "data"), tmp_path / "out"
    # Before the first computation, while images are encoded, and twice while rows are scored.
    computed = run_with_kills("flickr30k-retrieval", bundle, data, out, [1, 3, 3, 3])
    kinds = Counter(line.split()[0] for line in computed)
    assert kinds == {"encode_images": 6, "embed_texts": 10, "match_logits": 60}
    assert max(Counter(computed).values()) == 1, "nothing twice"
    benchmark = protocols.open_benchmark("flickr30k-retrieval", data)
    uninterrupted = run.run_benchmark(benchmark, openblip.load(bundle), out=tmp_path / "uninterrupted")
    assert uninterrupted.metrics == json.loads((out / "metrics.json").read_text())["metrics"]
    for name in ("ranking_txt", "ranking_img", "relevant_txt", "relevant_img"):
        assert (out / f"{name}.jsonl").read_text() == (tmp_path / "uninterrupted" / f"{name}.jsonl").read_text()
    assert not list((out / "retrieval").glob("states*")), "states are large and no longer needed"
    files = sorted((out / "retrieval").iterdir())
    assert run_with_kills("flickr30k-retrieval", bundle, data, out, []) == [], "a finished run computes nothing"
    assert sorted((out / "retrieval").iterdir()) == files


@pytest.mark.slow
def test_captions_resume_after_kills(tmp_path: Path) -> None:
    bundle, data, out = toys.make_bundle(tmp_path / "toy"), toys.make_nocaps(tmp_path / "data"), tmp_path / "out"
    computed = run_with_kills("nocaps", bundle, data, out, [2, 1])
    assert len(computed) == len(set(computed)) == 3
    uninterrupted = run.run_benchmark(protocols.open_benchmark("nocaps", data), openblip.load(bundle))
    assert uninterrupted.metrics == json.loads((out / "metrics.json").read_text())["metrics"]

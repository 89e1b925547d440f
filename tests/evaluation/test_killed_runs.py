"""Evaluations that are killed go on: nothing is computed twice, and what comes out is what comes out otherwise."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import openblip
from openblip.evaluation import protocols, run
from tests.evaluation import evaluation_toys as toys

SCRIPT = Path(__file__).with_name("killed_runs.py")


def killed(benchmark: str, bundle: Path, data: Path, out: Path, kills: list[int]) -> list[str]:
    """What the engine computed, in processes that were killed one after the other."""
    log = out.with_suffix(".log")
    arguments = [benchmark, bundle, data, out, log, *kills]
    root = str(SCRIPT.parents[2])
    subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], check=True, cwd=root)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("end")] == [f"end {-signal.SIGKILL}"] * len(kills) + ["end 0"]
    return [line for line in lines if not line.startswith("end")]


def test_retrieval_goes_on_after_kills(tmp_path: Path) -> None:
    bundle, data, out = toys.toy_bundle(tmp_path / "toy"), toys.six(tmp_path / "data"), tmp_path / "out"
    # Before anything, while images are encoded, and twice while rows are judged.
    computed = killed("flickr30k-retrieval", bundle, data, out, [1, 3, 3, 3])
    kinds = Counter(line.split()[0] for line in computed)
    assert kinds == {"encode_images": 6, "embed_texts": 10, "match_logits": 60}
    assert max(Counter(computed).values()) == 1, "nothing twice"
    straight = run.run(protocols.find("flickr30k-retrieval"), openblip.load(bundle), data, out=tmp_path / "straight")
    assert straight.metrics == json.loads((out / "metrics.json").read_text())["metrics"]
    for name in ("ranking_txt", "ranking_img", "relevant_txt", "relevant_img"):
        assert (out / f"{name}.jsonl").read_text() == (tmp_path / "straight" / f"{name}.jsonl").read_text()
    assert not list((out / "retrieval").glob("states*")), "they are large, and nobody needs them any more"
    before = sorted((out / "retrieval").iterdir())
    again = killed("flickr30k-retrieval", bundle, data, out, [])
    assert again == computed, "a finished run computes nothing"
    assert sorted((out / "retrieval").iterdir()) == before


def test_captions_go_on_after_kills(tmp_path: Path) -> None:
    bundle, data, out = toys.toy_bundle(tmp_path / "toy"), toys.nocaps(tmp_path / "data"), tmp_path / "out"
    computed = killed("nocaps", bundle, data, out, [2, 1])
    assert len(computed) == len(set(computed)) == 3
    straight = run.run(protocols.find("nocaps"), openblip.load(bundle), data)
    assert straight.metrics == json.loads((out / "metrics.json").read_text())["metrics"]

"""Greedy caption latency of the Keras classes, compared with the TensorFlow class of transformers 4.46.3.

    python -m benchmarks.keras_latency --keras .venv-keras/bin/python --peer tf446/bin/python

Every contestant has a process and an environment of its own, the same weights (ViT-B/16 at 384 pixels, random), and
captions the same image in each round. `make test-keras` makes the environment of Keras; the head of
`tests/keras/record_tf446.py` shows how to make that of the peer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks import machine
from openblip import BlipConfig, BlipForConditionalGeneration
from openblip.io import atomic

HERE = Path(__file__).parent
PEER = "transformers-tensorflow"
TARGET = 1.5


class Worker:
    """A contestant: `benchmarks.keras_worker` in a process of its own.

    Args:
        kind: Name of the contestant.
        python: Interpreter of its environment.
        folder: Folder of the captioner.
        tokens: Number of new tokens.
    """

    def __init__(self, kind: str, python: str, folder: Path, tokens: int) -> None:
        backend = "jax" if kind == "jax" else "tensorflow"
        variables = {"KERAS_BACKEND": backend, "TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}
        self.kind = kind
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.keras_worker", kind, str(folder), str(tokens)],
            cwd=HERE.parent,
            env={**os.environ, **(variables if kind != "torch" else {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        if self._read() != "ready":
            raise RuntimeError(f"{kind} does not start in the environment of {python}")

    def caption(self) -> dict[str, Any]:
        """Caption the image, and return seconds and tokens."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._read())
        return answer

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def make_model(folder: Path, *, toy: bool) -> None:
    """Write a captioner with random weights and [SEP] at the published place.

    Tied tensors are stored, too: the peer does not tie them, and draws those that are missing.
    """
    if (folder / "config.json").is_file():
        return
    torch.manual_seed(0)
    small: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    text: dict[str, Any] = {"num_attention_heads": 12}
    vision: dict[str, Any] = {}
    if toy:
        text = {**small, "vocab_size": 600, "num_attention_heads": 4, "bos_token_id": 598}
        vision = {**small, "num_attention_heads": 4, "image_size": 32}
    model = BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))
    model.save_pretrained(folder)
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark. Returns 1 if tokens differ, or if the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keras", help="Python of the environment of the Keras classes")
    parser.add_argument("--peer", help="Python of the environment with transformers 4.46.3 and TensorFlow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=16, help="new tokens of the caption")
    parser.add_argument("--kinds", default="tensorflow,tensorflow-xla,jax", help="contestants of Keras")
    parser.add_argument("--toy", action="store_true", help="tiny model, to test the benchmark itself")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "keras.json")
    parser.add_argument("--work", type=Path, default=HERE / ".work")
    options = parser.parse_args(arguments)
    folder = options.work / ("keras-toy" if options.toy else "keras-base")
    make_model(folder, toy=options.toy)
    record = machine.begin(os.cpu_count() or 1)
    pythons = {"torch": sys.executable}
    if options.peer:
        pythons[PEER] = options.peer
    if options.keras:
        pythons |= dict.fromkeys(options.kinds.split(","), options.keras)
    workers = [Worker(kind, python, folder, options.tokens) for kind, python in pythons.items()]
    answers: dict[str, list[dict[str, Any]]] = {worker.kind: [] for worker in workers}
    for number in range(options.rounds + 2):  # the first two rounds compile
        for worker in workers:
            answer = worker.caption()
            if number >= 2:
                answers[worker.kind].append(answer)
    for worker in workers:
        worker.close()
    reference = answers["torch"][0]["tokens"]
    equal = {kind: all(answer["tokens"] == reference for answer in found) for kind, found in answers.items()}
    seconds = {kind: [answer["seconds"] for answer in found] for kind, found in answers.items()}
    base = seconds.get(PEER)
    rows = {}
    for kind, times in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(base, times, strict=True)) if base else []
        summary = [round(value, 2) for value in (median(ratios), ratios[0], ratios[-1])] if ratios else None
        rows[kind] = {
            "seconds": [round(value, 4) for value in times],
            "median_seconds": round(median(times), 4),
            "x_transformers": summary,
            "tokens_equal": equal[kind],
        }
        print(f"{kind:24} {median(times) * 1000:8.1f} ms  x {summary}  equal: {equal[kind]}")
    record |= {"rows": rows, "tokens": options.tokens, "rounds": options.rounds, "toy": options.toy}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    atomic.write_text(options.out, json.dumps(record, indent=1) + "\n")
    reached = not base or not options.keras or options.toy or rows["tensorflow"]["x_transformers"][0] >= TARGET
    return 0 if all(equal.values()) and reached else 1


if __name__ == "__main__":
    sys.exit(main())

"""All figures of a GPU in one run of at most 10 minutes: `python -m benchmarks.gpu`.

1. Captions on the device are compared with those of fp32 on the CPU: the same tokens in fp32, and in every precision
   the share of equal tokens and the largest difference of the logits.
2. `benchmarks.inference` in fp16 and bf16, against `transformers` in fp32, fp16 and bf16, in batches of 1, 32 and 256.
3. The same rows with `engine="compiled"`, whose steps are CUDA graphs.
4. `benchmarks.training` in bf16 and fp32, with the peak memory of the device.

Each part runs in a process of its own, which ends when the time is over; rows that are complete stay in the record.
`--device cpu --toy` runs everything at toy size.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

import openblip
from benchmarks import machine
from benchmarks.inference import HERE, write
from benchmarks.materials import SCALES, Materials
from openblip.blip import Blip
from openblip.defaults import Precision
from openblip.engine.protocols import TorchModel

ROWS = (
    "caption_1_beams",
    "caption_32_beams",
    "caption_256_beams",
    "embed_images",
    "embed_images_256",
    "itm_16x16",
    "vqa_8",
)
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16")
CHECKED = 8  # images whose captions are compared


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all parts, and write the record; return 1 if fp32 on the device has other tokens than on the CPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts")
    parser.add_argument("--toy", action="store_true", help="use tiny models and fewer rows")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--work", type=Path, default=HERE / ".work", help="folder of models and images")
    parser.add_argument("--name", default="gpu", help="name of the result file, without suffix")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    record: dict[str, Any] = {**machine.begin(options.threads), "device": options.device}
    record["agreement"] = check_agreement(options)
    for precision, agreement in record["agreement"].items():
        print(f"{precision}: {agreement}", flush=True)
    record["parts"] = {}
    for name, command in part_commands(options).items():
        seconds = deadline - time.monotonic()
        record["parts"][name] = run_part(name, command, seconds, options)
        write(record, options.results / f"{options.name}.json")
    exact = record["agreement"]["fp32"]
    return 0 if exact["equal_tokens"] == 1.0 else 1


def check_agreement(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Compare captions on the device, in each precision, with those of fp32 on the CPU.

    Returns:
        Per precision the share of equal tokens, greedy and with 3 beams, and the largest difference of logits.
    """
    materials = Materials(options.work, SCALES["toy" if options.toy else "base"])
    folder, photos = materials.model("caption"), materials.photos(2 if options.toy else CHECKED)
    tokens = materials.scale.new_tokens
    reference = openblip.load(folder, engine="torch", device="cpu")
    expected = {beams: _caption(reference, photos, beams, tokens) for beams in (1, 3)}
    reference_logits = _logits(reference, photos, materials)
    results: dict[str, dict[str, float]] = {}
    for precision in PRECISIONS:
        if options.device == "cpu" and precision == "fp16":
            continue
        blip = openblip.load(folder, engine="torch", precision=precision, device=options.device)
        pairs = [
            (word, other)
            for beams, texts in expected.items()
            for text, reference_text in zip(_caption(blip, photos, beams, tokens), texts, strict=True)
            for word, other in zip(text.split(), reference_text.split(), strict=False)
        ]
        difference = (_logits(blip, photos, materials) - reference_logits).abs().max()
        results[precision] = {
            "equal_tokens": sum(word == other for word, other in pairs) / max(1, len(pairs)),
            "largest_logit_difference": float(difference),
        }
    return results


def part_commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """Return the command of each part that runs in a process of its own."""
    device = options.device
    shared = ["--threads", str(options.threads), "--work", str(options.work), "--results", str(options.results)]
    size = ["--toy"] if options.toy else []
    rows = [
        "--rows",
        ",".join(ROWS[:1] if options.toy else ROWS),
        "--devices",
        device,
        "--rounds",
        "1" if options.toy else "3",
    ]
    half = ["torch:bf16"] if device == "cpu" else ["torch:fp16", "torch:bf16"]
    peers = ["transformers:fp32", *(way.replace("torch", "transformers") for way in half)]
    compiled = "compiled:fp32" if device == "cpu" else "compiled:fp16"
    scale, steps = ("toy", "1") if options.toy else ("base", "5")
    inference, training = ["benchmarks.inference", *rows, *size, *shared], ["benchmarks.training", *shared]
    training += ["--device", device, "--scale", scale, "--steps", steps, "--batch-size", "2" if options.toy else "16"]
    training += ["--memory"]
    commands = {
        "eager": [*inference, "--ours", ",".join(half), "--peers", ",".join(peers)],
        "training-bf16": [*training, "--precision", "bf16"],
        "compiled": [*inference, "--ours", compiled, "--peers", peers[-1]],
        "training-fp32": [*training, "--precision", "fp32"],
    }
    if options.toy:
        del commands["compiled"], commands["training-fp32"]  # a compiler takes longer than the test
    return commands


def run_part(name: str, command: list[str], seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run a part for so many seconds at most, and return its record and how it ended."""
    if seconds <= 0:
        return {"ended": "not started: no time left"}
    result = f"{options.name}-{name}"
    print(f"{name}: {' '.join(command)}", flush=True)
    start = time.monotonic()
    try:
        done = subprocess.run([sys.executable, "-m", *command, "--name", result], timeout=seconds, check=False)
        ended = "complete" if done.returncode == 0 else f"exit status {done.returncode}"
    except subprocess.TimeoutExpired:
        ended = "time over"
    path = options.results / f"{result}.json"
    part: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.unlink(missing_ok=True)
    return {"ended": ended, "seconds": round(time.monotonic() - start, 1), **part}


def _caption(blip: Blip, photos: Sequence[Any], beams: int, tokens: int) -> list[str]:
    captions = blip.caption(list(photos), num_beams=beams, min_new_tokens=tokens, max_new_tokens=tokens)
    return [caption.text for caption in captions]


def _logits(blip: Blip, photos: Sequence[Any], materials: Materials) -> torch.Tensor:
    """Return the logits (I, T, V) of fixed texts, on the CPU."""
    task_model = blip.pipeline("caption").model
    engine = task_model.engine.require(TorchModel)
    states = task_model.encode_images([task_model.open_image(photo) for photo in photos])
    ids = torch.randint(104, materials.scale.words, (len(photos), 12), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = engine.model.logits(ids.to(engine.device), None, states)
    return cast(torch.Tensor, logits.float().cpu())


if __name__ == "__main__":
    raise SystemExit(main())

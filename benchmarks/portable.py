"""Measure `openblip-portable`: its size by package, start to first caption, peak memory, and tokens per second.

    python -m venv /tmp/portable && /tmp/portable/bin/pip install 'packages/portable[onnx]'
    openblip export pocket --task caption --out /tmp/pocket
    python -m benchmarks.portable --python /tmp/portable/bin/python --model /tmp/pocket [--base]

`--base` also writes and exports a captioner of the published base shape with random weights (minutes), and measures the
tokens per second of both programs. The two programs take turns, so that other load affects both alike.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

PHOTO = Path(__file__).parent.parent / "examples" / "photos" / "cat.jpg"
SIZES = """
import importlib.metadata, json
sizes = {}
for distribution in importlib.metadata.distributions():
    files = [distribution.locate_file(file) for file in distribution.files or ()]
    sizes[distribution.metadata['Name']] = sum(file.stat().st_size for file in files if file.exists())
print(json.dumps(sizes))
"""
PORTABLE_LOOP = """
import sys, time, numpy
from openblip_portable import Captioner
captioner = Captioner({model!r}, threads={threads})
image = numpy.full((384, 384, 3), 120, numpy.uint8)
options = dict(num_beams=3, min_new_tokens=16, max_new_tokens=16)
captioner.caption(image, **options)
start = time.perf_counter()
for _ in range({repeats}):
    captioner.caption(image, **options)
print(time.perf_counter() - start)
"""
TORCH_LOOP = """
import sys, time, numpy, openblip
blip = openblip.load({model!r}, engine='torch', precision='fp32', threads={threads})
image = numpy.full((384, 384, 3), 120, numpy.uint8)
options = dict(num_beams=3, min_new_tokens=16, max_new_tokens=16)
blip.caption(image, **options)
start = time.perf_counter()
for _ in range({repeats}):
    blip.caption(image, **options)
print(time.perf_counter() - start)
"""
TOOLS = ("pip", "setuptools", "wheel")  # part of every environment


@dataclass(frozen=True)
class Run:
    """One run of a program: seconds, peak memory in megabytes, and what it printed."""

    seconds: float
    peak: float
    output: str


def run(command: list[str], **environment: str) -> Run:
    """Run a program once, and wait for its end.

    Args:
        command: The program and its arguments.
        environment: Further environment variables.

    Returns:
        The run.

    Raises:
        RuntimeError: The program failed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL, env={**os.environ, **environment})
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command)} failed with {process.returncode}")
        output.seek(0)
        text = output.read().decode()
    return Run(seconds, usage.ru_maxrss / 1024, text)


def list_sizes(python: str) -> dict[str, float]:
    """Return the megabytes of each package that an environment has, without pip and its tools, the largest first.

    Args:
        python: The Python of the environment.

    Returns:
        Megabytes by package.
    """
    sizes = json.loads(run([python, "-c", SIZES]).output)
    ranked = sorted(sizes.items(), key=lambda pair: -pair[1])
    return {name: size / 1e6 for name, size in ranked if name not in TOOLS}


def main() -> None:
    """Print the measurements as tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="Python of an environment with openblip-portable")
    parser.add_argument("--model", required=True, help="export of pocket with the task caption")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--base", action="store_true", help="measure tokens per second of the base shape, too")
    options = parser.parse_args()

    sizes = list_sizes(options.python)
    for name, size in sizes.items():
        print(f"{name:<24}{size:8.1f} MB")
    print(f"{'total':<24}{sum(sizes.values()):8.1f} MB\n")

    program = "from openblip.cli import main; main()"
    shared = ["caption", str(PHOTO), "--threads", str(options.threads)]
    commands = {
        "openblip-portable": [options.python, "-m", "openblip_portable.cli", *shared, "--model", options.model],
        "openblip": [sys.executable, "-c", program, *shared, "--model", "pocket", "--engine", "torch"],
    }
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for _ in range(options.rounds):
        for name, command in commands.items():
            runs[name].append(run(command, HF_HUB_OFFLINE="1"))
    medians = {name: statistics.median(each.seconds for each in found) for name, found in runs.items()}
    for name, found in runs.items():
        peak = max(each.peak for each in found)
        print(f"{name:<20} start to first caption {medians[name]:6.2f} s   peak {peak:6.0f} MB")
    print(f"ratio {medians['openblip-portable'] / medians['openblip']:.2f}\n")
    if options.base:
        measure_base(options.python, options.threads, options.rounds)


def measure_base(python: str, threads: int, rounds: int) -> None:
    """Print the tokens per second of the base shape, in fp32, with beams.

    Args:
        python: Python of the environment with openblip-portable.
        threads: Threads of each program.
        rounds: Number of rounds.
    """
    import torch

    from openblip.checkpoints import write
    from openblip.export.run import export_model
    from openblip.model.build import build_model
    from openblip.model.config import preset
    from openblip.preprocess.settings import ImageSettings
    from openblip.preprocess.text import Tokenizer

    repeats = 2
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        pieces = ["[PAD]", *(f"[unused{i}]" for i in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
        tokenizer = Tokenizer.from_vocab([*pieces, *(f"word{i}" for i in range(30522 - len(pieces)))])
        source, exported = f"{folder}/model", f"{folder}/export"
        model = build_model(preset("caption"))
        write.save(model, source, tokenizer=tokenizer, image=ImageSettings(384), prompt="")
        export_model(source, exported)
        programs = {
            "openblip-portable": [python, "-c", PORTABLE_LOOP.format(model=exported, threads=threads, repeats=repeats)],
            "openblip": [sys.executable, "-c", TORCH_LOOP.format(model=source, threads=threads, repeats=repeats)],
        }
        rates: dict[str, list[float]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, command in programs.items():
                rates[name].append(16 * repeats / float(run(command, HF_HUB_OFFLINE="1").output))
    for name, found in rates.items():
        print(f"{name:<20} base shape, fp32, 3 beams {statistics.median(found):6.1f} tokens/s, image included")


if __name__ == "__main__":
    main()

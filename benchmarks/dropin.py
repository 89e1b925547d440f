"""Compare the speed of the drop-in classes of two source trees, in alternating processes.

    python benchmarks/dropin.py path/to/old/src path/to/new/src --rounds 5

Prints the median time of each case per tree, and old / new: at least 0.98 is required. The model has the sizes of the
published captioner (ViT-B/16, 384 pixels), with random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys

CASES = """
import json, time, torch
from openblip import BlipConfig, BlipForConditionalGeneration
torch.manual_seed(0)
torch.set_num_threads({threads})
device = {device!r}
text = {{"num_attention_heads": 12}}
model = BlipForConditionalGeneration(BlipConfig(text_config=text)).to(device).eval()
pixels, ids = torch.randn(1, 3, 384, 384, device=device), torch.randint(1000, 2000, (2, 20), device=device)

def synchronize():
    if device == "cuda":
        torch.cuda.synchronize()

def measure(run, repeats):
    run()
    synchronize()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        synchronize()
        times.append(time.perf_counter() - start)
    return min(times)

def train():
    model.train()
    model(pixel_values=pixels.expand(2, -1, -1, -1), input_ids=ids, labels=ids).loss.backward()
    model.zero_grad()
    model.eval()

results = {{
    "generate, greedy": measure(lambda: model.generate(pixels, min_new_tokens=20, max_new_tokens=20), {repeats}),
    "generate, 3 beams": measure(
        lambda: model.generate(pixels, num_beams=3, min_new_tokens=20, max_new_tokens=20), {repeats}
    ),
    "training step, 2 images": measure(train, {repeats}),
}}
print(json.dumps(results))
"""


def measure(source: str, code: str) -> dict[str, float]:
    """Return the seconds of each case with a source tree, in a new process."""
    environment = {**os.environ, "PYTHONPATH": source}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    code = CASES.format(threads=options.threads, device=options.device, repeats=options.repeats)
    times: dict[str, dict[str, list[float]]] = {"old": {}, "new": {}}
    for number in range(options.rounds):
        for name in ("old", "new") if number % 2 == 0 else ("new", "old"):
            for case, seconds in measure(getattr(options, name), code).items():
                times[name].setdefault(case, []).append(seconds)
    print(f"{'case':<26} {'old ms':>9} {'new ms':>9} {'old / new':>9}")
    for case in times["old"]:
        old, new = (statistics.median(times[name][case]) for name in ("old", "new"))
        print(f"{case:<26} {old * 1000:9.1f} {new * 1000:9.1f} {old / new:9.3f}")


if __name__ == "__main__":
    main()

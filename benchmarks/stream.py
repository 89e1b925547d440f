"""Memory of a stream: `python -m benchmarks.stream` captions 5,000 images from an iterator with `pocket`.

Images are generated on demand. Memory is measured at several points of the stream, relative to the memory of the
process after the caption of a first image.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

import openblip
from benchmarks import machine
from benchmarks.inference import HERE, write
from benchmarks.materials import draw_image

LIMIT = 300  # MiB above the model
POINTS = 10  # number of measurements during the stream


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and write the record; return 1 if memory exceeds the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)

    blip = openblip.load("pocket", task="caption")
    blip.caption(draw_image(0, *options.size))
    baseline, peak, start = _resident_mib(), machine.peak_memory(), time.perf_counter()
    samples = [baseline]
    interval = max(1, options.images // POINTS)
    for number, _ in enumerate(blip.caption(_images(options.images, *options.size)), 1):
        if number % interval == 0:
            samples.append(_resident_mib())
            print(f"{number} images: {samples[-1] - baseline:+.0f} MiB", flush=True)
    new_peak = machine.peak_memory()
    if new_peak > peak:  # otherwise the peak was in loading
        samples.append(new_peak / 2**20)
    maximum = max(samples) - baseline
    record = {
        "machine": machine.describe(options.threads),
        "date": time.strftime("%Y-%m-%d"),
        "images": options.images,
        "size": list(options.size),
        "seconds": round(time.perf_counter() - start, 1),
        "model_mib": round(baseline),
        "above_mib": [round(sample - baseline) for sample in samples[1 : POINTS + 1]],
        "max_above_mib": round(maximum),
    }
    write(record, options.results / "stream.json")
    print(f"at most {maximum:.0f} MiB above the model; the limit is {LIMIT} MiB")
    return int(maximum > LIMIT)


def _images(count: int, width: int, height: int) -> Iterator[Image.Image]:
    """Yield images: rotations of a few, because drawing is slow."""
    originals = [draw_image(seed, width, height) for seed in range(8)]
    for number in range(count):
        yield originals[number % len(originals)].rotate(90 * (number // len(originals) % 4))


def _resident_mib() -> float:
    """Return the current memory of this process in MiB."""
    return machine.resident_memory() / 2**20


if __name__ == "__main__":
    raise SystemExit(main())

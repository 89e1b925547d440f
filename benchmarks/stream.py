"""Is memory bounded? ``python -m benchmarks.stream`` captions 5,000 pictures from an iterator, with `pocket`.

Pictures are generated as they are asked for. Printed and written: the most memory held while they went through, above
what the process held with its model loaded and one picture captioned, at several points of the way.
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
from benchmarks.materials import picture

ALLOWED = 300  # MiB above the model
POINTS = 10  # of the way, at which memory is looked at


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the record; 1 if more was held than is allowed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=5000)
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args(arguments)

    blip = openblip.load("pocket", task="caption")
    blip.caption(picture(0, *options.size))
    before, peak, began = _resident(), machine.peak_memory(), time.perf_counter()
    held = [before]
    every = max(1, options.pictures // POINTS)
    for number, _ in enumerate(blip.caption(_pictures(options.pictures, *options.size)), 1):
        if number % every == 0:
            held.append(_resident())
            print(f"{number} pictures: {held[-1] - before:+.0f} MiB", flush=True)
    if (reached := machine.peak_memory()) > peak:  # else the peak lies before, in loading
        held.append(reached / 2**20)
    most = max(held) - before
    record = {
        "machine": machine.describe(options.threads),
        "date": time.strftime("%Y-%m-%d"),
        "pictures": options.pictures,
        "size": list(options.size),
        "seconds": round(time.perf_counter() - began, 1),
        "model_mib": round(before),
        "above_mib": [round(now - before) for now in held[1 : POINTS + 1]],
        "most_above_mib": round(most),
    }
    write(record, options.results / "stream.json")
    print(f"at most {most:.0f} MiB above the model, of {ALLOWED} allowed")
    return int(most > ALLOWED)


def _pictures(count: int, width: int, height: int) -> Iterator[Image.Image]:
    """Different ones, of which a few are drawn: drawing is slow."""
    drawn = [picture(seed, width, height) for seed in range(8)]
    for number in range(count):
        yield drawn[number % len(drawn)].rotate(90 * (number // len(drawn) % 4))


def _resident() -> float:
    """Memory that this process holds now, in MiB."""
    return machine.resident_memory() / 2**20


if __name__ == "__main__":
    raise SystemExit(main())

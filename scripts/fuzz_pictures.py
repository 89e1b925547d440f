"""Mutates valid picture files and opens them: no error but ``ImageError`` may come out, and nothing may hang.

    python scripts/fuzz_pictures.py --runs 20000 --seed 0

Prints how many of the files still opened; ends with exit code 1, and the file that did it, at the first other error.
"""

from __future__ import annotations

import argparse
import io
import random
import sys
import traceback
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from openblip.errors import ImageError
from openblip.preprocess.image import load_image

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "ICO", "TGA", "AVIF")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failure.bin"), help="where the file is put")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # of damaged notes, thousands of times
    valid = list(seeds())
    draw = random.Random(arguments.seed)
    opened = 0
    for number in range(arguments.runs):
        data = mutated(draw, draw.choice(valid))
        try:
            load_image(data)
            opened += 1
        except ImageError:
            pass
        except Exception:
            arguments.keep.write_bytes(data)
            traceback.print_exc()
            sys.exit(f"run {number}: another error; the file is {arguments.keep}")
    print(f"{arguments.runs} runs: {opened} opened, {arguments.runs - opened} refused, no other error")


def seeds() -> list[bytes]:
    """A small picture in every format that Pillow writes here, plain, grey, with alpha, animated, with EXIF."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    modes = (Image.fromarray(noise[:, :, :3]), Image.fromarray(noise[:, :, 0]), Image.fromarray(noise))
    found = []
    Image.init()
    for form in FORMATS:
        if form not in Image.SAVE:
            continue
        for picture in modes:
            for options in ({}, {"exif": exif.tobytes()}, {"save_all": True, "append_images": [picture]}):
                out = io.BytesIO()
                try:
                    picture.save(out, form, **options)
                except (OSError, ValueError, TypeError, KeyError):
                    continue  # this format has no such thing
                found.append(out.getvalue())
    return found


def mutated(draw: random.Random, data: bytes) -> bytes:
    """A few bytes changed, runs cut out, doubled, shuffled or replaced by telling numbers."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        if not content:
            break
        at = draw.randrange(len(content))
        size = min(draw.choice((1, 2, 4, 8, 64)), len(content) - at)
        match draw.randrange(6):
            case 0:
                content[at] ^= 1 << draw.randrange(8)
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = content[at : at + size]
            case 3:
                content[at : at + size] = draw.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
            case 4:
                content[at : at + size] = draw.randbytes(size)
            case 5:
                del content[at:]
    return bytes(content)


if __name__ == "__main__":
    main()

"""Open mutated image files: the only error may be `ImageError`, and nothing may hang.

    python scripts/fuzz_pictures.py --runs 20000 --seed 0

Prints how many files still opened. The first other error ends the script with exit code 1 and keeps the file.
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
    parser.add_argument("--runs", type=int, default=20_000, help="number of files to open")
    parser.add_argument("--seed", type=int, default=0, help="seed of the mutations")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failure.bin"), help="file to keep on failure")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # Pillow warns about damaged metadata thousands of times
    files = valid_files()
    rng = random.Random(arguments.seed)
    opened = 0
    for number in range(arguments.runs):
        data = mutate(rng, rng.choice(files))
        try:
            load_image(data)
            opened += 1
        except ImageError:
            pass
        except Exception:
            arguments.keep.write_bytes(data)
            traceback.print_exc()
            sys.exit(f"run {number} raised another error; the file is {arguments.keep}")
    print(f"{arguments.runs} runs: {opened} opened, {arguments.runs - opened} refused, no other error")


def valid_files() -> list[bytes]:
    """Return a small image in every format that Pillow can write: RGB, gray, with alpha, animated, with EXIF."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 31, 4), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "maker"
    modes = (Image.fromarray(noise[:, :, :3]), Image.fromarray(noise[:, :, 0]), Image.fromarray(noise))
    files = []
    Image.init()
    for name in FORMATS:
        if name not in Image.SAVE:
            continue
        for image in modes:
            for options in ({}, {"exif": exif.tobytes()}, {"save_all": True, "append_images": [image]}):
                out = io.BytesIO()
                try:
                    image.save(out, name, **options)
                except (OSError, ValueError, TypeError, KeyError):
                    continue  # the format does not support this
                files.append(out.getvalue())
    return files


def mutate(rng: random.Random, data: bytes) -> bytes:
    """Flip bits, and remove, repeat, overwrite or truncate runs of bytes."""
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4, 16))):
        if not content:
            break
        at = rng.randrange(len(content))
        size = min(rng.choice((1, 2, 4, 8, 64)), len(content) - at)
        match rng.randrange(6):
            case 0:
                content[at] ^= 1 << rng.randrange(8)
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = content[at : at + size]
            case 3:
                content[at : at + size] = rng.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * size
            case 4:
                content[at : at + size] = rng.randbytes(size)
            case 5:
                del content[at:]
    return bytes(content)


if __name__ == "__main__":
    main()

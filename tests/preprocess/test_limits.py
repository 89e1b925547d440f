"""The estimate of the memory that decoding takes, against the peak of a process that decodes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from openblip.preprocess import limits

WIDTH, HEIGHT = 1200, 800
IN_STRIPS = ("png with alpha", "png of 16 bits")  # strips need up to 30 MB, whatever the size of the image
SLOW = ("heif", "jpeg 2000", "jpeg 2000 with alpha", "avif with alpha")

# Prints the peak above the resident memory before, the estimate, and the number of pixels.
PROGRAM = """
import gc, sys
from openblip.preprocess import files, limits
from openblip.preprocess.image import load_image

def resident(name):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(name))

estimates, estimate_bytes = [], limits.estimate_bytes
files.estimate_bytes = lambda *args, **kwargs: estimates.append(estimate_bytes(*args, **kwargs)) or estimates[-1]
load_image(sys.argv[1])  # imports the decoder
gc.collect()
open("/proc/self/clear_refs", "w").write("5")
before = resident("VmRSS")
load_image(sys.argv[2])
print(resident("VmHWM") - before, estimates[-1])
"""

FORMS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "png": ("PNG", "RGB", {"compress_level": 1}),
    "png with alpha": ("PNG", "RGBA", {"compress_level": 0}),
    "png of 16 bits": ("PNG", "I;16", {"compress_level": 0}),
    "jpeg": ("JPEG", "RGB", {}),
    "progressive jpeg": ("JPEG", "RGB", {"progressive": True}),
    "webp": ("WEBP", "RGB", {"method": 0}),
    "lossless webp": ("WEBP", "RGB", {"method": 0, "lossless": True}),
    "webp with alpha": ("WEBP", "RGBA", {"method": 0}),
    "avif": ("AVIF", "RGB", {"speed": 10}),
    "avif with alpha": ("AVIF", "RGBA", {"speed": 10}),
    "heif": ("HEIF", "RGB", {"quality": 60}),
    "jpeg 2000": ("JPEG2000", "RGB", {}),
    "jpeg 2000 in gray": ("JPEG2000", "L", {}),
    "jpeg 2000 with alpha": ("JPEG2000", "RGBA", {}),
    "tiff": ("TIFF", "RGB", {"compression": "tiff_lzw"}),
}


def make_image(width: int, height: int, mode: str) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height // 8 or 1, width // 8 or 1, 4), np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BILINEAR)
    if mode == "I;16":
        return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    return image if mode == "RGBA" else image.convert("RGB").convert(mode)


@pytest.mark.parametrize("form", [pytest.param(form, marks=[pytest.mark.slow] * (form in SLOW)) for form in FORMS])
def test_the_estimate_covers_the_peak(form: str, tmp_path: Path) -> None:
    image_format, mode, options = FORMS[form]
    if image_format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    Image.init()
    if image_format not in Image.SAVE:
        pytest.skip(f"this Pillow does not write {image_format}")
    files = [tmp_path / "small", tmp_path / "large"]
    scale = 3 if form in IN_STRIPS else 1
    for path, size in zip(files, ((16, 16), (scale * WIDTH, scale * HEIGHT)), strict=True):
        make_image(*size, mode).save(path, image_format, **options)
    done = subprocess.run([sys.executable, "-c", PROGRAM, *files], capture_output=True, text=True, check=False)
    if "PermissionError" in done.stderr or "clear_refs" in done.stderr:
        pytest.skip("the peak cannot be measured")
    peak, estimate = map(int, done.stdout.split())
    slack = 30 * 2**20 if form in IN_STRIPS else 3 * 2**20  # strips, or tables of the decoder and the allocator
    assert peak - slack <= 1.1 * estimate, f"{peak / scale**2 / WIDTH / HEIGHT:.1f} bytes per pixel"
    assert estimate <= 2.2 * peak, f"{peak / scale**2 / WIDTH / HEIGHT:.1f} bytes per pixel"


def test_the_memory_of_large_images_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    trims: list[bool] = []
    monkeypatch.setattr(limits, "return_freed_memory", lambda: trims.append(True))
    budget = limits.ByteBudget(10**9)
    for count, expected in ((10**6, 0), (10**8, 1)):
        with budget.reserve(count):
            assert not trims
        assert len(trims) == expected
    trims.clear()
    with budget.keep(), budget.reserve(10**8):
        assert not trims
    assert trims == [True]

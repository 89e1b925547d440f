"""Tiny videos, made by PyAV itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image


def make_video(path: Path, frames: int, *, codec: str = "libx264", seed: int = 0, gop: int = 5) -> Path:
    """A video of ``frames`` frames (64 x 48) that all differ: coarse coloured noise that grows lighter or darker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.gop_size = gop
        for _ in range(frames):
            noise = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
            picture = Image.fromarray(noise).resize((64, 48), Image.Resampling.NEAREST)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.asarray(picture), format="rgb24")))
        container.mux(stream.encode())
    return path


def all_frames(path: Path) -> list[Image.Image]:
    """Every frame, decoded from the beginning to the end."""
    with av.open(str(path)) as container:
        return [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]

"""Videos as a few of their frames, each of them a picture (no torch).

Frames are sampled as the authors' code does it for text-to-video retrieval (salesforce/BLIP, ``video_dataset.py``):
from the first one on, in steps of the video's length divided by their number. Files are decoded by PyAV, which
``pip install 'openblip[video]'`` brings.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from openblip.errors import InputError, OpenBlipError, VideoError
from openblip.preprocess.image import load_image

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ogv", ".3gp"}
)
FRAMES = 8  # as in text-to-video retrieval

_TIMED = ("mp4", "matroska")  # formats that say exactly when every frame is shown, so that one can start anywhere
_TURNED = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True, eq=False)
class Video:
    """A video to caption, ask about, match or embed: the path of a file, or its frames as pictures, in their order.

    ``frames`` of them are seen, uniformly sampled: by default 8 of a file, and all of a list. Raises
    :class:`InputError` for a source that is neither, or a number below 1.
    """

    source: str | os.PathLike[str] | Sequence[ImageSource] = field(repr=False)
    frames: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | os.PathLike | list | tuple):
            raise InputError(f"a video is a path, or a list of pictures, not {type(self.source).__name__}")
        if self.frames is not None and self.frames < 1:
            raise InputError(f"at least 1 frame of a video is seen, not {self.frames}")


def is_video(source: Any) -> bool:
    """Whether this is a :class:`Video`, or a path with the suffix of one."""
    if isinstance(source, str | os.PathLike):
        return os.path.splitext(os.fsdecode(source))[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122 (of every picture)
    return isinstance(source, Video)


def load_frames(video: Any, *, near: int | None = None) -> Iterator[Image.Image]:
    """The sampled frames of a video, upright and RGB, in their order, each when it is asked for.

    ``video`` is what :func:`is_video` accepts; ``near`` is that of :func:`~openblip.preprocess.image.load_image`, for
    frames that are picture files. Raises :class:`VideoError` for a file that cannot be read or holds no pictures,
    :class:`ImageError` for such a frame of a list, :class:`InputError` if PyAV is not installed.
    """
    if not isinstance(video, Video):
        video = Video(video)
    if isinstance(video.source, str | os.PathLike):
        yield from _decoded(os.fsdecode(video.source), video.frames or FRAMES)
        return
    pictures = video.source
    if not pictures:
        raise VideoError("a video of no frames has nothing to see")
    for place in sampled(len(pictures), video.frames or len(pictures)):
        yield load_image(pictures[place], near=near)


def sampled(length: int, count: int) -> list[int]:
    """The places of ``count`` frames of a video that has ``length`` of them, at least 1.

    The step is a whole number, as NumPy makes it of the original's ``arange(0, length, length / count, dtype=int)``.
    Of a video of fewer frames, of which that would take the first again and again, all are taken, some of them twice.
    """
    if length < count:
        return [place * length // count for place in range(count)]
    return [place * (length // count) for place in range(count)]


# --- files --------------------------------------------------------------------------------------------------------


def _decoded(name: str, count: int) -> Iterator[Image.Image]:
    av = _pyav(name)
    if "://" in name:
        raise VideoError(f"cannot read {name}: videos are read from files; download it first")
    if not Path(name).is_file():
        raise VideoError(f"cannot read {name}: no such file, or no regular one")
    with _reading(name):
        with av.open(name) as container:
            times, starts = _times(container, _pictures(container, name), name)
        wanted = [times[place] for place in sampled(len(times), count)]
        with av.open(name) as container:
            stream = _pictures(container, name)
            stream.thread_type = "AUTO"
            for frame in _picked(container, stream, wanted, starts, name):
                yield _upright(frame)


def _pyav(name: str) -> Any:
    try:
        return import_module("av")
    except ImportError as error:
        raise InputError(f"reading {name} needs PyAV, which is not installed: pip install 'openblip[video]'") from error


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Whatever goes wrong inside is a ``VideoError`` that names the file: FFmpeg has errors of many kinds."""
    try:
        yield
    except OpenBlipError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"cannot read {name}: damaged, cut short, or no video ({reason})") from error


def _pictures(container: Any, name: str) -> Any:
    if not container.streams.video:
        raise VideoError(f"cannot read {name}: it has no pictures")
    return container.streams.video[0]


def _times(container: Any, stream: Any, name: str) -> tuple[Sequence[int], list[int] | None]:
    """When each frame is shown, in order, and at which of these times decoding can start.

    Packets are only counted, not decoded. In other formats than :data:`_TIMED` frames have their numbers for times, and
    decoding starts at the beginning: ``None``.
    """
    packets = [
        (packet.pts, packet.is_keyframe) for packet in container.demux(stream) if packet.size and not packet.is_discard
    ]
    if not packets:
        raise VideoError(f"cannot read {name}: it has no pictures")
    exact = any(name in container.format.name.split(",") for name in _TIMED)
    if not exact or any(time is None for time, _ in packets):
        return range(len(packets)), None
    return sorted(time for time, _ in packets), sorted(time for time, key in packets if key)


def _picked(container: Any, stream: Any, wanted: Iterable[int], starts: list[int] | None, name: str) -> Iterator[Any]:
    """The frames of these times, which do not fall; long stretches between them are skipped and not decoded."""
    shown = _timed(container.decode(stream), starts is None)
    now, frame = None, None
    for time in wanted:
        start = starts[bisect_right(starts, time) - 1] if starts else None
        if now is not None and start is not None and now < start <= time:
            container.seek(start, stream=stream)
            shown = _timed(container.decode(stream), False)
        while now is None or now < time:
            following = next(shown, None)
            if following is None:  # its last packets held no frame
                break
            now, frame = following
        if frame is None:
            raise VideoError(f"cannot read {name}: it has no pictures")
        yield frame


def _timed(frames: Iterable[Any], numbered: bool) -> Iterator[tuple[int, Any]]:
    return iter(enumerate(frames)) if numbered else ((frame.pts, frame) for frame in frames)


def _upright(frame: Any) -> Image.Image:
    """A frame as the camera was held; PyAV counts the degrees against the clock, as Pillow does."""
    image: Image.Image = frame.to_image()
    turn = _TURNED.get(frame.rotation % 360)
    return image if turn is None else image.transpose(turn)

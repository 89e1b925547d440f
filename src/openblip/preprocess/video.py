"""Videos as a few sampled frames, without torch.

Frames are sampled as in the authors' code for text-to-video retrieval (salesforce/BLIP, `video_dataset.py`): from the
first frame, with a step of the video's length divided by the number of frames. Files are decoded by PyAV, which
`pip install 'openblip[video]'` installs.
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
from openblip.extras import install_hint
from openblip.preprocess.formats import VIDEO_SUFFIXES
from openblip.preprocess.image import load_image

if TYPE_CHECKING:
    from openblip.preprocess.image import ImageSource

DEFAULT_FRAMES = 8  # as in text-to-video retrieval

_TIMED_FORMATS = ("mp4", "matroska")  # formats with exact presentation times, which can be decoded from any keyframe
_ROTATIONS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


@dataclass(frozen=True, eq=False)
class Video:
    """A video to caption, ask about, match or embed.

    Attributes:
        source: Path of a file, or a list of frames (any image sources) in their order.
        frames: Number of uniformly sampled frames. The default is 8 for a file, and all frames for a list.

    Raises:
        InputError: Another source, or a number of frames below 1.
    """

    source: str | os.PathLike[str] | Sequence[ImageSource] = field(repr=False)
    frames: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | os.PathLike | list | tuple):
            raise InputError(
                f"the source of a video must be a path or a list of images, got {type(self.source).__name__}"
            )
        if self.frames is not None and self.frames < 1:
            raise InputError(f"frames must be at least 1, got {self.frames}")


def is_video(source: Any) -> bool:
    """Return whether `source` is a `Video`, or a path with the suffix of a video file."""
    if isinstance(source, str | os.PathLike):
        return os.path.splitext(os.fsdecode(source))[1].lower() in VIDEO_SUFFIXES  # noqa: PTH122 (called for each image)
    return isinstance(source, Video)


def load_frames(video: Any, *, target_size: int | None = None) -> Iterator[Image.Image]:
    """Load the sampled frames of a video, one at a time.

    Args:
        video: A `Video`, or the path of a video file.
        target_size: See [`load_image`][openblip.preprocess.image.load_image]; for frames that are image files.

    Yields:
        The frames, upright and RGB, in their order.

    Raises:
        VideoError: The file cannot be read, or has no frames.
        ImageError: A frame of a list cannot be read.
        InputError: PyAV is not installed.
    """
    if not isinstance(video, Video):
        video = Video(video)
    if isinstance(video.source, str | os.PathLike):
        yield from _decode_frames(os.fsdecode(video.source), video.frames or DEFAULT_FRAMES)
        return
    images = video.source
    if not images:
        raise VideoError("a video must have at least one frame, got an empty list")
    for index in sample_frames(len(images), video.frames or len(images)):
        yield load_image(images[index], target_size=target_size)


def sample_frames(length: int, count: int) -> list[int]:
    """Return the indices of the sampled frames of a video.

    The step is an integer, as in the original, whose `np.arange(0, length, length / count, dtype=int)` has an integer
    step. This would repeat frame 0 if a video has fewer than `count` frames; then all frames are sampled, some of them
    several times.

    Args:
        length: Number of frames of the video, at least 1.
        count: Number of frames to sample.

    Returns:
        `count` indices in ascending order.
    """
    if length < count:
        return [index * length // count for index in range(count)]
    return [index * (length // count) for index in range(count)]


def _decode_frames(name: str, count: int) -> Iterator[Image.Image]:
    """Decode the sampled frames of a file in two passes: read all packet times, then decode the sampled frames."""
    try:
        av = import_module("av")
    except ImportError as error:
        raise InputError(f"reading {name} needs PyAV, which is not installed: {install_hint('video')}") from error
    if "://" in name:
        raise VideoError(f"cannot read {name}: videos must be local files; download it first")
    if not Path(name).is_file():
        raise VideoError(f"cannot read {name}: no such file, or not a regular file")
    with _wrap_errors(name):
        with av.open(name) as container:
            times, keyframe_times = _read_times(container, _video_stream(container, name), name)
        sampled_times = [times[index] for index in sample_frames(len(times), count)]
        with av.open(name) as container:
            stream = _video_stream(container, name)
            stream.thread_type = "AUTO"
            for frame in _decode_at(container, stream, sampled_times, keyframe_times, name):
                image: Image.Image = frame.to_image()
                rotation = _ROTATIONS.get(frame.rotation % 360)  # counterclockwise, as in Pillow
                yield image if rotation is None else image.transpose(rotation)


@contextmanager
def _wrap_errors(name: str) -> Iterator[None]:
    """Turn all errors of FFmpeg, which have many types, into a `VideoError` that names the file."""
    try:
        yield
    except OpenBlipError:
        raise
    except Exception as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"cannot read {name}: damaged, truncated, or not a video ({reason})") from error


def _video_stream(container: Any, name: str) -> Any:
    if not container.streams.video:
        raise VideoError(f"cannot read {name}: it has no video stream")
    return container.streams.video[0]


def _read_times(container: Any, stream: Any, name: str) -> tuple[Sequence[int], list[int] | None]:
    """Return the presentation times of all frames, and of the keyframes, at which decoding can start.

    Packets are not decoded. In formats without exact times, frame numbers take the place of times, and there are no
    keyframe times, so decoding starts at the beginning.
    """
    packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
    if not packets:
        raise VideoError(f"cannot read {name}: it has no frames")
    is_timed = any(name in container.format.name.split(",") for name in _TIMED_FORMATS)
    if not is_timed or any(time is None for time, _ in packets):
        return range(len(packets)), None
    return sorted(time for time, _ in packets), sorted(time for time, is_keyframe in packets if is_keyframe)


def _decode_at(
    container: Any, stream: Any, times: Iterable[int], keyframe_times: list[int] | None, name: str
) -> Iterator[Any]:
    """Yield the frames at these ascending times; seeks instead of decoding the frames between them where possible."""
    frames = _with_times(container.decode(stream), keyframe_times is None)
    now, frame = None, None
    for time in times:
        start = keyframe_times[bisect_right(keyframe_times, time) - 1] if keyframe_times else None
        if now is not None and start is not None and now < start <= time:
            container.seek(start, stream=stream)
            frames = _with_times(container.decode(stream), False)
        while now is None or now < time:
            following = next(frames, None)
            if following is None:  # the final packets had no frame
                break
            now, frame = following
        if frame is None:
            raise VideoError(f"cannot read {name}: it has no frames")
        yield frame


def _with_times(frames: Iterable[Any], numbered: bool) -> Iterator[tuple[int, Any]]:
    return iter(enumerate(frames)) if numbered else ((frame.pts, frame) for frame in frames)

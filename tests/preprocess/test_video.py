"""Frames of videos: which ones, equal to those of decoding everything, and errors that name the file."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from openblip.errors import ImageError, InputError, VideoError
from openblip.preprocess.video import Video, is_video, load_frames, sample_frames
from tests.toys import toy_image
from tests.videos import all_frames, make_video


@pytest.mark.parametrize(("length", "count"), [(250, 8), (8, 8), (9, 8), (100, 16), (7, 1), (31, 16), (10_000, 3)])
def test_places_are_those_of_the_original_s_numpy(length: int, count: int) -> None:
    assert sample_frames(length, count) == np.arange(0, length, length / count, dtype=int).tolist()


def test_of_a_short_video_all_frames_are_taken() -> None:
    assert sample_frames(3, 8) == [0, 0, 0, 1, 1, 1, 2, 2]
    assert sample_frames(1, 4) == [0, 0, 0, 0]


def test_what_is_a_video() -> None:
    assert all(map(is_video, ("a.mp4", Path("b/C.AVI"), "x.webm", Video(["a.png"]), Video("a.gif"))))
    assert not any(map(is_video, ("a.png", "mp4", Path("x.gif"), b"a.mp4", toy_image(0), ["a.mp4"], None)))


# B-frames and closed groups of 5 (H.264), every frame by itself (FFV1), AVI, which does not tell when frames are shown.
@pytest.mark.parametrize(
    ("name", "codec", "gop"),
    [
        ("a.mp4", "libx264", 5), ("a.mp4", "libx264", 100), ("a.mp4", "mpeg4", 5), ("a.avi", "mpeg4", 5),
        ("a.avi", "libx264", 5), ("a.mkv", "ffv1", 1), ("a.webm", "libvpx", 5), ("a.mov", "libx264", 7),
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [1, 8, 16])
def test_frames_are_those_of_decoding_everything(tmp_path: Path, name: str, codec: str, gop: int, count: int) -> None:
    path = make_video(tmp_path / name, 37, codec=codec, gop=gop)
    every = all_frames(path)
    assert len(every) == 37
    actual = list(load_frames(Video(path, frames=count)))
    assert len(actual) == count
    for frame, index in zip(actual, sample_frames(37, count), strict=True):
        np.testing.assert_array_equal(np.asarray(frame), np.asarray(every[index]))


def test_eight_frames_by_default_and_all_of_a_list(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.mp4", 20)
    assert len(list(load_frames(path))) == len(list(load_frames(str(path)))) == 8
    pictures = [toy_image(seed) for seed in range(5)]
    assert list(load_frames(Video(pictures))) == pictures
    assert list(load_frames(Video(pictures, frames=2))) == [pictures[0], pictures[2]]
    short = make_video(tmp_path / "b.mp4", 2)
    assert len(list(load_frames(short))) == 8


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), Image.Transpose.ROTATE_270),  # a telephone held upright: to be shown a quarter clockwise
        ((-1, 0, 0, -1), Image.Transpose.ROTATE_180),
        ((0, -1, 1, 0), Image.Transpose.ROTATE_90),
    ],
)
def test_frames_are_upright(tmp_path: Path, matrix: tuple[int, ...], turn: Image.Transpose) -> None:
    path = make_video(tmp_path / "a.mp4", 3)
    lying = all_frames(path)[0]
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 44  # the track's matrix (ISO 14496-12, 8.3.2)
    a, b, c, d = (number << 16 for number in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    np.testing.assert_array_equal(np.asarray(next(load_frames(path))), np.asarray(lying.transpose(turn)))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    full = make_video(tmp_path / "a.mp4", 20).read_bytes()
    for content in (b"", b"no video", full[: len(full) // 2], full[1000:]):
        (tmp_path / "bad.mp4").write_bytes(content)
        with pytest.raises(VideoError, match=r"cannot read .*bad\.mp4: damaged"):
            list(load_frames(tmp_path / "bad.mp4"))
    with pytest.raises(ImageError, match="no such file"):  # a VideoError is one
        list(load_frames(tmp_path / "none.mp4"))
    with pytest.raises(VideoError, match="download it first"):
        list(load_frames("https://example.org/a.mp4"))
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(VideoError, match="it has no video stream"):
        list(load_frames(tmp_path / "sound.mp4"))
    with pytest.raises(VideoError, match="at least one frame"):
        list(load_frames(Video([])))
    with pytest.raises(ImageError, match="no such file"):
        list(load_frames(Video([toy_image(0), tmp_path / "none.png"])))
    with pytest.raises(InputError, match="got ndarray"):
        Video(np.zeros((2, 4, 4, 3), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="frames must be at least 1, got 0"):
        Video("a.mp4", frames=0)


def test_without_pyav_it_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video(tmp_path / "a.mp4", 2)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"needs PyAV, .* pip install 'openblip\[video\]'"):
        list(load_frames(path))
    assert len(list(load_frames(Video([toy_image(0)])))) == 1

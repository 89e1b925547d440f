"""Videos: against their frames as images, and against the networks with concatenated tokens.

Shapes: F frames, M image tokens, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import Tensor

import openblip
from openblip import Blip, EncodedImage, UnsupportedTaskError, Video, VideoError
from openblip.cli import app
from openblip.preprocess.image import ImageSettings, resize, to_tensor
from openblip.preprocess.video import sample_frames
from openblip.tasks import TaskName
from tests.pipelines.pipeline_toys import assert_close, count_images
from tests.toys import SIZE, toy_image, toy_tokenizer
from tests.videos import all_frames, make_video

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["a cat on a bed", "a yellow school bus parked on the street near a train", "dogs"]
CALLS: list[Callable[..., Any]] = [
    lambda blip, videos, **options: blip.caption(videos, **options),
    lambda blip, videos, **options: blip.ask(videos, "why", **options),
    lambda blip, videos, **options: blip.match(videos, TEXTS, **options),
]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("videos")
    for index, frames in enumerate((20, 3, 41)):
        make_video(home / f"{index}.mp4", frames, seed=index)
    return [home / f"{index}.mp4" for index in range(3)]


def encode_frames(blip: Blip, task: TaskName, clip: Path, count: int = 8) -> Tensor:
    """Return the states (F, M, D) of sampled frames, each encoded as an image."""
    frames = all_frames(clip)
    network = blip.pipeline(task).model.module
    states = []
    with torch.inference_mode():
        for index in sample_frames(len(frames), count):
            pixels = to_tensor(resize(frames[index], SIZE)[None], ImageSettings(size=SIZE))
            states.append(network.encode_image(pixels))
    return torch.cat(states)


def concatenate(states: Tensor) -> Tensor:
    """Return the tokens (1, F * M, D) of all frames as those of one image."""
    return states.reshape(1, -1, states.shape[-1])


def decode_greedily(logits: Callable[[list[int]], Tensor], prompt: list[int], max_new_tokens: int) -> list[int]:
    """Return the most probable tokens one after the other, without [SEP], which is not the first."""
    ids = list(prompt)
    sep = toy_tokenizer().sep_id
    for step in range(max_new_tokens):
        scores = logits(ids)[0, -1]
        if step == 0:
            scores[sep] = -torch.inf
        ids.append(int(scores.argmax()))
        if ids[-1] == sep:
            break
    return [token for token in ids[len(prompt) :] if token != sep]


@torch.inference_mode()
def test_captions_attend_to_the_tokens_of_all_frames(blip: Blip, clips: list[Path]) -> None:
    network, tokenizer = blip.pipeline("caption").model.module, toy_tokenizer()
    captions = blip.caption(clips, num_beams=1, max_new_tokens=6)
    prompt = tokenizer.encode_prompt("a picture of ")
    for clip, caption in zip(clips, captions, strict=True):
        memory = concatenate(encode_frames(blip, "caption", clip))

        def logits(ids: list[int], memory: Tensor = memory) -> Tensor:
            states = network.decoder.decode(torch.tensor([ids]), None, memory)
            return torch.as_tensor(network.to_logits(states).clone())

        assert caption.text == tokenizer.decode(decode_greedily(logits, prompt, 6))
    assert len({caption.text for caption in captions}) == 3


@torch.inference_mode()
def test_answers_attend_to_the_tokens_of_all_frames(blip: Blip, clips: list[Path]) -> None:
    network, tokenizer = blip.pipeline("vqa").model.module, toy_tokenizer()
    candidates = ["a cat", "dog", "yes"]
    for clip in clips:
        question = tokenizer.encode(["what is it?"], "enc")
        memory = concatenate(encode_frames(blip, "vqa", clip))
        states = network.encode_question(question.ids, question.mask, memory)

        def logits(ids: list[int], states: Tensor = states, mask: Tensor = question.mask) -> Tensor:
            tokens = torch.tensor([ids])
            return torch.as_tensor(network.logits(tokens, torch.ones_like(tokens), states, mask).clone())

        generated = blip.ask(clip, "what is it?", num_beams=1, max_new_tokens=5)
        assert generated.text == tokenizer.decode(decode_greedily(logits, [tokenizer.dec_id], 5))
        scores = []
        for answer in candidates:
            ids = tokenizer.encode([answer], "dec").ids[0].tolist()
            logprobs = logits(ids[:-1])[0].log_softmax(-1)
            scores.append(sum(logprobs[index, token].item() for index, token in enumerate(ids[1:])))
        best = blip.ask(clip, "what is it?", answers=candidates, n=3)
        expected = dict(zip(candidates, torch.tensor(scores).softmax(0).tolist(), strict=True))
        probabilities = {answer.text: answer.probability for answer in (best, *best.alternatives)}
        assert probabilities == pytest.approx(expected, abs=1e-5)


@torch.inference_mode()
def test_matches_and_embeddings_of_videos(blip: Blip, clips: list[Path]) -> None:
    network, tokenizer = blip.pipeline("retrieval").model.module, toy_tokenizer()
    matches = blip.match(clips, TEXTS)
    for clip, clip_matches, embedding in zip(clips, matches, blip.embed_images(clips), strict=True):
        states = encode_frames(blip, "retrieval", clip)
        projected = torch.stack([network.vision_proj(state[0]) for state in states])
        mean = F.normalize(projected.mean(0), dim=0)
        np.testing.assert_allclose(embedding, mean.numpy(), atol=1e-5)
        mean_of_normalized = F.normalize(F.normalize(projected, dim=1).mean(0), dim=0)
        assert (mean_of_normalized - mean).abs().max() > 1e-4, "frames are not normalized before the mean"
        for text, match in zip(TEXTS, clip_matches, strict=True):
            cls, enc = tokenizer.encode([text], "cls"), tokenizer.encode([text], "enc")
            logits = network.match_logits(enc.ids, enc.mask, concatenate(states))
            assert match.probability == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
            cosine = network.embed_text(cls.ids, cls.mask)[0] @ mean
            assert match.similarity == pytest.approx(cosine.item(), abs=1e-5)
    assert_close(blip.match(clips, TEXTS, paired=True), [matches[index][index] for index in range(3)])


def test_a_list_of_frames_is_a_video_and_one_frame_an_image(blip: Blip, clips: list[Path]) -> None:
    frames = [all_frames(clips[0])[index] for index in sample_frames(20, 8)]
    assert_close(blip.caption(Video(frames)), blip.caption(clips[0]))
    assert_close(blip.match(Video(frames), TEXTS), blip.match(clips[0], TEXTS))
    for call in CALLS:
        assert_close(call(blip, Video(frames[:1])), call(blip, frames[0]))
    np.testing.assert_allclose(blip.embed_images(Video(frames[:1])), blip.embed_images(frames[0]), atol=1e-6)


def test_the_number_of_frames_can_be_chosen(blip: Blip, clips: list[Path]) -> None:
    embedding = blip.embed_images(Video(clips[2], frames=16))
    states = encode_frames(blip, "retrieval", clips[2], 16)
    with torch.inference_mode():
        mean = F.normalize(blip.pipeline("retrieval").model.module.vision_proj(states[:, 0]).mean(0), dim=0)
    np.testing.assert_allclose(embedding, mean.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_images_and_videos_mix_in_any_batch_size(folder: Path, blip: Blip, clips: list[Path], size: int) -> None:
    other = openblip.load(folder, batch_size=size, num_workers=0)
    mixed: list[Any] = [toy_image(0), clips[0], Video(clips[2], frames=3), toy_image(1), toy_image(2), *clips[1:]]
    assert_close(other.caption(mixed), [blip.caption(item) for item in mixed])
    assert_close(other.ask(mixed, "what is it?"), [blip.ask(item, "what is it?") for item in mixed])
    assert_close(other.match(mixed, TEXTS), [blip.match(item, TEXTS) for item in mixed])
    assert_close(list(other.caption(iter(mixed))), [blip.caption(item) for item in mixed])
    np.testing.assert_allclose(other.embed_images(mixed), [blip.embed_images(item) for item in mixed], atol=1e-5)


def test_a_bad_video_is_the_error_of_its_item(blip: Blip, clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(clips[0].read_bytes()[:500])
    (tmp_path / "empty.mp4").touch()
    mixed: list[Any] = [clips[0], tmp_path / "bad.mp4", toy_image(0), tmp_path / "empty.mp4", Video([])]
    for call in CALLS:
        results = call(blip, mixed, on_error="return")
        assert [isinstance(result, VideoError) for result in results] == [False, True, False, True, True]
        assert "bad.mp4" in str(results[1])
        assert_close(results[0], call(blip, clips[0]))
    with pytest.raises(VideoError, match=r"item 1: .*bad.mp4"):
        blip.embed_images(mixed)
    embeddings = blip.embed_images(mixed, on_error="return")
    assert [isinstance(embedding, VideoError) for embedding in embeddings] == [False, True, False, True, True]
    with pytest.raises(VideoError):
        blip.caption(tmp_path / "bad.mp4")


def test_a_video_is_encoded_once_for_many_questions(blip: Blip, clips: list[Path]) -> None:
    with count_images(blip, "vqa") as counter:
        encoded = blip.encode_images(clips, task="vqa")
        answers = [blip.ask(video, ["what is it?", "why"]) for video in encoded]
    assert counter.count == 3 * 8
    assert all(isinstance(video, EncodedImage) for video in encoded)
    for clip, clip_answers in zip(clips, answers, strict=True):
        assert_close(clip_answers, blip.ask(clip, ["what is it?", "why"]))
    for_all_tasks = blip.encode_images(clips[0])
    assert_close(blip.caption(for_all_tasks), blip.caption(clips[0]))
    assert_close(blip.match([for_all_tasks, toy_image(0)], TEXTS), blip.match([clips[0], toy_image(0)], TEXTS))


def test_some_methods_take_images_only(blip: Blip, clips: list[Path]) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda video: blip.ground(video, "a man"),
        lambda video: blip.compare(video, toy_image(0), "a dog"),
        lambda video: blip.compare(toy_image(0), video, "a dog"),
        lambda video: blip.classify(video, ["cat", "dog"]),
        lambda video: blip.explain(video, "a dog"),
        lambda video: blip.explain(video, task="caption"),
    ]
    encoded = blip.encode_images(clips[0])
    for call in calls:
        for video in (clips[0], str(clips[0]), Video([toy_image(0)]), encoded):
            with pytest.raises(UnsupportedTaskError, match="caption, ask, match and embed_images accept videos"):
                call(video)
    results = blip.classify([toy_image(0), clips[0]], ["cat", "dog"], on_error="return")
    assert cast(Any, results[0]).text == blip.classify(toy_image(0), ["cat", "dog"]).text
    assert isinstance(results[1], UnsupportedTaskError)


def test_the_command_line_takes_videos(folder: Path, blip: Blip, clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    runner = CliRunner()

    def run(*arguments: str) -> list[dict[str, Any]]:
        result = runner.invoke(app, [*arguments, "--model", str(folder), "--json"])
        assert result.exit_code in (0, 3), result.output
        return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]

    captions = run("caption", str(clips[0]), str(tmp_path / "bad.mp4"))
    assert captions[0]["text"] == blip.caption(clips[0]).text
    assert "damaged" in captions[1]["error"]
    (answer,) = run("ask", str(clips[1]), "-q", "why")
    assert answer["text"] == blip.ask(clips[1], "why").text
    matches = run("match", str(clips[2]), "-t", "a cat", "-t", "dogs")
    expected = [match.probability for match in blip.match(clips[2], ["a cat", "dogs"])]
    assert [match["probability"] for match in matches] == pytest.approx(expected, abs=1e-5)
    (record,) = run("embed", str(clips[0]))
    np.testing.assert_allclose(record["embedding"], blip.embed_images(clips[0]), atol=1e-5)

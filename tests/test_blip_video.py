"""Videos in the facade: against their frames as pictures and the models themselves, tokens put in a row by hand."""

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
from tests.test_blip import Forwards, close
from tests.toys import SIZE, toy_bundle, toy_image, toy_tokenizer
from tests.videos import all_frames, make_video

pytestmark = pytest.mark.usefixtures("one_thread")

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "nlvr", "grounding")
TEXTS = ["a cat on a bed", "a yellow school bus parked on the street near a train", "dogs"]


CALLS: list[Callable[..., Any]] = [
    lambda blip, x, **options: blip.caption(x, **options),
    lambda blip, x, **options: blip.ask(x, "why", **options),
    lambda blip, x, **options: blip.match(x, TEXTS, **options),
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = toy_bundle(tmp_path_factory.mktemp("toy"), TASKS)
    for number, frames in enumerate((20, 3, 41)):
        make_video(home / f"{number}.mp4", frames, seed=number)
    return home


@pytest.fixture(scope="module")
def blip(home: Path) -> Blip:
    return openblip.load(home)


@pytest.fixture(scope="module")
def clips(home: Path) -> list[Path]:
    return [home / f"{number}.mp4" for number in range(3)]


def tokens(blip: Blip, task: TaskName, clip: Path, count: int = 8) -> Tensor:
    """States (F, M, D) of the frames, seen one by one as pictures."""
    every = all_frames(clip)
    model = blip.pipeline(task).model.module
    settings = ImageSettings(size=SIZE)
    with torch.inference_mode():
        seen = [
            model.encode_image(to_tensor(resize(every[place], SIZE)[None], settings))
            for place in sample_frames(len(every), count)
        ]
    return torch.cat(seen)


def in_a_row(states: Tensor) -> Tensor:
    """All tokens as of one picture, (1, F M, D)."""
    return states.reshape(1, -1, states.shape[-1])


def said_by_hand(logits: Callable[[list[int]], Tensor], start: list[int], most: int) -> list[int]:
    """The likeliest token after what is there, one after the other; never the end at once."""
    ids = list(start)
    sep = toy_tokenizer().sep_id
    for step in range(most):
        scores = logits(ids)[0, -1]
        if step == 0:
            scores[sep] = -torch.inf
        ids.append(int(scores.argmax()))
        if ids[-1] == sep:
            break
    return [one for one in ids[len(start) :] if one != sep]


@torch.inference_mode()
def test_captions_read_all_frames_tokens_in_a_row(blip: Blip, clips: list[Path]) -> None:
    model, tokenizer = blip.pipeline("caption").model.module, toy_tokenizer()
    found = blip.caption(clips, num_beams=1, max_new_tokens=6)
    prompt = tokenizer.encode_prompt("a picture of ")
    for clip, caption in zip(clips, found, strict=True):
        memory = in_a_row(tokens(blip, "caption", clip))

        def logits(ids: list[int], memory: Tensor = memory) -> Tensor:
            return torch.as_tensor(model.to_logits(model.decoder.decode(torch.tensor([ids]), None, memory)).clone())

        assert caption.text == tokenizer.decode(said_by_hand(logits, prompt, 6))
    assert len({caption.text for caption in found}) == 3


@torch.inference_mode()
def test_answers_too(blip: Blip, clips: list[Path]) -> None:
    model, tokenizer = blip.pipeline("vqa").model.module, toy_tokenizer()
    listed = ["a cat", "dog", "yes"]
    for clip in clips:
        asked = tokenizer.encode(["what is it?"], "enc")
        states = model.encode_question(asked.ids, asked.mask, in_a_row(tokens(blip, "vqa", clip)))

        def logits(ids: list[int], states: Tensor = states, mask: Tensor = asked.mask) -> Tensor:
            fed = torch.tensor([ids])
            return torch.as_tensor(model.logits(fed, torch.ones_like(fed), states, mask).clone())

        free = blip.ask(clip, "what is it?", num_beams=1, max_new_tokens=5)
        assert free.text == tokenizer.decode(said_by_hand(logits, [tokenizer.dec_id], 5))
        scores = []
        for answer in listed:
            ids = tokenizer.encode([answer], "dec").ids[0].tolist()
            each = logits(ids[:-1])[0].log_softmax(-1)
            scores.append(sum(each[place, one].item() for place, one in enumerate(ids[1:])))
        chosen = blip.ask(clip, "what is it?", answers=listed, n=3)
        odds = torch.tensor(scores).softmax(0).tolist()
        assert {one.text: one.probability for one in (chosen, *chosen.alternatives)} == pytest.approx(
            dict(zip(listed, odds, strict=True)), abs=1e-5
        )


@torch.inference_mode()
def test_matches_and_embeddings(blip: Blip, clips: list[Path]) -> None:
    model, tokenizer = blip.pipeline("retrieval").model.module, toy_tokenizer()
    found = blip.match(clips, TEXTS)
    vectors = blip.embed_images(clips)
    for clip, row, vector in zip(clips, found, vectors, strict=True):
        states = tokens(blip, "retrieval", clip)
        projected = torch.stack([model.vision_proj(state[0]) for state in states])
        mean = F.normalize(projected.mean(0), dim=0)  # and not the mean of normalised ones
        np.testing.assert_allclose(vector, mean.numpy(), atol=1e-5)
        assert (F.normalize(F.normalize(projected, dim=1).mean(0), dim=0) - mean).abs().max() > 1e-4
        for text, one in zip(TEXTS, row, strict=True):
            spelled, grounded = tokenizer.encode([text], "cls"), tokenizer.encode([text], "enc")
            logits = model.match_logits(grounded.ids, grounded.mask, in_a_row(states))
            assert one.probability == pytest.approx(logits.softmax(-1)[0, 1].item(), abs=1e-5)
            cosine = model.embed_text(spelled.ids, spelled.mask)[0] @ mean
            assert one.similarity == pytest.approx(cosine.item(), abs=1e-5)
    close(blip.match(clips, TEXTS, paired=True), [found[number][number] for number in range(3)])


def test_a_list_of_frames_is_the_video_and_one_frame_a_picture(blip: Blip, clips: list[Path]) -> None:
    frames = [all_frames(clips[0])[place] for place in sample_frames(20, 8)]
    close(blip.caption(Video(frames)), blip.caption(clips[0]))
    close(blip.match(Video(frames), TEXTS), blip.match(clips[0], TEXTS))
    for call in CALLS:
        close(call(blip, Video(frames[:1])), call(blip, frames[0]))
    np.testing.assert_allclose(blip.embed_images(Video(frames[:1])), blip.embed_images(frames[0]), atol=1e-6)


def test_more_frames_tell_more(blip: Blip, clips: list[Path]) -> None:
    sixteen = blip.embed_images(Video(clips[2], frames=16))
    states = tokens(blip, "retrieval", clips[2], 16)
    with torch.inference_mode():
        mean = F.normalize(blip.pipeline("retrieval").model.module.vision_proj(states[:, 0]).mean(0), dim=0)
    np.testing.assert_allclose(sixteen, mean.numpy(), atol=1e-5)


@pytest.mark.parametrize("size", [1, 3, 64])
def test_pictures_and_videos_mix_and_batches_change_nothing(
    home: Path, blip: Blip, clips: list[Path], size: int
) -> None:
    other = openblip.load(home, batch_size=size, num_workers=0)
    mixed: list[Any] = [
        toy_image(0),
        clips[0],
        Video(clips[2], frames=3),
        toy_image(1),
        toy_image(2),
        clips[1],
        clips[2],
    ]
    close(other.caption(mixed), [blip.caption(one) for one in mixed])
    close(other.ask(mixed, "what is it?"), [blip.ask(one, "what is it?") for one in mixed])
    close(other.match(mixed, TEXTS), [blip.match(one, TEXTS) for one in mixed])
    close(list(other.caption(iter(mixed))), [blip.caption(one) for one in mixed])
    np.testing.assert_allclose(other.embed_images(mixed), [blip.embed_images(one) for one in mixed], atol=1e-5)


def test_a_bad_video_is_an_error_in_its_place(blip: Blip, clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(clips[0].read_bytes()[:500])
    (tmp_path / "empty.mp4").touch()
    mixed: list[Any] = [clips[0], tmp_path / "bad.mp4", toy_image(0), tmp_path / "empty.mp4", Video([])]
    for call in CALLS:
        found = call(blip, mixed, on_error="return")
        assert [isinstance(one, VideoError) for one in found] == [False, True, False, True, True]
        assert "bad.mp4" in str(found[1])
        close(found[0], call(blip, clips[0]))
    with pytest.raises(VideoError, match=r"item 1: .*bad.mp4"):
        blip.embed_images(mixed)
    embeddings = blip.embed_images(mixed, on_error="return")
    assert [isinstance(one, VideoError) for one in embeddings] == [False, True, False, True, True]
    with pytest.raises(VideoError):
        blip.caption(tmp_path / "bad.mp4")


def test_encoded_once_for_many_texts(blip: Blip, clips: list[Path]) -> None:
    with Forwards(blip.pipeline("vqa").model.module.vision) as forwards:
        encoded = blip.encode_images(clips, task="vqa")
        answers = [blip.ask(one, ["what is it?", "why"]) for one in encoded]
    assert forwards.images == 3 * 8
    assert all(isinstance(one, EncodedImage) for one in encoded)
    for clip, two in zip(clips, answers, strict=True):
        close(two, blip.ask(clip, ["what is it?", "why"]))
    whole = blip.encode_images(clips[0])
    close(blip.caption(whole), blip.caption(clips[0]))
    close(blip.match([whole, toy_image(0)], TEXTS), blip.match([clips[0], toy_image(0)], TEXTS))


def test_other_tasks_take_pictures_alone(blip: Blip, clips: list[Path]) -> None:
    calls: list[Callable[[Any], Any]] = [
        lambda x: blip.ground(x, "a man"),
        lambda x: blip.compare(x, toy_image(0), "a dog"),
        lambda x: blip.compare(toy_image(0), x, "a dog"),
        lambda x: blip.classify(x, ["cat", "dog"]),
        lambda x: blip.explain(x, "a dog"),
        lambda x: blip.explain(x, task="caption"),
    ]
    encoded = blip.encode_images(clips[0])
    for call in calls:
        for video in (clips[0], str(clips[0]), Video([toy_image(0)]), encoded):
            with pytest.raises(UnsupportedTaskError, match="captioned, asked about, matched and embedded"):
                call(video)
    found = blip.classify([toy_image(0), clips[0]], ["cat", "dog"], on_error="return")
    assert cast(Any, found[0]).text == blip.classify(toy_image(0), ["cat", "dog"]).text
    assert isinstance(found[1], UnsupportedTaskError)


def test_the_command_line_takes_videos(home: Path, blip: Blip, clips: list[Path], tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    runner = CliRunner()

    def lines(*arguments: str) -> list[dict[str, Any]]:
        done = runner.invoke(app, [*arguments, "--model", str(home), "--json"])
        assert done.exit_code in (0, 3), done.output
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    said = lines("caption", str(clips[0]), str(tmp_path / "bad.mp4"))
    assert said[0]["text"] == blip.caption(clips[0]).text
    assert "damaged" in said[1]["error"]
    (answer,) = lines("ask", str(clips[1]), "-q", "why")
    assert answer["text"] == blip.ask(clips[1], "why").text
    two = lines("match", str(clips[2]), "-t", "a cat", "-t", "dogs")
    assert [one["probability"] for one in two] == pytest.approx(
        [one.probability for one in blip.match(clips[2], ["a cat", "dogs"])], abs=1e-5
    )
    (vector,) = lines("embed", str(clips[0]))
    np.testing.assert_allclose(vector["embedding"], blip.embed_images(clips[0]), atol=1e-5)

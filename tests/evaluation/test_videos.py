"""The video benchmarks on small files, compared with a second implementation of the authors' algorithm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner

import openblip
from openblip import Blip, Video
from openblip.cli import app
from openblip.evaluation import protocols
from openblip.evaluation import run as evaluation
from openblip.evaluation.evaluators.base import Evaluation
from openblip.preprocess.image import ImageSettings, resize, to_tensor
from openblip.preprocess.text import clean_caption
from openblip.preprocess.video import sample_frames
from tests.evaluation import evaluation_toys as toys
from tests.toys import SIZE
from tests.videos import all_frames

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.make_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def blip(home: Path) -> Blip:
    return openblip.load(home)


def run(name: str, blip: Blip, folder: Path, **options: Any) -> Evaluation[Any]:
    return evaluation.run_benchmark(protocols.open_benchmark(name, folder), blip, **options)


@torch.inference_mode()
def score_by_hand(blip: Blip, paths: list[Path], texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Score pairs one at a time, as `evaluation` of eval_retrieval_video.py: (videos, texts), (texts, videos)."""
    task_model = blip.pipeline("retrieval").model
    model, tokenizer = toys.network(task_model), task_model.tokenizer
    cleaned = [clean_caption(text, 40) for text in texts]
    videos = []
    for path in paths:
        frames = all_frames(path)
        pixels = np.stack([resize(frames[index], SIZE) for index in sample_frames(len(frames), 8)])
        videos.append(model.encode_image(to_tensor(pixels, ImageSettings(size=SIZE))))
    embeddings = torch.stack([F.normalize(model.vision_proj(video[:, 0]).mean(0), dim=0) for video in videos])
    tokens = [tokenizer.encode([text], "cls", max_length=35) for text in cleaned]
    similarity = embeddings @ torch.cat([model.embed_text(row.ids, row.mask) for row in tokens]).T
    itm = torch.empty_like(similarity)
    for j, text in enumerate(cleaned):
        grounded = tokenizer.encode([text], "enc", max_length=35)
        for i, video in enumerate(videos):
            itm[i, j] = model.match_logits(grounded.ids, grounded.mask, video.reshape(1, -1, video.shape[2]))[0, 1]
    scores = []
    for cosines, logits in ((similarity, itm), (similarity.T, itm.T)):
        matrix = torch.full_like(cosines, -100.0)
        for row, (row_cosines, row_logits) in enumerate(zip(cosines, logits, strict=True)):
            best = row_cosines.topk(k).indices
            matrix[row, best] = row_cosines[best] + row_logits[best]
        scores.append(matrix.numpy())
    return scores[0], scores[1]


def test_retrieval_agrees_with_the_authors_algorithm(blip: Blip, tmp_path: Path) -> None:
    toys.make_msrvtt(tmp_path)
    result = run("msrvtt-retrieval", blip, tmp_path)
    paths = [tmp_path / f"videos/video{7010 + n}.mp4" for n in range(3)]
    for_videos, for_texts = score_by_hand(blip, paths, ["a man on a horse", "two dogs playing", "a cat"], 3)

    def ranks(scores: np.ndarray) -> np.ndarray:
        return np.array([np.where(np.argsort(row)[::-1] == i)[0][0] for i, row in enumerate(scores)])

    expected = {}
    for side, scores in (("txt", for_videos), ("vid", for_texts)):
        for k in (1, 5, 10):
            expected[f"{side}_r{k}"] = np.mean(ranks(scores) < k)
        expected[f"{side}_r_mean"] = np.mean([expected[f"{side}_r{k}"] for k in (1, 5, 10)])
    expected["vid_mdR"] = np.median(ranks(for_texts) + 1)
    expected["txt_median_rank"] = np.median(ranks(for_videos) + 1)
    expected["r_mean"] = (expected["txt_r_mean"] + expected["vid_r_mean"]) / 2
    assert result.metrics == pytest.approx(expected)
    assert result.notes[0] == "MSR-VTT text-to-video retrieval, 1k test, preset paper, 3 items"
    assert "the published scores belong to model_base_retrieval_coco" in result.notes[-1]


@pytest.mark.parametrize(("name", "make"), [("msrvtt-qa", toys.make_msrvtt), ("msvd-qa", toys.make_msvd)])
def test_questions_are_answered_with_sixteen_frames(blip: Blip, tmp_path: Path, name: str, make: Any) -> None:
    make(tmp_path)
    candidates = json.loads((tmp_path / "answer_list.json").read_text())
    result = run(name, blip, tmp_path, out=tmp_path / "out")
    items = protocols.open_benchmark(name, tmp_path).read()
    for item in items:
        frames = all_frames(Path(item.image))
        video = Video([frames[index] for index in sample_frames(len(frames), 16)])
        answer = blip.ask(video, item.question, answers=candidates, shortlist=len(candidates), smoothing=0.1)
        assert result.predictions[item.id] == answer.text
    right = [result.predictions[item.id] == item.answers[0] for item in items]
    assert result.metrics["accuracy"] == sum(right) / len(right)
    assert len((tmp_path / "out/predictions.jsonl").read_text().splitlines()) == 1 + len(items)


def test_a_broken_video_fails_only_its_questions(blip: Blip, tmp_path: Path) -> None:
    toys.make_msrvtt(tmp_path)
    (tmp_path / "videos/video7010.mp4").write_bytes(b"no video")
    answers = run("msrvtt-qa", blip, tmp_path)
    assert list(answers.failed) == [170000, 170001]
    assert all("video7010.mp4" in reason for reason in answers.failed.values())
    assert list(answers.predictions) == [170002]
    rankings = run("msrvtt-retrieval", blip, tmp_path)
    assert ["video7010.mp4" in reason for reason in rankings.failed.values()] == [True]
    assert rankings.notes[-1].startswith("not comparable")


def test_the_median_rank_is_compared_as_a_rank() -> None:
    preset = protocols.find("msrvtt-retrieval").preset("paper")
    metrics = {"vid_r1": 0.433, "vid_r5": 0.656, "vid_r10": 0.747, "vid_mdR": 2.0}
    (line,) = evaluation.compare_with_published(preset, "model_base_retrieval_coco", metrics, is_complete=True)
    assert line.startswith("paper, table 10: vid_r1 43.3 (ours 43.30)")
    assert line.endswith("vid_mdR 2 (ours 2)")
    preset = protocols.find("msvd-qa").preset("lavis")
    (line,) = evaluation.compare_with_published(preset, "model_vqa", {"accuracy": 0.3}, is_complete=True)
    assert line == "not comparable: only the paper has this row"


def test_command_with_a_report(home: Path, tmp_path: Path) -> None:
    toys.make_msvd(tmp_path)
    report = tmp_path / "report.html"
    done = CliRunner().invoke(
        app, ["eval", "run", "msvd-qa", "--data", str(tmp_path), "--model", str(home), "--report", str(report)]
    )
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.stdout
    assert "MSVD-QA, test, preset paper, 2 items" in done.stdout
    page = report.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2  # a frame of each

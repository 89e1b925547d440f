"""The benchmarks of video, end to end on miniatures, against the authors' algorithm written out by hand."""

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
from openblip.preprocess.image import ImageSettings, resize, to_tensor
from openblip.preprocess.text import clean_caption
from openblip.preprocess.video import sampled
from tests.evaluation import evaluation_toys as toys
from tests.toys import SIZE
from tests.videos import all_frames

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.toy_bundle(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def blip(home: Path) -> Blip:
    return openblip.load(home)


def run(name: str, blip: Blip, folder: Path, **options: Any) -> evaluation.Evaluated:
    return evaluation.run(protocols.find(name), blip, folder, **options)


@torch.inference_mode()
def by_hand(blip: Blip, paths: list[Path], texts: list[str], k: int) -> tuple[np.ndarray, np.ndarray]:
    """``evaluation`` of the authors' eval_retrieval_video.py, one pair at a time: (videos, texts), (texts, videos)."""
    runner = blip.pipeline("retrieval").model
    model, tokenizer = runner.module, runner.tokenizer
    cleaned = [clean_caption(text, 40) for text in texts]
    videos = []
    for path in paths:
        every = all_frames(path)
        pixels = np.stack([resize(every[place], SIZE) for place in sampled(len(every), 8)])
        videos.append(model.encode_image(to_tensor(pixels, ImageSettings(size=SIZE))))
    seen = torch.stack([F.normalize(model.vision_proj(video[:, 0]).mean(0), dim=0) for video in videos])
    spelled = [tokenizer.encode([text], "cls", max_length=35) for text in cleaned]
    similarity = seen @ torch.cat([model.embed_text(one.ids, one.mask) for one in spelled]).T
    itm = torch.empty_like(similarity)
    for j, text in enumerate(cleaned):
        grounded = tokenizer.encode([text], "enc", max_length=35)
        for i, video in enumerate(videos):
            itm[i, j] = model.match_logits(grounded.ids, grounded.mask, video.reshape(1, -1, video.shape[2]))[0, 1]
    scores = []
    for cosines, logits in ((similarity, itm), (similarity.T, itm.T)):
        found = torch.full_like(cosines, -100.0)
        for row, (one, other) in enumerate(zip(cosines, logits, strict=True)):
            best = one.topk(k).indices
            found[row, best] = one[best] + other[best]
        scores.append(found.numpy())
    return scores[0], scores[1]


def test_retrieval_is_the_authors_algorithm(blip: Blip, tmp_path: Path) -> None:
    toys.msrvtt(tmp_path)
    found = run("msrvtt-retrieval", blip, tmp_path)
    paths = [tmp_path / f"videos/video{7010 + n}.mp4" for n in range(3)]
    for_videos, for_texts = by_hand(blip, paths, ["a man on a horse", "two dogs playing", "a cat"], 3)

    def ranks(scores: np.ndarray) -> np.ndarray:
        return np.array([np.where(np.argsort(row)[::-1] == i)[0][0] for i, row in enumerate(scores)])

    wanted = {}
    for side, scores in (("txt", for_videos), ("vid", for_texts)):
        for k in (1, 5, 10):
            wanted[f"{side}_r{k}"] = np.mean(ranks(scores) < k)
        wanted[f"{side}_r_mean"] = np.mean([wanted[f"{side}_r{k}"] for k in (1, 5, 10)])
    wanted["vid_mdR"] = np.median(ranks(for_texts) + 1)
    wanted["txt_median_rank"] = np.median(ranks(for_videos) + 1)
    wanted["r_mean"] = (wanted["txt_r_mean"] + wanted["vid_r_mean"]) / 2
    assert found.metrics == pytest.approx(wanted)
    assert found.notes[0] == "MSR-VTT text-to-video retrieval, 1k test, preset paper, 3 items"
    assert "not comparable: published were the scores of model_base_retrieval_coco" in found.notes[-1]


@pytest.mark.parametrize(("name", "make"), [("msrvtt-qa", toys.msrvtt), ("msvd-qa", toys.msvd)])
def test_questions_are_answered_of_sixteen_frames(blip: Blip, tmp_path: Path, name: str, make: Any) -> None:
    make(tmp_path)
    listed = json.loads((tmp_path / "answer_list.json").read_text())
    found = run(name, blip, tmp_path, out=tmp_path / "out")
    items = protocols.find(name).read(tmp_path, protocols.find(name).preset("paper"))
    for item in items:
        every = all_frames(Path(item.image))
        frames = Video([every[place] for place in sampled(len(every), 16)])
        alone = blip.ask(frames, item.question, answers=listed, shortlist=len(listed), smoothing=0.1)
        assert found.predictions[item.id] == alone.text
    right = [found.predictions[item.id] == item.answers[0] for item in items]
    assert found.metrics["accuracy"] == sum(right) / len(right)
    assert len((tmp_path / "out/predictions.jsonl").read_text().splitlines()) == 1 + len(items)


def test_a_broken_video_fails_its_questions_alone(blip: Blip, tmp_path: Path) -> None:
    toys.msrvtt(tmp_path)
    (tmp_path / "videos/video7010.mp4").write_bytes(b"no video")
    found = run("msrvtt-qa", blip, tmp_path)
    assert list(found.failed) == [170000, 170001]
    assert all("video7010.mp4" in reason for reason in found.failed.values())
    assert list(found.predictions) == [170002]
    found = run("msrvtt-retrieval", blip, tmp_path)
    assert ["video7010.mp4" in reason for reason in found.failed.values()] == [True]
    assert found.notes[-1].startswith("not comparable")


def test_the_median_rank_is_compared_as_a_rank() -> None:
    preset = protocols.find("msrvtt-retrieval").preset("paper")
    metrics = {"vid_r1": 0.433, "vid_r5": 0.656, "vid_r10": 0.747, "vid_mdR": 2.0}
    (said,) = evaluation.comparison(preset, "model_base_retrieval_coco", metrics, whole=True)
    assert said.startswith("paper, table 10: vid_r1 43.3 (ours 43.30)")
    assert said.endswith("vid_mdR 2 (ours 2)")
    (said,) = evaluation.comparison(
        protocols.find("msvd-qa").preset("lavis"), "model_vqa", {"accuracy": 0.3}, whole=True
    )
    assert said == "not comparable: only the paper has this row"


def test_on_the_command_line_with_a_report(home: Path, tmp_path: Path) -> None:
    toys.msvd(tmp_path)
    report = tmp_path / "report.html"
    done = CliRunner().invoke(
        app, ["eval", "run", "msvd-qa", "--data", str(tmp_path), "--model", str(home), "--report", str(report)]
    )
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.stdout
    assert "MSVD-QA, test, preset paper, 2 items" in done.stdout
    page = report.read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 2  # a frame of each

"""A benchmark from files to numbers: resuming, the server's file, comparability, the report, one's own set."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import load_file

import openblip
from openblip import Blip
from openblip.checkpoints import write
from openblip.cli import app
from openblip.data.sources import open_source
from openblip.engine.protocols import Grounding
from openblip.errors import EvaluationError
from openblip.evaluation import protocols, two_stage
from openblip.evaluation import run as evaluation
from openblip.evaluation.metrics import answers, captions
from openblip.evaluation.metrics.boxes import iou
from openblip.evaluation.report import Shown, write_report
from openblip.evaluation.tasks import ground
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import First, clean_caption
from tests.conftest import GOLDEN
from tests.evaluation import evaluation_toys as toys
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return openblip.load(toys.toy_bundle(tmp_path_factory.mktemp("toy")))


def run(name: str, blip: Blip, folder: Path, **options: Any) -> evaluation.Evaluated:
    return evaluation.run(protocols.find(name), blip, folder, **options)


def test_captions(blip: Blip, tmp_path: Path) -> None:
    toys.coco(tmp_path)
    out = tmp_path / "out"
    found = run("coco-caption", blip, tmp_path, out=out)
    names = {7: "COCO_val2014_000000000007.jpg", 3: "COCO_val2014_000000000003.jpg"}
    said = {
        key: blip.caption(str(tmp_path / "val2014" / name), num_beams=3, min_new_tokens=1, max_new_tokens=16).text
        for key, name in names.items()
    }
    assert found.predictions == said
    texts = {7: ["a man on a horse", "a horse"], 3: ["two dogs", "dogs playing"]}
    assert found.metrics == captions.score(said, texts).corpus
    server = json.loads((out / "captions_karpathy_openblip_results.json").read_text())
    assert server == [{"image_id": key, "caption": text} for key, text in said.items()]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metrics"]["CIDEr"] == found.metrics["CIDEr"]
    assert metrics["repetition_penalty"] == 1.0
    assert found.notes[0] == "COCO captions, Karpathy test, preset paper, 2 items"
    assert any(note.startswith("METEOR: computed only on request") for note in found.notes)


def test_a_run_goes_on_where_it_was(blip: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.nocaps(tmp_path)
    out = tmp_path / "out"
    whole = run("nocaps", blip, tmp_path, out=out)
    assert set(whole.metrics) >= {"in CIDEr", "out CIDEr", "CIDEr"}
    journal = out / "predictions.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]) + lines[2][:9])  # stopped within the second prediction
    asked: list[str] = []
    original = blip.caption

    def caption(images: Any, **options: Any) -> Any:
        def noted() -> Any:
            for image in images:
                asked.append(Path(image).name)
                yield image

        return original(noted(), **options)

    monkeypatch.setattr(blip, "caption", caption)
    again = run("nocaps", blip, tmp_path, out=out)
    assert asked == ["0b.jpg", "0c.jpg"]
    assert (again.predictions, again.metrics) == (whole.predictions, whole.metrics)
    assert len(journal.read_text().splitlines()) == 4
    with pytest.raises(EvaluationError, match="holds predictions of another model, preset or set"):
        run("nocaps", blip, tmp_path, out=out, preset="lavis")


def test_a_model_whose_files_changed_is_another_one(tmp_path: Path) -> None:
    toys.coco(tmp_path)
    folder = tmp_path / "model"

    def once(model: torch.nn.Module) -> evaluation.Evaluated:
        write.save(model, folder, tokenizer=toy_tokenizer(), image=ImageSettings(SIZE))
        return run("coco-caption", openblip.load(folder), tmp_path, out=tmp_path / "out")

    model, other = toy_model("caption"), toy_model("caption", seed=1)
    assert once(model).predictions == once(model).predictions
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        once(other)


def test_a_picture_that_cannot_be_read_is_left_out_and_said(blip: Blip, tmp_path: Path) -> None:
    toys.coco(tmp_path)
    (tmp_path / "val2014/COCO_val2014_000000000003.jpg").write_bytes(b"no picture")
    found = run("coco-caption", blip, tmp_path, out=tmp_path / "out")
    assert list(found.failed) == [3]
    assert list(found.predictions) == [7]
    assert found.shown[1].score is None
    toys.photo(tmp_path / "val2014/COCO_val2014_000000000003.jpg", 3)
    assert run("coco-caption", blip, tmp_path, out=tmp_path / "out").failed == {}  # it is tried again


def test_answers_are_ranked_and_the_server_scores_them(blip: Blip, tmp_path: Path) -> None:
    toys.vqa(tmp_path)
    found = run("vqa-v2", blip, tmp_path, out=tmp_path / "out")
    listed = ["dog", "two", "yes", "a man"]
    for n in range(3):
        image, question = str(tmp_path / f"test2015/{n}.jpg"), f"how many dogs are there in {n}?"
        alone = blip.ask(image, question, answers=listed, shortlist=4, smoothing=0.1)
        assert found.predictions[10 + n] == alone.text
    assert found.metrics == {}
    assert any("scored by the server: send it vqa_result.json" in note for note in found.notes)
    server = json.loads((tmp_path / "out/vqa_result.json").read_text())
    assert server == [{"question_id": key, "answer": text} for key, text in found.predictions.items()]


def test_answers_are_generated_and_scored(blip: Blip, tmp_path: Path) -> None:
    toys.okvqa(tmp_path)
    found = run("okvqa", blip, tmp_path, preset="mmpretrain")
    image = str(tmp_path / "val2014/COCO_val2014_000000000009.jpg")
    said = blip.ask(image, "what is it", min_new_tokens=0, max_new_tokens=9).text  # without the question mark
    assert found.predictions == {5: said}
    assert found.metrics["accuracy"] == answers.shortcut(said, ["dog"] * 10)
    ranked = run("okvqa", blip, tmp_path, preset="lavis")
    assert ranked.metrics["accuracy"] == float(ranked.predictions[5] == "dog")
    assert run("aokvqa", blip, toys.aokvqa(tmp_path / "a")).metrics["accuracy"] in (0.0, 1.0)
    assert run("ocr-vqa", blip, toys.ocrvqa(tmp_path / "o"), limit=1).predictions.keys() == {"b1-0"}


def test_retrieval(blip: Blip, tmp_path: Path) -> None:
    toys.flickr(tmp_path)
    found = run("flickr30k-retrieval", blip, tmp_path)
    images = [str(tmp_path / f"flickr30k-images/{n}.jpg") for n in (1, 3)]
    texts = ["dog 1", "a dog", "dog 3", "a dog"]
    runner = blip.pipeline("retrieval")
    scores = two_stage.score(runner, images, two_stage.texts_as_ids(runner, texts, 30, 35), 128)
    best_texts, best_images = scores.texts_of_images.argmax(1), scores.images_of_texts.argmax(1)
    assert found.metrics["txt_r1"] == sum(best // 2 == i for i, best in enumerate(best_texts)) / 2
    assert found.metrics["img_r1"] == sum(best == j // 2 for j, best in enumerate(best_images)) / 4
    assert found.metrics["txt_r5"] == found.metrics["img_r5"] == 1  # four texts, two pictures
    assert [one.image for one in found.shown] == images
    assert found.shown[0].lines[0][1] in texts


def test_rankings_are_scored_to_the_same_numbers(blip: Blip, tmp_path: Path) -> None:
    toys.six(tmp_path)
    out = tmp_path / "out"
    protocol = protocols.find("flickr30k-retrieval")
    paper: Any = protocol.preset("paper")
    short = replace(protocol, presets={"paper": replace(paper, k=2)})
    told: list[tuple[int, int]] = []
    found = evaluation.run(short, blip, tmp_path, out=out, notify=lambda *done: told.append(done))
    assert {path.name for path in found.files} == {
        "ranking_txt.jsonl", "relevant_txt.jsonl", "ranking_img.jsonl", "relevant_img.jsonl", "metrics.json"
    }  # fmt: skip
    for name in ("txt", "img"):
        files = ["-p", str(out / f"ranking_{name}.jsonl"), "-r", str(out / f"relevant_{name}.jsonl")]
        done = CliRunner().invoke(app, ["eval", "score", "retrieval", *files, "--json"])
        assert done.exit_code == 0, done.output
        scored = json.loads(done.stdout)
        assert {key: scored[f"R@{key}"] for key in (1, 5, 10)} == {
            key: found.metrics[f"{name}_r{key}"] for key in (1, 5, 10)
        }
        assert scored["median_rank"] == found.metrics[f"{name}_median_rank"]
        lists = [json.loads(line)["ranking"] for line in (out / f"ranking_{name}.jsonl").read_text().splitlines()]
        assert len(lists) == {"txt": 6, "img": 10}[name]
        assert all(len(ids) == 2 for ids in lists), "the shortlist, and no more"
    assert told[-1] == (12, 12)
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        evaluation.run(short, blip, tmp_path, out=out, limit=4)


def test_a_lost_picture_is_left_out_of_retrieval_and_told(blip: Blip, tmp_path: Path) -> None:
    """By a run that goes on, too, even if the picture is there again: the others were ranked without it."""
    toys.six(tmp_path)
    items = protocols.find("flickr30k-retrieval").read(tmp_path, protocols.find("flickr30k-retrieval").preset("paper"))
    lost = Path(items[2].image)
    picture = lost.read_bytes()
    lost.write_bytes(b"no picture")
    first = run("flickr30k-retrieval", blip, tmp_path, out=tmp_path / "out")
    assert list(first.failed) == [items[2].id]
    assert first.failed[items[2].id].endswith(f"to try it again, delete {tmp_path / 'out/retrieval'}")
    assert [one.score is None for one in first.shown] == [False, False, True, False, False, False]
    assert first.notes[-1].startswith("not comparable")
    ranking = [json.loads(line) for line in (tmp_path / "out/ranking_txt.jsonl").read_text().splitlines()]
    assert [one["query_id"] for one in ranking] == [item.id for item in items if item is not items[2]]
    assert len({len(one["ranking"]) for one in ranking}) == 1
    lost.write_bytes(picture)
    again = run("flickr30k-retrieval", blip, tmp_path, out=tmp_path / "out")
    assert (again.failed, again.metrics) == (first.failed, first.metrics)
    for item in items:
        Path(item.image).unlink()
    with pytest.raises(EvaluationError, match="nothing could be ranked; the first error"):
        run("flickr30k-retrieval", blip, tmp_path)


@pytest.mark.parametrize(("preset", "split", "first"), [("paper", "test1", "enc"), ("mmpretrain", "dev", "cls")])
def test_statements_are_judged_as_one_by_one(blip: Blip, tmp_path: Path, preset: str, split: str, first: First) -> None:
    toys.nlvr(tmp_path, split)
    found = run("nlvr2", blip, tmp_path, preset=preset, out=tmp_path / "out")
    runner = blip.pipeline("nlvr").model
    for pair in range(2):
        files = [tmp_path / split / f"{split}-8-{pair}-img{n}.png" for n in range(2)]
        states = [runner.encode_images([runner.open_image(file)]) for file in files]
        for n in range(2):
            text = f"there are {n + 1} dogs, at least."
            text = text if preset == "mmpretrain" else clean_caption(text, 40)
            tokens = runner.tokenizer.encode([text], first)
            with torch.inference_mode():
                logits = runner.module.logits(tokens.ids, tokens.mask, (states[0], states[1]))
            assert found.predictions[f"{split}-8-{pair}-{n}"] == str(bool(logits.argmax()))
    assert Path(found.shown[0].second).name == f"{split}-8-0-img1.png"
    lines = (tmp_path / "out/nlvr2_result.csv").read_text().splitlines()
    assert lines[0] == f"{split}-8-0-0,{found.predictions[f'{split}-8-0-0']}"
    right = [found.predictions[f"{split}-8-{pair}-{n}"] == ("True", "False")[n] for pair in range(2) for n in range(2)]
    assert found.metrics["accuracy"] == sum(right) / 4


def test_boxes_are_the_recorded_ones_and_are_scored_in_pixels(tmp_path: Path) -> None:
    seen = load_file(GOLDEN / "grounding.io.safetensors")
    told = json.loads((GOLDEN / "grounding.json").read_text())
    config = {"vision": {"heads": 4}, "text": {"heads": 4}}
    grounder = openblip.load(
        GOLDEN / "grounding.weights.safetensors", config=config, tokenizer=GOLDEN / "vocab_grounding.txt"
    )
    runner = grounder.pipeline("grounding").model
    states = runner.engine.encode_images(seen["pixel_values"].float())
    # The recorder gave the texts as they are, comma included.
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(seen["text_ids"], seen["text_mask"], strict=True)]
    assert ground.BenchmarkGroundingPipeline(runner).tokenize(told["texts"][0]) == rows[0]
    found, _ = runner.engine.require(Grounding).ground(*runner.pad(rows), states)
    torch.testing.assert_close(found, seen["pred_box_xyxy_unit"].float(), atol=1e-5, rtol=0)
    toys.refcoco(tmp_path)
    ran = run("refcoco-testa", grounder, tmp_path, preset="mmpretrain")
    pixels = runner.encode_images([runner.open_image(tmp_path / "train2014/COCO_train2014_000000000001.jpg")])
    alone = (
        runner.engine.require(Grounding)
        .ground(*runner.pad([ground.BenchmarkGroundingPipeline(runner).tokenize("man")]), pixels)[0][0]
        .tolist()
    )
    box = json.loads(ran.predictions[11])
    assert box == pytest.approx([alone[0] * 40, alone[1] * 30, alone[2] * 40, alone[3] * 30], abs=1e-3)
    shown = next(one for one in ran.shown if one.id == 11)
    assert shown.boxes == {"predicted": box, "reference": (4.0, 3.0, 24.0, 14.0)}
    assert ("reference", "4, 3, 24, 14") in shown.lines
    overlap = [iou(json.loads(text), (4, 3, 24, 14)) for text in ran.predictions.values()]
    assert ran.metrics == {
        "accuracy": sum(value >= 0.5 for value in overlap) / 2, "mean_IoU": pytest.approx(sum(overlap) / 2)
    }  # fmt: skip


def test_what_is_comparable() -> None:
    preset = protocols.find("coco-caption").preset("paper")
    metrics = {"Bleu_4": 0.3968, "CIDEr": 1.331}
    name = "model_base_caption_capfilt_large"
    (said,) = evaluation.comparison(preset, name, metrics, whole=True)
    assert said == "paper, table 7: Bleu_4 39.7 (ours 39.68), CIDEr 133.3 (ours 133.10)"
    (said,) = evaluation.comparison(preset, f"{name}.pth", metrics, whole=False)
    assert said == "not comparable: this is not the whole split of 5000"
    (said,) = evaluation.comparison(preset, "pocket", metrics, whole=True)
    assert said.startswith("not comparable: published were the scores of model_base_caption")
    lavis = protocols.find("coco-caption").preset("lavis")
    (said,) = evaluation.comparison(lavis, "blip_coco_caption_base", metrics, whole=True)
    assert "without the repetition penalty" in said


def test_one_s_own_set(blip: Blip, tmp_path: Path) -> None:
    for n in range(2):
        toy_image(n).save(tmp_path / f"{n}.png")
    rows = [
        {"image": "0.png", "captions": ["a dog"], "question": "what is it?", "answers": ["dog"] * 3},
        {"image": "1.png", "caption": "two cats"},
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = evaluation.run_own(blip, open_source(str(file)), out=tmp_path / "out")  # type: ignore[arg-type]
    assert len(found.predictions) == 2
    assert found.metrics["CIDEr"] is not None
    found = evaluation.run_own(blip, open_source(str(file)), kind="vqa")  # type: ignore[arg-type]
    (said,) = found.predictions.values()
    assert found.metrics["accuracy"] == answers.exact(said, ["dog"] * 3)
    found = evaluation.run_own(blip, open_source(str(file)), kind="retrieval")  # type: ignore[arg-type]
    assert found.metrics["txt_r5"] == 1
    with pytest.raises(EvaluationError, match="caption, vqa or retrieval"):
        evaluation.run_own(blip, open_source(str(file)), kind="x")  # type: ignore[arg-type]


def test_few_answers_are_right_and_ten_are_left_out_in_turn(blip: Blip, tmp_path: Path) -> None:
    """A right answer that one person gave is right; ten people are judged as the benchmark judges them."""
    toy_image(0).save(tmp_path / "0.png")
    said = blip.ask(str(tmp_path / "0.png"), "what is it?").text

    def accuracy(*people: list[str]) -> float | None:
        rows = [{"image": "0.png", "question": "what is it?", "answers": given} for given in people]
        (tmp_path / "my.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return evaluation.run_own(blip, open_source(str(tmp_path / "my.jsonl"))).metrics["accuracy"]  # type: ignore[arg-type]

    assert accuracy([said], ["never", "said"]) == 0.5
    assert accuracy(["never", said]) == 1
    ten = [said] * 2 + ["never"] * 8
    assert accuracy(ten) == pytest.approx(answers.official(said, ten))
    assert accuracy(ten, [said]) == 1, "not ten of every question"


def test_an_item_that_changed_is_not_answered_by_what_was_said_before(blip: Blip, tmp_path: Path) -> None:
    """Another picture or question under an id is computed anew, others are not; another list of answers is refused."""
    for n in range(2):
        toy_image(n).save(tmp_path / f"{n}.png")
    file, out = tmp_path / "my.jsonl", tmp_path / "out"

    def said(*rows: tuple[int, str]) -> tuple[list[str], int]:
        lines = [{"image": f"{n}.png", "question": question, "answers": ["x"]} for n, question in rows]
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        found = evaluation.run_own(blip, open_source(str(file)), out=out)  # type: ignore[arg-type]
        return list(found.predictions.values()), len((out / "predictions.jsonl").read_text().splitlines()) - 1

    first, second = (blip.ask(str(tmp_path / f"{n}.png"), "what is it?").text for n in range(2))
    other = blip.ask(str(tmp_path / "1.png"), "how many?").text
    assert said((0, "what is it?"), (1, "what is it?")) == ([first, second], 2)
    assert said((0, "what is it?"), (1, "how many?")) == ([first, other], 3)
    assert said((1, "what is it?"), (1, "how many?")) == ([second, other], 4)
    assert said((0, "what is it?"), (1, "what is it?")) == ([first, second], 4), "both are still known"
    toys.okvqa(tmp_path / "okvqa")
    run("okvqa", blip, tmp_path / "okvqa", out=tmp_path / "ranked", preset="lavis")
    listed = next((tmp_path / "okvqa").glob("*answer_list*"))
    listed.write_text(json.dumps([*json.loads(listed.read_text()), "zebra"]))
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        run("okvqa", blip, tmp_path / "okvqa", out=tmp_path / "ranked", preset="lavis")


def test_two_pictures_of_one_record_are_refused(blip: Blip, tmp_path: Path) -> None:
    row = {"images": ["0.png", "0.png"], "captions": ["a dog"]}
    toy_image(0).save(tmp_path / "0.png")
    (tmp_path / "my.jsonl").write_text(json.dumps(row))
    with pytest.raises(EvaluationError, match="2 pictures; one's own sets are about one each"):
        evaluation.run_own(blip, open_source(str(tmp_path / "my.jsonl")))  # type: ignore[arg-type]


def test_another_precision_does_not_go_on_with_what_was_predicted(tmp_path: Path) -> None:
    toys.flickr(tmp_path)
    bundled = toys.toy_bundle(tmp_path / "toy")
    run("flickr30k-caption", openblip.load(bundled), tmp_path, out=tmp_path / "out")
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        run(
            "flickr30k-caption",
            openblip.load(bundled, precision="bf16", engine="torch"),
            tmp_path,
            out=tmp_path / "out",
        )


def test_the_published_name_of_what_was_loaded(tmp_path: Path) -> None:
    """Of a bundle's member and of a file: what it is called decides what it is compared with."""
    folder = toys.toy_bundle(tmp_path / "toy")
    names = {task: evaluation._checkpoint(openblip.load(folder), task) for task in openblip.load(folder).tasks}
    assert set(names.values()) == {str(folder)}, "of no published name"
    assert evaluation._checkpoint(Blip("base", {}), "nlvr") == "model_base_nlvr"
    file = tmp_path / "model_base_caption_capfilt_large.pth"
    file.write_bytes(b"")
    assert evaluation._checkpoint(Blip(str(file), {}), "caption") == "model_base_caption_capfilt_large"
    other = tmp_path / "mine.pth"
    other.write_bytes(b"")
    assert evaluation._checkpoint(Blip(str(other), {}), "caption") == str(other)


def test_the_report_escapes_all_and_has_the_worst_first(tmp_path: Path) -> None:
    toy_image(0).save(tmp_path / "a.png")
    evil = "<script>alert('x')</script> & \"quotes\""
    shown = [
        Shown("good", str(tmp_path / "a.png"), [("caption", "fine")], 0.9),
        Shown(evil, str(tmp_path / "<b>.png"), [(evil, evil)], 0.1),
        Shown("failed", str(tmp_path / "a.png"), [], None, str(tmp_path / "a.png")),
    ]
    write_report(tmp_path / "r.html", evil, {evil: 0.5, "METEOR": None}, [evil], shown)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 7
    assert "<b>.png" not in page
    assert page.index("failed") < page.index("<section", page.index("failed")) < page.index("good")
    assert page.count("data:image/jpeg;base64,") == 3  # a pair and one; one cannot be read


def test_the_report_tells_what_the_server_scores_from_what_failed(blip: Blip, tmp_path: Path) -> None:
    toys.vqa(tmp_path)
    items = protocols.find("vqa-v2").read(tmp_path, protocols.find("vqa-v2").preset("paper"))
    Path(items[0].image).write_bytes(b"no picture")
    found = run("vqa-v2", blip, tmp_path, out=tmp_path / "out")
    assert found.notes[-1].startswith(f"vqa_result.json lacks the {len(found.failed)} items that failed")
    write_report(tmp_path / "r.html", "t", found.metrics, found.notes, found.shown)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<b>no result</b>") == len(found.failed) > 0
    assert page.count("<b>the server scores it</b>") == len(found.predictions) > 0


def test_the_report_draws_boxes_in_the_picture(tmp_path: Path) -> None:
    Image.new("RGB", (640, 320), "white").save(tmp_path / "a.png")
    boxes = {"predicted": (320, 80, 480, 240), "reference": (40, 160, 160, 300)}
    write_report(tmp_path / "r.html", "t", {}, [], [Shown(1, str(tmp_path / "a.png"), [], 0.2, boxes=boxes)])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    data = page.split("data:image/jpeg;base64,")[1].split('"')[0]
    drawn = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert drawn.shape == (160, 320, 3), "half as large"
    marked = abs(drawn - 255).max(2) > 100
    orange, blue = drawn[..., 0] > drawn[..., 2] + 60, drawn[..., 2] > drawn[..., 0] + 60
    for colour, (left, top, right, bottom) in ((orange, (160, 40, 240, 120)), (blue, (20, 80, 80, 150))):
        ys, xs = np.nonzero(marked & colour)
        assert abs(np.array([xs.min(), xs.max(), ys.max()]) - [left, right - 1, bottom - 1]).max() <= 1
        assert marked[top : bottom - 1, left].all()
        assert not marked[top + 8 : bottom - 8, left + 8 : right - 8].any(), "a line, not a patch"

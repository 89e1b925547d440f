"""Evaluation from files to metrics: resuming, files for servers, published scores, the report, own records."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

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
from openblip.data.records import Record
from openblip.data.sources import open_source
from openblip.engine.protocols import MatchLogits
from openblip.errors import EvaluationError
from openblip.evaluation import protocols, two_stage
from openblip.evaluation.evaluators.base import Evaluation
from openblip.evaluation.evaluators.grounding import PublishedGroundingPipeline
from openblip.evaluation.metrics import answers, captions
from openblip.evaluation.metrics.boxes import iou
from openblip.evaluation.protocols.base import Benchmark, Preset
from openblip.evaluation.report import ReportItem, write_report
from openblip.evaluation.run import checkpoint_name, compare_with_published, run_benchmark, run_records
from openblip.preprocess.settings import ImageSettings
from openblip.preprocess.text import FirstToken, clean_caption
from tests.conftest import GOLDEN
from tests.evaluation import evaluation_toys as toys
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> Blip:
    return openblip.load(toys.make_bundle(tmp_path_factory.mktemp("toy")))


def run(name: str, blip: Blip, folder: Path, preset: str = "paper", **options: Any) -> Evaluation[Any]:
    return run_benchmark(protocols.open_benchmark(name, folder, preset), blip, **options)


def open_records(path: Path) -> Iterator[Record]:
    """Return the records of a file."""
    return iter(open_source(str(path)))  # type: ignore[arg-type]


def test_captions(blip: Blip, tmp_path: Path) -> None:
    toys.make_coco(tmp_path)
    out = tmp_path / "out"
    result = run("coco-caption", blip, tmp_path, out=out)
    names = {7: "COCO_val2014_000000000007.jpg", 3: "COCO_val2014_000000000003.jpg"}
    expected = {}
    for key, name in names.items():
        path = tmp_path / "val2014" / name
        expected[key] = blip.caption(path, num_beams=3, min_new_tokens=1, max_new_tokens=16).text
    assert result.predictions == expected
    texts = {7: ["a man on a horse", "a horse"], 3: ["two dogs", "dogs playing"]}
    assert result.metrics == captions.score(expected, texts).corpus
    entries = json.loads((out / "captions_karpathy_openblip_results.json").read_text())
    assert entries == [{"image_id": key, "caption": text} for key, text in expected.items()]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metrics"]["CIDEr"] == result.metrics["CIDEr"]
    assert metrics["repetition_penalty"] == 1.0
    assert result.notes[0] == "COCO captions, Karpathy test, preset paper, 2 items"
    assert any(note.startswith("METEOR: computed only on request") for note in result.notes)


def test_a_run_is_resumed(blip: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toys.make_nocaps(tmp_path)
    out = tmp_path / "out"
    complete = run("nocaps", blip, tmp_path, out=out)
    assert set(complete.metrics) >= {"in CIDEr", "out CIDEr", "CIDEr"}
    journal = out / "predictions.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(lines[:2]) + lines[2][:9])  # stopped while it wrote the second prediction
    images_captioned: list[str] = []
    original = blip.caption

    def caption(images: Any, **options: Any) -> Any:
        def record() -> Any:
            for image in images:
                images_captioned.append(Path(image).name)
                yield image

        return original(record(), **options)

    monkeypatch.setattr(blip, "caption", caption)
    resumed = run("nocaps", blip, tmp_path, out=out)
    assert images_captioned == ["0b.jpg", "0c.jpg"]
    assert (resumed.predictions, resumed.metrics) == (complete.predictions, complete.metrics)
    assert len(journal.read_text().splitlines()) == 4
    with pytest.raises(EvaluationError, match="has predictions of another model, preset or set"):
        run("nocaps", blip, tmp_path, out=out, preset="lavis")


def test_a_folder_is_refused_if_the_files_of_the_model_changed(tmp_path: Path) -> None:
    toys.make_coco(tmp_path)
    folder = tmp_path / "model"

    def evaluate(model: torch.nn.Module) -> Evaluation[Any]:
        write.save(model, folder, tokenizer=toy_tokenizer(), image=ImageSettings(SIZE))
        return run("coco-caption", openblip.load(folder), tmp_path, out=tmp_path / "out")

    model, changed_model = toy_model("caption"), toy_model("caption", seed=1)
    assert evaluate(model).predictions == evaluate(model).predictions
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        evaluate(changed_model)


def test_an_unreadable_image_is_skipped_and_reported(blip: Blip, tmp_path: Path) -> None:
    toys.make_coco(tmp_path)
    (tmp_path / "val2014/COCO_val2014_000000000003.jpg").write_bytes(b"no image")
    result = run("coco-caption", blip, tmp_path, out=tmp_path / "out")
    assert list(result.failed) == [3]
    assert list(result.predictions) == [7]
    assert result.report_items[1].score is None
    toys.write_image(tmp_path / "val2014/COCO_val2014_000000000003.jpg", 3)
    assert run("coco-caption", blip, tmp_path, out=tmp_path / "out").failed == {}  # the next run tries it again


def test_answers_are_ranked_for_the_server(blip: Blip, tmp_path: Path) -> None:
    toys.make_vqa(tmp_path)
    result = run("vqa-v2", blip, tmp_path, out=tmp_path / "out")
    candidates = ["dog", "two", "yes", "a man"]
    for n in range(3):
        image, question = str(tmp_path / f"test2015/{n}.jpg"), f"how many dogs are there in {n}?"
        answer = blip.ask(image, question, answers=candidates, shortlist=4, smoothing=0.1)
        assert result.predictions[10 + n] == answer.text
    assert result.metrics == {}
    assert any("only the server can score answers: upload vqa_result.json" in note for note in result.notes)
    entries = json.loads((tmp_path / "out/vqa_result.json").read_text())
    assert entries == [{"question_id": key, "answer": text} for key, text in result.predictions.items()]


def test_answers_are_generated_and_scored(blip: Blip, tmp_path: Path) -> None:
    toys.make_okvqa(tmp_path)
    generated = run("okvqa", blip, tmp_path, preset="mmpretrain")
    image = str(tmp_path / "val2014/COCO_val2014_000000000009.jpg")
    answer = blip.ask(image, "what is it", min_new_tokens=0, max_new_tokens=9).text  # without the question mark
    assert generated.predictions == {5: answer}
    assert generated.metrics["accuracy"] == answers.shortcut(answer, ["dog"] * 10)
    ranked = run("okvqa", blip, tmp_path, preset="lavis")
    assert ranked.metrics["accuracy"] == float(ranked.predictions[5] == "dog")
    assert run("aokvqa", blip, toys.make_aokvqa(tmp_path / "a")).metrics["accuracy"] in (0.0, 1.0)
    assert run("ocr-vqa", blip, toys.make_ocr_vqa(tmp_path / "o"), limit=1).predictions.keys() == {"b1-0"}


def test_retrieval(blip: Blip, tmp_path: Path) -> None:
    toys.make_flickr(tmp_path)
    result = run("flickr30k-retrieval", blip, tmp_path)
    images = [str(tmp_path / f"flickr30k-images/{n}.jpg") for n in (1, 3)]
    texts = ["dog 1", "a dog", "dog 3", "a dog"]
    model = blip.pipeline("retrieval").model
    scores = two_stage.score(model, images, two_stage.encode_texts(model, texts, 30, 35), 128)
    best_texts, best_images = scores.texts_of_images.argmax(1), scores.images_of_texts.argmax(1)
    assert result.metrics["txt_r1"] == sum(best // 2 == i for i, best in enumerate(best_texts)) / 2
    assert result.metrics["img_r1"] == sum(best == j // 2 for j, best in enumerate(best_images)) / 4
    assert result.metrics["txt_r5"] == result.metrics["img_r5"] == 1  # four texts, two images
    assert [item.image for item in result.report_items] == images
    assert result.report_items[0].lines[0][1] in texts


def test_written_rankings_have_the_same_scores(blip: Blip, tmp_path: Path) -> None:
    toys.make_six(tmp_path)
    out = tmp_path / "out"
    protocol = protocols.find("flickr30k-retrieval")
    paper: Any = protocol.preset("paper")
    benchmark = Benchmark(replace(protocol, presets={"paper": replace(paper, shortlist=2)}), "paper", tmp_path)
    steps: list[tuple[int, int]] = []
    result = run_benchmark(benchmark, blip, out=out, progress=lambda done, total: steps.append((done, total)))
    assert {path.name for path in result.files} == {
        "ranking_txt.jsonl", "relevant_txt.jsonl", "ranking_img.jsonl", "relevant_img.jsonl", "metrics.json"
    }  # fmt: skip
    for name in ("txt", "img"):
        files = ["-p", str(out / f"ranking_{name}.jsonl"), "-r", str(out / f"relevant_{name}.jsonl")]
        done = CliRunner().invoke(app, ["eval", "score", "retrieval", *files, "--json"])
        assert done.exit_code == 0, done.output
        scored = json.loads(done.stdout)
        assert {key: scored[f"R@{key}"] for key in (1, 5, 10)} == {
            key: result.metrics[f"{name}_r{key}"] for key in (1, 5, 10)
        }
        assert scored["median_rank"] == result.metrics[f"{name}_median_rank"]
        lists = [json.loads(line)["ranking"] for line in (out / f"ranking_{name}.jsonl").read_text().splitlines()]
        assert len(lists) == {"txt": 6, "img": 10}[name]
        assert all(len(ids) == 2 for ids in lists), "only the shortlist"
    assert steps[-1] == (12, 12)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        run_benchmark(benchmark, blip, out=out, limit=4)


def test_retrieval_is_resumed(blip: Blip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupted run keeps its rows: the next run scores only the other images, and the results are the same."""
    toys.make_six(tmp_path)
    engine = blip.pipeline("retrieval").model.engine.require(MatchLogits)
    original = engine.match_logits
    calls: list[int] = []

    def score(*arguments: Any, stop_at: int) -> Any:
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(len(arguments[0]))
        return original(*arguments)

    monkeypatch.setattr(engine, "match_logits", partial(score, stop_at=2), raising=False)
    with pytest.raises(KeyboardInterrupt):
        run("flickr30k-retrieval", blip, tmp_path, out=tmp_path / "out")
    assert sum(calls) == 2 * 10, "two of six images, with ten texts each"
    monkeypatch.setattr(engine, "match_logits", partial(score, stop_at=99))
    resumed = run("flickr30k-retrieval", blip, tmp_path, out=tmp_path / "out")
    assert sum(calls) == 6 * 10, "no pair is scored twice"
    monkeypatch.setattr(engine, "match_logits", original)
    assert resumed.metrics == run("flickr30k-retrieval", blip, tmp_path, out=tmp_path / "new").metrics
    for name in ("ranking_txt.jsonl", "ranking_img.jsonl"):
        assert (tmp_path / "out" / name).read_text() == (tmp_path / "new" / name).read_text()


def test_an_unreadable_image_is_excluded_from_retrieval(blip: Blip, tmp_path: Path) -> None:
    """A resumed run excludes it too, even if it is readable by then: the others were ranked without it."""
    toys.make_six(tmp_path)
    items = protocols.open_benchmark("flickr30k-retrieval", tmp_path).read()
    path = Path(items[2].image)
    content = path.read_bytes()
    path.write_bytes(b"no image")
    result = run("flickr30k-retrieval", blip, tmp_path, out=tmp_path / "out")
    assert list(result.failed) == [items[2].id]
    assert result.failed[items[2].id].endswith(f"to try it again, delete {tmp_path / 'out/retrieval'}")
    assert [item.score is None for item in result.report_items] == [False, False, True, False, False, False]
    assert result.notes[-1].startswith("not comparable")
    rankings = [json.loads(line) for line in (tmp_path / "out/ranking_txt.jsonl").read_text().splitlines()]
    assert [record["query_id"] for record in rankings] == [item.id for item in items if item is not items[2]]
    assert len({len(record["ranking"]) for record in rankings}) == 1
    path.write_bytes(content)
    resumed = run("flickr30k-retrieval", blip, tmp_path, out=tmp_path / "out")
    assert (resumed.failed, resumed.metrics) == (result.failed, result.metrics)
    for item in items:
        Path(item.image).unlink()
    with pytest.raises(EvaluationError, match="no item could be ranked; the first error"):
        run("flickr30k-retrieval", blip, tmp_path)


@pytest.mark.parametrize(("preset", "split", "first_token"), [("paper", "test1", "enc"), ("mmpretrain", "dev", "cls")])
def test_statements_equal_those_of_the_model(
    blip: Blip, tmp_path: Path, preset: str, split: str, first_token: FirstToken
) -> None:
    toys.make_nlvr(tmp_path, split)
    result = run("nlvr2", blip, tmp_path, preset=preset, out=tmp_path / "out")
    model = blip.pipeline("nlvr").model
    for pair in range(2):
        paths = [tmp_path / split / f"{split}-8-{pair}-img{n}.png" for n in range(2)]
        states = [model.encode_images([model.open_image(path)]) for path in paths]
        for n in range(2):
            text = f"there are {n + 1} dogs, at least."
            text = text if preset == "mmpretrain" else clean_caption(text, 40)
            tokens = model.tokenizer.encode([text], first_token)
            with torch.inference_mode():
                logits = toys.network(model).logits(tokens.ids, tokens.mask, (states[0], states[1]))
            assert result.predictions[f"{split}-8-{pair}-{n}"] is bool(logits.argmax())
    assert Path(result.report_items[0].second_image).name == f"{split}-8-0-img1.png"
    lines = (tmp_path / "out/nlvr2_result.csv").read_text().splitlines()
    assert lines[0] == f"{split}-8-0-0,{result.predictions[f'{split}-8-0-0']}"
    right = [result.predictions[f"{split}-8-{pair}-{n}"] == (n == 0) for pair in range(2) for n in range(2)]
    assert result.metrics["accuracy"] == sum(right) / 4


def test_boxes_equal_the_recorded_ones_and_are_scored_in_pixels(tmp_path: Path) -> None:
    outputs = load_file(GOLDEN / "grounding.io.safetensors")
    expected = json.loads((GOLDEN / "grounding.json").read_text())
    config = {"vision": {"heads": 4}, "text": {"heads": 4}}
    grounder = openblip.load(
        GOLDEN / "grounding.weights.safetensors", config=config, tokenizer=GOLDEN / "vocab_grounding.txt"
    )
    model = grounder.pipeline("grounding").model
    pipeline = PublishedGroundingPipeline(model)
    states = model.engine.encode_images(outputs["pixel_values"].float())
    # The recorded texts are not cleaned and contain a comma.
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(outputs["text_ids"], outputs["text_mask"], strict=True)]
    assert pipeline.tokenize(expected["texts"][0]) == rows[0]
    boxes, _ = pipeline.locate(rows, states)
    torch.testing.assert_close(boxes, outputs["pred_box_xyxy_unit"].float(), atol=1e-5, rtol=0)
    toys.make_refcoco(tmp_path)
    result = run("refcoco-testa", grounder, tmp_path, preset="mmpretrain")
    states = model.encode_images([model.open_image(tmp_path / "train2014/COCO_train2014_000000000001.jpg")])
    shares = pipeline.locate([pipeline.tokenize("man")], states)[0][0].tolist()
    box = result.predictions[11]
    assert box == pytest.approx((shares[0] * 40, shares[1] * 30, shares[2] * 40, shares[3] * 30), abs=1e-3)
    report_item = next(item for item in result.report_items if item.id == 11)
    assert report_item.boxes == {"predicted": box, "reference": (4.0, 3.0, 24.0, 14.0)}
    assert ("reference", "4, 3, 24, 14") in report_item.lines
    overlap = [iou(edges, (4, 3, 24, 14)) for edges in result.predictions.values()]
    assert result.metrics == {
        "accuracy": sum(value >= 0.5 for value in overlap) / 2, "mean_IoU": pytest.approx(sum(overlap) / 2)
    }  # fmt: skip


def test_comparison_with_published_scores() -> None:
    preset = protocols.find("coco-caption").preset("paper")
    metrics = {"Bleu_4": 0.3968, "CIDEr": 1.331}
    name = "model_base_caption_capfilt_large"
    (line,) = compare_with_published(preset, name, metrics, is_complete=True)
    assert line == "paper, table 7: Bleu_4 39.7 (ours 39.68), CIDEr 133.3 (ours 133.10)"
    (line,) = compare_with_published(preset, f"{name}.pth", metrics, is_complete=False)
    assert line == "not comparable: the split has 5000 items, and some were not evaluated"
    (line,) = compare_with_published(preset, "pocket", metrics, is_complete=True)
    assert line.startswith("not comparable: the published scores belong to model_base_caption")
    lavis = protocols.find("coco-caption").preset("lavis")
    (line,) = compare_with_published(lavis, "blip_coco_caption_base", metrics, is_complete=True)
    assert "without the repetition penalty" in line


def test_own_records(blip: Blip, tmp_path: Path) -> None:
    for n in range(2):
        toy_image(n).save(tmp_path / f"{n}.png")
    rows = [
        {"image": "0.png", "captions": ["a dog"], "question": "what is it?", "answers": ["dog"] * 3},
        {"image": "1.png", "caption": "two cats"},
    ]
    file = tmp_path / "my.jsonl"
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    result = run_records(blip, open_records(file), out=tmp_path / "out")
    assert len(result.predictions) == 2
    assert result.metrics["CIDEr"] is not None
    result = run_records(blip, open_records(file), task="vqa")
    (answer,) = result.predictions.values()
    assert result.metrics["accuracy"] == answers.exact(str(answer), ["dog"] * 3)
    result = run_records(blip, open_records(file), task="retrieval")
    assert result.metrics["txt_r5"] == 1
    with pytest.raises(EvaluationError, match="must be caption, vqa, retrieval, got 'x'"):
        run_records(blip, open_records(file), task="x")


def test_few_answers_are_compared_exactly_and_ten_as_in_vqa(blip: Blip, tmp_path: Path) -> None:
    """An answer that one person gave is right; ten answers are scored by the rule of the benchmark."""
    toy_image(0).save(tmp_path / "0.png")
    answer = blip.ask(str(tmp_path / "0.png"), "what is it?").text

    def accuracy(*lists: list[str]) -> float | None:
        rows = [{"image": "0.png", "question": "what is it?", "answers": texts} for texts in lists]
        (tmp_path / "my.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        return run_records(blip, open_records(tmp_path / "my.jsonl")).metrics["accuracy"]

    assert accuracy([answer], ["never", "given"]) == 0.5
    assert accuracy(["never", answer]) == 1
    ten = [answer] * 2 + ["never"] * 8
    assert accuracy(ten) == pytest.approx(answers.official(answer, ten))
    assert accuracy(ten, [answer]) == 1, "not every question has ten answers"


def test_an_item_that_changed_is_computed_again(blip: Blip, tmp_path: Path) -> None:
    """Another image or question under an id is computed again, others are not; another list of answers is refused."""
    for n in range(2):
        toy_image(n).save(tmp_path / f"{n}.png")
    file, out = tmp_path / "my.jsonl", tmp_path / "out"

    def answer(*rows: tuple[int, str]) -> tuple[list[object], int]:
        lines = [{"image": f"{n}.png", "question": question, "answers": ["x"]} for n, question in rows]
        file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        result = run_records(blip, open_records(file), out=out)
        return list(result.predictions.values()), len((out / "predictions.jsonl").read_text().splitlines()) - 1

    what_0, what_1 = (blip.ask(str(tmp_path / f"{n}.png"), "what is it?").text for n in range(2))
    how_many = blip.ask(str(tmp_path / "1.png"), "how many?").text
    assert answer((0, "what is it?"), (1, "what is it?")) == ([what_0, what_1], 2)
    assert answer((0, "what is it?"), (1, "how many?")) == ([what_0, how_many], 3)
    assert answer((1, "what is it?"), (1, "how many?")) == ([what_1, how_many], 4)
    assert answer((0, "what is it?"), (1, "what is it?")) == ([what_0, what_1], 4), "both are still stored"
    toys.make_okvqa(tmp_path / "okvqa")
    run("okvqa", blip, tmp_path / "okvqa", out=tmp_path / "ranked", preset="lavis")
    answer_list = tmp_path / "okvqa" / "okvqa_answer_list_train.json"
    answer_list.write_text(json.dumps([*json.loads(answer_list.read_text()), "zebra"]))
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        run("okvqa", blip, tmp_path / "okvqa", out=tmp_path / "ranked", preset="lavis")


def test_a_record_with_two_images_is_an_error(blip: Blip, tmp_path: Path) -> None:
    row = {"images": ["0.png", "0.png"], "captions": ["a dog"]}
    toy_image(0).save(tmp_path / "0.png")
    (tmp_path / "my.jsonl").write_text(json.dumps(row))
    with pytest.raises(EvaluationError, match="a record must have one image, got 2"):
        run_records(blip, open_records(tmp_path / "my.jsonl"))


def test_a_folder_is_refused_for_another_precision(tmp_path: Path) -> None:
    toys.make_flickr(tmp_path)
    bundle = toys.make_bundle(tmp_path / "toy")
    run("flickr30k-caption", openblip.load(bundle), tmp_path, out=tmp_path / "out")
    blip = openblip.load(bundle, precision="bf16", engine="torch")
    with pytest.raises(EvaluationError, match="of another model, preset or set"):
        run("flickr30k-caption", blip, tmp_path, out=tmp_path / "out")


def test_the_published_name_of_a_model(tmp_path: Path) -> None:
    """The name of a bundle's member or of a file decides which published scores it is compared with."""

    def name(path: object, preset: Preset) -> str:
        return checkpoint_name(cast(Blip, SimpleNamespace(name=str(path))), preset)

    captions_preset = protocols.find("coco-caption").preset("paper")
    folder = toys.make_bundle(tmp_path / "toy")
    for benchmark in ("coco-caption", "vqa-v2", "coco-retrieval", "nlvr2", "visdial"):
        assert name(folder, protocols.find(benchmark).preset("paper")) == str(folder), "no published name"
    assert name("base", protocols.find("nlvr2").preset("paper")) == "model_base_nlvr"
    file = tmp_path / "model_base_caption_capfilt_large.pth"
    file.write_bytes(b"")
    assert name(file, captions_preset) == "model_base_caption_capfilt_large"
    unpublished = tmp_path / "mine.pth"
    unpublished.write_bytes(b"")
    assert name(unpublished, captions_preset) == str(unpublished)


def test_the_report_escapes_text_and_lists_the_worst_first(tmp_path: Path) -> None:
    toy_image(0).save(tmp_path / "a.png")
    evil = "<script>alert('x')</script> & \"quotes\""
    items = [
        ReportItem("good", str(tmp_path / "a.png"), [("caption", "fine")], 0.9),
        ReportItem(evil, str(tmp_path / "<b>.png"), [(evil, evil)], 0.1),
        ReportItem("failed", str(tmp_path / "a.png"), [], None, str(tmp_path / "a.png")),
    ]
    write_report(tmp_path / "r.html", evil, {evil: 0.5, "METEOR": None}, [evil], items)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1, "that of the page"
    assert page.count("&lt;script&gt;") == 10, "the title twice, the metric and its two tables, the note and the item"
    assert "<b>.png" not in page
    assert "METEOR" not in page, "it was not computed"
    cards = page.partition("<main>")[2]
    assert cards.index('data-id="failed"') < cards.index("<section", 10) < cards.index('data-id="good"')
    assert page.count("data:image/jpeg;base64,") == 3  # a pair and one image; one cannot be read


def test_the_report_separates_items_for_the_server_from_failed_ones(blip: Blip, tmp_path: Path) -> None:
    toys.make_vqa(tmp_path)
    items = protocols.open_benchmark("vqa-v2", tmp_path).read()
    Path(items[0].image).write_bytes(b"no image")
    result = run("vqa-v2", blip, tmp_path, out=tmp_path / "out")
    assert result.notes[-1].startswith(f"vqa_result.json lacks the {len(result.failed)} items that failed")
    write_report(tmp_path / "r.html", "t", result.metrics, result.notes, result.report_items)
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.count("<b>no result</b>") == len(result.failed) > 0
    assert page.count("<b>the server scores it</b>") == len(result.predictions) > 0


def test_the_report_draws_boxes_in_the_image(tmp_path: Path) -> None:
    Image.new("RGB", (640, 320), "white").save(tmp_path / "a.png")
    boxes = {"predicted": (320, 80, 480, 240), "reference": (40, 160, 160, 300)}
    write_report(tmp_path / "r.html", "t", {}, [], [ReportItem(1, str(tmp_path / "a.png"), [], 0.2, boxes=boxes)])
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    data = page.split("data:image/jpeg;base64,")[1].split('"')[0]
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    assert pixels.shape == (160, 320, 3), "half the size"
    mask = abs(pixels - 255).max(2) > 100
    orange, blue = pixels[..., 0] > pixels[..., 2] + 60, pixels[..., 2] > pixels[..., 0] + 60
    for color, (x_min, y_min, x_max, y_max) in ((orange, (160, 40, 240, 120)), (blue, (20, 80, 80, 150))):
        ys, xs = np.nonzero(mask & color)
        assert abs(np.array([xs.min(), xs.max(), ys.max()]) - [x_min, x_max - 1, y_max - 1]).max() <= 1
        assert mask[y_min : y_max - 1, x_min].all()
        assert not mask[y_min + 8 : y_max - 8, x_min + 8 : x_max - 8].any(), "a line, not a filled area"

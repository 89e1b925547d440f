"""The benchmarks run at toy size: contestants, comparisons and records. No test looks at a time."""

from __future__ import annotations

import argparse
import json
import shutil
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import (
    breakdown,
    gpu,
    inference,
    jobs,
    machine,
    operators,
    plots,
    retrieval,
    roofline,
    search,
    serving,
    stream,
    sweep,
    training,
)
from benchmarks.contestants import Entry, UnavailableError, parse
from benchmarks.materials import BASE, TOY, Materials
from benchmarks.measure import agreement, alternate, ratio
from benchmarks.rows import ROWS
from openblip.model.build import build_model

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = ("--toy", "--threads", "1", "--rounds", "1")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def test_every_row_gives_the_same_outputs_from_us_and_from_transformers(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ",".join(row.name for row in ROWS)
    code = inference.main(
        [*QUICK, "--rows", rows, "--peers", "transformers:fp32", "--ours", "torch:fp32,warp:fp32", "--devices", "cpu",
         "--work", str(work), "--results", str(tmp_path), "--name", "toy"]
    )  # fmt: skip
    said = capsys.readouterr()
    assert code == 0, said.out
    text = (tmp_path / "toy.json").read_text()
    record = json.loads(text)
    ours = {line["row"]: line for line in record["rows"] if line["ours"]}
    assert ours.keys() == {row.name for row in ROWS}
    for row in ROWS:
        line = ours[row.name]
        assert line["equal"] is (None if row.near else True), line
        assert line["seconds"] == [pytest.approx(line["median_seconds"], rel=1e-3)]
        assert line["ratios"].keys() == {"shipped", "best"}
        assert line["floor_seconds"] > 0
        assert row.name in said.out
    shares = {line["row"]: line["measured_share"] for line in record["rows"] if not line["ours"]}
    assert shares["caption_1"] == 1
    assert shares["itm_16x16"] == pytest.approx(float(Fraction(1, 8))), "one of eight images, multiplied"
    assert {entry["who"] for entry in record["skipped"]} == {"ours warp fp32"}
    assert "got 'warp'" in said.out
    assert record["machine"]["libraries"]["torch"] == torch.__version__
    assert str(work) not in text
    assert str(tmp_path) not in text


def test_start_up_and_memory_are_measured_in_new_processes(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--rows", "memory", "--peers", "none", "--ours", "torch:fp32", "--devices", "cpu"]
    code = inference.main([*QUICK, *arguments, "--work", str(work), "--results", str(tmp_path)])
    assert code == 0
    record = json.loads((tmp_path / "inference.json").read_text())
    (line,) = record["rows"]
    assert (line["row"], line["who"]) == ("memory", "ours torch fp32")
    assert 50 * 2**20 < line["median"] < 4 * 2**30
    assert "MiB" in capsys.readouterr().out


def test_parts_of_a_caption_add_up(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--toy", "--threads", "1", "--rounds", "1", "--images", "2", "--ours", "torch:fp32"]
    assert breakdown.main([*arguments, "--work", str(work), "--results", str(tmp_path)]) == 0
    (line,) = json.loads((tmp_path / "breakdown.json").read_text())["settings"]
    parts = line["parts"]
    assert parts["total"]["wall"] == pytest.approx(sum(parts[name]["wall"] for name in breakdown.PARTS), rel=0.01)
    assert all(parts[name]["wall"] > 0 for name in breakdown.PARTS)
    assert line["step_milliseconds"]["products"] > 0
    assert "later steps" in capsys.readouterr().out


def test_training_has_equal_losses(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = training.main(
        ["--scale", "toy", "--steps", "2", "--threads", "1", "--batch-size", "2", "--device", "cpu",
         "--work", str(work), "--results", str(tmp_path)]
    )  # fmt: skip
    assert code == 0
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["equal_losses"] == {"transformers plain": True, "transformers fused": True}
    runs = record["runs"]
    assert all(len(run["losses"]) == len(run["seconds"]) == 2 for run in runs.values())
    assert len(set(runs["openblip"]["losses"])) == 2, "each step has another batch"
    assert "equal losses" in capsys.readouterr().out


def test_adapters_have_equal_losses(work: Path, tmp_path: Path) -> None:
    code = training.main(
        ["--scale", "toy", "--steps", "2", "--threads", "1", "--batch-size", "2", "--device", "cpu", "--lora", "2",
         "--peers", "plain", "--work", str(work), "--results", str(tmp_path)]
    )  # fmt: skip
    assert code == 0
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["equal_losses"] == {"transformers plain": True}
    assert record["peak_bytes"] == {}


@pytest.mark.slow
def test_memory_of_training_is_measured_in_new_processes(work: Path, tmp_path: Path) -> None:
    training.main(
        ["--scale", "toy", "--steps", "1", "--threads", "1", "--batch-size", "2", "--device", "cpu", "--memory",
         "--peers", "plain", "--work", str(work), "--results", str(tmp_path)]
    )  # fmt: skip
    record = json.loads((tmp_path / "training.json").read_text())
    assert record["peak_bytes"].keys() == {"openblip", "transformers plain"}
    assert all(50 * 2**20 < value < 4 * 2**30 for value in record["peak_bytes"].values())


def test_precisions_are_compared_with_fp32_on_the_cpu(work: Path) -> None:
    agreement = gpu.check_agreement(argparse.Namespace(device="cpu", toy=True, work=work))
    assert agreement["fp32"] == {"equal_tokens": 1.0, "largest_logit_difference": 0.0}
    assert 0 < agreement["bf16"]["largest_logit_difference"] < 0.5


@pytest.mark.slow
def test_the_run_for_a_gpu_works_on_a_cpu(work: Path, tmp_path: Path) -> None:
    arguments = ["--device", "cpu", "--toy", "--threads", "1", "--work", str(work), "--results", str(tmp_path)]
    assert gpu.main(arguments) == 0
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert record["agreement"]["fp32"] == {"equal_tokens": 1.0, "largest_logit_difference": 0.0}
    assert {part["ended"] for part in record["parts"].values()} == {"complete"}
    who = {line["who"] for line in record["parts"]["eager"]["rows"]}
    assert who == {"transformers fp32", "transformers bf16", "ours torch bf16"}
    assert record["parts"]["training-bf16"]["peak_bytes"].keys() >= {"openblip", "transformers plain"}
    assert not list(tmp_path.glob("gpu-*"))


def test_batch_sizes_are_measured_and_drawn(work: Path, tmp_path: Path) -> None:
    arguments = ["--toy", "--threads", "1", "--rounds", "1", "--batches", "1", "2", "--beams", "1", "2"]
    arguments += ["--contestants", "transformers:fp32,torch:fp32,warp:fp32", "--work", str(work)]
    assert sweep.main([*arguments, "--results", str(tmp_path)]) == 0
    record = json.loads((tmp_path / "sweep.json").read_text())
    assert [entry["who"] for entry in record["skipped"]] == ["ours warp fp32"]
    assert {(cell["batch"], cell["beams"]) for cell in record["cells"]} == {(1, 1), (1, 2), (2, 1), (2, 2)}
    shutil.copy(inference.HERE / "results" / "inference.json", tmp_path)
    assert plots.main(["--results", str(tmp_path), "--out", str(tmp_path / "images")]) == 0
    for name in ("speed-rows.png", "speed-batches.png"):
        with Image.open(tmp_path / "images" / name) as image:
            assert image.width > 500


def test_no_part_starts_without_time(tmp_path: Path) -> None:
    assert gpu.run_part("eager", [], 0.0, argparse.Namespace()) == {"ended": "not started: no time left"}


def test_retrieval_has_equal_scores(work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = retrieval.main(
        ["--scale", "toy", "--images", "4", "--texts", "6", "-k", "2", "--rounds", "1", "--threads", "1",
         "--work", str(work), "--results", str(tmp_path)]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0, said
    record = json.loads((tmp_path / "retrieval.json").read_text())
    assert record["rows"].keys() == {retrieval.OURS, retrieval.SHIPPED, retrieval.BEST}
    assert all(row["equal"] for row in record["rows"].values())
    assert 12 <= record["pairs"] <= 4 * 2 + 6 * 2, "shortlists overlap in part"
    ours = record["rows"][retrieval.OURS]
    assert ours["ratio"]["median"] == 1
    first = ours["first_stage_seconds"][0]
    assert ours["seconds_per_pair"] == pytest.approx(max(0, ours["median"] - first) / record["pairs"], rel=1e-2)
    assert retrieval.extrapolate(2.0, 0.5, 4, 6) == 2.0 / 4 * 5000 + 0.5 * 256 * 30000


def test_the_rankings_of_pocket_equal_single_pairs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--pocket", "--images", "6", "--texts", "12", "-k", "5", "--queries", "3", "--threads", "1"]
    assert retrieval.main([*options, "--results", str(tmp_path)]) == 0, capsys.readouterr().out
    record = json.loads((tmp_path / "retrieval_pocket.json").read_text())
    assert record["checked"]["queries"] == 6
    assert record["checked"]["equal"] + record["checked"]["but_for_rounding"] == 6
    photos = tmp_path / "photos"
    photos.mkdir()
    lines = []
    for number, photo in enumerate(Materials(tmp_path, TOY).photos(3)):
        photo.save(photos / f"{number}.png")
        lines.append(json.dumps({"image": f"photos/{number}.png", "captions": ["a dog", "two cats"]}))
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    data_options = retrieval.read_options(
        ["--pocket", "--data", str(tmp_path / "own.jsonl"), "--images", "2", "--texts", "4"]
    )
    images, texts = retrieval._load_data(data_options)
    assert (len(images), texts) == (2, ["a dog", "two cats"] * 2)


def test_different_rankings_are_detected() -> None:
    scores, cosines = {0: 1.0, 1: 0.99999, 2: 0.5, 3: 0.2}, np.array([0.4, 0.3, 0.2, 0.19999], np.float32)
    assert retrieval._differ_by_rounding([0, 1, 2], [1, 0, 2], scores, cosines), "a tie"
    assert retrieval._differ_by_rounding([0, 1, 2], [0, 1, 3], scores, cosines), "a tie at the end of the shortlist"
    assert not retrieval._differ_by_rounding([0, 1, 2], [0, 2, 1], scores, cosines)
    assert not retrieval._differ_by_rounding([0, 1, 2], [0, 2, 3], scores, cosines), "a missing candidate is not a tie"
    assert not retrieval.RankingCheck(3, 1, 1).agrees


def test_a_job_over_a_folder_gives_the_captions_of_the_iterator(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = jobs.main(
        ["--quick", "--threads", "1", "--ours", "torch:fp32,warp:fp32", "--finished", "0", "--work", str(work),
         "--results", str(tmp_path)]
    )  # fmt: skip
    said = capsys.readouterr().out
    assert code == 0, said
    text = (tmp_path / "jobs.json").read_text()
    record = json.loads(text)
    assert [row["what"] for row in record["rows"]] == ["job", "iterator", "transformers"]
    job = record["rows"][0]
    assert job["equal"] is True
    assert job["ratios"].keys() == {"iterator", "transformers"}
    assert job["ratios"]["iterator"]["median"] == pytest.approx(
        record["rows"][1]["median_seconds"] / job["median_seconds"], rel=1e-2
    )
    assert record["files"] / job["median_seconds"] == pytest.approx(job["per_second"], rel=1e-2)
    assert record["batch_sizes"]["seconds"].keys() == {"1", "2", "4"}, "at most the number of files"
    assert "got 'warp'" in said
    assert len(list((work / "toy").glob("mixed-4/*"))) == 4, "no other file remains in the folder of images"
    assert str(work) not in text


def test_resuming_a_completed_job_is_timed(work: Path) -> None:
    report = jobs.measure_finished_job(work, 3, 1)
    assert (report["files"], report["torch"], len(report["seconds"])) == (3, False, 1)
    assert {path.name for path in work.iterdir()} == {"toy"}, "the folder is removed"


def test_memory_of_a_stream_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--images", "20", "--size", "40", "30", "--results", str(tmp_path)]
    assert stream.main(options) == 0
    record = json.loads((tmp_path / "stream.json").read_text())
    assert len(record["above_mib"]) == stream.POINTS
    assert record["max_above_mib"] >= max(record["above_mib"])
    monkeypatch.setattr(stream, "LIMIT", -1)
    assert stream.main(options) == 1


def test_operators_of_a_row_are_reported(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert operators.main(["caption_1_beams", "--toy", "--threads", "1", "--work", str(work)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["seconds"] > 0
    assert 0 < sum(report["operators"].values()) <= 1.01
    assert any("addmm" in name or "linear" in name for name in report["operators"])


def test_unequal_losses_are_detected() -> None:
    assert training._equal([2.0, 1.0], [2.0, 1.0001], 2e-4)
    assert not training._equal([2.0, 1.0], [2.0, 1.001], 2e-4)
    assert not training._equal([], [], 1.0)


def test_contestants_are_parsed() -> None:
    names = [entry.name for entry in parse(["transformers:fp32", "transformers:compiled:bf16", "torch:int8"], "cpu")]
    assert names == ["transformers fp32", "transformers compiled bf16", "ours torch int8"]
    (peer,) = parse(["openvino-peer:int8"], "cuda")
    with pytest.raises(UnavailableError, match="on the CPU only here"):
        peer.make(Path("nowhere"), "caption", TOY)
    with pytest.raises(SystemExit, match="got 'everything'"):
        parse(["everything"], "cpu")
    for entry in inference.entries(inference.read_options(["--toy"]), "cpu"):
        assert parse([inference._word(entry)], "cpu") == [entry], "as in the arguments of the probe"
    with pytest.raises(SystemExit):
        inference.read_options(["--rows", "nonsense"])
    assert Entry("ours", "torch", "fp32").exact
    assert not Entry("ours", "torch", "bf16").exact
    quick = inference.read_options(["--quick"]).rows
    assert 4 <= len(quick) < len(ROWS)


def test_every_round_has_a_turn_of_each_contestant() -> None:
    turns: list[str] = []

    def take_turn(name: str) -> str:
        turns.append(name)
        return name

    calls = {name: partial(take_turn, name) for name in "abc"}
    results = alternate(calls, {"a": 1.0, "b": 1.0, "c": 4.0}, rounds=3, budget=0)
    assert "".join(turns) == "abc" + "abc" + "bca" + "cab", "a warm-up, then another order in each round"
    assert {name: timed.output for name, timed in results.items()} == {name: name for name in "abc"}
    assert all(len(timed.seconds) == 3 for timed in results.values())
    turns.clear()
    results = alternate(calls, dict.fromkeys("abc", 1.0), rounds=None, budget=0, limits=(2, 9))
    assert len(results["a"].seconds) == 2, "the minimum without time"
    results = alternate(calls, dict.fromkeys("abc", 1.0), rounds=None, budget=60, limits=(2, 5))
    assert len(results["a"].seconds) == 5


def test_ratios_are_of_the_same_round() -> None:
    speedup = ratio([2.0, 20.0, 3.0], [1.0, 10.0, 1.0])
    assert (speedup.median, speedup.low, speedup.high) == (2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match="shorter"):
        ratio([1.0, 2.0, 3.0], [1.0, 2.0])


def test_different_outputs_are_detected() -> None:
    assert agreement(["a b", "c d"], ["a b", "c d"]).same
    partial_agreement = agreement(["a b", "c x"], ["a b", "c d", "e f"])
    assert (partial_agreement.same, partial_agreement.text) == (False, "1/2 texts, 75% words")
    ones = np.eye(3, dtype=np.float32)
    assert agreement(ones + 1e-6, ones).same
    reversed_rows = agreement(np.eye(3, dtype=np.float32)[::-1], ones)
    assert not reversed_rows.same
    assert "cos 0.0000" in reversed_rows.text
    assert not agreement(np.array([[0.5]]), np.array([[0.6]])).same


def test_the_minimum_counts_the_operations_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = TOY.config("caption")
    model: Any = build_model(config)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        states = model.encode_image(torch.zeros(3, 3, 32, 32))
    tokens = config.vision.tokens
    assert roofline.count_encoding(config, 3).operations == pytest.approx(counter.get_total_flops(), rel=1 / tokens)
    rows, steps = 2, 5
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        memory = model.decoder.project(states[:rows])
        for _ in range(steps):
            model.logits(torch.full((rows, 1), 5), None, memory)
    work = roofline.count_decoding(config, runs=1, steps=steps, items=rows, beams=1, memory=tokens)
    assert work.operations == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_the_minimum_is_set_by_arithmetic_or_by_memory() -> None:
    peaks = roofline.Peaks({"fp32": 100.0, "int8": 400.0}, bandwidth=10.0)
    work = [roofline.Work(1000.0, 5.0), roofline.Work(100.0, 50.0)]
    assert peaks.seconds(work, "fp32") == pytest.approx(10.0 + 20.0)
    assert peaks.seconds(work, "int8") == pytest.approx(2.5 + 5.0)
    assert peaks.seconds(work, "bf16") is None
    base = BASE.config("caption")
    assert roofline.count_encoding(base, 1).operations / 1e9 == pytest.approx(111, rel=0.02), "ViT-B/16 at 384"


def test_models_have_the_published_shapes_and_inputs_are_the_same_each_time(work: Path, tmp_path: Path) -> None:
    assert BASE.config("caption").vision.image_size == 384
    assert BASE.config("vqa").vision.image_size == 480
    assert BASE.config("retrieval").text.vocab_size == 30524
    first, second = Materials(work, TOY), Materials(tmp_path, TOY)
    assert first.texts(3) == second.texts(3)
    assert len({len(text.split()) for text in first.texts(20)}) == 1
    assert [photo.tobytes() for photo in first.photos(2)] == [photo.tobytes() for photo in second.photos(2)]
    assert first.model("retrieval").joinpath("model.safetensors").read_bytes() == (
        second.model("retrieval").joinpath("model.safetensors").read_bytes()
    )
    files = second.large_files(10)
    assert files[9].read_bytes() == files[1].read_bytes()
    assert len({path.read_bytes() for path in files}) == 8


def test_the_machine_is_described_without_names_and_paths() -> None:
    description = machine.describe(2)
    assert description["threads"] == 2
    text = json.dumps(description)
    assert "/" not in text.replace("model name", "")
    assert machine.peak_memory() > 10 * 2**20


def test_the_search_benchmark_finds_what_brute_force_finds(work: Path, tmp_path: Path) -> None:
    shared = ["--rounds", "2", "--threads", "1", "--results", str(tmp_path)]
    assert search.main(["scan", "--images", "600", "--width", "16", *shared]) == 0
    rows = json.loads((tmp_path / "search_scan.json").read_text())["rows"]
    assert {"bare product", "numpy", "numpy, filter"} <= rows.keys()
    assert all(row["recall"] == 1 for name, row in rows.items() if name != "bare product")
    assert search.main(["rerank", "--scale", "toy", "--images", "3", "--work", str(work), *shared]) == 0
    record = json.loads((tmp_path / "search_rerank.json").read_text())
    assert record["state_bytes"] == 2 * 5 * 32
    assert record["largest_difference"] < 1e-2, "of states in fp16"


@pytest.mark.parametrize(("better", "worse", "p"), [(0, 0, 1), (1, 0, 1), (9, 1, 22 / 1024), (7, 5, 3172 / 4096)])
def test_the_paired_test_of_the_search_benchmark_is_exact(better: int, worse: int, p: float) -> None:
    """Twice the smaller tail of the binomial distribution."""
    assert search.mcnemar(better, worse) == search.mcnemar(worse, better) == pytest.approx(p)


@pytest.mark.slow
def test_the_load_test_loses_and_swaps_nothing(work: Path, tmp_path: Path) -> None:
    code = serving.main(["--quick", "--work", str(work), "--results", str(tmp_path), "--threads", "1"])
    record = json.loads((tmp_path / "serving_pocket.json").read_text())
    assert code == 0
    assert (record["mixed"]["lost"], record["mixed"]["wrong"]) == (0, 0)
    assert record["mixed"]["mean_batch"] > 1
    assert set(record["overload"]["statuses"]) <= {"200", "429"}


def test_quantiles_are_the_ends_of_buckets() -> None:
    after = {f'x_bucket{{le="{end}"}}': count for end, count in (("0.1", 5.0), ("0.5", 9.0), ("+Inf", 10.0))}
    assert serving.histogram_quantile({}, after, "x", 0.5) == 0.1
    assert serving.histogram_quantile({}, after, "x", 0.9) == 0.5
    assert serving.difference({"x_sum": 1.0}, {"x_sum": 3.0, 'x_sum{a="b"}': 2.0, "y": 9.0}, "x_sum") == 4.0

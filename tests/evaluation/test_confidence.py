"""The confidence of captions: fitted, checked by a second route, stored, loaded strictly, and shown."""

from __future__ import annotations

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import openblip
from openblip.checkpoints import read, write
from openblip.checkpoints.shared import share_tensors
from openblip.confidence import Calibration, Confidence, log_odds, parse_confidence
from openblip.data.images import FileImage
from openblip.data.records import Record
from openblip.errors import CheckpointError, ConfigError, EvaluationError
from openblip.evaluation.confidence import fit_confidence
from openblip.evaluation.metrics.calibration import (
    calibration_error_by_chance,
    expected_calibration_error,
    fit_calibration,
)
from tests.cli.test_cli import run
from tests.toys import toy_bundle, toy_image, toy_tokenizer

CONFIDENCE = Confidence(Calibration(3.0, 4.0), Calibration(2.0, 1.5, 0.5))
ENTRY = {"slope": 3.0, "intercept": 4.0, "with_itm": {"slope": 2.0, "intercept": 1.5, "itm_slope": 0.5}}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose captioner is calibrated."""
    folder = toy_bundle(tmp_path_factory.mktemp("toy"), ("caption", "retrieval"))
    write.store_confidence(folder / "caption", CONFIDENCE)
    return folder


def confidence_of(score: float, match: float | None = None) -> float:
    probability = CONFIDENCE.probability(score, match)
    assert probability is not None
    return probability


def test_confidence_rises_with_the_score_and_with_the_match() -> None:
    scores = np.linspace(-6, 0, 50)
    for match in (None, 0.0, 0.2, 0.9, 1.0):
        probabilities = [confidence_of(score, match) for score in scores]
        assert all(0 < p < 1 for p in probabilities)
        assert probabilities == sorted(probabilities)
        assert len(set(probabilities)) == len(probabilities)
    by_match = [confidence_of(-1.0, match) for match in np.linspace(0, 1, 20)]
    assert by_match == sorted(by_match)
    assert len(set(by_match)) == 20
    assert CONFIDENCE.probability(-1.0) == pytest.approx(1 / (1 + math.exp(-1.0)))
    assert CONFIDENCE.probability(-1.0, 0.75) == pytest.approx(1 / (1 + math.exp(0.5 - 0.5 * math.log(3))))
    assert Confidence(Calibration(3.0, 4.0)).probability(-1.0, 0.75) is None


def test_log_odds_are_bounded() -> None:
    assert log_odds(0.25) == pytest.approx(-math.log(3))
    assert (log_odds(0.0), log_odds(1.0), log_odds(1e-20)) == (-15, 15, -15)


def test_matches_are_weighed_with_scores() -> None:
    rng = random.Random(0)
    truth = Calibration(1.5, 2.0, 0.7)
    scores = [rng.gauss(-1.5, 0.6) for _ in range(8000)]
    matches = [rng.random() for _ in scores]
    outcomes = [rng.random() < truth.probability(s, m) for s, m in zip(scores, matches, strict=True)]
    fitted = fit_calibration(scores, outcomes, matches)
    assert (fitted.slope, fitted.intercept, fitted.itm_slope) == pytest.approx((1.5, 2.0, 0.7), rel=0.12)


def test_calibration_error_by_arrays() -> None:
    """The same error from histograms of numpy."""
    rng = np.random.default_rng(0)
    probabilities = rng.random(777) ** 2
    outcomes = rng.random(777) < probabilities**0.7
    bins = np.linspace(0, 1, 11)
    count, _ = np.histogram(probabilities, bins)
    stated, _ = np.histogram(probabilities, bins, weights=probabilities)
    observed, _ = np.histogram(probabilities, bins, weights=outcomes.astype(float))
    expected = (count / 777 * np.abs(stated / count - observed / count)).sum()
    actual = expected_calibration_error(probabilities.tolist(), outcomes.tolist())
    assert actual == pytest.approx(expected, abs=1e-12)


# Storing and loading.


def test_a_calibration_survives_saving_and_converting(toys: Path, tmp_path: Path) -> None:
    loaded = read.load(toys / "caption")
    assert loaded.confidence == CONFIDENCE
    assert json.loads((toys / "caption" / "config.json").read_text())["openblip"]["confidence"] == ENTRY
    write.save(loaded, tmp_path / "saved", dtype=torch.float16)
    assert read.load(tmp_path / "saved").confidence == CONFIDENCE
    run("convert", toys, tmp_path / "converted", "--task", "caption")
    assert read.load(tmp_path / "converted").confidence == CONFIDENCE
    original = openblip.load(toys).caption(toy_image(1))
    assert openblip.load(tmp_path / "converted").caption(toy_image(1)) == original


def test_members_with_shared_tensors_keep_their_calibration(tmp_path: Path) -> None:
    folder = toy_bundle(tmp_path / "toy", ("caption", "retrieval"))
    write.store_confidence(folder / "caption", CONFIDENCE)
    share_tensors([folder / "caption", folder / "retrieval"])
    assert openblip.load(folder).caption(toy_image(1)).confidence is not None


def test_another_model_has_no_calibration(toys: Path, tmp_path: Path) -> None:
    """Weights, sizes and formats that the calibration was not fitted for have none."""
    loaded = read.load(toys / "caption")
    write.save(loaded.model, tmp_path / "trained", tokenizer=loaded.tokenizer, image=loaded.image)
    assert read.load(tmp_path / "trained").confidence is None
    assert read.load(toys / "caption", config={"image_size": 48}).confidence is None
    write.save(loaded, tmp_path / "caption.pth", to="salesforce")
    assert read.load(tmp_path / "caption.pth", tokenizer=toy_tokenizer(), config=loaded.config).confidence is None


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([], "must be an object"), (None, "must be an object"), ({}, "must have slope, intercept, got nothing"),
        ({"slope": 1.0}, "must have slope, intercept"), (ENTRY | {"itm_slope": 1.0}, "must have slope, intercept"),
        ({"slope": "1", "intercept": 0.0}, "slope of config.json must be a finite number"),
        ({"slope": True, "intercept": 0.0}, "slope of config.json must be a finite number"),
        ({"slope": 1.0, "intercept": math.nan}, "intercept of config.json must be a finite number"),
        ({"slope": math.inf, "intercept": 0.0}, "finite"), ({"slope": 0.0, "intercept": 0.0}, "above 0"),
        ({"slope": -1.0, "intercept": 0.0}, "above 0"), (ENTRY | {"with_itm": 3}, "with_itm of config.json must be an"),
        (ENTRY | {"with_itm": {"slope": 1.0, "intercept": 0.0}}, "must have slope, intercept, itm_slope"),
        (ENTRY | {"with_itm": {"slope": 1.0, "intercept": 0.0, "itm_slope": -1.0}}, "itm_slope .* above 0"),
    ],
)  # fmt: skip
def test_a_wrong_entry_is_an_error(toys: Path, tmp_path: Path, entry: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_confidence(entry)
    shutil.copytree(toys / "caption", tmp_path / "caption")
    file = tmp_path / "caption" / "config.json"
    content = json.loads(file.read_text())
    content["openblip"]["confidence"] = entry
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=message):
        read.load(tmp_path / "caption")


def test_only_captioners_are_calibrated(toys: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="must be the configuration of a captioner"):
        write.store_confidence(toys / "retrieval", CONFIDENCE)
    with pytest.raises(CheckpointError, match="cannot read"):
        write.store_confidence(tmp_path, CONFIDENCE)
    shutil.copytree(toys / "retrieval", tmp_path / "retrieval")
    file = tmp_path / "retrieval" / "config.json"
    content = json.loads(file.read_text())
    content["openblip"]["confidence"] = ENTRY
    file.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match="'caption' only, got one for 'retrieval'"):
        read.load(tmp_path / "retrieval")


# Results and commands.


def test_captions_carry_their_confidence(toys: Path) -> None:
    blip = openblip.load(toys)
    best = blip.caption(toy_image(1), n=3)
    for caption in (best, *best.alternatives):
        assert caption.confidence == pytest.approx(CONFIDENCE.probability(caption.score))
    assert best.to_dict()["confidence"] == best.confidence


def test_commands_show_confidence_where_there_is_a_calibration(toys: Path, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    toy_image(1).save(image)
    table = run("caption", image, "-m", toys).stdout
    assert table.splitlines()[0].split() == ["image", "caption", "logprob", "score", "confidence"]
    record = json.loads(run("caption", image, "-m", toys, "--json").stdout)
    assert record["confidence"] == pytest.approx(CONFIDENCE.probability(record["score"]))
    plain = toy_bundle(tmp_path / "plain", ("caption",))
    table = run("caption", image, "-m", plain).stdout
    assert table.splitlines()[0].split() == ["image", "caption", "logprob", "score"]
    assert "confidence" not in json.loads(run("caption", image, "-m", plain, "--json").stdout)


def test_a_match_counts_only_if_it_is_asked_for(toys: Path, tmp_path: Path) -> None:
    image = tmp_path / "one.png"
    toy_image(1).save(image)
    record = json.loads(run("caption", image, "-m", toys, "--score", "--json").stdout)
    expected = CONFIDENCE.probability(record["score"], record["probability"])
    assert record["confidence"] == pytest.approx(expected)
    assert record["confidence"] != pytest.approx(CONFIDENCE.probability(record["score"]))
    peer = toy_bundle(tmp_path / "peer", ("retrieval",))
    record = json.loads(run("caption", image, "-m", toys, "--score", "--scorer", peer, "--json").stdout)
    assert record["confidence"] == pytest.approx(CONFIDENCE.probability(record["score"])), "another matcher"


# Fitting.


def records(folder: Path, blip: openblip.Blip, count: int = 40) -> list[Record]:
    """Images whose people agree with the caption of the model if the model is sure, and mostly disagree otherwise."""
    paths = []
    for index in range(count):
        paths.append(folder / f"{index}.png")
        toy_image(index).save(paths[-1])
    captions = blip.caption([str(path) for path in paths])
    middle = float(np.median([caption.score for caption in captions]))
    rng = random.Random(0)
    result = []
    for path, caption in zip(paths, captions, strict=True):
        agrees = rng.random() < (0.9 if caption.score > middle else 0.2)
        words = f"{caption.text} zebra" if agrees else "zebra giraffe"
        result.append(Record((FileImage(str(path)),), str(path), captions=(words,) * 5))
    return result


def test_a_fit_on_half_of_the_images_is_checked_on_the_others(toys: Path, tmp_path: Path) -> None:
    blip = openblip.load(toys)
    data = records(tmp_path, blip)
    fitted = fit_confidence(blip, data)
    calibration = fitted.confidence.calibration
    assert calibration.slope > 0
    assert (fitted.figures["fitted on"], fitted.figures["checked on"]) == (20, 20)
    captions = blip.caption([record.images[0].address for record in data])
    right = ["giraffe" not in record.captions[0] for record in data]
    expected = fit_calibration([caption.score for caption in captions[::2]], right[::2])
    assert (calibration.slope, calibration.intercept) == pytest.approx((expected.slope, expected.intercept))
    assert fitted.figures["names the subject"] == pytest.approx(sum(right[1::2]) / 20)
    stated = [expected.probability(caption.score) for caption in captions[1::2]]
    error = expected_calibration_error(stated, right[1::2])
    assert fitted.figures["by score"]["ECE"] == pytest.approx(error, abs=1e-4)


def test_cross_validation_leaves_each_image_out(toys: Path, tmp_path: Path) -> None:
    blip = openblip.load(toys)
    data = records(tmp_path, blip, count=60)
    scores = [caption.score for caption in blip.caption([record.images[0].address for record in data])]
    right = ["giraffe" not in record.captions[0] for record in data]
    stated = []
    for index, score in enumerate(scores):
        others = [i for i in range(60) if i % 10 != index % 10]
        calibration = fit_calibration([scores[i] for i in others], [right[i] for i in others])
        stated.append(calibration.probability(score))
    figures = fit_confidence(blip, data).figures["cross-validated"]
    assert figures["ECE"] == pytest.approx(expected_calibration_error(stated, right), abs=1e-4)
    assert figures["by chance"] == pytest.approx(calibration_error_by_chance(stated), abs=1e-4)


def test_images_without_agreement_are_left_out(toys: Path, tmp_path: Path) -> None:
    toy_image(0).save(tmp_path / "a.png")
    record = Record((FileImage(str(tmp_path / "a.png")),), "a", captions=("a dog", "a cat", "a bird"))
    with pytest.raises(EvaluationError, match="at least 4 images whose captions agree on a word, got 0"):
        fit_confidence(openblip.load(toys), [record] * 8)

"""The scripts of CapFilt at toy size: the proof from its split to its table, and its measures by hand."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from openblip.checkpoints import write
from openblip.preprocess.settings import ImageSettings
from tests.capfilt.capfilt_toys import picture, write_jsonl
from tests.toys import SIZE, toy_model, toy_tokenizer

ROOT = Path(__file__).parent.parent


def load(name: str) -> ModuleType:
    """Import a script as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def proof() -> ModuleType:
    return load("capfilt_proof")


@pytest.mark.usefixtures("one_thread")
def test_the_proof_runs_and_resumes(proof: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "train").mkdir()
    listed = []
    for number in range(14):
        (tmp_path / f"train/flickr8k{number}.jpg").write_bytes(picture(number))
        texts = [f"a dog on the {word}" for word in ("street", "table", "train", "bed", "grass")]
        listed.append({"image": f"train/flickr8k{number}.jpg", "captions": texts})
    write_jsonl(tmp_path / "list.jsonl", listed)
    write_jsonl(tmp_path / "val.jsonl", listed[:4])
    write.save(toy_model("pretrain"), tmp_path / "start", tokenizer=toy_tokenizer(), image=ImageSettings(SIZE))
    sizes = {"clean": 5, "tuning": 3, "steps": 2, "tune-steps": 1, "batch": 3, "captions": 2, "seeds": 1}
    arguments = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
    for name, value in (("list", "list.jsonl"), ("val", "val.jsonl"), ("start", "start"), ("out", "out"), ("data", "")):
        arguments += [f"--{name}", str(tmp_path / value)]
    arguments += ["--results", str(tmp_path / "results.json")]
    proof.main(arguments)
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["models"]) == {f"{row}-0" for row in proof.ROWS}
    assert results["filter"]["texts"] == 6
    table = capsys.readouterr().out
    assert "| noisy |" in table
    proof.main(arguments)
    again = capsys.readouterr().out
    assert "steps," not in again
    assert again.splitlines()[-6:] == table.splitlines()[-6:]


def test_measures_by_hand(proof: ModuleType) -> None:
    scores, labels = np.array([0.9, 0.8, 0.3, 0.3, 0.1]), np.array([True, False, True, False, False])
    measured = proof.measure_threshold(scores, labels, 0.5)
    assert (measured["precision"], measured["recall"], measured["kept"]) == (0.5, 0.5, 0.4)
    assert proof.measure_auc(scores, labels) == pytest.approx((3 + 1.5) / 6)
    assert proof.choose_threshold(np.array([0.9, 0.7, 0.2]), np.array([True, True, False])) == 0.7


def test_the_share_of_noise_is_known(proof: ModuleType) -> None:
    photos = [proof.Photo(f"{n}.jpg", (f"true {n}",)) for n in range(400)]
    texts, right = proof.add_noise(photos, 0.5)
    assert 0.4 < np.mean(right) < 0.6
    assert all((text == photo.captions[0]) == ok for text, photo, ok in zip(texts, photos, right, strict=True) if ok)
    wrong = [text != photo.captions[0] for text, photo, ok in zip(texts, photos, right, strict=True) if not ok]
    assert np.mean(wrong) > 0.95

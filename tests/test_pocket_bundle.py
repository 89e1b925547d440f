"""The bundle of `pocket` at toy size: stored once from runs, and measured by one command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import openblip
from openblip.checkpoints import read, write
from openblip.checkpoints.containers import read_checkpoint
from openblip.errors import ConfigError
from openblip.model.grounder import Grounder
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from tests.pocket_toys import load_script, run_script, write_tar
from tests.toys import toy_hybrid, toy_image, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
RUNS: dict[TaskName, str] = {
    "caption": "caption-final",
    "vqa": "vqa-shared",
    "retrieval": "retrieval-tuned",
    "grounding": "grounding-shared",
}
OWN = "vision.stem.blocks.7.project.weight"
WORDS = {
    "vqa": ("encoder.embeddings.word.weight", "decoder.embeddings.word.weight"),
    "retrieval": ("text.embeddings.word.weight",),
    "grounding": ("text.embeddings.word.weight",),
}
TASKS = tuple(RUNS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model for each task, with one stem, and one table of word vectors except in the captioner."""
    folder = tmp_path_factory.mktemp("runs")
    stem, words = None, None
    for number, task in enumerate(TASKS):
        model = toy_hybrid(task, seed=number)
        weights = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("vision.stem.")}
        stem = stem or weights
        model.load_state_dict(stem, strict=False)
        if task == "grounding":  # its last block is its own
            model.load_state_dict({OWN: model.state_dict()[OWN] + 1}, strict=False)
        for name in WORDS.get(task, ()):
            words = model.state_dict()[name].clone() if words is None else words
            model.load_state_dict({name: words}, strict=False)
        prompt = "" if task == "caption" else None
        write.save(
            model, folder / RUNS[task] / "model", tokenizer=toy_tokenizer(), image=ImageSettings(64), prompt=prompt
        )
    return folder


@pytest.fixture(scope="module")
def toy_pocket(runs: Path) -> Path:
    with pytest.MonkeyPatch.context() as monkeypatch:
        run_script(load_script("pocket_bundle", monkeypatch), ["--runs", runs, "--out", runs / "bundle"], monkeypatch)
    return runs / "bundle"


def test_a_bundle_stores_the_stem_once_in_half_precision(runs: Path, toy_pocket: Path) -> None:
    whole = read_checkpoint(toy_pocket / "caption").tensors
    stem = {name for name, tensor in whole.items() if ".stem." in name and tensor.numel() >= 256}
    assert stem
    assert all(tensor.dtype == torch.float16 for tensor in whole.values() if tensor.is_floating_point())
    assert stem <= load_file(toy_pocket / "shared.safetensors").keys()
    for task in TASKS:
        own = {name for name in load_file(toy_pocket / task / "model.safetensors") if ".stem." in name} & stem
        assert own == ({"vision_model.embeddings.stem.blocks.7.project.weight"} if task == "grounding" else set())
    blip = openblip.load(toy_pocket, engine="torch")
    assert set(blip.tasks) == set(TASKS)
    assert blip.caption(toy_image(0)).text == openblip.load(toy_pocket / "caption").caption(toy_image(0)).text


def test_one_command_measures_every_figure(
    toy_pocket: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = [
        {
            "captions": [f"a dog {number}", "a dog", "a cat"],
            "refs": [{"expression": "the dog", "bbox": [2, 3, 20, 15]}],
            "qa": [{"question": "is there a dog?", "answers": ["yes"], "auto": number > 0}],
        }
        for number in range(3)
    ]
    data = tmp_path / "data"
    write_tar(data / "val" / "flickr8k-000.tar", [(toy_image(number), info) for number, info in enumerate(photos)])
    write_tar(data / "more" / "coco-000.tar", [(toy_image(9), {"captions": ["a cup"] * 5})])
    (data / "pocket").mkdir()
    row = {"image": "more/coco-000.tar:coco-000_000000.jpg", "captions": ["a cup"] * 5}
    (data / "pocket" / "everyday_val.jsonl").write_text(json.dumps(row) + "\n")
    (data / "samples").mkdir()
    toy_image(5).save(data / "samples" / "a.jpg")
    figures_script = load_script("pocket_figures", monkeypatch)
    (tmp_path / "subjects.yaml").write_text("examples: {cat.jpg: [cat]}\nsamples: {a.jpg: [dog]}\n")
    monkeypatch.setattr(figures_script, "SUBJECTS", tmp_path / "subjects.yaml")
    monkeypatch.setattr(figures_script, "WARM_CALLS", 2)
    run_script(figures_script, ["--data", data, "--model", toy_pocket, "--out", tmp_path / "figures.json"], monkeypatch)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(figures)
    assert list(figures) == [
        "size", "latency", "captions", "everyday", "subjects", "retrieval", "answers", "boxes",
    ]  # fmt: skip
    assert figures["captions"]["photos"] == 3
    assert figures["everyday"]["photos"] == 1
    assert {"CIDEr", "Bleu_4", "distinct"} <= set(figures["captions"])
    assert figures["subjects"]["samples"]["photos"] == 1
    assert figures["retrieval"]["itc_r10"] == figures["retrieval"]["first_itm_r10"] == 100
    assert 0 <= figures["retrieval"]["itm_auc"] <= 1
    assert figures["answers"]["made by rule"]["questions"] == 2
    assert figures["answers"]["by people"]["most common"] == 100
    assert figures["boxes"]["phrases"] == 3


def test_a_bundle_stores_word_vectors_once(runs: Path, toy_pocket: Path) -> None:
    shared = load_file(toy_pocket / "shared.safetensors")
    for task in WORDS:
        own = load_file(toy_pocket / task / "model.safetensors")
        assert not [name for name in own if "word_embeddings" in name]
    tables = [tensor for name, tensor in shared.items() if "word_embeddings" in name]
    assert len(tables) == 1
    trained, stored = (
        read.load(folder).model for folder in (runs / RUNS["grounding"] / "model", toy_pocket / "grounding")
    )
    assert isinstance(trained, Grounder)
    assert isinstance(stored, Grounder)
    start, end = trained.config.box_start_id, trained.config.box_start_id + trained.config.box_bins + 2
    assert torch.equal(
        stored.decoder.embeddings.word.weight[start:end], halve(trained.decoder.embeddings.word.weight)[start:end]
    )
    assert torch.equal(stored.text.embeddings.word.weight[end:], halve(trained.text.embeddings.word.weight)[end:])


def halve(tensor: torch.Tensor) -> torch.Tensor:
    """Round to half precision."""
    return tensor.half().float()


def test_other_word_vectors_are_refused(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script("pocket_bundle", monkeypatch)
    for run in RUNS.values():
        shutil.copytree(runs / run, tmp_path / run)
    folder = tmp_path / RUNS["vqa"] / "model"
    write.save(toy_hybrid("vqa", seed=9), folder, tokenizer=toy_tokenizer(), image=ImageSettings(64))
    with pytest.raises(ConfigError, match="same word vectors"):
        script.store(tmp_path, tmp_path / "bundle")


def test_a_bundle_reads_texts_as_its_runs_do(runs: Path, toy_pocket: Path) -> None:
    for task in TASKS:
        stored, trained = read.load(toy_pocket / task).tokenizer, read.load(runs / RUNS[task] / "model").tokenizer
        assert stored is not None
        assert trained is not None
        for text in ("A dog's café, running!", "two  dogs 42 \u732b", "unaffable ##dog [MASK]"):
            assert stored.spell(text) == trained.spell(text)


def test_a_copy_replaces_the_named_parts_only(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to, source = runs / "vqa-shared" / "model", tmp_path / "other"
    write.save(toy_hybrid("retrieval", seed=9), source, tokenizer=toy_tokenizer(), image=ImageSettings(64))
    script, out = load_script("pocket_copy", monkeypatch), tmp_path / "out"
    arguments = ["--to", to, "--out", out, "--from", source, "vision.stem", "encoder.embeddings=text.embeddings"]
    run_script(script, arguments, monkeypatch)
    before, other, after = (read.load(folder).model.state_dict() for folder in (to, source, out))
    for name, tensor in after.items():
        if name.startswith("vision.stem."):
            assert torch.equal(tensor, other[name])
        elif name.startswith("encoder.embeddings."):
            assert torch.equal(tensor, other[name.replace("encoder.", "text.")])
        else:
            assert torch.equal(tensor, before[name])
    for part, problem in (("encoder.nothing", "no part"), ("decoder=text.embeddings", "must exist")):
        with pytest.raises(ConfigError, match=problem):
            run_script(script, ["--to", to, "--out", out, "--from", source, part], monkeypatch)
    with pytest.raises(SystemExit):
        run_script(script, ["--to", to, "--out", out, "--from", source], monkeypatch)


def test_recall_and_boxes_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = load_script("pocket_figures", monkeypatch)
    scores = np.array([[0.1, 0.9, 0.2], [0.3, 0.2, 0.1]])
    assert figures.recall(scores, np.array([1, 2])) == {1: 50.0, 5: 100.0, 10: 100.0}
    truth = np.array([[0.0, 0.0, 10.0, 10.0]] * 2)
    assert figures.share_correct(np.array([[0.0, 0.0, 10.0, 5.0], [0.0, 0.0, 10.0, 4.9]]), truth) == 50.0


def test_make_runs_every_recipe_after_what_it_starts_from() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    names = dict(re.findall(r"^(POCKET_TUNED|POCKET_MATCHER) := \$\(POCKET_RUNS\)/(.*)$", makefile, re.MULTILINE))
    steps = makefile[makefile.index("\npocket: ") : makefile.index("\nclean: ")].replace("\\\n", " ")
    for name, path in names.items():
        steps = steps.replace(f"$({name})", f"$(POCKET_RUNS)/{path}")
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "recipes" / "pocket").glob("*.yaml")}
    made, done = {"start"}, []
    for line in steps.splitlines():
        used = set(re.findall(r"(?:\$\(POCKET_RUNS\)|runs/pocket)/([a-z-]+)/model", line))
        out = set(re.findall(r"--out \$\(DATA\)/runs/pocket/([a-z-]+)/model", line))
        out |= set(re.findall(r"--out \$\(POCKET_RUNS\)/([a-z-]+)/model", line))
        for source, target in re.findall(r"call pocket_copy,([a-z-]+),([a-z-]+)\)", line):
            used, out = used | {source}, out | {target}
        assert used - out <= made, line
        made |= out
        for call in re.findall(r"call pocket_train,([a-z_ ]+)\)", line):
            for name in call.split():
                (start,) = re.findall(r"^start: (?:runs/)?pocket/([a-z-]+)(?:/model)?$", recipes[name], re.MULTILINE)
                assert start in made, name
                made |= set(re.findall(r"^out: runs/pocket/(.*)$", recipes[name], re.MULTILINE))
                done.append(name)
    assert set(done) == recipes.keys() - {"plain", "grounding_384", "subjects"}
    assert set(RUNS.values()) <= made


def test_an_average_weighs_its_models(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = write.save(
        toy_hybrid("vqa", seed=9), tmp_path / "other", tokenizer=toy_tokenizer(), image=ImageSettings(64)
    )
    trained = runs / "vqa-shared" / "model"
    arguments = ["--models", trained, other, "--shares", "0.25", "0.75", "--out", tmp_path / "mean"]
    run_script(load_script("pocket_average", monkeypatch), arguments, monkeypatch)
    first, second, mean = (read.load(folder).model.state_dict() for folder in (trained, other, tmp_path / "mean"))
    for name, tensor in mean.items():
        torch.testing.assert_close(tensor, 0.25 * first[name] + 0.75 * second[name])

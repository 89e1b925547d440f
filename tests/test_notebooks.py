"""The notebooks run, from the first cell to the last, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import openblip
from openblip.checkpoints import write
from openblip.preprocess.settings import ImageSettings
from openblip.training.reporters import read_log
from tests.notebooks import execute
from tests.toys import SIZE, toy_model, toy_tokenizer

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_it_is_a_whole_notebook_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["name"]) == (4, "python3")
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) > 0
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), "strip it before it is committed"


def test_a_captioner_is_tuned_on_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the bundled model: the example's six photos are learned by heart, and the model is kept and loaded again."""
    monkeypatch.chdir(ROOT / "docs" / "notebooks")
    out = tmp_path / "out"
    path = ROOT / "docs" / "notebooks" / "finetune_captioning.ipynb"
    names, shown = execute(path, {"OUT": str(out)})
    before, curve, files = shown
    assert isinstance(curve, Image.Image)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)
    losses = [record["loss"] for record in read_log(out / "log.jsonl") if record["kind"] == "train"]
    assert losses[-1] < losses[0] - 1
    known = [set(record.captions) for record in names["source"]]
    assert not any(text in texts for text, texts in zip(before, known, strict=True))
    assert sum(text in texts for text, texts in zip(names["after"], known, strict=True)) >= 3, names["after"]
    again = openblip.load(out / "model").caption(names["images"])
    assert [caption.text for caption in again] == names["after"]
    said = capsys.readouterr().out
    assert "6 images, 0 bad rows" in said
    assert f"after:  {names['after'][0]}" in said


def test_it_takes_data_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write.save(toy_model("caption"), tmp_path / "toy", tokenizer=toy_tokenizer(), image=ImageSettings(SIZE), prompt="")
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("cat", "coffee"):
        (photos / f"{name}.jpg").write_bytes((ROOT / "examples" / "photos" / f"{name}.jpg").read_bytes())
        (photos / f"{name}.txt").write_text(f"a {name}\n")
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / "notebooks" / "finetune_captioning.ipynb"
    names, _ = execute(path, {"MODEL": str(tmp_path / "toy"), "DATA": str(photos), "EPOCHS": 1, "BATCH_SIZE": 2})
    assert len(names["after"]) == 2
    assert (tmp_path / "runs" / "my-captioner" / "model" / "config.json").is_file()

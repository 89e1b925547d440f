"""The guide and the notebook run at toy size, and the API reference has every class.

The page is docs/guides/tensorflow-jax.md.
"""

from __future__ import annotations

import importlib
import inspect
import re
import shutil
from pathlib import Path

import pytest

keras = pytest.importorskip("keras", reason="the Keras classes have an environment of their own: make test-keras")

import openblip.keras  # noqa: E402
from tests.keras.toys import load_toy, toy_folder  # noqa: E402
from tests.notebooks import execute  # noqa: E402

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "tensorflow-jax.md"
FOLDERS = {
    "Salesforce/blip-image-captioning-base": "BlipForConditionalGeneration",
    "Salesforce/blip-vqa-base": "BlipForQuestionAnswering",
    "Salesforce/blip-itm-base-coco": "BlipForImageTextRetrieval",
}


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the photos, and toy models under the names that the pages use."""
    shutil.copytree(ROOT / "examples" / "photos", tmp_path / "examples" / "photos")
    for folder, name in FOLDERS.items():
        toy_folder(name, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guide_runs(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 4
    for block in blocks:
        if "export_" in block and keras.backend.backend() != "tensorflow":
            continue
        exec(compile(block, PAGE.name, "exec"), names)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (4 if keras.backend.backend() == "tensorflow" else 2)
    assert (workspace / "my-captioner" / "model.safetensors").is_file()


def test_the_notebook_learns_two_captions(workspace: Path) -> None:
    parameters = {
        "PHOTOS": str(workspace / "examples" / "photos"), "MODEL": "Salesforce/blip-image-captioning-base",
        "PROMPT": "a picture of", "EPOCHS": 60, "LEARNING_RATE": 1e-2, "OUT": "out",
    }  # fmt: skip
    names, shown = execute(ROOT / "docs" / "notebooks" / "keras_captioning.ipynb", parameters)
    shapes, before, losses, after, files = shown
    assert shapes["pixel_values"] == (2, 3, 32, 32)
    assert losses[-1] < 0.3 < losses[0]
    tokenizer = names["processor"].tokenizer
    expected = [tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) for text in names["texts"]]
    assert after == expected != before
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(files)


def test_the_reference_has_every_name() -> None:
    page = (ROOT / "docs" / "api" / "keras.md").read_text(encoding="utf-8")
    entries = set(re.findall(r"^::: openblip\.keras\.(\w+)$", page, re.MULTILINE))
    own = {name for name in openblip.keras.__all__ if name.startswith(("TF", "export"))}
    assert entries == own
    for name in own:
        value = getattr(openblip.keras, name)
        assert importlib.import_module(value.__module__).__name__.startswith("openblip.keras")
        functions = [value] if inspect.isfunction(value) else [
            member for key, member in vars(value).items() if inspect.isfunction(member) and not key.startswith("_")
        ]  # fmt: skip
        for function in functions:
            doc = inspect.getdoc(function) or ""
            parameters = {name for name in inspect.signature(function).parameters if name[0] != "_"} - {"self"}
            assert all(f"{parameter}:" in doc for parameter in parameters), function


def test_requirements_are_those_of_the_package_without_torch() -> None:
    """`tests/keras/requirements.txt` lists what `pyproject.toml` states."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    def read_list(name: str) -> set[str]:
        block = re.search(rf"^{name} = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE)
        assert block is not None
        return set(re.findall(r'"([^"]+)"', block[1]))

    stated = read_list("dependencies") | read_list("tensorflow") | read_list("jax")
    listed = set((ROOT / "tests" / "keras" / "requirements.txt").read_text(encoding="utf-8").split("\n"))
    assert {line for line in stated if not line.startswith("torch")} <= listed
    assert not any(line.startswith("torch") for line in listed)


def test_a_toy_model_is_what_the_fixtures_say() -> None:
    assert load_toy("BlipModel").config.projection_dim == 24

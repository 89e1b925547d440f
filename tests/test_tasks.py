"""The task registry is complete: every layer serves every task, or the registry says by name that it does not."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

import openblip
from openblip import tasks
from openblip.checkpoints import published
from openblip.checkpoints.folder import POCKET, Bundle
from openblip.checkpoints.layouts import TABLES, hub_config
from openblip.cli import app
from openblip.compat.lavis_api import zoo
from openblip.compat.mmpretrain_api.models import TASKS as MMPRETRAIN_TASKS
from openblip.errors import InputError
from openblip.model.build import build_model
from openblip.model.config import MODEL_KINDS, ModelConfig
from openblip.tasks import NETWORKS, TASK_NAMES, TASKS, Reference, TaskSpec
from tests.checkpoints.checkpoint_toys import toy_config

ROOT = Path(__file__).parent.parent
LAYERS = ("model", "data", "objective", "pipeline", "evaluator")


def test_names() -> None:
    assert get_args(tasks.TaskName) == TASK_NAMES
    assert all(spec.name == name for name, spec in TASKS.items())
    assert set(NETWORKS) == set(TASK_NAMES) - {"visdial"}
    assert (*NETWORKS, "two_tower", "text", "vision") == MODEL_KINDS


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASK_NAMES)
def test_every_layer_serves_the_task_or_says_why_not(spec: TaskSpec) -> None:
    empty = {field.name for field in dataclasses.fields(spec) if not getattr(spec, field.name)} - {"absent"}
    assert set(spec.absent) == empty
    assert all(spec.absent.values())
    for layer in LAYERS:
        reference = getattr(spec, layer)
        if reference is not None:
            assert isinstance(reference, Reference)
            assert inspect.isclass(reference.resolve()), reference


def test_the_registry_imports_no_layer() -> None:
    program = "import sys, openblip.tasks; print(*sorted(name for name in sys.modules if name.startswith('openblip')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openblip", "openblip._version", "openblip.errors", "openblip.tasks"]


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_built_from_the_registry(name: tasks.TaskName) -> None:
    config: ModelConfig = toy_config(name)
    assert type(build_model(config, device="meta")) is TASKS[name].model.resolve()
    assert hub_config.ARCHITECTURES[name] == TASKS[name].architecture


@pytest.mark.parametrize("spec", TASKS.values(), ids=TASK_NAMES)
def test_weight_tables(spec: TaskSpec) -> None:
    """The families of a task are those that have a table for its network, and the tables are the ones in use."""
    network = spec.networks[0]
    assert set(spec.weights) == {family for family, tables in TABLES.items() if network in tables}
    for family, reference in spec.weights.items():
        assert reference.resolve() is TABLES[family]  # type: ignore[index]
        assert reference.resolve()[network].task == network


def test_every_network_is_one_of_a_task() -> None:
    for spec in TASKS.values():
        assert set(spec.networks) <= set(NETWORKS)
    for family, tables in TABLES.items():
        assert set(tables) <= set(MODEL_KINDS), family
    assert {entry.task for entry in published.PUBLISHED} <= set(NETWORKS)
    for name, models in published.BUNDLES.items():
        assert set(models) <= set(NETWORKS), name


def test_a_pretraining_checkpoint_serves_captions_and_matches() -> None:
    assert tasks.SERVED_TASKS["pretrain"] == ("caption", "retrieval")
    assert tasks.SERVED_TASKS["retrieval"] == ("retrieval",)
    assert "two_tower" not in tasks.SERVED_TASKS


def test_verbs_are_methods_and_commands() -> None:
    commands = set(app.commands)
    for spec in TASKS.values():
        for verb in spec.verbs:
            assert verb in commands
            assert hasattr(openblip.Blip, verb) or verb == "embed"
    verbs = {verb for spec in TASKS.values() for verb in spec.verbs}
    others = {"models", "convert", "doctor", "test", "train", "eval", "completion", "sheet", "capfilt", "bootstrap"}
    others |= {"export", "index", "search", "serve"}
    assert commands - others == verbs, "every command that answers from a model is a verb of its task"


def test_recipes_name_tasks() -> None:
    recipes = [path for path in (ROOT / "recipes").rglob("*.yaml") if "task" in yaml.safe_load(path.read_text())]
    assert len(recipes) > 10
    assert {yaml.safe_load(path.read_text())["task"] for path in recipes} == set(TASK_NAMES)


def test_bundle_files_name_tasks(tmp_path: Path) -> None:
    models = json.loads((POCKET / "bundle.json").read_text())
    assert set(models) <= set(NETWORKS)
    assert all((POCKET / folder).is_dir() for folder in models.values())
    assert all(folder == name for name, folder in models.items()), "the folders have the names of the tasks"
    for wrong in ("match", "two_tower", "visdial"):
        (tmp_path / "bundle.json").write_text(json.dumps({wrong: str(POCKET / "caption")}))
        with pytest.raises(openblip.CheckpointError, match=f"must be one of {', '.join(NETWORKS)}, got '{wrong}'"):
            Bundle.find(tmp_path)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("caption", "caption"),
        ("VQA", "vqa"),
        ("Visual Question Answering", "vqa"),
        ("image-text-matching", "retrieval"),
        ("blip_nlvr", "nlvr"),
        ("visual grounding", "grounding"),
    ],
)
def test_find(text: str, name: str) -> None:
    assert tasks.find(text).name == name


@pytest.mark.parametrize(
    ("text", "nearest"),
    [("captions", "caption"), ("match", "retrieval"), ("compare", "nlvr"), ("grounded", "grounding")],
)
def test_an_unknown_name_gets_a_suggestion(text: str, nearest: str) -> None:
    expected = f"task must be one of {', '.join(TASK_NAMES)}, got '{text}'; did you mean {nearest}\\?"
    with pytest.raises(InputError, match=expected):
        tasks.find(text)
    with pytest.raises(InputError, match=expected):
        tasks.check(text)


def test_an_unknown_name_far_from_all_gets_none() -> None:
    with pytest.raises(InputError, match=r"got 'xyzzy'$"):
        tasks.find("xyzzy")


def test_check_takes_exact_names_only() -> None:
    assert tasks.check("vqa") == "vqa"
    with pytest.raises(InputError, match=r"task must be one of .* got 'VQA'; did you mean vqa"):
        tasks.check("VQA")
    with pytest.raises(InputError, match=r"--task must be one of caption, nlvr, got 'vqa'$"):
        tasks.check("vqa", ("caption", "nlvr"), label="--task")


def test_aliases_are_unique() -> None:
    names = [name.casefold() for spec in TASKS.values() for name in (spec.name, *spec.aliases)]
    assert len(names) == len(set(names))


def test_the_page_for_contributors_names_files_that_exist() -> None:
    """The edits that it lists are at most eight, and the new files are next to those of the tasks that exist."""
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Adding a task")[2].partition("\n## ")[0]
    new, _, edits = section.partition("Edits, at most eight files:")
    edited = re.findall(r"^\| `([^`]+)` \|", edits, re.MULTILINE)
    assert 5 <= len(edited) <= 8
    package = Path(openblip.__file__).parent
    for name in edited:
        assert (package / name).is_file() or (ROOT / name).is_file(), name
    for name in re.findall(r"`([a-z/]+/)[A-Z]+\.(?:py|yaml)`", new):
        assert (package / name).is_dir() or (ROOT / name).is_dir(), name
    for folder in ("data/tasks", "pipelines", "evaluation/evaluators", "training/objectives"):
        for spec in TASKS.values():
            served = {"data/tasks": spec.data, "pipelines": spec.pipeline, "training/objectives": spec.objective}
            reference = served.get(folder, spec.evaluator)
            assert reference is None or (package / folder / f"{spec.name}.py").is_file(), f"{folder}/{spec.name}.py"


def test_names_of_other_libraries_are_aliases() -> None:
    for title, name in MMPRETRAIN_TASKS.items():
        assert tasks.find(title).name == name
    for architecture, model_class in zoo._CLASSES.items():
        assert tasks.find(architecture).name == model_class.task
    for name in NETWORKS:
        if TASKS[name].architecture.startswith("Blip"):
            assert hasattr(openblip, TASKS[name].architecture)

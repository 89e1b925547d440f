"""What is installed: the dependencies that were promised and no others, the command, the licence, the types."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
from pathlib import Path

import openblip

ROOT = Path(__file__).parent.parent
DISTRIBUTION = importlib.metadata.distribution("openblip")
RUN_TIME = {
    "torch", "numpy", "pillow", "tokenizers", "safetensors", "huggingface-hub", "filelock", "jinja2", "click", "rich",
}  # fmt: skip


def requirements(extra: str = "") -> dict[str, str]:
    """The requirement lines of an extra, or of the package itself, under their names."""
    lines = [line.partition(";") for line in DISTRIBUTION.requires or ()]
    chosen = [line.strip() for line, _, rule in lines if (f"'{extra}'" in rule if extra else not rule)]
    return {re.split(r"[^\w.-]", line)[0].lower().replace("_", "-"): line for line in chosen}


def test_run_time_dependencies_are_the_promised_ones() -> None:
    needed = requirements()
    assert needed.keys() == RUN_TIME
    assert set(needed["torch"].removeprefix("torch").split(",")) == {">=2.9", "<2.14"}
    assert all(">=" in line for line in needed.values()), "every one says what it was written for"


def test_transformers_is_a_peer_of_the_tests_only() -> None:
    assert requirements("dev")["transformers"] == "transformers==5.23.0"
    assert "transformers" not in requirements() | requirements("data") | requirements("train")


def test_the_command_and_the_version() -> None:
    (command,) = (entry for entry in DISTRIBUTION.entry_points if entry.group == "console_scripts")
    assert (command.name, command.value) == ("openblip", "openblip.cli:main")
    assert DISTRIBUTION.version == openblip.__version__
    assert "\n## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_licence() -> None:
    assert DISTRIBUTION.metadata["License-Expression"] == "BSD-3-Clause"
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert text.startswith("BSD 3-Clause License")
    assert "OpenBLIP contributors" in text


def test_html_templates_are_package_data() -> None:
    folder = Path(openblip.__file__).parent
    for module in ("jobs/sheet", "evaluation/report"):
        used = f'"{module.rpartition("/")[2]}.html"' in (folder / f"{module}.py").read_text(encoding="utf-8")
        assert used is (folder / f"{module}.html").is_file()
    included = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[tool.hatch.build.targets.wheel]")[2]
    assert included.startswith('\npackages = ["src/openblip"]\n'), "all files of the package"


def test_the_package_is_typed() -> None:
    assert (Path(openblip.__file__).parent / "py.typed").is_file()


def test_every_chore_is_one_command() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} >= {"demo", "test", "check", "format"}
    for chore in ("demo", "test", "check"):
        planned = subprocess.run(
            ["make", "--dry-run", chore, "VENV=/nowhere/venv"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert "-m venv /nowhere/venv" in planned, "it sets up its own environment"
        assert ".venv" not in planned.replace("/nowhere/venv", ""), "where it is told to"

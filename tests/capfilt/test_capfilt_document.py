"""docs/capfilt.md: its command lines, its table of columns and its recipe."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner

from openblip.bootstrap import read_bootstrap
from openblip.capfilt.rows import COLUMNS
from openblip.cli import app
from tests.capfilt.capfilt_toys import web_folder

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "capfilt.md").read_text(encoding="utf-8")
LINES = re.findall(r"^\$ openblip (.*)$", DOCUMENT, re.MULTILINE)


def test_its_commands_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    web_folder(tmp_path / "web", 3)
    commands = [shlex.split(line) for line in LINES if line.startswith("capfilt ")]
    assert [words[1] for words in commands] == ["run", "report", "rethreshold"]
    for words in commands:
        words = [str(folder) if word.startswith("runs/") else word for word in words]
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 0, result.output
    assert (tmp_path / "filtered/report.html").exists()


def test_every_column_is_documented() -> None:
    for name in COLUMNS:
        assert f"`{name}`" in DOCUMENT, name


def test_its_recipe_can_be_read(tmp_path: Path) -> None:
    (recipe,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(recipe)
    bootstrap = read_bootstrap(tmp_path / "recipe.yaml")
    assert bootstrap.capfilt.itm_threshold == 0.5
    shipped = read_bootstrap(ROOT / "recipes" / "bootstrap" / "base.yaml")
    assert shipped.captioner["epochs"] == bootstrap.captioner["epochs"] == 5

"""docs/jobs.md: its table of fields, its command lines, and its code."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from openblip.cli import app
from openblip.cli.options import EXISTING
from openblip.jobs.records import FIELDS
from openblip.jobs.sinks import SINKS

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")


def test_the_record_table_is_complete() -> None:
    documented = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", DOCUMENT, re.MULTILINE))
    assert {name: documented.get(name) for name in FIELDS} == dict(FIELDS)


def test_every_format_and_choice_is_documented() -> None:
    for name in (*SINKS, *EXISTING):
        assert f"`{name}`" in DOCUMENT, name


def test_command_lines_parse() -> None:
    commands = app.commands
    lines = re.findall(r"^\$ openblip (.*)$", DOCUMENT, re.MULTILINE)
    takers = {name for name, command in commands.items() if any("--existing" in p.opts for p in command.params)}
    takers -= {"serve"}  # its --existing is for the captions that --edit saves
    assert {line.split()[0] for line in lines} == takers | {"sheet"}
    for line in lines:
        name, *arguments = shlex.split(line)
        with commands[name].make_context(name, arguments) as context:
            assert context.params["images"] == ("pairs.csv" if name == "compare" else "photos",)


def test_its_code_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT / "examples")
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    exec(compile(code, "jobs.md", "exec"), {})
    assert capsys.readouterr().out.endswith("6 images\n")

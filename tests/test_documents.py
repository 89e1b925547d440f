"""What is shipped or documented is run: the README's code, every command line in it and in the help, every link."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from openblip.checkpoints.bundle import POCKET
from openblip.cli import app

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "photos"
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/photos/CREDITS.md", "benchmarks/README.md")


def commands_of(group: Any, prefix: str = "") -> dict[str, Any]:
    """Every command under its whole name, as "train run"; a group is no command itself."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        whole = f"{prefix}{name}"
        found |= commands_of(command, f"{whole} ") if hasattr(command, "commands") else {whole: command}
    return found


COMMANDS = commands_of(app)


def blocks(document: str, language: str) -> list[str]:
    text = (ROOT / document).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def command_lines() -> list[str]:
    """Every ``openblip ...`` that a user is told to type: in the README, in the Makefile and in the help texts."""
    readme = [line.removeprefix("$ ") for block in blocks("README.md", "console") for line in block.splitlines()]
    makefile = [line.strip().replace("$(BIN)/", "") for line in (ROOT / "Makefile").read_text().splitlines()]
    examples = [line for command in COMMANDS.values() for line in command.example.splitlines()]
    return [line for line in (*readme, *makefile, *examples) if line.startswith("openblip ")]


@pytest.mark.parametrize("line", command_lines())
def test_every_documented_command_line_parses(line: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    (name,) = (whole for whole in COMMANDS if words[: len(whole.split())] == whole.split())
    arguments = words[len(name.split()) :]
    with COMMANDS[name].make_context(name, arguments) as context:  # as if typed, but not run
        assert context.params


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name: str) -> None:
    example = COMMANDS[name].example
    assert example.startswith(f"openblip {name}")
    with COMMANDS[name].make_context(name, [], resilient_parsing=True) as context:
        assert COMMANDS[name].get_help(context).endswith("Example:\n" + textwrap.indent(example, "  "))


def test_readme_tells_every_command() -> None:
    told = {shlex.split(line)[1] for line in command_lines()}
    assert told == {name.split()[0] for name in COMMANDS}


def test_the_code_in_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {}
    first, *rest = blocks("README.md", "python")
    exec(compile(first, "README.md", "exec"), names)
    assert len(first.strip().splitlines()) <= 5, "five lines to a caption"
    assert len(capsys.readouterr().out.split()) > 1, "a caption of some words"
    for block in rest:
        exec(compile(block, "README.md", "exec"), names)
    assert "Answer(" in capsys.readouterr().out


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("https://"):
            assert (path.parent / target).exists(), f"{document}: {target}"
    for target in re.findall(r"`((?:src|tests|examples|docs|scripts)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), f"{document}: {target}"


def test_contributing_lists_every_part() -> None:
    listed = set(
        re.findall(r"^\| `([\w.]+)/?` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    folders = {path.parent.name for path in (ROOT / "src" / "openblip").glob("*/__init__.py")} | {"pocket"}
    assert folders <= listed


def test_every_photo_has_its_credit() -> None:
    credits = (PHOTOS / "CREDITS.md").read_text(encoding="utf-8")
    photos = {path.name for path in PHOTOS.iterdir()} - {"CREDITS.md"}
    assert set(re.findall(r"^\| `([\w.]+)` \|", credits, re.MULTILINE)) == photos
    assert len(photos) >= 6
    for name in photos:
        with Image.open(PHOTOS / name) as photo:
            assert photo.format == "JPEG"
            assert max(photo.size) <= 640
            assert not photo.getexif()


def test_the_pocket_model_has_a_card() -> None:
    card = (POCKET / "README.md").read_text(encoding="utf-8")
    for word in ("trained on", "licence", "Flickr8k"):
        assert word.lower() in card.lower(), word


def test_ci_runs_what_users_are_told_to_run() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+) ", script, re.MULTILINE) == ["demo", "check", "test"]
    assert ".venv" not in re.sub(r"#.*", "", script), "an environment of its own"
    told = [
        line for block in blocks("README.md", "console") for line in block.splitlines() if line.startswith("$ make")
    ]
    assert [line.split()[2] for line in told] == ["demo", "test"]

"""Everything that the documentation shows is run: code, command lines, outputs, links."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from openblip.checkpoints.folder import POCKET
from openblip.cli import app

ROOT = Path(__file__).parent.parent
PHOTOS = ROOT / "examples" / "photos"
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / "README.md", *SITE]
LINKED = [
    *PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", PHOTOS / "CREDITS.md", ROOT / "benchmarks" / "README.md",
    ROOT / "examples" / "browser" / "README.md",
]  # fmt: skip

# Pages whose code has a test of its own, because it needs more than photos and the bundled model.
TESTED_ELSEWHERE = {
    "docs/capfilt.md": "tests/capfilt/test_capfilt_document.py",
    "docs/data.md": "tests/data/test_data_document.py",
    "docs/jobs.md": "tests/jobs/test_jobs_document.py",
    "docs/guides/tensorflow-jax.md": "tests/keras/test_keras_documents.py",
    "docs/serving.md": "tests/serving/test_serving_document.py",
    "docs/mmpretrain-lavis.md": "tests/compat/test_documented_snippets.py",
}
# Command lines with one of these words are parsed and not run, for the reason given.
PARSED_ONLY = {
    "base": "downloads a model",
    ".pth": "reads a file that the reader has",
    "coco": "reads the COCO data set",
    "my-": "reads a file that the reader has",
    "runs/": "reads the result of a long run",
    "-edits.jsonl": "reads a file that a browser exported",
    "int8": "converts the model, which tests/engine covers",
    "--fast": "converts the model on some machines, which tests/engine covers",
    "openblip export": "writes graphs, which tests/export covers",
    "openblip serve": "runs until a signal",
    "torchrun": "starts several processes",
    "capfilt report": "reads the output of a long run, which tests/capfilt covers",
    "pairs": "reads pairs of images that the reader has",
}


def relative(path: Path) -> str:
    """Return the path from the root, as the name of a test case."""
    return path.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    """Return the code blocks of a language in a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands_by_name(group: click.Group, prefix: str = "") -> dict[str, Any]:
    """Return every command under its full name, such as "train run"; groups are left out."""
    commands: dict[str, Any] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            commands |= commands_by_name(command, f"{prefix}{name} ")
        else:
            commands[f"{prefix}{name}"] = command
    return commands


COMMANDS = commands_by_name(app)


def command_lines(page: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every `openblip` command line of a page with the output that follows it."""
    for block in blocks(page, "console"):
        line, output = "", list[str]()
        for text in [*block.splitlines(), "$ end"]:
            if not text.startswith("$ "):
                output.append(text)
                continue
            if line.startswith("openblip "):
                yield line, output
            line, output = text.removeprefix("$ "), []


def help_lines() -> list[str]:
    """Return every command line that the Makefile runs and that a help text shows."""
    makefile = [line.strip().replace("$(BIN)/", "") for line in (ROOT / "Makefile").read_text().splitlines()]
    examples = [line for command in COMMANDS.values() for line in command.example.splitlines()]
    return [line for line in (*makefile, *examples) if line.startswith("openblip ")]


def parse(line: str) -> click.Context:
    """Parse a command line as if it was typed."""
    words = shlex.split(line, comments=True)[1:]
    (name,) = (full_name for full_name in COMMANDS if words[: len(full_name.split())] == full_name.split())
    context: click.Context = COMMANDS[name].make_context(name, words[len(name.split()) :])
    return context


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages name."""
    shutil.copytree(PHOTOS, tmp_path / "examples" / "photos")
    shutil.copytree(PHOTOS, tmp_path / "photos", ignore=shutil.ignore_patterns("*.md"))
    rows = [{"image": f"photos/{photo.name}", "caption": f"a {photo.stem}"} for photo in sorted(PHOTOS.glob("*.jpg"))]
    (tmp_path / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predictions = [{"image_id": number, "caption": row["caption"]} for number, row in enumerate(rows)]
    references = [{"image_id": number, "captions": [row["caption"]]} for number, row in enumerate(rows)]
    for name, content in (("result.json", predictions), ("references.json", references)):
        (tmp_path / name).write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("line", help_lines())
def test_command_lines_of_help_and_makefile_parse(line: str) -> None:
    assert parse(line).params


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_command_lines_run_and_print_what_is_shown(page: Path, workspace: Path) -> None:
    for line, output in command_lines(page):
        assert parse(line).params, line
        if relative(page) in TESTED_ELSEWHERE or any(word in line for word in PARSED_ONLY):
            continue
        result = CliRunner().invoke(app, shlex.split(line, comments=True)[1:])
        assert result.exit_code == 0, f"{line}\n{result.output}"
        if output:
            shown = "\n".join(output).strip()
            assert "\n".join(text.rstrip() for text in result.stdout.splitlines()).strip() == shown, line


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_code_runs(page: Path, workspace: Path) -> None:
    if relative(page) in TESTED_ELSEWHERE:
        assert page.name in (ROOT / TESTED_ELSEWHERE[relative(page)]).read_text(encoding="utf-8")
        return
    names: dict[str, object] = {}
    for block in blocks(page, "python"):
        exec(compile(block, str(page), "exec"), names)


def test_readme_shows_the_caption_that_its_code_prints(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = blocks(ROOT / "README.md", "python")[0]
    exec(compile(code, "README.md", "exec"), {})
    assert len(code.split("\n\n", 1)[1].strip().splitlines()) + 1 <= 5, "five lines to a caption"
    assert capsys.readouterr().out == blocks(ROOT / "README.md", "text")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_shows_an_example(name: str) -> None:
    example = COMMANDS[name].example
    assert example.startswith(f"openblip {name}")
    with COMMANDS[name].make_context(name, [], resilient_parsing=True) as context:
        assert COMMANDS[name].get_help(context).endswith("Example:\n" + textwrap.indent(example, "  "))


def test_readme_shows_every_command() -> None:
    shown = {shlex.split(line)[1] for line, _ in command_lines(ROOT / "README.md")}
    assert shown | {"completion", "test"} == {name.split()[0] for name in COMMANDS}


@pytest.mark.parametrize("page", LINKED, ids=relative)
def test_links_and_paths_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#]+)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
    for target in re.findall(r"`((?:src|tests|examples|docs|scripts)/[\w./-]+)`", text):
        assert (ROOT / target).exists(), target


def test_the_site_lists_every_page() -> None:
    listed = set(re.findall(r": ([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert listed == {path.relative_to(ROOT / "docs").as_posix() for path in SITE}


def test_contributing_lists_every_package() -> None:
    listed = set(
        re.findall(r"^\| `([\w.]+)/?` \|", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    )
    folders = {path.parent.name for path in (ROOT / "src" / "openblip").glob("*/__init__.py")} | {"pocket"}
    assert folders <= listed


def test_every_photo_is_credited() -> None:
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
    for word in ("trained on", "license", "Flickr8k"):
        assert word.lower() in card.lower(), word


def test_ci_runs_the_commands_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make (\w+) ", script, re.MULTILINE) == ["demo", "check", "test"]
    assert ".venv" not in re.sub(r"#.*", "", script), "an environment of its own"
    readme = [line for block in blocks(ROOT / "README.md", "console") for line in block.splitlines()]
    assert [line.split()[2] for line in readme if line.startswith("$ make")] == ["demo", "test"]

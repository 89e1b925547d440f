"""Other people's files through the commands that read data rather than images: CapFilt, evaluation and training."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from click.testing import Result
from PIL import Image

from openblip.checkpoints import write
from openblip.checkpoints.folder import write_bundle
from openblip.cli import app
from openblip.data.records import Record
from openblip.data.sources.shards import plan_shards, read_shard
from openblip.preprocess.settings import ImageSettings
from openblip.tasks import TaskName
from tests.capfilt.capfilt_toys import read_rows
from tests.cli.odd_files import SKIPPED, write_lists, write_odd_folder, write_pair_lists
from tests.cli.test_jobs_cli import run
from tests.cli.test_odd_files import ARGUMENTS, state_of
from tests.preprocess.odd_images import photo
from tests.toys import SIZE, toy_model, toy_tokenizer

pytestmark = pytest.mark.usefixtures("one_thread")

# The commands that do not read other people's images or lists.
OTHERS = {"models", "convert", "export", "doctor", "completion", "capfilt rethreshold", "capfilt report"}
# The commands whose data go through the code of another command, which is tested here or in `test_odd_files`.
COVERED_BY = {
    **{f"train {task}": "train caption" for task in ("run", "vqa", "retrieval", "nlvr", "grounding", "visdial")},
    **{f"eval score {name}": "eval run" for name in ("captions", "vqa", "retrieval", "grounding")},
    "test": "eval run",
    "bootstrap": "capfilt run",
    "search": "index",
    "serve": "caption",  # uploads: tests/serving
}


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toys")
    tasks: tuple[TaskName, ...] = ("caption", "retrieval", "nlvr")
    for task in tasks:
        write.save(toy_model(task), home / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    write_bundle(home, {task: home / task for task in tasks})
    return home


def run_capfilt(source: Path, toys: Path, out: Path) -> Result:
    models = ("--captioner", toys / "caption", "--filter", toys / "retrieval")
    return run("capfilt", "run", source, "--out", out, *models, "--min-new-tokens", "1", "--max-new-tokens", "2")


def run_evaluation(source: Path, toys: Path, out: Path) -> Result:
    return run("eval", "run", "own", "--data", source, "-m", toys, "--task", "caption", "--out", out)


def run_training(source: Path, toys: Path, out: Path) -> Result:
    start = ("--from", toys / "caption", "--epochs", "1", "--batch-size", "2")
    return run("train", "caption", "--data", source, *start, "--out", out, "data.num_workers=0", "run.charts=false")


READERS: dict[str, Callable[[Path, Path, Path], Result]] = {
    "capfilt run": run_capfilt,
    "eval run": run_evaluation,
    "train caption": run_training,
}


def leaves(group: click.Group, prefix: str = "") -> Iterator[str]:
    """The names of all commands that are not groups."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{prefix}{name} ")
        else:
            yield prefix + name


def test_every_command_is_covered() -> None:
    covered = {*ARGUMENTS, *READERS, *COVERED_BY, *OTHERS}
    assert set(leaves(app)) == covered, "name the command in one of the tables, here or in tests/cli/test_odd_files.py"
    assert set(COVERED_BY.values()) <= {*ARGUMENTS, *READERS}


@pytest.mark.parametrize("command", READERS)
def test_a_folder_of_odd_files(command: str, toys: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, out = tmp_path / "f", tmp_path / "out"
    good, bad = write_odd_folder(folder)
    for name in (*good, *bad):
        (folder / name).with_suffix(".txt").write_text("a man\n")
    before = state_of(folder)
    done = READERS[command](folder, toys, out)
    output = done.output + caplog.text
    assert done.exit_code == (0 if command == "train caption" else 3), output
    for words in SKIPPED:
        assert words in output
    for name, words in bad.items():
        if command == "capfilt run":
            assert words in read_rows(out)[name]["error"]
            continue
        lines = [line for line in output.splitlines() if f"f/{name}" in line and "cannot read" in line]
        assert words in (output if command == "train caption" else lines[0])  # a run lists the first files only
        assert all(line.count(name) == 1 for line in lines), "the name is there once"
    if command == "capfilt run":
        assert {key for key, row in read_rows(out).items() if row["error"] is None} == good
    if command == "eval run":
        names = {Path(json.loads(line)["image"]).name for line in (out / "references.jsonl").read_text().splitlines()}
        assert names == good
    assert state_of(folder) == before


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    write_lists(folder)
    return folder


def test_shards_of_all_dialects(lists: Path) -> None:
    for path in sorted(lists.iterdir()):
        if path.is_file():
            entries = [record for shard in plan_shards([str(path)]) for _, record in read_shard(shard)]
            records = [record for record in entries if isinstance(record, Record)]
            assert [record.captions for record in records] == [("a dog, brown",), ()], (path.name, entries)
            assert all(Path(str(record.images[0].read())).exists() for record in records), path.name


@pytest.mark.parametrize("name", ["old mac.csv", "wide.jsonl", "indented.jsonl", "excel.csv", "tokens.txt"])
def test_capfilt_of_a_dialect_that_is_read_as_a_whole(name: str, lists: Path, toys: Path, tmp_path: Path) -> None:
    done = run_capfilt(lists / name, toys, tmp_path)
    assert done.exit_code == 3, done.output
    assert "2 images, " in done.output
    assert "1 texts not scored: 1 x empty after cleaning" in done.output
    assert [row["texts"][0] for row in read_rows(tmp_path).values()] == ["a dog, brown", ""]


def test_pairs_of_all_dialects(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(photo()).save(tmp_path / "images" / name)
    pair = tmp_path / "images" / "a.jpg", tmp_path / "images" / "b.jpg"
    for path in write_pair_lists(tmp_path):
        call = ("compare", path, "--dry-run", "--model", toys)
        options = ["--columns", "left=before,right=after"] if path.stem == "named" else []
        done = run(*call, *options)
        assert done.stdout.splitlines()[0] == f"{pair[0]} | {pair[1]}: would be computed", (path.name, done.output)
        assert "the list has no text for it" in done.stdout.splitlines()[1], (path.name, done.output)
        assert run(*call, "-t", "two dogs", *options).stdout.count(": would be computed") == 2
    done = run("compare", tmp_path / "named.csv", "-t", "x", "--model", toys)
    assert "left=NAME,right=NAME" in done.stderr

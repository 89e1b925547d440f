"""Ground, compare, classify and explain on the command line, and the pictures they draw."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner, Result

import openblip
from openblip.checkpoints import bundle, write
from openblip.cli import app
from openblip.model.config import Task
from openblip.preprocess.image import ImageSettings
from tests.cli.test_cli import SHARED
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer

TASKS: tuple[Task, ...] = ("caption", "answer", "match", "ground", "compare")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toys")
    for task in TASKS:
        write.save(toy_model(task), home / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    bundle.write(home, {task: home / task for task in TASKS})
    (home / "more").mkdir()
    toy_image(1).save(home / "one.png")
    toy_image(2).save(home / "more" / "one.png")
    (home / "bad.png").write_bytes(b"no picture")
    return home


@pytest.mark.parametrize("command", ["ground", "compare", "classify", "explain"])
def test_they_take_the_shared_options(command: str) -> None:
    parameters = getattr(get_command(app), "commands")[command].params  # noqa: B009
    assert {option for parameter in parameters for option in parameter.opts} >= SHARED | {"--json"}


def test_ground_prints_and_draws(toys: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "found.png"
    done = run("ground", toys / "one.png", "-e", "a man", "-e", "the cat", "-m", toys, "--out", out, "--json")
    assert done.exit_code == 0, done.output
    expected = openblip.load(toys).ground(toys / "one.png", ["a man", "the cat"])
    for record, name, box in zip(lines(done), ("a man", "the cat"), expected, strict=True):
        assert (record["expression"], record["left"], record["drawing"]) == (name, box.left, str(out))
    with Image.open(out) as drawn, Image.open(toys / "one.png") as picture:
        assert (drawn.format, drawn.size) == ("PNG", picture.size)
        assert drawn.convert("RGB").tobytes() != picture.convert("RGB").tobytes()
    assert [path.name for path in out.parent.iterdir()] == ["found.png"], "nothing is left beside it"
    table = run("ground", toys / "one.png", "-e", "a man", "-m", toys).stdout
    assert table.splitlines()[0].split() == ["image", "expression", "left", "top", "right", "bottom", "probability"]


def test_several_pictures_are_drawn_into_a_folder(toys: Path, tmp_path: Path) -> None:
    images = [toys / "one.png", toys / "bad.png", toys / "more" / "one.png"]
    done = run("ground", *images, "-e", "a man", "-m", toys, "--out", tmp_path / "drawn")
    assert done.exit_code == 3
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["one-2.png", "one.png"]
    assert run("explain", *images, "-t", "a cat", "-m", toys, "--out", tmp_path / "e").exit_code == 3
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["one-2.png", "one.png"]


@pytest.mark.parametrize(
    ("images", "out"), [(["one.png", "more/one.png"], "x.png"), (["one.png"], "x.jpg"), (["one.png"], "bad")]
)
def test_places_that_cannot_be_drawn_to_are_refused(toys: Path, tmp_path: Path, images: list[str], out: str) -> None:
    (tmp_path / "bad").write_bytes(b"a file")
    paths = [toys / image for image in images]
    assert run("ground", *paths, "-e", "a man", "-m", toys, "--out", tmp_path / out).exit_code == 2


def test_compare(toys: Path) -> None:
    done = run(
        "compare", toys / "one.png", toys / "more" / "one.png", "-t", "a cat", "-t", "a dog", "-m", toys, "--json"
    )
    expected = openblip.load(toys).compare(toys / "one.png", toys / "more" / "one.png", ["a cat", "a dog"])
    assert [(r["text"], r["label"], r["probability"]) for r in lines(done)] == [
        (said, one.label, one.probability) for said, one in zip(("a cat", "a dog"), expected, strict=True)
    ]
    failed = run("compare", toys / "one.png", toys / "bad.png", "-t", "a cat", "-m", toys)
    assert (failed.exit_code, len(failed.stderr.splitlines())) == (1, 1)


def test_classify(toys: Path) -> None:
    done = run("classify", toys / "one.png", toys / "bad.png", "-l", "cat| dog|man", "-n", "3", "-m", toys, "--json")
    assert done.exit_code == 3
    *found, error = lines(done)
    assert {record["label"] for record in found} == {"cat", "dog", "man"}
    assert sum(float(str(record["probability"])) for record in found) == pytest.approx(1)
    assert "error" in error
    assert run("classify", toys / "one.png", "-l", "cat|dog", "-m", toys, "--by", "vibes").exit_code == 1


def test_explain(toys: Path, tmp_path: Path) -> None:
    asked = ("explain", toys / "one.png", "--of", "answer", "-t", "what is it?", "--answer", "a cat", "-m", toys)
    (record,) = lines(run(*asked, "--json"))
    assert (record["text"], record["answer"]) == ("what is it?", "a cat")
    assert len(record["maps"]) == len(record["words"]) == 4  # type: ignore[arg-type]
    own = run("explain", toys / "one.png", "-m", toys, "--out", tmp_path / "own.png")
    assert own.exit_code == 0, own.output
    words = [line.split()[1] for line in own.stdout.splitlines()[1:]]
    assert " ".join(words).replace(" ,", ",") == openblip.load(toys).explain(toys / "one.png", of="caption").text
    with Image.open(tmp_path / "own.png") as sheet:
        assert sheet.width > 100
    assert run("explain", toys / "one.png", "--of", "dance", "-m", toys).exit_code == 1

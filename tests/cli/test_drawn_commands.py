"""Ground, compare, classify and explain on the command line, and their drawings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

import openblip
from openblip.checkpoints import write
from openblip.checkpoints.folder import write_bundle
from openblip.cli import app
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.preprocess.image import ImageSettings
from openblip.tasks import TaskName
from tests.cli.test_cli import SHARED
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "grounding", "nlvr")


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def lines(result: Result) -> list[dict[str, object]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toys")
    for task in TASKS:
        write.save(toy_model(task), home / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    write_bundle(home, {task: home / task for task in TASKS})
    (home / "more").mkdir()
    toy_image(1).save(home / "one.png")
    toy_image(2).save(home / "more" / "one.png")
    (home / "bad.png").write_bytes(b"no picture")
    return home


@pytest.mark.parametrize("command", ["ground", "compare", "classify", "explain"])
def test_they_take_the_shared_options(command: str) -> None:
    parameters = getattr(app, "commands")[command].params  # noqa: B009
    assert {option for parameter in parameters for option in parameter.opts} >= SHARED | {"--json"}


def test_ground_prints_and_draws(toys: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "found.png"
    done = run("ground", toys / "one.png", "-e", "a man", "-e", "the cat", "-m", toys, "--draw", out, "--json")
    assert done.exit_code == 0, done.output
    expected = openblip.load(toys).ground(toys / "one.png", ["a man", "the cat"])
    for record, name, box in zip(lines(done), ("a man", "the cat"), expected, strict=True):
        size = [box.right - box.left, box.bottom - box.top]
        assert (record["expression"], record["bbox"]) == (name, [box.left, box.top, *size])
        assert record["drawing"] == str(out)
    with Image.open(out) as drawn, Image.open(toys / "one.png") as picture:
        assert (drawn.format, drawn.size) == ("PNG", picture.size)
        assert drawn.convert("RGB").tobytes() != picture.convert("RGB").tobytes()
    assert [path.name for path in out.parent.iterdir()] == ["found.png"], "no temporary file remains"
    table = run("ground", toys / "one.png", "-e", "a man", "-m", toys).stdout
    assert table.splitlines()[0].split() == [
        "image",
        "expression",
        "left",
        "top",
        "right",
        "bottom",
        "probability",
        "score",
    ]


def test_several_pictures_are_drawn_into_a_folder(toys: Path, tmp_path: Path) -> None:
    images = [toys / "one.png", toys / "bad.png", toys / "more" / "one.png"]
    done = run("ground", *images, "-e", "a man", "-m", toys, "--draw", tmp_path / "drawn")
    assert done.exit_code == 3
    assert len(done.stderr.splitlines()) == 1
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["one-2.png", "one.png"]
    assert run("explain", *images, "-t", "a cat", "-m", toys, "--draw", tmp_path / "e").exit_code == 3
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == ["one-2.png", "one.png"]


def test_a_resumed_job_draws_new_images_under_new_names(toys: Path, tmp_path: Path) -> None:
    """Subfolders are mirrored, each text has a drawing, and the report shows the drawings."""
    (tmp_path / "p" / "below").mkdir(parents=True)
    toy_image(1).save(tmp_path / "p" / "one.png")
    job: list[str | Path] = ["explain", tmp_path / "p", "-r", "-t", "a cat", "-t", "a dog", "-m", toys]
    job += ["--to", "jsonl", "--out", tmp_path / "list.jsonl", "--draw", tmp_path / "d"]
    assert run(*job).exit_code == 0
    (tmp_path / "d" / "one.png").write_bytes(b"left alone")
    toy_image(2).save(tmp_path / "p" / "below" / "one.png")
    again = run(*job, "--report", tmp_path / "s.html")
    assert (again.exit_code, "1 written, 1 done before" in again.stderr) == (0, True), again.output
    drawn = {str(path.relative_to(tmp_path / "d")) for path in (tmp_path / "d").rglob("*.png")}
    assert drawn == {"one.png", "one-2.png", "below/one.png", "below/one-2.png"}
    assert (tmp_path / "d" / "one.png").read_bytes() == b"left alone"
    rows = [json.loads(line) for line in (tmp_path / "list.jsonl").read_text().splitlines()]
    assert [(row["path"], row["text"]) for row in rows] == [
        ("p/one.png", "a cat"), ("p/one.png", "a dog"), ("p/below/one.png", "a cat"), ("p/below/one.png", "a dog"),
    ]  # fmt: skip
    assert (tmp_path / "s.html").read_text().count("<img ") == 3, "one of the four drawings was overwritten"


def test_boxes_of_a_job_are_data_to_train_on(toys: Path, tmp_path: Path) -> None:
    out = tmp_path / "boxes.csv"
    done = run("ground", toys / "one.png", "-e", "a man", "-e", "it", "-m", toys, "--to", "csv", "--out", out)
    assert done.exit_code == 0, done.output
    source = open_source(str(out))
    assert isinstance(source, Source)
    boxes_in_list = {ref.text: ref.box for record in source for ref in record.expressions}
    boxes = openblip.load(toys).ground(toys / "one.png", ["a man", "it"])
    for name, box in zip(("a man", "it"), boxes, strict=True):
        empty = box.right <= box.left or box.bottom <= box.top  # an untrained model may return an empty box
        assert empty or boxes_in_list[name] == pytest.approx(box.edges)
    assert len(source) + len(source.problems) == 2


@pytest.mark.parametrize(
    ("images", "out"), [(["one.png", "more/one.png"], "x.png"), (["one.png"], "x.jpg"), (["one.png"], "bad")]
)
def test_impossible_drawing_outputs_are_refused(toys: Path, tmp_path: Path, images: list[str], out: str) -> None:
    (tmp_path / "bad").write_bytes(b"a file")
    paths = [toys / image for image in images]
    assert run("ground", *paths, "-e", "a man", "-m", toys, "--draw", tmp_path / out).exit_code == 2


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
    for paths in (["one.png"], ["one.png"] * 3, ["one.png", "pairs.csv"]):
        assert run("compare", *(toys / path for path in paths), "-t", "a cat", "-m", toys).exit_code == 2
    assert run("compare", toys / "one.png", toys / "bad.png", "-m", toys).exit_code == 2, "no statement"


def test_compare_reads_pairs_and_statements_from_lists(toys: Path, tmp_path: Path) -> None:
    """Both forms of a pair, two statements about one, an unreadable pair, one image, and a pair without statement."""
    pair: dict[str, object] = {"left": f"{toys}/one.png", "right": f"{toys}/more/one.png"}
    rows: list[dict[str, object]] = [
        {**pair, "text": "a cat"}, {**pair, "text": "a dog"}, {"image": list(pair.values())[::-1], "sentence": "a cat"},
        {**pair, "left": f"{toys}/bad.png", "text": "a cat"}, {"image": f"{toys}/one.png", "text": "a cat"}, pair,
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out.csv"
    job: list[str | Path] = ["compare", tmp_path / "pairs.jsonl", "-m", toys, "--to", "csv", "--out", out]
    done = run(*job)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert (done.exit_code, len(errors)) == (3, 3), done.output
    source = open_source(str(out))
    assert isinstance(source, Source)
    assert [(record.captions, len(record.images)) for record in source] == [
        (("a cat",), 2), (("a dog",), 2), (("a cat",), 2),
    ]  # fmt: skip
    blip = openblip.load(toys)
    for record in source:
        left, right = (picture.address for picture in record.images)
        assert record.label == blip.compare(left, right, record.captions[0]).label
    before = out.read_bytes()
    assert "3 done before" in run(*job).stderr
    assert out.read_bytes() == before
    both = run("compare", tmp_path / "pairs.jsonl", "-t", "a man", "-t", "it", "-m", toys, "--json")
    assert [(type(line["path"]), line.get("text")) for line in lines(both)] == [
        *[(list, "a man"), (list, "it")] * 2, (list, None), (str, None),
    ]  # fmt: skip


def test_classify(toys: Path) -> None:
    done = run("classify", toys / "one.png", toys / "bad.png", "-l", "cat| dog|man", "-n", "3", "-m", toys, "--json")
    assert done.exit_code == 3
    *records, error = lines(done)
    assert {record["label"] for record in records} == {"cat", "dog", "man"}
    assert sum(float(str(record["probability"])) for record in records) == pytest.approx(1)
    assert "error" in error
    assert [record["rank"] for record in records] == [0, 1, 2]
    assert run("classify", toys / "one.png", "-l", "cat|dog", "-m", toys, "--by", "vibes").exit_code == 2
    assert run("classify", toys / "one.png", "-l", "cat|dog", "-m", toys, "-n", "3").exit_code == 2


def test_explain(toys: Path, tmp_path: Path) -> None:
    asked = ("explain", toys / "one.png", "--task", "vqa", "-t", "what is it?", "--answer", "a cat", "-m", toys)
    (record,) = lines(run(*asked, "--json"))
    assert (record["question"], record["text"]) == ("what is it?", "a cat")
    assert len(record["maps"]) == len(record["words"]) == 4  # type: ignore[arg-type]
    own = run("explain", toys / "one.png", "-m", toys, "--draw", tmp_path / "own.png")
    assert own.exit_code == 0, own.output
    words = [line.split()[1] for line in own.stdout.splitlines()[1:]]
    assert " ".join(words).replace(" ,", ",") == openblip.load(toys).explain(toys / "one.png", task="caption").text
    with Image.open(tmp_path / "own.png") as sheet:
        assert sheet.width > 100
    assert run("explain", toys / "one.png", "--task", "dance", "-m", toys).exit_code == 2
    assert run("explain", toys / "one.png", "--task", "retrieval", "-m", toys).exit_code == 2
    wrong = run("explain", toys / "one.png", toys / "more", "-t", "a cat", "--layer", "9", "-m", toys)
    assert (wrong.exit_code, len(wrong.stderr.splitlines())) == (2, 1), "one line, not one for each image"

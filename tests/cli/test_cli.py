"""The command line: shared options, exit codes, errors of single items, and conversion of checkpoints."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
import torch
from click.testing import CliRunner, Result

from openblip import __version__
from openblip.checkpoints import read, write
from openblip.checkpoints.folder import write_bundle
from openblip.checkpoints.published import FAMILIES, PUBLISHED
from openblip.cli import app
from openblip.cli import options as o
from openblip.cli.command import Group, command
from openblip.errors import CheckpointError
from openblip.preprocess.image import ImageSettings
from openblip.tasks import TaskName
from tests.toys import SIZE, VOCABULARY, toy_image, toy_model, toy_tokenizer

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval")
HEADS = '{"vision": {"heads": 4}, "text": {"heads": 4}}'  # a .pth file lacks them, and the toy heads are not 64 wide
SHARED = {"--model", "--device", "--engine", "--precision", "--batch-size", "--num-workers", "--threads", "--offline"}


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of toy models, two images, and a file that is no image."""
    home = tmp_path_factory.mktemp("toys")
    for task in TASKS:
        write.save(toy_model(task), home / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    write_bundle(home, {task: home / task for task in TASKS})
    toy_image(1).save(home / "one.png")
    toy_image(2).save(home / "two.png")
    (home / "bad.png").write_bytes(b"no picture")
    return home


# Options


@pytest.mark.parametrize("command", ["caption", "ask", "match", "embed"])
def test_model_commands_take_the_shared_options(command: str) -> None:
    parameters = getattr(app, "commands")[command].params  # noqa: B009
    options = {option for parameter in parameters for option in parameter.opts}
    assert options >= SHARED | {"--json"}


def test_version() -> None:
    assert run("--version").output == f"openblip {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [("caption",), ("nothing",), ("models", "--task", "sing"), ("caption", "--num-beams", "0", "x")]
)
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2


@pytest.mark.parametrize(("value", "code"), [("auto", 0), ("1", 0), ("4", 0), ("0", 2), ("-1", 2), ("many", 2)])
def test_batch_size_is_auto_or_a_number(toys: Path, value: str, code: int) -> None:
    result = run("caption", toys / "one.png", toys / "two.png", "-m", toys, "--batch-size", value)
    assert result.exit_code == code
    if code:
        assert "must be 'auto' or a positive integer" in result.output


def test_out_to_and_report_mean_the_same_in_every_command() -> None:
    @command()
    @o.num_option
    @o.output_options(("jsonl", "csv"))
    def export(num: int, output: o.OutputOptions) -> None:
        click.echo(f"{num} {output.out} {output.to} {output.report}")

    def print_options(*arguments: str) -> str:
        return CliRunner().invoke(export, arguments).output.splitlines()[-1]

    assert print_options() == "1 None None None"
    assert print_options("-n", "3", "--out", "there", "--to", "csv", "--report", "a.html") == "3 there csv a.html"
    assert "must end in .html, got a.pdf" in print_options("--report", "a.pdf")


# Exit codes


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CheckpointError("no such model; try another"), 1, "error: no such model; try another\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (click.exceptions.Exit(3), 3, ""),
    ],
)
def test_exceptions_become_one_line_and_an_exit_code(error: BaseException, code: int, message: str) -> None:
    small = Group("small")

    @small.command()
    def fail() -> None:
        raise error

    result = CliRunner().invoke(small, ["fail"])
    assert (result.exit_code, result.stderr, result.stdout) == (code, message, "")


def test_an_interrupt_exits_with_130() -> None:
    program = (
        "import signal, time, openblip.cli as cli\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell starts in the background
        "cli.models.print_table = lambda *_: (print('up', flush=True), time.sleep(60))\n"
        "cli.main()"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", program, "models"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "up\n"
    time.sleep(0.1)
    running.send_signal(signal.SIGINT)
    _, message = running.communicate(timeout=30)
    assert (running.returncode, message) == (130, "interrupted\n")


def test_bad_images_get_one_line_each_and_others_are_computed(toys: Path) -> None:
    some = run("caption", toys / "one.png", toys / "bad.png", toys / "two.png", "-m", toys, "--json")
    lines = [json.loads(line) for line in some.stdout.splitlines()]
    assert some.exit_code == 3
    assert [Path(line["path"]).name for line in lines] == ["one.png", "bad.png", "two.png"]
    assert [set(line) >= {"text", "logprob"} for line in lines] == [True, False, True]
    assert "bad.png" in lines[1]["error"]
    assert len(some.stderr.splitlines()) == 1
    assert run("caption", toys / "bad.png", toys / "gone.png", "-m", toys).exit_code == 1
    assert run("caption", toys / "one.png", "-m", toys / "gone").exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--engine", "torhc"), "did you mean torch?"),
        (("--precision", "fp8"), "precision must be one of fp32"),
        (("--device", "gpu"), "device must be auto, cpu"),
        (("--model", "blip-bsae"), "did you mean"),
        (("--to", "jsnol"), "did you mean jsonl?"),
        (("--existing", "over"), "must be one of skip"),
        (("--to", "jsonl"), "requires --out"),
        (("--to", "csv", "--out", "a.txt"), "--out must end in .csv"),
        (("--to", "sidecar", "--ext", "txt"), "--ext must be a suffix"),
        (("--to", "sidecar", "--ext", ".jpg"), "--ext must not be an image suffix"),
        (("--to", "metadata", "--out", "x"), "cannot be combined with --out"),
        (("--template", "{x}"), "--template may contain"),
        (("--top-p", "3", "--do-sample"), "top_p must"),
        (("--max-new-tokens", "0"), "0 is not in the range"),
        (("--temperature", "-1", "--do-sample"), "temperature must"),
        (("--num-beams", "many"), "not a valid integer"),
        (("--batch-size", "0"), "must be 'auto' or a positive integer"),
        (("--threads", "0"), "0 is not in the range"),
        (("--report", "sheet.pdf"), "must end in .html"),
        (("--num", "3", "--best-of", "2"), "--num must not exceed"),
        (("--recursiv",), "No such option"),
    ],
)
def test_wrong_values_are_wrong_usage(toys: Path, arguments: tuple[str, ...], message: str) -> None:
    model = () if "--model" in arguments else ("-m", toys)
    result = run("caption", toys / "one.png", *model, *arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_wrong_names_suggest_the_right_ones(tmp_path: Path) -> None:
    for arguments, name in (
        (("captoin", "a.jpg"), "caption"), (("eval", "run", "coco-captions", "-d", "x"), "coco-caption"),
        (("models", "--task", "captions"), "caption"), (("explain", "a.jpg", "--task", "retreival"), "retrieval"),
        (("eval", "run", "nlvr2", "-d", "x", "--preset", "lavs"), "lavis"), (("completion", "bsh"), "bash"),
        (("convert", "pocket", tmp_path / "x", "--to", "salesfroce"), "salesforce"), (("eval", "scores"), "score"),
    ):  # fmt: skip
        result = run(*arguments)
        assert (result.exit_code, f"did you mean {name}?" in result.stderr) == (2, True), (arguments, result.stderr)


# Output


def test_a_caption_for_people_and_for_machines(toys: Path) -> None:
    table = run("caption", toys / "one.png", "-m", toys).stdout
    (line,) = run("caption", toys / "one.png", "-m", toys, "--json").stdout.splitlines()
    assert table.splitlines()[0].split() == ["image", "caption", "logprob", "score"]
    assert json.loads(line)["text"] in table
    assert len(run("caption", toys / "one.png", "-m", toys, "-n", "3", "--json").stdout.splitlines()) == 3


def test_answers_and_matches(toys: Path) -> None:
    answered = run("ask", toys / "one.png", "-m", toys, "-q", "what?", "-q", "why?", "--answers", "yes|no", "--json")
    answers = [json.loads(line) for line in answered.stdout.splitlines()]
    assert [answer["question"] for answer in answers] == ["what?", "why?"]
    assert {answer["text"] for answer in answers} <= {"yes", "no"}
    matched = run("match", toys / "one.png", toys / "two.png", "-m", toys, "-t", "a cat", "-t", "a dog", "--json")
    scores = [json.loads(line) for line in matched.stdout.splitlines()]
    assert [score["text"] for score in scores] == ["a cat", "a dog"] * 2
    assert all(0 <= score["probability"] <= 1 and -1 <= score["similarity"] <= 1 for score in scores)


def test_models_can_be_filtered() -> None:
    everything = run("models").stdout
    assert len(everything.splitlines()) == 1 + 3 + len(PUBLISHED)
    assert [line.split()[0] for line in everything.splitlines()[1:4]] == ["pocket", "base", "large"], "bundles first"
    first = json.loads(run("models", "--json", "--task", "vqa").stdout.splitlines()[1])
    assert (first["name"], first["bundle"]["vqa"]) == ("base", "Salesforce/blip-vqa-base")
    for entry in PUBLISHED:
        assert entry.name in everything
    lines = [
        json.loads(line) for line in run("models", "--json", "--task", "vqa", "--family", "lavis").stdout.splitlines()
    ]
    assert [line["name"] for line in lines] == ["blip_okvqa", "blip_aokvqa"]
    assert lines[0]["names"][-1] == "blip_vqa/okvqa"
    assert len(run("models", "refcoco").stdout.splitlines()) == 2
    assert len(run("models", "--size", "large").stdout.splitlines()) == 2 + sum(e.size == "large" for e in PUBLISHED)


# Conversion


@pytest.mark.parametrize("task", TASKS)
def test_a_model_converts_through_every_family_and_back(toys: Path, tmp_path: Path, task: TaskName) -> None:
    source: Path = toys / task
    for family in (*FAMILIES[1:], "hub"):
        target = tmp_path / (f"{family}.pth" if family != "hub" else "hub")
        options: tuple[str, ...] = ("--config", HEADS) if source.suffix == ".pth" else ()
        options += ("--tokenizer", str(VOCABULARY)) if family == "hub" else ()
        done = run("convert", source, target, "--to", family, "--task", task, "--offline", *options)
        assert done.exit_code == 0, done.output
        source = target
    first, last = (read.load(place).model.state_dict() for place in (toys / task, tmp_path / "hub"))
    assert first.keys() == last.keys()
    for name in first.keys() - {"temperature"}:
        assert torch.equal(first[name], last[name]), name


def test_convert_refuses_impossible_conversions(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "there.pth").write_bytes(b"mine")
    refused = run("convert", toys / "caption", tmp_path / "there.pth", "--to", "lavis")
    assert (refused.exit_code, (tmp_path / "there.pth").read_bytes()) == (1, b"mine")
    assert "--overwrite" in refused.stderr
    replaced = run("convert", toys / "caption", tmp_path / "there.pth", "--to", "lavis", "--overwrite")
    assert replaced.exit_code == 0
    assert read.load(
        tmp_path / "there.pth", tokenizer=VOCABULARY, config={"text": {"heads": 4}, "vision": {"heads": 4}}
    )
    bundled = run("convert", toys, tmp_path / "x")
    assert (bundled.exit_code, "choose one with --task" in bundled.stderr) == (2, True)
    assert run("convert", toys / "caption", tmp_path / "x", "--to", "onnx").exit_code == 2
    assert run("convert", toys / "caption", tmp_path / "x", "--task", "sing").exit_code == 2
    for broken in ("{", "[]"):
        assert run("convert", toys / "caption", tmp_path / "x", "--config", broken).exit_code == 2
    headless = run("convert", tmp_path / "there.pth", tmp_path / "x", "--to", "salesforce")
    assert (headless.exit_code, "state the number of heads" in headless.stderr) == (1, True)
    assert run("convert", tmp_path / "gone", tmp_path / "x").exit_code == 2
    assert not (tmp_path / "x").exists()


# The bundled model


def test_the_small_model_is_named_once_and_only_to_people(tmp_path: Path, toys: Path) -> None:
    """The note is on standard error, below the table, and neither in JSON nor with another model or --quiet."""
    for name in ("one.png", "two.png"):
        (tmp_path / name).write_bytes((toys / name).read_bytes())
    done = run("caption", tmp_path)
    assert done.stderr.count("pocket is a small model") == 1
    assert "--model base" in done.stderr
    assert "small model" not in done.stdout
    done = run("caption", tmp_path, "--to", "jsonl", "--out", tmp_path / "captions.jsonl")
    assert done.stderr.count("pocket is a small model") == 1
    for arguments in (["--json"], ["--quiet"], ["-m", toys]):
        assert "small model" not in run("caption", tmp_path, *arguments).output

"""Commands over images: their output, their shared options, and unusual images through each of them."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from openblip.checkpoints import write
from openblip.checkpoints.folder import write_bundle
from openblip.cli import app
from openblip.cli.doctor import PURPOSES
from openblip.cli.jobs import ImageJob
from openblip.extras import user_extras
from openblip.jobs.run import ItemStatus
from openblip.preprocess.image import ImageSettings
from openblip.tasks import TaskName
from tests.jobs.cli import pictures
from tests.preprocess.odd_images import bad, good
from tests.toys import SIZE, toy_image, toy_model, toy_tokenizer

TASKS: tuple[TaskName, ...] = ("caption", "vqa", "retrieval", "grounding", "nlvr")
# The arguments of each command over images, apart from the images. A new command needs a line here.
COMMANDS: dict[str, list[str]] = {
    "caption": ["--num-beams", "1", "--max-new-tokens", "2"],
    "ask": ["-q", "what?", "--num-beams", "1", "--max-new-tokens", "2"],
    "match": ["-t", "a cat"],
    "embed": [],
    "classify": ["-l", "cat|dog"],
    "ground": ["-e", "a man"],
    "explain": ["-t", "a cat"],
    "compare": ["-t", "a cat"],
}
PAIRS = ("compare",)  # these take lists of pairs


def run(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("toys")
    for task in TASKS:
        write.save(toy_model(task), home / task, tokenizer=toy_tokenizer(), image=ImageSettings(size=SIZE))
    write_bundle(home, {task: home / task for task in TASKS})
    (home / "p").mkdir()
    for number in (1, 2):
        toy_image(number).save(home / "p" / f"{number}.png")
    return home


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_command_over_images_is_tested_here() -> None:
    group = app
    options = {name: {opt for p in command.params for opt in p.opts} for name, command in group.commands.items()}
    takers = {name for name, names in options.items() if {"--existing", "--dry-run"} <= names}
    assert takers == set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_unusual_images(toys: Path, tmp_path: Path, command: str) -> None:
    """Good images have results; bad images have one line each, without a traceback, and the exit code is 3."""
    for number, odd in enumerate([*good(), *bad()]):
        (tmp_path / f"{number:03}.jpg").write_bytes(odd.data)
    fine, broken = len(good()), len(bad())
    assert fine + broken >= 60
    out = tmp_path / "out.jsonl"
    names = [f"{n:03}.jpg" for n in range(fine + broken)]
    source = pairs(tmp_path / "pairs.csv", names) if command in PAIRS else tmp_path
    done = run(command, source, *COMMANDS[command], "-m", toys, "--to", "jsonl", "--out", out, "--quiet")
    assert done.exit_code == 3, done.output
    rows = lines(out)
    assert [row["path"] for row in rows] == ([["000.jpg", name] for name in names] if command in PAIRS else names)
    assert ["error" in row for row in rows] == [False] * fine + [True] * broken
    assert len(done.stderr.splitlines()) == broken
    assert all(line.startswith("error: ") for line in done.stderr.splitlines())


def pairs(path: Path, names: list[str]) -> Path:
    """Write a list that pairs every image with the first one, which is good."""
    path.write_text("left,right\n" + "".join(f"{names[0]},{name}\n" for name in names))
    return path


def test_nothing_is_written_without_to(toys: Path) -> None:
    before = set((toys / "p").iterdir())
    assert run("caption", toys / "p", "-m", toys).exit_code == 0
    assert run("caption", toys / "p", "-m", toys, "--to", "sidecar", "--dry-run").exit_code == 0
    assert set((toys / "p").iterdir()) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("--out", "x.jsonl"), ("--existing", "append"), ("--restart",), ("--to", "nothing"), ("--to", "npy"),
        ("--to", "sidecar", "--existing", "sometimes"), ("--best-of", "2", "-n", "3"),
    ],
)  # fmt: skip
def test_contradicting_options_are_wrong_usage(toys: Path, arguments: tuple[str, ...]) -> None:
    assert run("caption", toys / "p", "-m", toys, *arguments).exit_code == 2


def test_strict_stops_at_the_first_bad_image_and_keeps_the_results_before(toys: Path, tmp_path: Path) -> None:
    toy_image(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    toy_image(2).save(tmp_path / "c.png")
    for output in ((), ("--to", "sidecar")):
        done = run("caption", tmp_path, "-m", toys, "--batch-size", "1", "--strict", *output)
        assert done.exit_code == 1
        assert done.stderr.splitlines()[-1] == f"error: stopped at {tmp_path}/b.png, which failed (--strict)"
    assert (tmp_path / "a.txt").exists()
    assert not (tmp_path / "c.txt").exists()


def test_paths_on_standard_input(toys: Path) -> None:
    result = run("caption", "-", "-m", toys, "--json", stdin=f"{toys / 'p' / '2.png'}\n\n{toys / 'p' / '1.png'}\n")
    assert [Path(json.loads(line)["path"]).name for line in result.stdout.splitlines()] == ["2.png", "1.png"]


def test_template_and_prompts_of_a_column(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text(f"path,start\n{toys}/p/1.png,a cat\n{toys}/p/2.png,\n")
    out = tmp_path / "out.jsonl"
    options = ["--template", "{folder}/{name}: {caption}", "--prefix", "<", "--suffix", ">", "--prompt-column", "start"]
    done = run("caption", tmp_path / "list.csv", "-m", toys, *options, "--to", "jsonl", "--out", out)
    assert done.exit_code == 0, done.output
    first, second = lines(out)
    assert first["text"] == f"p/1: <{first['generated']}>"
    assert (first["prompt"], str(first["generated"]).startswith("a cat")) == ("a cat", True)
    assert "prompt" not in second
    assert run("caption", toys / "p", "-m", toys, "--template", "{caption.text}").exit_code == 2


def test_best_of_keeps_the_caption_with_the_highest_score(toys: Path, tmp_path: Path) -> None:
    run("caption", toys / "p", "-m", toys, "-n", "3", "--score", "--to", "jsonl", "--out", tmp_path / "all.jsonl")
    run("caption", toys / "p", "-m", toys, "--best-of", "3", "--to", "jsonl", "--out", tmp_path / "best.jsonl")
    every, best = lines(tmp_path / "all.jsonl"), lines(tmp_path / "best.jsonl")
    assert (len(every), len(best)) == (6, 2)
    for row in best:
        rivals = [float(str(r["probability"])) for r in every if r["path"] == row["path"]]
        assert rivals == sorted(rivals, reverse=True), "the rank follows the match"
        assert float(str(row["probability"])) == pytest.approx(max(rivals), abs=1e-6)


def test_the_first_images_only(toys: Path, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 5)
    out = tmp_path / "out.jsonl"
    job = ("caption", tmp_path / "in", "-m", toys, "--to", "jsonl", "--out", out)
    assert run(*job, "--limit", "2").stderr == "2 written\n"
    assert run(*job, "--resume").stderr == "3 written, 2 done before\n", "the same job, without a limit"
    assert len(lines(out)) == 5
    assert len(run("caption", tmp_path / "in", "-m", toys, "--json", "--limit", "3").stdout.splitlines()) == 3
    assert run(*job, "--limit", "0").exit_code == 2
    assert run(*job, "--resume", "--restart").exit_code == 2


def test_progress_as_json(toys: Path, tmp_path: Path) -> None:
    pictures(tmp_path, 3)
    (tmp_path / "bad.png").write_bytes(b"")
    done = run("caption", tmp_path, "-m", toys, "--json", "--progress", "json")
    objects = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert {name: value for name, value in objects[-1].items() if name != "images_per_second"} == {
        "done": 4,
        "total": 4,
        "failed": 1,
        "seconds_left": 0.0,
    }
    assert objects[-1]["images_per_second"] > 0
    assert run("caption", tmp_path, "-m", toys, "--json", "--progress", "none", "--limit", "1").stderr == ""
    assert run("caption", tmp_path, "-m", toys, "--progress", "jsn").exit_code == 2


@pytest.mark.parametrize("to", [(), ("--to", "sidecar")])
def test_an_interrupt_says_how_far_the_job_came(
    toys: Path, tmp_path: Path, to: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures(tmp_path, 3)
    show = ImageJob.show

    def interrupt(job: ImageJob, status: ItemStatus) -> None:
        show(job, status)
        if status.item.index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ImageJob, "show", interrupt)
    stopped = run("caption", tmp_path, "-m", toys, *to)
    hint = "run the same command again to resume" if to else "nothing is stored without --to"
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-1] == f"interrupted: 2 of 3 images done; {hint}"
    monkeypatch.setattr(ImageJob, "show", show)
    if to:
        resumed = run("caption", tmp_path, "-m", toys, *to).stderr.splitlines()[-1]
        assert resumed in ("1 written, 2 done before", "3 done before"), "the third may have been written in one batch"


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        (("caption",), "score"), (("caption", "--do-sample", "--seed", "1"), "score"),
        (("ask", "-q", "what is it?"), "probability"),
        (("ask", "-q", "what?", "--answers", "a|b|c|cat"), "probability"),
        (("classify", "-l", "cat|dog|train"), "probability"),
        (("classify", "-l", "cat|dog|train", "--by", "itm"), "probability"),
    ],
)  # fmt: skip
def test_records_of_several_results_have_the_likeliest_first(
    toys: Path, arguments: tuple[str, ...], field: str
) -> None:
    command, *options = arguments
    done = run(command, toys / "p", "-m", toys, "-n", "3", "--json", *options)
    assert done.exit_code == 0, done.output
    ranked: dict[str, list[tuple[int, float]]] = {}
    for line in map(json.loads, done.stdout.splitlines()):
        ranked.setdefault(line["path"], []).append((line["rank"], line[field]))
    assert [len(rows) for rows in ranked.values()] == [3, 3]
    for rows in ranked.values():
        assert [rank for rank, _ in rows] == [0, 1, 2]
        values = [value for _, value in rows]
        assert values == sorted(values, reverse=True)


def test_forbidden_and_required_words(toys: Path) -> None:
    (line, _) = run("caption", toys / "p", "-m", toys, "--json").stdout.splitlines()
    word = json.loads(line)["text"].split()[0]
    forbidden = run("caption", toys / "p", "-m", toys, "--json", "--forbid", word).stdout.splitlines()
    assert all(word not in json.loads(text)["text"].split() for text in forbidden)
    required = run("caption", toys / "p", "-m", toys, "--json", "--require", "cat|dog").stdout.splitlines()
    for text in map(json.loads, required):
        assert text.get("unmet") or {"cat", "dog"} & set(text["text"].split())
    assert run("caption", toys / "p", "-m", toys, "--forbid", "cat", "--require", "cat").exit_code == 2


def test_sidecars_are_scored(toys: Path, tmp_path: Path) -> None:
    toy_image(1).save(tmp_path / "a.png")
    toy_image(2).save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("a cat\na dog\n")
    done = run("match", tmp_path, "-m", toys, "--sidecar", ".txt", "--to", "csv", "--out", tmp_path / "s.csv")
    rows = list(csv.DictReader((tmp_path / "s.csv").open()))
    assert done.exit_code == 3
    assert [(row["path"], row["text"]) for row in rows] == [("a.png", "a cat"), ("a.png", "a dog"), ("b.png", "")]
    assert "b.txt" in rows[2]["error"]


def test_embeddings_and_their_rows(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(b"")
    done = run("embed", tmp_path, toys / "p", "-m", toys, "--to", "npy", "--out", tmp_path / "v.npy")
    assert done.exit_code == 3
    table, rows = np.load(tmp_path / "v.npy"), lines(tmp_path / "v.rows.jsonl")
    assert table.shape == (2, 16)
    np.testing.assert_allclose(np.linalg.norm(table, axis=1), 1, rtol=1e-5)
    assert [(row.get("row"), Path(str(row["path"])).name) for row in rows] == [
        (0, "1.png"),
        (1, "2.png"),
        (None, "0.png"),
    ]
    again = run("embed", tmp_path, toys / "p", "-m", toys, "--to", "npy", "--out", tmp_path / "v.npy")
    assert "2 done before" in again.stderr
    listed = tmp_path / "v.jsonl"
    run("embed", toys / "p", "-m", toys, "--to", "jsonl", "--out", listed)
    np.testing.assert_array_equal(np.array([row["embedding"] for row in lines(listed)], np.float32), table)


def test_later_questions_are_added_to_the_list(toys: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    quick: list[str | Path] = ["-m", toys, "--to", "jsonl", "--out", out, "--num-beams", "1", "--max-new-tokens", "2"]
    run("ask", toys / "p", *quick, "-q", "what?", "-q", "where?")
    run("ask", toys / "p", *quick, "-q", "who?")
    assert [row["question"] for row in lines(out)] == ["what?", "where?", "who?"] * 2


def test_commands_share_a_list(toys: Path, tmp_path: Path) -> None:
    """Each command keeps the rows of the others, and does not take them for its results."""
    out = tmp_path / "all.jsonl"
    commands = ("classify", "ground", "explain", "caption")
    for _ in range(2):
        for command in commands:
            done = run(command, toys / "p", *COMMANDS[command], "-m", toys, "--to", "jsonl", "--out", out)
            assert done.exit_code == 0, done.output
    assert "2 done before" in done.stderr
    kinds = [next(name for name in ("label", "expression", "words", "text") if name in row) for row in lines(out)]
    assert kinds == ["label", "expression", "words", "text"] * 2


def test_a_finished_job_imports_no_torch(toys: Path, tmp_path: Path) -> None:
    arguments = ["caption", str(toys / "p"), "-m", str(toys), "--to", "jsonl", "--out", str(tmp_path / "o.jsonl")]
    assert run(*arguments).exit_code == 0
    program = (
        "import sys\nfrom openblip.cli import app\ntry: app(sys.argv[1:])\nexcept SystemExit as e: print(e.code)\n"
    )
    program += "print('torch' in sys.modules)"
    again = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    assert again.stdout == "0\nFalse\n"
    assert "2 done before" in again.stderr


def test_apply_writes_edits_back(toys: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old\n")
    edit = {"path": "a.png", "was": "old", "text": "new", "to": "sidecar", "place": str(tmp_path / "a.txt"), "key": ""}
    edit |= {"journal": str(tmp_path / "gone.journal"), "item": "a.png"}
    (tmp_path / "e.jsonl").write_text(json.dumps(edit) + "\n")
    done = run("caption", "--apply", tmp_path / "e.jsonl")
    assert (done.exit_code, (tmp_path / "a.txt").read_text()) == (0, "new\n")


def test_doctor_reports_installed_and_missing_parts() -> None:
    done = run("doctor", "--json")
    checks = {line["name"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert done.exit_code == 0
    assert {"openblip", "python", "torch", "devices", "engines", "pocket model", "cache", "pyarrow"} <= set(checks)
    assert {line["state"] for line in checks.values()} <= {"ok", "missing"}
    for line in checks.values():
        assert line["state"] == "ok" or "pip install" in line["detail"] or "writable" in line["detail"]
    libraries = {library for extra in user_extras().values() for library in extra}
    assert {"openvino", "nncf", "av", "pycocoevalcap", "pillow-heif", "datasets"} <= libraries <= set(checks)
    assert set(PURPOSES) == set(user_extras()), "doctor says what each extra is for"


def test_shells_complete_commands() -> None:
    environment = dict(os.environ, _OPENBLIP_COMPLETE="bash_complete", COMP_WORDS="openblip capt", COMP_CWORD="1")
    program = "import sys; sys.argv = ['openblip']\nfrom openblip.cli import app\napp(prog_name='openblip')"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "plain,caption\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_a_completion_script_for_every_shell(shell: str) -> None:
    done = run("completion", shell)
    assert done.exit_code == 0
    assert f"{shell}_complete" in done.stdout
    assert run("completion", "tcsh").exit_code == 2


def test_powershell_completes_commands_and_options() -> None:
    program = "import sys; sys.argv = ['openblip']\nfrom openblip.cli import app\napp(prog_name='openblip')"
    for line, word, value in (
        ("openblip capt", "capt", "caption"),
        ("openblip caption --num-b", "--num-b", "--num-beams"),
    ):
        environment = dict(os.environ, _OPENBLIP_COMPLETE="powershell_complete", COMP_WORDS=line, COMP_WORD=word)
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert [text.split("	")[0] for text in done.stdout.splitlines()] == [value]


def test_errors_of_a_first_day_show_a_command_that_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toy_image(1).save("cat.jpg")
    assert "as in: openblip caption cat.jpg --json" in run("cat.jpg", "--json").stderr
    assert "command must be one of caption" in run("dog.jpg").stderr
    assert (
        "--out, --restart and --existing require --to FORMAT, such as --to csv"
        in run("caption", "cat.jpg", "--out", "captions.csv").stderr
    )
    for command, option in (("ask", "--question"), ("match", "--text")):
        done = run(command, "cat.jpg", "what is it?")
        assert done.exit_code == 2
        assert f"{option} is required, as in: openblip {command} cat.jpg -" in done.stderr

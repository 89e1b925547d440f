"""Other people's files through every command that reads images or lists."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from openblip.cli import app
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.jobs.items import Item, UnusableItem, open_items
from tests.cli.odd_files import SKIPPED, write_lists, write_odd_folder, write_tar
from tests.cli.test_jobs_cli import COMMANDS, PAIRS, run, toys
from tests.jobs.cli import ROOT
from tests.preprocess.odd_images import encoded, photo

__all__ = ["toys"]  # a fixture

JOBS = [name for name, command in app.commands.items() if any(p.name == "images" for p in command.params)]
ARGUMENTS = {**COMMANDS, "sheet": ["--no-open"], "index": []}
OWN_OUTPUTS = {"sheet": ("--report", "out.html"), "index": ("--out", "out.index")}


def state_of(folder: Path) -> Mapping[str, tuple[object, ...]]:
    """The content and the metadata of every file below a folder."""
    state: dict[str, tuple[object, ...]] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(parent, name)
            status = path.lstat()
            content = path.read_bytes() if path.is_file() and not path.is_symlink() else path.is_symlink()
            identity = status.st_ino, status.st_mode, status.st_uid, status.st_gid, status.st_nlink
            times = (status.st_mtime_ns,) if not path.is_dir() else ()
            state[str(path.relative_to(folder))] = (content, *identity, *times)
    return state


def test_every_command_over_images_is_covered() -> None:
    assert set(JOBS) <= set(ARGUMENTS), "add the arguments of the new command"
    for name in JOBS:
        options = {option for parameter in app.commands[name].params for option in parameter.opts}
        assert {"--include", "--exclude", "--columns", "--images", "--recursive"} <= options


@pytest.mark.parametrize("command", JOBS)
def test_a_folder_of_odd_files(command: str, toys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "f"
    good, bad = write_odd_folder(folder)
    before = state_of(folder)
    monkeypatch.chdir(tmp_path)
    arguments = [*ARGUMENTS[command], "--recursive"]
    if command in PAIRS:
        names = sorted([*good, *bad])
        rows = [{"left": f"f/{name}", "right": "f/a.jpg"} for name in names]
        Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = "pairs.jsonl" if command in PAIRS else "f"
    out = OWN_OUTPUTS.get(command, ("--to", "jsonl", "--out", "out.jsonl"))
    model = () if command == "sheet" else ("--model", toys / "bundle.json")
    done = run(command, source, *arguments, *out, *model)
    assert done.exit_code == (0 if command == "sheet" else 3), done.stderr
    if command not in PAIRS:
        for words in SKIPPED:
            assert words in done.stderr
    if command not in OWN_OUTPUTS:
        rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
        paths = {json.dumps(row["path"], ensure_ascii=False): row for row in rows}
        results = {name: next(row for path, row in paths.items() if f"f/{name}" in path) for name in (*good, *bad)}
        assert {name for name, row in results.items() if "error" in row} == set(bad)
    if command != "sheet":
        for name, words in bad.items():
            (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ") and f"f/{name}" in line]
            assert words in line or (command, name) == ("index", "loop.jpg")  # "no such file" there
            assert command in PAIRS or line.count(name) == 1, "the name is there once"
        assert "failed: " in done.stderr
        assert "Warning" not in done.stderr
    assert state_of(folder) == before


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists")
    write_lists(folder)
    return folder


@pytest.mark.parametrize("command", [name for name in JOBS if name not in PAIRS])
def test_lists_of_all_dialects(command: str, lists: Path, toys: Path, tmp_path: Path) -> None:
    for path in sorted(lists.iterdir()):
        if path.is_dir():
            continue
        if command == "sheet":
            done = run(command, path, "--no-open", "--report", tmp_path / "s.html")
            assert "2 images on 1 page" in done.stderr, path.name
        elif command == "index":
            done = run(command, path, "--plan", "--out", tmp_path / "i", "--model", toys / "bundle.json")
            assert done.stdout.startswith("2 images"), (path.name, done.output)
        else:
            done = run(command, path, *ARGUMENTS[command], "--dry-run", "--model", toys / "bundle.json")
            names = re.findall(r"[^/\\]+\.jpg(?=: would be computed)", done.stdout)
            assert names == ["a.jpg", "b.jpg"], (path.name, done.output)


def test_texts_of_all_dialects(lists: Path) -> None:
    for path in sorted(lists.iterdir()):
        if path.is_file():
            source = open_source(str(path))
            assert isinstance(source, Source)
            assert [record.captions for record in source] == [("a dog, brown",), ()], path.name
            assert not source.problems, path.name
            images = [record.images[0].read() for record in source]
            assert all(Path(str(image)).exists() for image in images), path.name


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("x.csv", "photo;title\na.jpg;a dog\n", ("'photo', 'title'", "--columns image=NAME")),
        ("x.csv", "a.jpg,a dog\nb.jpg,a cat\n", ("'a.jpg', 'a dog'", "--columns image=1,caption=2")),
        ("x.txt", "just words\n", ("'just words'", "--columns")),
        ("x.json", '{"a": 1}', ("unknown layout",)),
        ("x.json", "{broken", ("is not JSON",)),
    ],
)
def test_lists_without_images_say_what_they_have(name: str, text: str, words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    done = run("caption", tmp_path / name)
    assert done.exit_code == 1
    for word in words:
        assert word in done.stderr


def test_columns_are_named_or_numbered(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.jpg")
    (tmp_path / "named.csv").write_text("Photo;Title\na.jpg;a dog\n")
    (tmp_path / "bare.csv").write_text("17,a.jpg,a dog\n")
    for name, columns in (("named.csv", "image=photo,caption=title"), ("bare.csv", "image=2,caption=3")):
        done = run("caption", tmp_path / name, "--columns", columns, "--dry-run")
        assert "a.jpg: would be computed" in done.stdout, done.output
    for columns in ("image", "picture=x", "image="):
        assert run("caption", tmp_path / "named.csv", "--columns", columns).exit_code == 2


def test_absolute_paths_of_another_machine_need_the_folder(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    Image.fromarray(photo()).save(tmp_path / "here" / "1.jpg")
    path = tmp_path / "vg.json"
    path.write_text('[{"image": "/export/vg/image/1.jpg"}]')
    done = run("caption", path, "--num-beams", "1", "--max-new-tokens", "1")
    assert done.exit_code == 1
    assert "--images DIR" in done.stderr
    assert "1.jpg: would be" in run("caption", path, "--images", tmp_path / "here", "--dry-run").stdout


def test_two_foreign_folders_do_not_become_one(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "1.jpg")
    rows = [{"image": "/x/train/1.jpg"}, {"image": "/x/val/1.jpg"}]
    source = open_source(rows, images=tmp_path)
    assert (len(source), len(source.problems)) == (1, 1)  # type: ignore[arg-type, union-attr]


def test_patterns_choose_files(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.JPG", "small/a.jpg", "large/a.jpg", "large/data.bin"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo()).save(tmp_path / name, "JPEG")

    def names(*options: str) -> list[str]:
        done = run("caption", tmp_path, "-r", "--dry-run", *options)
        return sorted(re.findall(rf"{tmp_path}/(.*): would", done.stdout))

    assert names("--exclude", "small") == ["a.jpg", "b.JPG", "large/a.jpg"]
    assert names("--exclude", "small/*", "--exclude", "*.JPG") == []
    assert names("--include", "large/*") == ["large/a.jpg", "large/data.bin"], "the suffix does not matter then"
    assert names("--include", "b.*") == ["b.JPG"]
    done = run("caption", tmp_path, "-r", "--exclude", "a.jpg", "--num-beams", "1", "--max-new-tokens", "1")
    assert "3 excluded files" in done.stderr


def keys(path: Path) -> list[str]:
    return [item.key.rpartition(":")[2] if isinstance(item, Item) else item.reason for item in open_items([str(path)])]


def test_members_of_tars(tmp_path: Path) -> None:
    image, other = encoded(photo(), "JPEG"), encoded(255 - photo(), "JPEG")
    dates = [(f"2023.05.0{day}.jpg", image) for day in (1, 2, 3)]
    assert keys(write_tar(tmp_path / "dates.tar", dates)) == [name for name, _ in dates]
    several = [("my.cat.jpg", image), ("my.dog.jpg", image), ("my.dog.txt", b"a dog")]
    tar = write_tar(tmp_path / "several.tar", several)
    assert keys(tar) == ["my.cat.jpg", "my.dog.jpg"]
    for stream in (None, True):
        source = open_source(str(tar), stream=stream)
        records = list(source.read(0)) if stream else list(source)  # type: ignore[arg-type, union-attr]
        assert [record.captions for record in records] == [(), ("a dog",)]
    apart = [("a.jpg", image), ("b.jpg", image), ("a.txt", b"a dog"), ("README", b"x"), ("__MACOSX/._a.jpg", b"x")]
    tar = write_tar(tmp_path / "apart.tar", apart)
    assert keys(tar) == ["a.jpg", "b.jpg"]
    assert open_source(str(tar))[0].captions == ("a dog",)  # type: ignore[index]
    twice = write_tar(tmp_path / "twice.tar", [("a.jpg", image), ("b.jpg", image), ("a.jpg", other)])
    first = open_source(str(twice))[0].images[0].read()  # type: ignore[index]
    assert first == other, "the later member replaces the earlier one"


def test_output_that_cannot_encode_a_character(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    for name in ("a 😀.jpg", "b.jpg"):
        Image.fromarray(photo()).save(tmp_path / "f" / name)
    environment = dict(os.environ, PYTHONIOENCODING="cp1252", PYTHONPATH=str(ROOT / "src"), HF_HUB_OFFLINE="1")
    call = [sys.executable, "-c", "from openblip.cli import main; main()", "caption", "f", "--max-new-tokens", "1"]
    for options in ((), ("--json",)):
        done = subprocess.run([*call, *options], cwd=tmp_path, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        if options:
            paths = [json.loads(line)["path"] for line in done.stdout.decode("cp1252").splitlines()]
            assert paths == ["f/a 😀.jpg", "f/b.jpg"]


PERMISSIONS = """
import os, sys
from click.testing import CliRunner
from openblip.cli import app
done = CliRunner().invoke(app, sys.argv[1:])
print(done.output)
sys.exit(done.exit_code)
"""


def test_write_protected_and_unreadable_folders_fail_alone(tmp_path: Path) -> None:
    call = [sys.executable, "-c", PERMISSIONS]
    if os.geteuid() == 0:
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            pytest.skip("root may write everywhere")
        call = [setpriv, "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all", *call]
    for name in ("protected/a.jpg", "closed/b.jpg", "c.jpg", "z/d.jpg", "z/secret.jpg", "z/fixed.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(photo()).save(tmp_path / name)
    (tmp_path / "z" / "fixed.txt").write_text("by hand\n")
    modes = {"protected": 0o555, "closed": 0, "z/secret.jpg": 0, "z/fixed.txt": 0o444}
    for name, mode in modes.items():
        (tmp_path / name).chmod(mode)
    try:
        arguments = ["caption", str(tmp_path), "-r", "--to", "sidecar", "--existing", "append", "--max-new-tokens", "1"]
        environment = dict(os.environ, PYTHONPATH=str(ROOT / "src"), HF_HUB_OFFLINE="1")
        done = subprocess.run([*call, *arguments], env=environment, capture_output=True, text=True, check=False)
    finally:
        for name in modes:
            (tmp_path / name).chmod(0o755)
    assert done.returncode == 3, done.stdout + done.stderr
    for words in ("closed: cannot read the folder", "a.txt: the folder", "secret.jpg: permission denied", "fixed.txt"):
        assert words in done.stdout
    assert "2 written, 4 failed" in done.stdout
    assert {path.name for path in tmp_path.rglob("*.txt")} == {"c.txt", "d.txt", "fixed.txt"}
    assert (tmp_path / "z" / "fixed.txt").read_text() == "by hand\n"


def test_items_that_share_a_side_car_fail_alone(tmp_path: Path) -> None:
    for name in ("IMG_2.HEIC", "IMG_2.JPG", "IMG_3.JPG"):
        Image.fromarray(photo()).save(tmp_path / name, "JPEG")
    call = ("caption", tmp_path, "--to", "sidecar", "--max-new-tokens", "1")
    done = run(*call)
    assert done.exit_code == 3
    assert "--name full" in done.stderr
    assert [path.name for path in tmp_path.glob("*.txt")] == ["IMG_3.txt"]
    assert run(*call, "--name", "full").exit_code == 0
    assert len(list(tmp_path.glob("*.txt"))) == 4


def test_short_names_of_options(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.jpg")
    done = run("caption", tmp_path / "a.jpg", "--max-tokens", "1", "--beams=1", "--json")
    full = run("caption", tmp_path / "a.jpg", "--max-new-tokens", "1", "--num-beams", "1", "--json")
    assert (done.exit_code, done.stdout) == (0, full.stdout)


def test_pixels_of_unusual_formats() -> None:
    from openblip.preprocess.image import load_image

    for scale in ("-1.0", "1.0"):
        order = "<f4" if scale.startswith("-") else ">f4"
        gray = b"Pf\n8 4\n%s\n" % scale.encode() + np.full((4, 8), 0.5, order).tobytes()
        color = b"PF\n2 2\n%s\n" % scale.encode() + np.array([[[0, 0, 1]] * 2, [[1, 0, 0]] * 2], order).tobytes()
        assert np.asarray(load_image(gray)).mean() == pytest.approx(128, abs=1)
        np.testing.assert_array_equal(np.asarray(load_image(color))[:, 0], [[255, 0, 0], [0, 0, 255]])  # bottom first
    bright = b"Pf\n2 1\n-1.0\n" + np.array([0.5, 1.5], "<f4").tobytes()
    assert np.asarray(load_image(bright))[0, :, 0].tolist() == [85, 255]
    unused = np.dstack([photo(), np.zeros(photo().shape[:2], np.uint8)])
    for form in ("PNG", "TGA", "WEBP", "TIFF"):
        options = {"lossless": True, "exact": True} if form == "WEBP" else {}
        np.testing.assert_array_equal(np.asarray(load_image(encoded(unused, form, **options))), photo())


def test_commands_are_found() -> None:
    assert isinstance(app, click.Group)
    assert {"caption", "ask", "match", "embed", "classify", "ground", "compare", "explain"} <= set(JOBS)


def test_unusable_paths_do_not_stop_the_others(tmp_path: Path) -> None:
    Image.fromarray(photo()).save(tmp_path / "a.jpg")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "b.nef").write_bytes(b"II*\0")
    items = list(open_items([str(tmp_path / "a.jpg"), str(tmp_path / "raw"), str(tmp_path / "none.csv")]))
    assert [type(item) for item in items] == [Item, UnusableItem, UnusableItem]
    assert "1 RAW photo (.nef)" in items[1].reason  # type: ignore[union-attr]

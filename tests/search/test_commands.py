"""`openblip index` and `openblip search`: output, exit codes and messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from openblip.cli import app
from openblip.search import scan
from tests.search.search_toys import write_photos

pytestmark = pytest.mark.usefixtures("one_thread")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    photos = tmp_path_factory.mktemp("photos")
    paths = write_photos(photos, range(4))
    paths[0].with_suffix(".txt").write_text("a <b>brown</b> dog & friends")
    (photos / "<i>odd & name.png").write_bytes(paths[1].read_bytes())
    (photos / "bad.jpg").write_text("not an image")
    (photos / "film.mp4").touch()
    return photos


@pytest.fixture(scope="module")
def index(photos: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of `photos`, made by a run in which an image failed."""
    index = tmp_path_factory.mktemp("index") / "index"
    result = run("index", photos, "--out", index, "-m", folder, "--states", "stored")
    assert result.exit_code == 3
    error, *summary = result.stderr.splitlines()
    assert error.startswith(f"error: {photos / 'bad.jpg'}: ")
    assert summary == ["4 added, 1 copied, 1 failed", "skipped: 1 video (.mp4)"]
    return index


def test_a_second_run_needs_no_model(index: Path, photos: Path) -> None:
    result = run("index", "--out", index, "--json")
    assert result.exit_code == 3
    summary = json.loads(result.stdout)
    assert (summary["unchanged"], summary["failed"], summary["added"], summary["encoded"]) == (5, 1, 0, 0)
    assert summary["skipped"] == {"video": 1}
    assert run("index", "--out", index, "--exclude", "bad.*", "--quiet").output == ""


def test_the_plan_has_the_bytes_per_image(index: Path, photos: Path, folder: Path, tmp_path: Path) -> None:
    result = run("index", photos, "--out", tmp_path / "new", "-m", folder, "--plan", "--states", "cache")
    assert result.exit_code == 0
    lines = {line.partition("  ")[0]: line.split() for line in result.stdout.splitlines()}
    assert result.stdout.startswith("6 images; model "), "one of them will fail"
    assert lines["embedding, --dtype fp32"][3] == "64", "16 numbers of 4 bytes"
    assert lines["states, --states stored"][3] == str(2 * 5 * 32), "4 patches and a class token, 32 wide, in fp16"
    assert lines["states, --states cache"][-1] == "true"
    assert not (tmp_path / "new").exists()
    assert "5 in the index" in run("index", photos, "--out", index, "--plan").stdout


def test_hits_as_table_json_and_page(index: Path, photos: Path, tmp_path: Path) -> None:
    result = run("search", index, "a dog", "-n", 3)
    assert result.exit_code == 0
    header, *lines = result.stdout.splitlines()
    assert header.split()[:4] == ["image", "similarity", "date", "caption"]
    assert len(lines) == 3
    page = tmp_path / "hits.html"
    result = run("search", index, "a <script>", "--rerank", 5, "--min-probability", 0, "--json", "--report", page)
    *hits, summary = map(json.loads, result.stdout.splitlines())
    assert len(hits) == 5
    assert summary == {"searched": 5, "best_rejected": None, "errors": []}
    assert all(0 <= hit["probability"] <= 1 for hit in hits)
    html = page.read_text()
    assert html.count("<article>") == 5
    assert "a &lt;script&gt;" in html
    assert "a &lt;b&gt;brown&lt;/b&gt; dog &amp; friends" in html
    assert "&lt;i&gt;odd &amp; name.png" in html
    assert "<script" not in html
    assert "<i>" not in html


def test_filters_and_near_duplicates(index: Path, photos: Path) -> None:
    assert run("search", index, "--caption", "dog").stdout.count(".png") == 1
    assert run("search", index, "a dog", "--folder", photos / "none").stderr.startswith(
        "nothing found: no image passes"
    )
    assert run("search", index, "a dog", "--folder", photos).stdout.count(".png") >= 5
    groups = run("search", index, "--duplicates", "--json")
    (group,) = map(json.loads, groups.stdout.splitlines())
    assert [image["name"] for image in group["images"]] == ["001.png", "<i>odd & name.png"]
    shown = run("search", index, "a dog", "--hide-duplicates", "--json").stdout.splitlines()[:-1]
    assert len(shown) == 4
    assert run("search", index, "a dog", "--hide-duplicates").stdout.splitlines()[0].split()[-1] == "hidden"


def test_nothing_found_is_said(index: Path, tmp_path: Path) -> None:
    page = tmp_path / "none.html"
    result = run("search", index, "a dog", "--rerank", 50, "--min-probability", 1, "--report", page)
    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr.startswith("nothing found: no image matches 'a dog' with a probability of 1 or more; the best")
    assert "Nothing found" in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "{index}"], "expected a text, an image or a filter"),
        (["search", "{index}", "a", "--after", "soon"], "after must be a date"),
        (["search", "{index}", "", "--rerank", "50"], "text must contain a word"),
        (["search", "{index}", "--after", "2020", "-n", "1" + "0" * 30], "n must be at most"),
        (["search", "{index}", "--image", "{index}", "--rerank", "50"], "rerank must come with a text"),
        (["search", "/no/index", "a"], "/no/index must be an index"),
        (["index", "{photos}", "--out", "{photos}"], "must be empty or not exist"),
        (["index", "{photos}", "--out", "{index}", "--dtype", "fp16"], "--dtype must be fp32, as the index was made"),
        (["index", "{photos}", "--out", "{index}", "--model", "pocket"], "search with the model that made the index"),
        (["index", "--out", "/tmp/none"], "got none, and no folder was indexed before"),
        (["index", "{photos}", "--out", "{index}", "--frame", "2"], "--frame does not apply"),
        (["index", "{photos}", "--out", "postgresql://127.0.0.1:1/none"], "cannot use the database"),
    ],
)
def test_errors_are_one_line(index: Path, photos: Path, arguments: list[str], message: str) -> None:
    result = run(*(argument.format(index=index, photos=photos) for argument in arguments))
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_wrong_name_makes_no_index(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    result = run("index", "typo", tmp_path / "empty", "--out", tmp_path / "new", "-m", folder)
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        f"error: {tmp_path / 'empty'}: has no images; name another folder, or the files",
        "error: typo: no such file, or not a regular file",
    ]
    assert not (tmp_path / "new").exists()


def test_an_error_names_its_file_once(index: Path, folder: Path) -> None:
    result = run("index", "typo", "--out", index, "-m", folder)
    assert result.stderr.splitlines()[0] == "error: typo: no such file, or not a regular file"


def test_a_report_that_cannot_be_written(index: Path, photos: Path) -> None:
    result = run("search", index, "a dog", "--report", photos / "bad.jpg" / "hits.html")
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
    assert "run the job again" not in result.stderr


def test_fp16_needs_faiss_to_be_fast(
    photos: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    assert run("index", photos, "--out", index, "-m", folder, "--dtype", "fp16", "--exclude", "bad*").exit_code == 0
    monkeypatch.setattr(scan, "has_faiss", lambda: False)
    result = run("search", index, "a dog")
    assert result.exit_code == 0
    assert result.stderr == (
        "warning: NumPy scans fp16 embeddings slowly, faiss does not: pip install 'openblip[search]'\n"
    )

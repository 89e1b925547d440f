"""Jobs resume after kills, full disks and interrupts: no result is lost, repeated or cut short."""

from __future__ import annotations

import csv
import io
import json
import random
import signal
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pyarrow.parquet as pq
import pytest

from tests.jobs.cli import QUICK, Cli, count, pictures, recorded

KILLS = [2, pytest.param(10, marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    server = Cli(tmp_path_factory.mktemp("cli"))
    yield server
    server.close()


@pytest.fixture(scope="module")
def sixty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sixty") / "pictures"
    pictures(folder, 60)
    return folder


def kill_often(
    cli: Cli, arguments: list[str | Path], journal: Path, total: int, kills: int, check: Callable[[], None]
) -> None:
    """Kill a job again and again while some but not all of it is done, then let it end; `check` runs after each kill.

    Some kills wait for new results, so that they land amid the work; the others hit whatever the process is at, and
    come early where much has been done.
    """
    draw = random.Random(0)
    for kill in range(kills):
        before = len(recorded(journal))
        wait = time.monotonic() + draw.uniform(0.05, 0.5)
        grows = kill % 3 == 0 and before < total * 0.6

        def is_time(before: int = before, grows: bool = grows, wait: float = wait) -> bool:
            new = count(journal) - before
            return new > 0 if grows else new >= total // 20 or time.monotonic() > wait

        assert cli(*arguments, "--batch-size", "1", until=is_time).code == -signal.SIGKILL
        assert 0 < len(recorded(journal)) < total
        check()
    last = cli(*arguments)
    assert last.code == 0, last.stderr
    assert len(recorded(journal)) == len(set(recorded(journal))) == total, "every item is computed once"
    again = cli(*arguments)
    assert again.code == 0
    assert f"{total} done before" in again.stderr


@pytest.mark.parametrize(("total", "kills"), [(60, 3), pytest.param(500, 10, marks=pytest.mark.slow)])
def test_sidecars_survive_kills(cli: Cli, tmp_path: Path, total: int, kills: int) -> None:
    images = pictures(tmp_path / "p", total)
    complete = set[str]()

    def check_texts() -> None:
        for path in (tmp_path / "p").glob("*.txt"):
            text = path.read_text()
            assert text.endswith("\n")
            assert text.strip()
            complete.add(path.name)

    journal = tmp_path / "p" / ".openblip-caption.journal"
    kill_often(cli, ["caption", tmp_path / "p", "--to", "sidecar", *QUICK], journal, total, kills, check_texts)
    names = {path.name for path in (tmp_path / "p").iterdir()}
    assert names == {p.name for p in images} | {p.with_suffix(".txt").name for p in images} | {journal.name}
    assert complete <= names
    texts = {line["item"]: line["records"][0]["text"] for line in _lines(journal) if "item" in line}
    assert {p.name: p.with_suffix(".txt").read_text().strip() for p in images} == texts


@pytest.mark.parametrize("kills", KILLS)
def test_appended_texts_survive_kills(cli: Cli, sixty: Path, tmp_path: Path, kills: int) -> None:
    out = tmp_path / "texts"
    out.mkdir()
    for path in sixty.glob("*.png"):
        (out / f"{path.stem}.txt").write_text(f"old {path.stem}\n")
    once = cli("caption", sixty, "--to", "jsonl", "--out", tmp_path / "once.jsonl", *QUICK)
    assert once.code == 0, once.stderr
    texts = {Path(row["path"]).stem: row["text"] for row in _lines(tmp_path / "once.jsonl")}

    def applied_at_most_once() -> None:
        for path in out.glob("*.txt"):
            old = f"old {path.stem}\n"
            assert path.read_text() in (old, f"{old}{texts[path.stem]}\n")

    arguments: list[str | Path] = ["caption", sixty, "--to", "sidecar", "--out", out, "--existing", "append", *QUICK]
    kill_often(cli, arguments, out / ".openblip-caption.journal", 60, kills, applied_at_most_once)
    assert {p.stem: p.read_text() for p in out.glob("*.txt")} == {s: f"old {s}\n{t}\n" for s, t in texts.items()}


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("kills", KILLS)
def test_lists_survive_kills(cli: Cli, sixty: Path, tmp_path: Path, form: str, kills: int) -> None:
    out = tmp_path / f"list.{form}"

    def the_list_is_whole_or_absent() -> None:
        assert not out.exists()

    arguments: list[str | Path] = ["caption", sixty, "--to", form, "--out", out, *QUICK]
    kill_often(cli, arguments, Path(f"{out}.journal"), 60, kills, the_list_is_whole_or_absent)
    rows = _rows(out)
    assert [Path(row["path"]).name for row in rows] == [f"{n:04}.png" for n in range(60)]
    assert [int(row["index"]) for row in rows] == list(range(60))
    assert all(row["text"] and row["model"] == "pocket" for row in rows)


@pytest.mark.parametrize("kills", KILLS)
def test_images_of_a_tar_survive_kills(cli: Cli, sixty: Path, tmp_path: Path, kills: int) -> None:
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        for path in sorted(sixty.glob("*.png")):
            tar.add(path, f"in/{path.name}")
    out = tmp_path / "out"
    arguments: list[str | Path] = ["caption", tmp_path / "shard.tar", "--to", "sidecar", "--out", out, *QUICK]
    kill_often(cli, arguments, out / ".openblip-caption.journal", 60, kills, lambda: None)
    assert {p.name for p in (out / "in").iterdir()} == {f"{n:04}.txt" for n in range(60)}


@pytest.mark.parametrize("form", ["sidecar", "jsonl"])
def test_a_full_disk_loses_nothing(cli: Cli, sixty: Path, tmp_path: Path, form: str) -> None:
    out = tmp_path / ("out" if form == "sidecar" else "list.jsonl")
    journal = out / ".openblip-caption.journal" if form == "sidecar" else Path(f"{out}.journal")
    arguments: list[str | Path] = ["caption", sixty, "--to", form, "--out", out, *QUICK]
    full = cli(*arguments, limit=6000)  # bytes in one file: some of the journal
    assert full.code == 1
    assert f"cannot write {journal}" in full.stderr
    assert 0 < len(recorded(journal)) < 60
    assert journal.read_bytes().endswith(b"\n"), "no partial line remains"
    assert cli(*arguments).code == 0
    assert len(recorded(journal)) == len(set(recorded(journal))) == 60
    assert len(list(out.glob("*.txt")) if form == "sidecar" else _lines(out)) == 60


def test_an_interrupt_exits_with_130_and_the_job_resumes(cli: Cli, sixty: Path, tmp_path: Path) -> None:
    journal = tmp_path / "list.jsonl.journal"
    arguments: list[str | Path] = ["caption", sixty, "--to", "jsonl", "--out", tmp_path / "list.jsonl", *QUICK]
    stopped = cli(*arguments, until=lambda: count(journal) > 0, by=signal.SIGINT)
    assert stopped.code == 130
    assert stopped.stderr.strip().splitlines()[-1].startswith("interrupted")
    assert cli(*arguments).code == 0
    assert len(_lines(tmp_path / "list.jsonl")) == len(set(recorded(journal))) == len(recorded(journal)) == 60


def test_two_jobs_do_not_share_an_output(cli: Cli, sixty: Path, tmp_path: Path) -> None:
    out = tmp_path / "list.jsonl"
    with filelock.FileLock(f"{out}.journal.lock"):
        second = cli("caption", sixty, "--to", "jsonl", "--out", out, *QUICK)
    assert (second.code, "another job is writing to this output" in second.stderr) == (1, True)
    assert cli("caption", sixty, "--to", "jsonl", "--out", out, *QUICK).code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"list.jsonl", "list.jsonl.journal"}


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return _lines(path)
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows

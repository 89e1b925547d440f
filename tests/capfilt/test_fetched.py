"""Images on the web, served by this machine: fetched only if allowed, stored for training, and retried."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from openblip.capfilt.run import run
from openblip.data.images import open_image
from openblip.data.sources import open_source
from openblip.data.sources.base import Source
from openblip.io.fetch import FetchOptions
from tests.capfilt.capfilt_toys import make_job, picture, read_rows, write_jsonl
from tests.io.test_fetch import Site

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    site.pages = {f"/{n}.jpg": (200, {}, picture(n)) for n in range(2)}
    site.pages["/refused.jpg"] = (200, {"X-Robots-Tag": "noai"}, picture(3))
    yield site
    site.slow.set()
    site.server.shutdown()


def test_images_on_the_web(folder: Path, tmp_path: Path, site: Site) -> None:
    names = ["0.jpg", "1.jpg", "refused.jpg", "gone.jpg"]
    listed = [{"url": site.url(f"/{name}"), "caption": "a man"} for name in names]
    source = [str(write_jsonl(tmp_path / "web.jsonl", listed))]
    options = FetchOptions(allow_hosts=(f"127.0.0.1:{site.port}",), interval=0.0, max_seconds=5.0)
    counts = run(source, make_job(folder, tmp_path / "out", fetch=options))
    found = {key.rpartition("/")[2]: row for key, row in read_rows(tmp_path / "out").items()}
    assert counts["images"] == counts["failed"] == 2
    assert "X-Robots-Tag" in found["refused.jpg"]["error"]
    assert "returned 404" in found["gone.jpg"]["error"]
    data = open_source(str(tmp_path / "out/parquet"))
    assert isinstance(data, Source)
    assert [record.images[0].address.startswith(str(tmp_path)) for record in data] == [True, True]
    assert open_image(data[0].images[0]).size == (40, 30)
    site.pages["/gone.jpg"] = (200, {}, picture(4))
    before = len(site.requests)
    counts = run([], make_job(folder, tmp_path / "out", fetch=options, retry=True))
    assert counts["images"] == 3
    assert {path for path, _ in site.requests[before:]} == {"/robots.txt", "/refused.jpg", "/gone.jpg"}


def test_private_addresses_need_permission(folder: Path, tmp_path: Path, site: Site) -> None:
    source = [str(write_jsonl(tmp_path / "web.jsonl", [{"url": site.url("/0.jpg"), "caption": "a man"}]))]
    run(source, make_job(folder, tmp_path / "out", fetch=FetchOptions(interval=0.0, max_seconds=5.0)))
    ((_, row),) = read_rows(tmp_path / "out").items()
    assert "not public" in row["error"]
    assert site.requests == []

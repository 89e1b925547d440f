"""Downloads from a server on this machine: resumed, verified, made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from openblip.errors import DownloadError
from openblip.io import download as module
from openblip.io import hashing
from openblip.io.download import download
from tests.http_server import BODY, Server, sha

pytestmark = pytest.mark.usefixtures("cache")


def test_a_cut_connection_is_continued_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [300_000, 200_000]
    path = download(f"{server.address}/model.pth", tmp_path)
    assert path.read_bytes() == BODY
    assert [span for _, span in server.bodies()] == [None, "bytes=300000-", "bytes=500000-"]


def test_progress_renews_the_patience(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [100_000] * (2 * module.ATTEMPTS)
    assert download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY


def test_the_next_call_continues_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [400_000] + [0] * module.ATTEMPTS
    with pytest.raises(DownloadError, match="the connection ended after 400000 of 1048576 bytes"):
        download(f"{server.address}/model.pth", tmp_path)
    assert not (tmp_path / "model.pth").exists()
    server.cuts.clear()
    server.requests.clear()
    assert download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY
    assert server.bodies() == [("/model.pth", "bytes=400000-")]


def test_a_file_that_changed_meanwhile_is_not_pasted_together(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [400_000] + [0] * module.ATTEMPTS
    with pytest.raises(DownloadError):
        download(f"{server.address}/model.pth", tmp_path)
    server.cuts.clear()
    server.files["/model.pth"] = BODY[::-1]
    assert download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY[::-1]


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.ranges = False
    server.cuts = [400_000]
    assert download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.refusals = [503, 429]
    assert download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY


def test_published_digits_are_checked(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    assert download(f"{server.address}/model.pth", tmp_path / "good", digits=sha(BODY)[:8]).exists()
    with pytest.raises(DownloadError, match="is not the published file") as raised:
        download(f"{server.address}/model.pth", tmp_path / "bad", digits="00000000")
    assert "model.pth.rejected" in str(raised.value)
    assert (tmp_path / "bad" / "model.pth.rejected").read_bytes() == BODY
    assert not (tmp_path / "bad" / "model.pth").exists()


def test_a_file_that_changes_after_its_download_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    address = f"{server.address}/model.pth"
    path = download(address, tmp_path)
    assert sha(BODY) in (tmp_path / "model.pth.sha256").read_text()
    os.utime(path)  # touched, but the same
    assert download(address, tmp_path) == path
    with path.open("r+b") as file:
        file.write(b"damage")
    for _ in range(2):
        with pytest.raises(DownloadError, match="has changed since it was downloaded"):
            download(address, tmp_path)
    path.unlink()
    assert download(address, tmp_path).read_bytes() == BODY


def test_a_download_is_read_once(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []
    compute = hashing.compute_sha256

    def record(path: Path) -> str:
        reads.append(path)
        return compute(path)

    monkeypatch.setattr(module, "compute_sha256", record)
    monkeypatch.setattr(hashing, "compute_sha256", record)
    server.files["/model.pth"] = BODY
    for _ in range(3):
        download(f"{server.address}/model.pth", tmp_path)
    assert reads == [tmp_path / "model.pth.part"]


def test_the_record_is_one_that_sha256sum_reads(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    download(f"{server.address}/model.pth", tmp_path)
    lines = [line for line in (tmp_path / "model.pth.sha256").read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{sha(BODY)}  model.pth"]


def test_a_file_put_there_by_hand_is_checked_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(BODY)
    address = "https://nowhere.invalid/model.pth"
    with pytest.raises(DownloadError, match="00000000"):
        download(address, tmp_path, digits="00000000")
    assert download(address, tmp_path, digits=sha(BODY)[:8], offline=True) == tmp_path / "model.pth"
    assert sha(BODY) in (tmp_path / "model.pth.sha256").read_text()


@pytest.mark.parametrize(("status", "says"), [(404, "404 Not Found"), (403, "403 Forbidden")])
def test_a_refusal_is_final_and_told(server: Server, tmp_path: Path, status: int, says: str) -> None:
    server.refusals = [status]
    with pytest.raises(DownloadError, match=says):
        download(f"{server.address}/model.pth", tmp_path)
    assert len(server.requests) == 1


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    address = server.address
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="refused"):
        download(f"{address}/model.pth", tmp_path)


def test_a_full_disk_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/model.pth"] = BODY
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match=r"needs 0\.0 GB, but .* has 0\.0 GB left; free some space"):
        download(f"{server.address}/model.pth", tmp_path)
    assert not (tmp_path / "model.pth.part").exists()


def test_a_disk_that_fills_up_is_an_error(server: Server, tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    (tmp_path / "model.pth.part").symlink_to("/dev/full")
    server.files["/model.pth"] = BODY
    with pytest.raises(DownloadError, match="No space left on device"):
        download(f"{server.address}/model.pth", tmp_path)


def test_threads_that_ask_at_once_share_one_download(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(download(f"{server.address}/model.pth", tmp_path).read_bytes()))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [BODY] * 6
    assert len(server.bodies()) == 1


def test_processes_that_ask_at_once_share_one_download(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    program = (
        "import sys; from pathlib import Path; from openblip.io.download import download;"
        "print(len(download(sys.argv[1], Path(sys.argv[2])).read_bytes()))"
    )
    command = [sys.executable, "-c", program, f"{server.address}/model.pth", str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [str(len(BODY))] * 3
    assert len(server.bodies()) == 1

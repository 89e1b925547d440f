"""Downloads, against a server on this machine that cuts connections, changes files and speaks the hub's protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest

from openblip.checkpoints import fetch, published
from openblip.errors import CheckpointError, DownloadError

BODY = bytes(range(256)) * 4096  # one MiB
REPOSITORY = "someone/some-blip"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Server(ThreadingHTTPServer):
    """Files by path. ``cuts``: after how many bytes to drop each connection to come, in turn."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.repository: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.refusals: list[int] = []
        self.ranges = True
        self.asked: list[tuple[str, str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def bodies(self) -> list[tuple[str, str | None]]:
        """What was asked for by GET: the path and its Range header."""
        return [(path, span) for method, path, span in self.asked if method == "GET"]


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Keep the test output quiet."""

    def do_HEAD(self) -> None:
        self._serve(body=False)

    def do_GET(self) -> None:
        self._serve(body=True)

    def _serve(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append((self.command, path, self.headers.get("Range")))
        if self.server.refusals:
            self.send_error(self.server.refusals.pop(0))
        elif path.startswith("/api/models/"):
            self._api(path)
        elif match := re.fullmatch(rf"/{REPOSITORY}/resolve/(main|{COMMIT})/(.+)", path):
            data = self.server.repository.get(match[2])
            extra = {"X-Repo-Commit": COMMIT}
            self._file(data, body, extra)
        else:
            self._file(self.server.files.get(path), body, {})

    def _file(self, data: bytes | None, body: bool, extra: dict[str, str]) -> None:
        if data is None:
            self.send_error(404)
            return
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        start, span = 0, self.headers.get("Range")
        if span and self.server.ranges and self.headers.get("If-Range", etag) == etag:
            start = int(span.removeprefix("bytes=").rstrip("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        for name, value in {**extra, "ETag": etag, "Content-Length": str(len(data) - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if not body:
            return
        if self.server.cuts:
            self.wfile.write(data[start : start + self.server.cuts.pop(0)])
            self.close_connection = True
            return
        self.wfile.write(data[start:])

    def _api(self, path: str) -> None:
        files = self.server.repository
        if not path.startswith(f"/api/models/{REPOSITORY}"):
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return

        def large(name: str, key: str) -> dict[str, dict[str, object]]:
            data = files[name]
            if not name.endswith((".safetensors", ".bin")):
                return {}
            return {"lfs": {"size": len(data), key: hashlib.sha256(data).hexdigest(), "pointerSize": 1}}

        if "/tree/" in path:
            answer: object = [
                {"type": "file", "path": name, "size": len(data), "oid": "0" * 40, **large(name, "oid")}
                for name, data in files.items()
            ]
        else:
            siblings = [{"rfilename": name, **large(name, "sha256")} for name in files]
            answer = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings}
        encoded = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of this test's own, the network allowed (on this machine), and no waiting between attempts."""
    monkeypatch.setenv("OPENBLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    return tmp_path / "cache"


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# Names


def test_a_path_comes_before_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model_vqa").mkdir()
    Path("model_vqa.pth").write_bytes(b"mine")
    assert fetch.resolve("model_vqa") == Path("model_vqa")
    assert fetch.resolve(Path("model_vqa.pth")) == Path("model_vqa.pth")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model_vqaa", "did you mean model_vqa"),
        ("no such thing at all", "neither a file or folder here"),
        ("gone/weights.pth", "neither a file or folder here"),
        ("large", "is a bundle"),
    ],
)
def test_a_name_that_means_nothing(name: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        fetch.resolve(name)


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_CACHE", "/somewhere/own")
    assert fetch.cache_folder() == Path("/somewhere/own")
    monkeypatch.delenv("OPENBLIP_CACHE")
    monkeypatch.setenv("HF_HOME", "/somewhere/hf")
    assert fetch.cache_folder() == Path("/somewhere/hf/openblip")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere/xdg")
    assert fetch.cache_folder() == Path("/somewhere/xdg/huggingface/openblip")


# Single files


def test_a_published_file_comes_from_the_mirror_once(server: Server, places: Path) -> None:
    server.files["/blip/model_vqa.pth"] = BODY
    for _ in range(2):
        path = fetch.resolve("model_vqa", mirror=f"{server.address}/blip/")
        assert path == places / "model_vqa.pth"
        assert path.read_bytes() == BODY
    assert server.bodies() == [("/blip/model_vqa.pth", None)]
    assert sorted(file.name for file in places.iterdir()) == [
        "model_vqa.pth",
        "model_vqa.pth.lock",
        "model_vqa.pth.sha256",
    ]


def test_the_mirror_can_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_MIRROR", server.address)
    server.files["/blip_okvqa.pth"] = b"weights"
    assert fetch.resolve("blip_vqa/okvqa").read_bytes() == b"weights"


def test_addresses_that_end_alike_are_kept_apart(server: Server) -> None:
    server.files |= {"/one/model.pth": b"one", "/two/model.pth": b"two"}
    one, two = (fetch.resolve(f"{server.address}/{which}/model.pth") for which in ("one", "two"))
    assert (one.read_bytes(), two.read_bytes()) == (b"one", b"two")


def test_a_cut_connection_is_continued_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [300_000, 200_000]
    path = fetch.download(f"{server.address}/model.pth", tmp_path)
    assert path.read_bytes() == BODY
    assert [span for _, span in server.bodies()] == [None, "bytes=300000-", "bytes=500000-"]


def test_progress_renews_the_patience(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [100_000] * (2 * fetch.ATTEMPTS)
    assert fetch.download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY


def test_the_next_call_continues_what_an_earlier_one_left(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [400_000] + [0] * fetch.ATTEMPTS
    with pytest.raises(DownloadError, match="the connection ended after 400000 of 1048576 bytes"):
        fetch.download(f"{server.address}/model.pth", tmp_path)
    assert not (tmp_path / "model.pth").exists()
    server.cuts.clear()
    server.asked.clear()
    assert fetch.download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY
    assert server.bodies() == [("/model.pth", "bytes=400000-")]


def test_a_file_that_changed_meanwhile_is_not_pasted_together(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.cuts = [400_000] + [0] * fetch.ATTEMPTS
    with pytest.raises(DownloadError):
        fetch.download(f"{server.address}/model.pth", tmp_path)
    server.cuts.clear()
    server.files["/model.pth"] = BODY[::-1]
    assert fetch.download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY[::-1]


def test_a_server_without_ranges_sends_all_of_it_again(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.ranges = False
    server.cuts = [400_000]
    assert fetch.download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY


def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    server.refusals = [503, 429]
    assert fetch.download(f"{server.address}/model.pth", tmp_path).read_bytes() == BODY


def test_published_digits_are_checked(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    assert fetch.download(f"{server.address}/model.pth", tmp_path / "good", digits=sha(BODY)[:8]).exists()
    with pytest.raises(DownloadError, match="is not what was published") as raised:
        fetch.download(f"{server.address}/model.pth", tmp_path / "bad", digits="00000000")
    assert "model.pth.rejected" in str(raised.value)
    assert (tmp_path / "bad" / "model.pth.rejected").read_bytes() == BODY
    assert not (tmp_path / "bad" / "model.pth").exists()


def test_mmpretrain_names_carry_the_digits_that_are_checked(server: Server, places: Path) -> None:
    entry = published.get("blip-base_3rdparty_nlvr")
    server.files[f"/{entry.file}"] = BODY
    with pytest.raises(DownloadError, match="not 3b14d33f"):
        fetch.resolve(entry.name, mirror=server.address)
    assert not (places / str(entry.file)).exists()


def test_a_file_that_changes_after_its_download_is_refused(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    address = f"{server.address}/model.pth"
    path = fetch.download(address, tmp_path)
    assert sha(BODY) in (tmp_path / "model.pth.sha256").read_text()
    os.utime(path)  # touched, but the same
    assert fetch.download(address, tmp_path) == path
    with path.open("r+b") as file:
        file.write(b"damage")
    for _ in range(2):
        with pytest.raises(DownloadError, match="has changed since it was downloaded"):
            fetch.download(address, tmp_path)
    path.unlink()
    assert fetch.download(address, tmp_path).read_bytes() == BODY


def test_the_record_is_one_that_sha256sum_reads(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    fetch.download(f"{server.address}/model.pth", tmp_path)
    lines = [line for line in (tmp_path / "model.pth.sha256").read_text().splitlines() if not line.startswith("#")]
    assert lines == [f"{sha(BODY)}  model.pth"]


def test_a_file_put_there_by_hand_is_checked_and_recorded(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(BODY)
    address = "https://nowhere.invalid/model.pth"
    with pytest.raises(DownloadError, match="00000000"):
        fetch.download(address, tmp_path, digits="00000000")
    assert fetch.download(address, tmp_path, digits=sha(BODY)[:8], offline=True) == tmp_path / "model.pth"
    assert sha(BODY) in (tmp_path / "model.pth.sha256").read_text()


@pytest.mark.parametrize(("status", "says"), [(404, "404 Not Found"), (403, "403 Forbidden")])
def test_a_refusal_is_final_and_told(server: Server, tmp_path: Path, status: int, says: str) -> None:
    server.refusals = [status]
    with pytest.raises(DownloadError, match=says):
        fetch.download(f"{server.address}/model.pth", tmp_path)
    assert len(server.asked) == 1


def test_nobody_answers(server: Server, tmp_path: Path) -> None:
    address = server.address
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError, match="refused"):
        fetch.download(f"{address}/model.pth", tmp_path)


def test_offline_names_the_file_and_what_to_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/model_vqa.pth"] = BODY
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"model_vqa\.pth is not on this machine and offline mode is on"):
        fetch.resolve("model_vqa", mirror=server.address)
    assert server.asked == []
    fetch.resolve("model_vqa", mirror=server.address, offline=False)
    assert fetch.resolve("model_vqa", mirror="http://nowhere.invalid").read_bytes() == BODY


def test_a_full_disk_is_told_before_the_download(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/model.pth"] = BODY
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(DownloadError, match=r"needs 0\.0 GB and .* has 0\.0 GB left; make room"):
        fetch.download(f"{server.address}/model.pth", tmp_path)
    assert not (tmp_path / "model.pth.part").exists()


def test_a_disk_that_fills_up_keeps_what_came(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    (tmp_path / "model.pth.part").symlink_to("/dev/full")
    running = Server()
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    running.files["/model.pth"] = BODY
    with pytest.raises(DownloadError, match="No space left on device"):
        fetch.download(f"{running.address}/model.pth", tmp_path)
    running.shutdown()
    running.server_close()


def test_threads_that_ask_at_once_share_one_download(server: Server, tmp_path: Path) -> None:
    server.files["/model.pth"] = BODY
    found: list[bytes] = []
    threads = [
        threading.Thread(
            target=lambda: found.append(fetch.download(f"{server.address}/model.pth", tmp_path).read_bytes())
        )
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
        "import sys; from pathlib import Path; from openblip.checkpoints.fetch import download;"
        "print(len(download(sys.argv[1], Path(sys.argv[2])).read_bytes()))"
    )
    command = [sys.executable, "-c", program, f"{server.address}/model.pth", str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == [str(len(BODY))] * 3
    assert len(server.bodies()) == 1


# The hub


def hub_files(*weights: str) -> dict[str, bytes]:
    beside = ("config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt", "README.md", "tf_model.h5")
    return {name: f"content of {name}".encode() for name in (*beside, *weights)}


def got(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("there", "taken"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin"], ["pytorch_model.bin"]),
        (
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
            ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"],
        ),
    ],
)
def test_only_the_needed_files_of_a_repository_are_fetched(
    server: Server, there: Sequence[str], taken: Sequence[str]
) -> None:
    server.repository = hub_files(*there)
    shards = {str(number): name for number, name in enumerate(there) if "-of-" in name}
    if shards:
        server.repository["model.safetensors.index.json"] = json.dumps({"weight_map": shards}).encode()
    folder = fetch.resolve(REPOSITORY, endpoint=server.address)
    assert got(folder) == sorted(["config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt", *taken])
    server.asked.clear()
    assert fetch.resolve(REPOSITORY, endpoint=server.address, offline=True) == folder
    assert server.asked == []


def test_an_unreachable_hub_leaves_what_is_cached(server: Server) -> None:
    server.repository = hub_files("model.safetensors")
    folder = fetch.resolve(REPOSITORY, endpoint=server.address)
    server.refusals = [500] * 100
    assert fetch.resolve(REPOSITORY, endpoint=server.address) == folder


def test_half_a_repository_in_the_cache_is_not_a_model(server: Server) -> None:
    server.repository = hub_files("model.safetensors")
    folder = fetch.resolve(REPOSITORY, endpoint=server.address)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="is not on this machine and offline mode is on"):
        fetch.resolve(REPOSITORY, offline=True)


def test_hub_weights_are_compared_with_the_published_hash(server: Server) -> None:
    server.repository = hub_files("model.safetensors")
    folder = fetch.resolve(REPOSITORY, endpoint=server.address)
    blob = (folder / "model.safetensors").resolve()
    assert blob.name == sha(server.repository["model.safetensors"]), "the cache names large files by their hash"
    blob.write_bytes(b"other content of this")
    with pytest.raises(DownloadError, match="is not what the hub published") as raised:
        fetch.resolve(REPOSITORY, offline=True)
    assert "rejected" in str(raised.value)
    again = fetch.resolve(REPOSITORY, endpoint=server.address)
    assert (again / "model.safetensors").read_bytes() == server.repository["model.safetensors"]


def test_a_repository_that_is_not_there(server: Server) -> None:
    with pytest.raises(DownloadError, match=r"no local folder is called that either"):
        fetch.resolve("someone/nothing", endpoint=server.address)
    server.repository = hub_files("flax_model.msgpack")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        fetch.resolve(REPOSITORY, endpoint=server.address)


def test_a_hub_model_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="Salesforce/blip-vqa-base is not on this machine"):
        fetch.resolve("blip-vqa-base")


def test_the_vocabulary_is_fetched_once_and_whole(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_VOCABULARY", (REPOSITORY, "someone/older-name"))
    with pytest.raises(DownloadError, match="give the vocabulary"):
        fetch.bert_vocabulary(offline=True)
    server.repository = {"vocab.txt": b"[PAD]\n" * 30522}
    path = fetch.bert_vocabulary(endpoint=server.address)
    assert path.read_bytes() == server.repository["vocab.txt"]
    server.asked.clear()
    assert fetch.bert_vocabulary(endpoint=server.address) == path
    assert server.asked == []
    path.write_text("[PAD]\n" * 100)
    with pytest.raises(DownloadError, match="has 100 lines"):
        fetch.bert_vocabulary()

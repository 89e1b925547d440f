"""From names to files: published names, hub repositories and addresses, against a server on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from openblip.checkpoints import hub, published
from openblip.checkpoints.resolve import resolve
from openblip.errors import CheckpointError, DownloadError
from tests.http_server import BODY, REPOSITORY, Server, sha

pytestmark = pytest.mark.usefixtures("cache")


def test_a_path_comes_before_every_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model_vqa").mkdir()
    Path("model_vqa.pth").write_bytes(b"mine")
    assert resolve("model_vqa") == Path("model_vqa")
    assert resolve(Path("model_vqa.pth")) == Path("model_vqa.pth")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model_vqaa", "did you mean model_vqa"),
        ("blip-base", r"did you mean base\b"),
        ("BLIP_large", r"did you mean large\b"),
        ("blip", r"did you mean base\b"),
        ("pocket-blip", r"did you mean pocket\b"),
        ("no such thing at all", "must be a file or folder on this machine"),
        ("gone/weights.pth", "must be a file or folder on this machine"),
        ("large", "is a bundle"),
    ],
)
def test_a_name_that_means_nothing(name: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says):
        resolve(name)


def test_the_folder_of_a_run_stands_for_its_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "best").mkdir(parents=True)
    assert resolve(run) == run, "any other folder is itself"
    (run / "recipe.yaml").write_text("task: caption")
    with pytest.raises(CheckpointError, match=r"without a model yet: finish it with .*--resume`, or load .*best"):
        resolve(run)
    (run / "model").mkdir()
    (run / "model" / "config.json").write_text("{}")
    assert resolve(run) == run / "model"
    (run / "config.json").write_text("{}")
    assert resolve(run) == run, "a model with a recipe next to it"


def test_a_published_file_comes_from_the_mirror_once(server: Server, cache: Path) -> None:
    server.files["/blip/model_vqa.pth"] = BODY
    for _ in range(2):
        path = resolve("model_vqa", mirror=f"{server.address}/blip/")
        assert path == cache / "model_vqa.pth"
        assert path.read_bytes() == BODY
    assert server.bodies() == [("/blip/model_vqa.pth", None)]
    assert sorted(file.name for file in cache.iterdir()) == [
        "hashes",
        "model_vqa.pth",
        "model_vqa.pth.lock",
        "model_vqa.pth.sha256",
    ]


def test_the_mirror_can_come_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENBLIP_MIRROR", server.address)
    server.files["/blip_okvqa.pth"] = b"weights"
    assert resolve("blip_vqa/okvqa").read_bytes() == b"weights"


def test_addresses_that_end_alike_are_kept_apart(server: Server) -> None:
    server.files |= {"/one/model.pth": b"one", "/two/model.pth": b"two"}
    one, two = (resolve(f"{server.address}/{which}/model.pth") for which in ("one", "two"))
    assert (one.read_bytes(), two.read_bytes()) == (b"one", b"two")


def test_mmpretrain_names_carry_the_digits_that_are_checked(server: Server, cache: Path) -> None:
    entry = published.get("blip-base_3rdparty_nlvr")
    server.files[f"/{entry.file}"] = BODY
    with pytest.raises(DownloadError, match="must begin with 3b14d33f"):
        resolve(entry.name, mirror=server.address)
    assert not (cache / str(entry.file)).exists()


def test_offline_names_the_file_and_what_to_do(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files["/model_vqa.pth"] = BODY
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match=r"model_vqa\.pth is not on this machine and offline mode is on"):
        resolve("model_vqa", mirror=server.address)
    assert server.requests == []
    resolve("model_vqa", mirror=server.address, offline=False)
    assert resolve("model_vqa", mirror="http://nowhere.invalid").read_bytes() == BODY


def hub_files(*weights: str) -> dict[str, bytes]:
    other_files = ("config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt", "README.md", "tf_model.h5")
    return {name: f"content of {name}".encode() for name in (*other_files, *weights)}


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
    folder = resolve(REPOSITORY, endpoint=server.address)
    assert got(folder) == sorted(["config.json", "preprocessor_config.json", "tokenizer.json", "vocab.txt", *taken])
    server.requests.clear()
    assert resolve(REPOSITORY, endpoint=server.address, offline=True) == folder
    assert server.requests == []


def test_an_unreachable_hub_leaves_what_is_cached(server: Server) -> None:
    server.repository = hub_files("model.safetensors")
    folder = resolve(REPOSITORY, endpoint=server.address)
    server.refusals = [500] * 100
    assert resolve(REPOSITORY, endpoint=server.address) == folder


def test_half_a_repository_in_the_cache_is_not_a_model(server: Server) -> None:
    server.repository = hub_files("model.safetensors")
    folder = resolve(REPOSITORY, endpoint=server.address)
    (folder / "model.safetensors").unlink()
    with pytest.raises(DownloadError, match="is not on this machine and offline mode is on"):
        resolve(REPOSITORY, offline=True)


def test_hub_weights_are_compared_with_the_published_hash(server: Server) -> None:
    server.repository = hub_files("model.safetensors")
    folder = resolve(REPOSITORY, endpoint=server.address)
    blob = (folder / "model.safetensors").resolve()
    assert blob.name == sha(server.repository["model.safetensors"]), "the cache names large files by their hash"
    blob.write_bytes(b"other content of this")
    with pytest.raises(DownloadError, match="is not the file on the hub") as raised:
        resolve(REPOSITORY, offline=True)
    assert "rejected" in str(raised.value)
    again = resolve(REPOSITORY, endpoint=server.address)
    assert (again / "model.safetensors").read_bytes() == server.repository["model.safetensors"]


def test_a_repository_that_is_not_there(server: Server) -> None:
    with pytest.raises(DownloadError, match=r"there is no local folder of this name either"):
        resolve("someone/nothing", endpoint=server.address)
    server.repository = hub_files("flax_model.msgpack")
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        resolve(REPOSITORY, endpoint=server.address)


def test_a_hub_model_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="Salesforce/blip-vqa-base is not on this machine"):
        resolve("blip-vqa-base")


def test_the_vocabulary_is_fetched_once_and_whole(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "VOCABULARY_REPOSITORIES", (REPOSITORY, "someone/older-name"))
    with pytest.raises(DownloadError, match="give the vocabulary"):
        hub.bert_vocabulary(offline=True)
    server.repository = {"vocab.txt": b"[PAD]\n" * 30522}
    path = hub.bert_vocabulary(endpoint=server.address)
    assert path.read_bytes() == server.repository["vocab.txt"]
    server.requests.clear()
    assert hub.bert_vocabulary(endpoint=server.address) == path
    assert server.requests == []
    path.write_text("[PAD]\n" * 100)
    with pytest.raises(DownloadError, match="got 100; delete it"):
        hub.bert_vocabulary()

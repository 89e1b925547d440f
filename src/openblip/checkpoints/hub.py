"""Hub folders, through `huggingface_hub` into its cache: the files that a model needs, with verified weights."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from openblip.errors import CheckpointError, DownloadError
from openblip.io.hashing import sha256

_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OTHER_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)
VOCABULARY_REPOSITORIES = ("google-bert/bert-base-uncased", "bert-base-uncased")  # the second one is in old caches
_VOCABULARY_SIZE = 30522


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` forbids the network. It is read at each call, so that it can be set late."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def hub_folder(repository: str, *, offline: bool, endpoint: str | None = None) -> Path:
    """Return the verified snapshot of a repository with its configuration, weights and tokenizer.

    A complete older snapshot is used if the hub cannot be reached.

    Args:
        repository: The id, `owner/name`.
        offline: Use the cache only.
        endpoint: Address of a mirror of the hub. The default is `HF_ENDPOINT`.

    Returns:
        The folder in the hub's cache.

    Raises:
        DownloadError: If the repository cannot be downloaded, is not cached, or is damaged.
        CheckpointError: If the repository has no weights.
    """
    if offline:
        return _verify(cached_folder(repository), {})
    cached = _find_cached(repository)
    from huggingface_hub import HfApi, snapshot_download

    try:
        with _hub_errors(repository):
            info = HfApi(endpoint=endpoint).model_info(repository, files_metadata=True)
            siblings = info.siblings or ()
            names = [file.rfilename for file in siblings]
            weights = _weight_files(names)
            if not weights:
                raise CheckpointError(f"{repository} on the hub has neither model.safetensors nor pytorch_model.bin")
            patterns = weights + [name for name in _OTHER_FILES if name in names]
            folder = Path(str(snapshot_download(repository, allow_patterns=patterns, endpoint=endpoint)))
    except DownloadError:
        if cached is None:
            raise
        return _verify(cached, {})
    return _verify(folder, {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs})


def cached_folder(repository: str) -> Path:
    """Return the snapshot of a repository in the cache, without a check of its weights.

    Args:
        repository: The id, `owner/name`.

    Returns:
        The folder in the hub's cache.

    Raises:
        DownloadError: If the repository is not cached, or not complete.
    """
    folder = _find_cached(repository)
    if folder is None:
        raise _offline_error(repository, "or give a local folder")
    return folder


def bert_vocabulary(*, offline: bool | None = None, endpoint: str | None = None) -> Path:
    """Return `vocab.txt` of bert-base-uncased, the vocabulary of every published `.pth`, from the cache or the hub.

    Args:
        offline: Use the cache only. The default is `HF_HUB_OFFLINE`.
        endpoint: Address of a mirror of the hub. The default is `HF_ENDPOINT`.

    Returns:
        The file in the hub's cache.

    Raises:
        DownloadError: If the vocabulary cannot be downloaded, is not cached, or is incomplete.
    """
    for repository in VOCABULARY_REPOSITORIES:
        if path := _cached(repository, "vocab.txt"):
            return _check_vocabulary(path)
    if is_offline() if offline is None else offline:
        raise _offline_error(VOCABULARY_REPOSITORIES[0], "or give the vocabulary: tokenizer='path/to/vocab.txt'")
    from huggingface_hub import hf_hub_download

    with _hub_errors(VOCABULARY_REPOSITORIES[0]):
        path = Path(str(hf_hub_download(VOCABULARY_REPOSITORIES[0], "vocab.txt", endpoint=endpoint)))
    return _check_vocabulary(path)


def _check_vocabulary(path: Path) -> Path:
    with path.open(encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    if count != _VOCABULARY_SIZE:
        raise DownloadError(
            f"{path} must have the {_VOCABULARY_SIZE} lines of bert-base-uncased, got {count}; delete it to "
            "download it again"
        )
    return path


def _weight_files(names: Sequence[str]) -> list[str]:
    """Return the files of a folder that hold its weights once, with their index: safetensors if there are any."""
    for suffix, single in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        if single in names:
            return [single]
        if (index := f"{single}.index.json") in names:
            return [index, *(name for name in names if _SHARD.fullmatch(name) and name.endswith(suffix))]
    return []


def _verify(folder: Path, published: Mapping[str, str]) -> Path:
    """Return `folder` if its weights have the SHA-256 that the hub publishes, by file name in `published`.

    The hub's client compares lengths only. Its cache names large files by their SHA-256, which serves offline.
    """
    for name in _weight_files([path.name for path in folder.iterdir()]):
        link = folder / name
        blob = link.resolve()
        expected = published.get(name) or blob.name
        if not _SHA256.fullmatch(expected):  # a small file, stored in git: the hub publishes no SHA-256
            continue
        digest = sha256(blob)
        if digest != expected:
            rejected = blob.with_name(f"{blob.name}.rejected")
            blob.replace(rejected)
            link.unlink(missing_ok=True)
            raise DownloadError(
                f"{name} is not the file on the hub: its SHA-256 must be {expected}, got {digest}; the file is kept as "
                f"{rejected}. Load the model online to download it again"
            )
    return folder


def _find_cached(repository: str) -> Path | None:
    """Return the cached snapshot if it has all its weights. Another program may have downloaded a part of it."""
    config = _cached(repository, "config.json")
    if config is None:
        return None
    weights = _weight_files([path.name for path in config.parent.iterdir()])
    is_complete = bool(weights)
    if weights and weights[0].endswith(".index.json"):
        index = json.loads(config.with_name(weights[0]).read_text(encoding="utf-8"))
        is_complete = set(index["weight_map"].values()) <= set(weights)
    return config.parent if is_complete else None


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, file)
    return Path(path) if isinstance(path, str) else None


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Raise any failure of the hub's client as a `DownloadError`.

    The client lets the errors of its transport through, and has changed that transport between versions, so there is
    no narrower family to name.
    """
    try:
        yield
    except (CheckpointError, DownloadError):
        raise
    except Exception as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if type(error).__name__ in ("RepositoryNotFoundError", "GatedRepoError"):
            advice = (
                "check the name: there is no local folder of this name either; a private model needs `hf auth login`"
            )
        else:
            advice = "check the network, or set HF_ENDPOINT to a mirror; the next attempt resumes the download"
        raise DownloadError(f"cannot download {repository} from the hub: {reason} ({advice})") from error


def _offline_error(name: str, remedy: str) -> DownloadError:
    return DownloadError(f"{name} is not on this machine and offline mode is on; run once online, {remedy}")

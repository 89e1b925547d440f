"""From a name to files on this machine: downloads that resume, are verified, and are never needed twice.

A hub folder goes through ``huggingface_hub``, into its cache and checked by it; only the files that a model needs are
taken. A ``.pth`` file goes into ``$OPENBLIP_CACHE``, else ``openblip`` inside Hugging Face's home (``$HF_HOME``, else
``~/.cache/huggingface``), beside a ``.sha256`` file in the manner of ``sha256sum``: the hash that was published, where
one was, else the hash of the first download; a file that changed since is refused.

Offline mode (``HF_HUB_OFFLINE=1``, or ``offline=True``) uses only what is there. Mirrors: ``HF_ENDPOINT`` for the hub,
``OPENBLIP_MIRROR`` for ``.pth`` files (an address under which they lie by file name).
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from openblip.checkpoints import published
from openblip.errors import CheckpointError, DownloadError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_BESIDE_WEIGHTS = (
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
_VOCABULARY = ("google-bert/bert-base-uncased", "bert-base-uncased")  # today's name, and the one old caches have
_VOCABULARY_SIZE = 30522

ATTEMPTS = 4  # connections in a row that bring nothing before a download is given up
PAUSE = 1.0  # seconds before the second one; doubled each time
TIMEOUT = 30.0  # seconds without a byte
_CHUNK = 1 << 20


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    offline: bool | None = None,
    mirror: str | None = None,
    endpoint: str | None = None,
) -> Path:
    """The local file or folder of a checkpoint, fetched if need be.

    ``name_or_path`` is a path, any name in :mod:`openblip.checkpoints.published`, a hub id (``owner/name``), or the
    https address of a ``.pth``. What exists as a path is never looked up by name.

    Raises :class:`CheckpointError` for a name that means nothing, :class:`DownloadError` for one that cannot be had.
    """
    path = Path(name_or_path).expanduser()
    if path.exists():
        return path
    name = os.fspath(name_or_path)
    if offline is None:
        offline = is_offline()
    if entry := published.find(name):
        if entry.family == "hub":
            return _hub_folder(entry.address, offline, endpoint)
        mirror = mirror or os.environ.get("OPENBLIP_MIRROR")
        address = f"{mirror.rstrip('/')}/{entry.file}" if mirror else entry.address
        return download(address, cache_folder(), digits=entry.digits, offline=offline)
    if name.startswith(("https://", "http://")):
        apart = hashlib.sha256(name.encode()).hexdigest()[:12]  # two addresses may end in one file name
        return download(name, cache_folder() / apart, offline=offline)
    if is_hub_id(name):
        return _hub_folder(name, offline, endpoint)
    if name == "pocket" or name in published.BUNDLES:
        raise CheckpointError(f"{name!r} is a bundle of several models; name one of them (see `openblip models`)")
    raise CheckpointError(
        f"{name!r} is neither a file or folder here, nor a published name, nor a hub id"
        f"{published.did_you_mean(name)}; see `openblip models`"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name has the form ``owner/name``, and is not plainly a file."""
    return bool(_HUB_ID.fullmatch(name)) and not name.endswith((".pth", ".json"))


def is_offline() -> bool:
    """Whether the environment forbids the network; read at each call, so that it can be set late."""
    return os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")


def cache_folder() -> Path:
    """Where downloaded ``.pth`` files are kept."""
    if own := os.environ.get("OPENBLIP_CACHE"):
        return Path(own).expanduser()
    general = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    home = os.environ.get("HF_HOME") or f"{general}/huggingface"
    return Path(home).expanduser() / "openblip"


def bert_vocabulary(*, offline: bool | None = None, endpoint: str | None = None) -> Path:
    """``vocab.txt`` of bert-base-uncased, the vocabulary of every published ``.pth``: fetched once, then cached."""
    for repository in _VOCABULARY:
        if found := _cached(repository, "vocab.txt"):
            return _whole_vocabulary(found)
    if is_offline() if offline is None else offline:
        raise _absent_offline(_VOCABULARY[0], "or give the vocabulary: tokenizer='path/to/vocab.txt'")
    from huggingface_hub import hf_hub_download

    with _hub_errors(_VOCABULARY[0]):
        return _whole_vocabulary(Path(str(hf_hub_download(_VOCABULARY[0], "vocab.txt", endpoint=endpoint))))


def _whole_vocabulary(path: Path) -> Path:
    with path.open(encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    if count != _VOCABULARY_SIZE:
        raise DownloadError(f"{path} has {count} lines where bert-base-uncased has {_VOCABULARY_SIZE}; delete it")
    return path


# Hub folders


def _hub_folder(repository: str, offline: bool, endpoint: str | None) -> Path:
    """The verified snapshot of a repository with its configuration, weights and tokenizer.

    A complete older one serves if the hub cannot be reached.
    """
    config = _cached(repository, "config.json")
    cached = config.parent if config and _is_complete(config.parent) else None
    if offline:
        if cached is None:
            raise _absent_offline(repository, "or give a local folder")
        return _verified(cached, {})
    from huggingface_hub import HfApi, snapshot_download

    try:
        with _hub_errors(repository):
            info = HfApi(endpoint=endpoint).model_info(repository, files_metadata=True)
            siblings = info.siblings or ()
            names = [file.rfilename for file in siblings]
            wanted = _weights(names) + [name for name in _BESIDE_WEIGHTS if name in names]
            if not _weights(names):
                raise CheckpointError(f"{repository} on the hub has neither model.safetensors nor pytorch_model.bin")
            folder = Path(str(snapshot_download(repository, allow_patterns=wanted, endpoint=endpoint)))
    except DownloadError:
        if cached is None:
            raise
        return _verified(cached, {})
    return _verified(folder, {file.rfilename: file.lfs.sha256 for file in siblings if file.lfs})


def _weights(names: Sequence[str]) -> list[str]:
    """Of all files of a folder those that hold its weights, once: safetensors if there are any; with their index."""
    for kind, single in (("safetensors", "model.safetensors"), ("bin", "pytorch_model.bin")):
        if single in names:
            return [single]
        if (index := f"{single}.index.json") in names:
            return [index, *(name for name in names if _SHARD.fullmatch(name) and name.endswith(kind))]
    return []


def _is_complete(folder: Path) -> bool:
    """Whether a cached snapshot has all its weights; another program may have fetched a part of it."""
    weights = _weights([path.name for path in folder.iterdir()])
    if weights and weights[0].endswith(".index.json"):
        index = json.loads((folder / weights[0]).read_text(encoding="utf-8"))
        return set(index["weight_map"].values()) <= set(weights)
    return bool(weights)


def _verified(folder: Path, told: Mapping[str, str]) -> Path:
    """``folder``, after its weights were compared with the sha256 that the hub publishes (``told``, by file name).

    The hub's client compares lengths only. Its cache names large files by their sha256, which serves offline. A file
    is hashed when it is first seen, and again if its size or time changed.
    """
    for name in _weights([path.name for path in folder.iterdir()]):
        link = folder / name
        blob = link.resolve()
        expected = told.get(name) or blob.name
        if not _SHA256.fullmatch(expected):  # a small file, kept in git: nothing is published
            continue
        stat = blob.stat()
        state = f"{stat.st_size} {stat.st_mtime_ns}"
        seen = cache_folder() / "verified" / expected
        with contextlib.suppress(OSError):
            if seen.read_text() == state:
                continue
        if (found := _sha256(blob)) != expected:
            rejected = blob.with_name(f"{blob.name}.rejected")
            blob.replace(rejected)
            link.unlink(missing_ok=True)
            raise DownloadError(
                f"{name} is not what the hub published: its sha256 is {found}, not {expected}; kept as {rejected} for "
                "you to look at. Fetch it again"
            )
        with contextlib.suppress(OSError):
            seen.parent.mkdir(parents=True, exist_ok=True)
            seen.write_text(state)
    return folder


def _cached(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


@contextlib.contextmanager
def _hub_errors(repository: str) -> Iterator[None]:
    """Any failure of the hub's client as a :class:`DownloadError`.

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
            advice = "check its name: no local folder is called that either; a private one needs `hf auth login`"
        else:
            advice = "check the network, or set HF_ENDPOINT to a mirror; a second try continues where this one stopped"
        raise DownloadError(f"cannot fetch {repository} from the hub: {reason} ({advice})") from error


def _absent_offline(what: str, otherwise: str) -> DownloadError:
    return DownloadError(f"{what} is not on this machine and offline mode is on; run once online, {otherwise}")


# Single files


def download(address: str, folder: Path, *, digits: str | None = None, offline: bool = False) -> Path:
    """The file at ``address`` inside ``folder``, fetched unless it is there, and checked either way.

    An interrupted download is continued by the next call. Several processes may ask for one file at once: one fetches
    it, the others wait. ``digits`` are the first hex digits of its sha256, where they are published; a file that does
    not match is kept aside as ``NAME.rejected``.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
    target = folder / name
    if target.exists():
        return _unchanged(target, digits)
    if offline:
        raise _absent_offline(name, f"or put the file from {address} at {target}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / f"{name}.lock"):
            if target.exists():  # fetched by another process meanwhile
                return _unchanged(target, digits)
            part = folder / f"{name}.part"
            _transfer(address, part)
            _accept(part, target, digits)
    except OSError as error:
        raise DownloadError(
            f"cannot store {name} in {folder}: {error.strerror or error} (OPENBLIP_CACHE names another place)"
        ) from error
    return target


def _accept(part: Path, target: Path, digits: str | None) -> None:
    """Move a complete download to its place, if it is what was published."""
    found = _sha256(part)
    part.with_suffix(".validator").unlink(missing_ok=True)
    if digits and not found.startswith(digits):
        rejected = target.with_name(f"{target.name}.rejected")
        part.replace(rejected)
        raise DownloadError(
            f"{target.name} is not what was published: its sha256 begins with {found[: len(digits)]}, not {digits}; "
            f"kept as {rejected} for you to look at. Fetch it again, from another mirror if it happens twice"
        )
    part.replace(target)
    _record(target, found)


def _unchanged(target: Path, digits: str | None) -> Path:
    """``target``, after a check against its recorded hash; it is read again only if its size or time changed."""
    stat = target.stat()
    recorded, seen = _recorded(target)
    if recorded and seen == (stat.st_size, stat.st_mtime_ns):
        return target
    found = _sha256(target)
    if not found.startswith(recorded or digits or ""):
        raise DownloadError(
            f"{target} has changed since it was downloaded: its sha256 is {found}, not {recorded or digits}...; "
            "delete it to fetch it again"
        )
    _record(target, found)
    return target


def _record(target: Path, found: str) -> None:
    """Write ``NAME.sha256``, which ``sha256sum -c`` reads; the comment tells which state of the file was hashed."""
    stat = target.stat()
    beside = target.with_name(f"{target.name}.sha256")
    temporary = beside.with_name(f"{beside.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a cache that is read-only serves all the same
        temporary.write_text(f"# size {stat.st_size} time {stat.st_mtime_ns}\n{found}  {target.name}\n")
        temporary.replace(beside)


def _recorded(target: Path) -> tuple[str | None, tuple[int, int]]:
    """The hash in ``NAME.sha256`` with the size and time of the file it was taken from; ``None`` if there is none."""
    try:
        text = target.with_name(f"{target.name}.sha256").read_text()
    except OSError:
        return None, (-1, -1)
    found = re.search(r"^([0-9a-f]{64})  ", text, re.MULTILINE)
    state = re.search(r"^# size (\d+) time (\d+)$", text, re.MULTILINE)
    return found and found[1], (int(state[1]), int(state[2])) if state else (-1, -1)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# The transfer


class _Interrupted(Exception):  # noqa: N818 (an event, not a fault)
    """The connection ended early, or the server is busy: worth another try."""


def _transfer(address: str, part: Path) -> None:
    """Bring ``part`` to its full length, over as many connections as it takes while each one brings something."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _one_connection(address, part, before)
            return
        except _Interrupted as error:
            failures = 1 if part.exists() and part.stat().st_size > before else failures + 1
            if failures == ATTEMPTS:
                raise DownloadError(
                    f"cannot fetch {address}: {error}. What came is kept and continued next time; check the network, "
                    "or set OPENBLIP_MIRROR"
                ) from error
            time.sleep(PAUSE * 2 ** (failures - 1))


def _one_connection(address: str, part: Path, have: int) -> None:
    """Append to ``part`` from byte ``have`` on if the file is still the one it began as, else start over."""
    validator = part.with_suffix(".validator")
    headers = {"User-Agent": "openblip", "Accept-Encoding": "identity"}
    if have and validator.exists():
        headers |= {"Range": f"bytes={have}-", "If-Range": validator.read_text()}
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        raise _refusal(error, address, part) from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error) from error
    with response:
        start, total = _extent(response)
        if start != have:  # another version of the file, or a server that cannot continue
            start = 0
        _has_room(part, total, start)
        _remember(response, validator)
        with part.open("ab" if start else "wb") as file, _progress(part.stem, start, total) as advance:
            for chunk in _chunks(response):
                file.write(chunk)
                advance(len(chunk))
    size = part.stat().st_size
    if total is not None and size != total:
        raise _Interrupted(f"the connection ended after {size} of {total} bytes")


def _refusal(error: urllib.error.HTTPError, address: str, part: Path) -> Exception:
    """What an HTTP error status means for us."""
    if error.code == 416:  # what we have is longer than the file, or not of it
        part.unlink(missing_ok=True)
        return _Interrupted("the part that was there does not belong to the file")
    if error.code in (408, 425, 429) or error.code >= 500:
        return _Interrupted(f"the server says {error.code} {error.reason}")
    return DownloadError(f"cannot fetch {address}: the server says {error.code} {error.reason}")


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Which byte the body begins at, and how long the whole file is, as far as the server tells."""
    if response.status == 206:
        if match := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "")):
            return int(match[1]), int(match[2])
        raise _Interrupted("the server sent a part without saying which")
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _remember(response: http.client.HTTPResponse, validator: Path) -> None:
    """Note what identifies this version of the file, so that a later connection continues no other one."""
    tag = response.headers.get("ETag") or ""
    mark = response.headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
    if mark:
        validator.write_text(mark)
    else:
        validator.unlink(missing_ok=True)


def _has_room(part: Path, total: int | None, start: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if total is not None and total - start > free:
        raise DownloadError(
            f"{part.stem} needs {(total - start) / 1e9:.1f} GB and {part.parent} has {free / 1e9:.1f} GB left; "
            "make room, or let OPENBLIP_CACHE name another place"
        )


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body; a failure to read it is the network's, and never mistaken for a failure to write."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _broken(error) from error
        if not chunk:
            return
        yield chunk


def _broken(error: Exception) -> _Interrupted:
    return _Interrupted(str(getattr(error, "reason", error)) or type(error).__name__)


@contextlib.contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on standard error if somebody looks at it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.advance(task, count)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold ``path`` against other processes and threads; the system lets go of it when the holder dies."""
    with path.open("a") as file:
        if sys.platform == "win32":
            import msvcrt

            while True:
                try:
                    msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)  # gives up after ten seconds
                    break
                except OSError:
                    continue
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield

"""HTTP downloads that resume, are verified, and are made once, whatever the number of processes that ask.

A complete file `NAME` has a file `NAME.sha256` next to it, which `sha256sum -c` reads: the published hash where there
is one, otherwise the hash of the first download. A file that changed since is refused. An incomplete download is
`NAME.part`, with the identifier of its version in `NAME.validator`.
"""

from __future__ import annotations

import contextlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import filelock

from openblip.errors import DownloadError
from openblip.io import progress
from openblip.io.atomic import write_text
from openblip.io.hashing import compute_sha256, sha256, store_sha256

ATTEMPTS = 4
"""Connections in a row without a byte before a download fails."""
PAUSE_SECONDS = 1.0
"""Pause before the second connection. It doubles each time."""
TIMEOUT_SECONDS = 30.0
"""Longest wait for the next byte."""
_CHUNK = 1 << 20


def download(address: str, folder: Path, *, digits: str | None = None, offline: bool = False) -> Path:
    """Return the file at `address` in `folder`; download it if it is not there, and verify it in both cases.

    An interrupted download is resumed by the next call. If several processes ask for a file at the same time, one
    downloads it and the others wait.

    Args:
        address: An HTTP address. The last part of its path is the file's name.
        folder: The folder to store the file in.
        digits: The first hexadecimal digits of the published SHA-256. A file that does not match is kept as
            `NAME.rejected`.
        offline: Use the network for nothing; the file must be there.

    Returns:
        The path of the file.

    Raises:
        DownloadError: If the file cannot be downloaded or stored, or if its hash is wrong.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(address).path)).name
    target = folder / name
    if target.exists():
        return _verify(target, digits)
    if offline:
        raise DownloadError(
            f"{name} is not on this machine and offline mode is on; run once online, or copy the file from {address} "
            f"to {target}"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / f"{name}.lock"):
            if target.exists():  # another process downloaded it in the meantime
                return _verify(target, digits)
            partial_file = folder / f"{name}.part"
            _transfer(address, partial_file)
            _accept(partial_file, target, digits)
    except OSError as error:
        raise DownloadError(
            f"cannot store {name} in {folder}: {error.strerror or error}; set OPENBLIP_CACHE to another folder"
        ) from error
    return target


def _verify(target: Path, digits: str | None) -> Path:
    """Return `target` if its hash is the recorded or the published one."""
    record = target.with_name(f"{target.name}.sha256")
    match = None
    with contextlib.suppress(OSError):
        match = re.search(r"^([0-9a-f]{64})  ", record.read_text(encoding="utf-8"), re.MULTILINE)
    expected = match[1] if match else digits or ""
    digest = sha256(target)
    if not digest.startswith(expected):
        raise DownloadError(
            f"{target} has changed since it was downloaded: its SHA-256 must begin with {expected}, got {digest}; "
            "delete the file to download it again"
        )
    if match is None:
        _record(target, digest)
    return target


def _accept(partial_file: Path, target: Path, digits: str | None) -> None:
    """Rename a complete download to its final name, if its hash is the published one."""
    digest = compute_sha256(partial_file)
    partial_file.with_suffix(".validator").unlink(missing_ok=True)
    if digits and not digest.startswith(digits):
        rejected = target.with_name(f"{target.name}.rejected")
        partial_file.replace(rejected)
        raise DownloadError(
            f"{target.name} is not the published file: its SHA-256 must begin with {digits}, got "
            f"{digest[: len(digits)]}; the file is kept as {rejected}. Download it again, from another mirror if this "
            "happens twice"
        )
    partial_file.replace(target)
    store_sha256(target, digest)
    _record(target, digest)


def _record(target: Path, digest: str) -> None:
    """Write `NAME.sha256`. A read-only folder works without it."""
    with contextlib.suppress(OSError):
        write_text(target.with_name(f"{target.name}.sha256"), f"{digest}  {target.name}\n")


class _InterruptedError(Exception):
    """The connection ended early, or the server is busy: try again."""


def _transfer(address: str, partial_file: Path) -> None:
    """Complete a partial file, over as many connections as it takes while each of them brings something."""
    failures = 0
    while True:
        size = partial_file.stat().st_size if partial_file.exists() else 0
        try:
            _fetch_once(address, partial_file, size)
            return
        except _InterruptedError as error:
            progressed = partial_file.exists() and partial_file.stat().st_size > size
            failures = 1 if progressed else failures + 1
            if failures == ATTEMPTS:
                raise DownloadError(
                    f"cannot download {address}: {error}. The next call resumes the download; check the network, or "
                    "set OPENBLIP_MIRROR"
                ) from error
            time.sleep(PAUSE_SECONDS * 2 ** (failures - 1))


def _fetch_once(address: str, partial_file: Path, size: int) -> None:
    """Append to a file from byte `size` if the server still has the same version of the file, otherwise start again."""
    validator = partial_file.with_suffix(".validator")
    headers = {"User-Agent": "openblip", "Accept-Encoding": "identity"}
    if size and validator.exists():
        headers |= {"Range": f"bytes={size}-", "If-Range": validator.read_text(encoding="utf-8")}
    try:
        request = urllib.request.Request(address, headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the partial file is longer than the file, or of another version
            partial_file.unlink(missing_ok=True)
            raise _InterruptedError("the partial file does not belong to the file on the server") from error
        if error.code in (408, 425, 429) or error.code >= 500:
            raise _InterruptedError(f"the server responds {error.code} {error.reason}") from error
        raise DownloadError(f"cannot download {address}: the server responds {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _interrupted(error) from error
    with response:
        start, total = _parse_extent(response)
        if start != size:  # another version of the file, or a server that cannot resume
            start = 0
        _check_room(partial_file, total, start)
        _write_validator(response, validator)
        with (
            partial_file.open("ab" if start else "wb") as file,
            progress.bar(partial_file.stem, total, done=start, unit="bytes", transient=False) as bar,
        ):
            for chunk in _iter_chunks(response):
                file.write(chunk)
                bar.advance(len(chunk))
    size = partial_file.stat().st_size
    if total is not None and size != total:
        raise _InterruptedError(f"the connection ended after {size} of {total} bytes")


def _parse_extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return the position of the body's first byte, and the length of the file if the server states it."""
    if response.status == 206:
        if match := re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", "")):
            return int(match[1]), int(match[2])
        raise _InterruptedError("the server sent a part of the file without its position")
    length = response.headers.get("Content-Length")
    return 0, int(length) if length else None


def _write_validator(response: http.client.HTTPResponse, validator: Path) -> None:
    """Store the identifier of this version of the file, so that no other version is appended to it."""
    tag = response.headers.get("ETag") or ""
    identifier = response.headers.get("Last-Modified") if not tag or tag.startswith("W/") else tag
    if identifier:
        validator.write_text(identifier, encoding="utf-8")
    else:
        validator.unlink(missing_ok=True)


def _check_room(partial_file: Path, total: int | None, start: int) -> None:
    folder = partial_file.parent
    free = shutil.disk_usage(folder).free
    if total is not None and total - start > free:
        raise DownloadError(
            f"{partial_file.stem} needs {(total - start) / 1e9:.1f} GB, but {folder} has {free / 1e9:.1f} GB left; "
            "free some space, or set OPENBLIP_CACHE to another folder"
        )


def _iter_chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield the body. A failure to read it is the network's, and must not look like a failure to write."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, http.client.HTTPException) as error:
            raise _interrupted(error) from error
        if not chunk:
            return
        yield chunk


def _interrupted(error: Exception) -> _InterruptedError:
    return _InterruptedError(str(getattr(error, "reason", error)) or type(error).__name__)

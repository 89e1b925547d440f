"""Write files and folders so that a reader finds the old content or the new content, never a part.

Every function writes to a temporary name in the target's folder and renames it when writing is complete. If writing
fails, the temporary file is removed and the target stays as it was. All functions create missing parent folders, and
raise `OSError` as the file system does. A file that replaces another one keeps its permissions and, where the system
allows it, its owner and its extended attributes. A symbolic link stays a link, and the file that it names is replaced.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import IO, Any


@contextmanager
def replace_path(
    path: str | os.PathLike[str],
    *,
    sync: bool = False,
    fixed_name: bool = False,
    times_ns: tuple[int, int] | None = None,
    strict: bool = False,
) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename it to `path` when the block ends without an error.

    Args:
        path: The file to create or replace.
        sync: Flush the content to the disk before the rename, so that a crash of the machine cannot leave an empty
            file under the new name.
        fixed_name: Use the same temporary name in every process, so that killed processes leave at most one file, which
            the next process overwrites. Only for callers that hold a lock.
        times_ns: Access and modification time of the new file, in nanoseconds. The default is the time of writing.
        strict: Raise `OSError` if the new file cannot keep the owner, the extended attributes or the hard links of the
            file that it replaces.

    Yields:
        The temporary path, in the folder of `path`. Its name is short, whatever the length of the target's name.
    """
    target = Path(os.path.realpath(path))
    if strict:
        check_replaceable(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(target, fixed_name)
    try:
        yield temporary
        if sync:
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
        if target.exists():
            _keep_identity(target, temporary, strict)
        if times_ns is not None:
            os.utime(temporary, ns=times_ns)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_file(
    path: str | os.PathLike[str],
    *,
    sync: bool = False,
    fixed_name: bool = False,
    times_ns: tuple[int, int] | None = None,
    strict: bool = False,
) -> Iterator[IO[bytes]]:
    """Yield a binary file to write to, which becomes `path` when the block ends without an error.

    Args:
        path: The file to create or replace.
        sync: See [`replace_path`][openblip.io.atomic.replace_path].
        fixed_name: See [`replace_path`][openblip.io.atomic.replace_path].
        times_ns: See [`replace_path`][openblip.io.atomic.replace_path].
        strict: See [`replace_path`][openblip.io.atomic.replace_path].

    Yields:
        The temporary file, open for writing.
    """
    replacement = replace_path(path, sync=sync, fixed_name=fixed_name, times_ns=times_ns, strict=strict)
    with replacement as temporary, temporary.open("wb") as file:
        yield file


def check_replaceable(path: str | os.PathLike[str]) -> None:
    """Check that a file can be replaced, or created, and that a replacement would keep its identity.

    Args:
        path: The file. A symbolic link stands for the file that it names.

    Raises:
        OSError: The folder or the file is write-protected, or a new file could not keep the owner or the hard links of
            the file. `strerror` is the reason.
    """
    target = Path(os.path.realpath(path))
    folder = target.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{folder} is not a folder", str(path))
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, f"the folder {folder} is write-protected", str(path))
    try:
        status = target.stat()
    except FileNotFoundError:
        return
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    if not os.access(target, os.W_OK):
        raise PermissionError(errno.EACCES, "the file is write-protected", str(path))
    if status.st_nlink > 1:
        reason = f"the file has {status.st_nlink} hard links, and the new file would be separate from them"
        raise OSError(errno.EMLINK, reason, str(path))
    if hasattr(os, "geteuid") and os.geteuid() not in (0, status.st_uid):
        raise PermissionError(errno.EPERM, "the file belongs to another user, and the new file would not", str(path))


def _keep_identity(target: Path, temporary: Path, strict: bool) -> None:
    """Give the temporary file the owner, the permissions and the extended attributes of the file that it replaces."""
    status, own_status = target.stat(), temporary.stat()
    if hasattr(os, "chown") and (status.st_uid, status.st_gid) != (own_status.st_uid, own_status.st_gid):
        try:
            os.chown(temporary, status.st_uid, status.st_gid)
        except OSError as error:
            if strict:
                raise OSError(error.errno, "the new file could not keep the owner and the group of the file") from error
    temporary.chmod(stat.S_IMODE(status.st_mode))
    if not hasattr(os, "listxattr"):
        return
    try:
        names = os.listxattr(target)
    except OSError:  # a file system without extended attributes
        return
    for name in names:
        try:
            os.setxattr(temporary, name, os.getxattr(target, name))
        except OSError as error:  # noqa: PERF203 (the system sets its own labels itself)
            if strict and not name.startswith("security."):
                reason = f"the new file could not keep the extended attribute {name} of the file"
                raise OSError(error.errno, reason) from error


def write_bytes(path: str | os.PathLike[str], content: bytes, *, sync: bool = False) -> None:
    """Write `content` to `path`, completely or not at all.

    Args:
        path: The file to create or replace.
        content: The new content.
        sync: Flush the content to the disk before the rename.
    """
    with replace_file(path, sync=sync) as file:
        file.write(content)


def write_text(path: str | os.PathLike[str], text: str, *, sync: bool = False) -> None:
    """Write `text` to `path` as UTF-8, completely or not at all. Line ends are written as they are.

    Args:
        path: The file to create or replace.
        text: The new content.
        sync: Flush the content to the disk before the rename.

    Raises:
        UnicodeEncodeError: If `text` contains a lone surrogate.
    """
    write_bytes(path, text.encode(), sync=sync)


def write_json(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2, sort_keys: bool = False) -> None:
    """Write `value` to `path` as JSON with a final line end, completely or not at all.

    Args:
        path: The file to create or replace.
        value: Anything that `json` can write. Text that is not ASCII stays readable.
        indent: Spaces per level, or `None` for one line.
        sort_keys: Write the keys of objects in alphabetical order.
    """
    write_text(path, json.dumps(value, indent=indent, sort_keys=sort_keys, ensure_ascii=False) + "\n")


@contextmanager
def replace_folder(
    path: str | os.PathLike[str], *, final_file: str | None = None, stale: Sequence[str] = ()
) -> Iterator[Path]:
    """Yield an empty folder to fill, whose files move to `path` when the block ends without an error.

    A new folder appears at once and complete. In an existing folder files are replaced one by one. There, the file
    `final_file` is removed first and written at the end, so that a folder in which writing was interrupted is refused,
    not mistaken for a mixture of old and new files.

    Args:
        path: The folder to create, or whose files to replace. Other files in it stay.
        final_file: Name of the file without which the folder is incomplete.
        stale: Names of files to remove from an existing folder.

    Yields:
        The temporary folder, in the parent folder of `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(target)
    temporary.mkdir()
    try:
        yield temporary
        if not target.exists():
            temporary.replace(target)
            return
        for name in (*([final_file] if final_file else ()), *stale):
            (target / name).unlink(missing_ok=True)
        for file in sorted(temporary.iterdir(), key=lambda file: file.name == final_file):
            file.replace(target / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def create_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty folder to fill, which becomes `path` when the block ends without an error.

    If another process created `path` in the meantime, its folder stays, and this one is removed. For caches, where
    every process writes the same content.

    Args:
        path: The folder to create.

    Yields:
        The temporary folder, in the parent folder of `path`.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary_path(target)
    temporary.mkdir()
    try:
        yield temporary
        try:
            temporary.rename(target)
        except OSError:
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary_path(target: Path, fixed_name: bool = False) -> Path:
    """Return a hidden name in the folder of `target`. It is short, because names of 255 bytes leave no room."""
    token = blake2b(os.fsencode(target.name), digest_size=6).hexdigest() if fixed_name else secrets.token_hex(6)
    return target.with_name(f".openblip-{token}.part")

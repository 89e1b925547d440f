"""The embedded store: a folder with a memory-mapped matrix, and SQLite for everything else.

| File | Content |
| --- | --- |
| `index.sqlite` | settings, images, and captions with a full-text index (FTS5); in WAL mode |
| `vectors-G.fp32` | embeddings, one row per image, in the G-th generation of the file |
| `states-G.fp16` | image states, if the index stores them |

A batch appends rows to the files, flushes them to disk, and commits the transaction that refers to them. Rows without a
transaction are left over from a killed process; the next batch overwrites them. Removed images leave unused rows, which
`compact` drops by writing files of a new generation.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
from numpy.typing import NDArray

from openblip.errors import SearchError
from openblip.search.images import Batch, ImagePage, IndexedImage, Neighbors, parse_cursor
from openblip.search.matrix import MatrixFile, Rows
from openblip.search.scan import Indices, Scanner
from openblip.search.settings import Filter, IndexSettings
from openblip.search.store import Store

FILE = "index.sqlite"
_CHUNK = 500  # values in one IN (...)
_ATTEMPTS = 5
_TIMEOUT = 30.0  # seconds to wait for another process's commit
_SCHEMA = """
CREATE TABLE settings (name TEXT PRIMARY KEY, value NOT NULL) WITHOUT ROWID;
CREATE TABLE roots (path TEXT PRIMARY KEY, recursive INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    path TEXT NOT NULL UNIQUE,
    root TEXT NOT NULL,
    hash TEXT NOT NULL,
    stamp TEXT NOT NULL,
    date TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    caption_source TEXT NOT NULL,
    caption_stamp TEXT NOT NULL,
    vector INTEGER NOT NULL UNIQUE,
    state INTEGER
);
CREATE INDEX images_by_hash ON images (hash);
CREATE INDEX images_by_date ON images (date DESC, number DESC);
CREATE INDEX images_by_state ON images (state) WHERE state IS NOT NULL;
CREATE TABLE unused (vector INTEGER PRIMARY KEY);
CREATE VIRTUAL TABLE captions USING fts5 (caption, tokenize = 'unicode61 remove_diacritics 2');
"""
_COLUMNS = (
    *("id", "path", "root", "hash", "stamp", "date", "width", "height"),
    *("caption_source", "caption_stamp", "caption"),
)
_SELECT = (
    f"SELECT {', '.join(f'images.{name}' for name in _COLUMNS[:-1])}, captions.caption, images.number, images.vector "
    "FROM images LEFT JOIN captions ON captions.rowid = images.number"
)


@dataclass(frozen=True)
class _View:
    """A reader's view of the files.

    Attributes:
        generation: Generation of the files.
        changes: Number of committed batches.
        scanner: Searches the embeddings (N, E).
        unused: Rows without an image.
        states: The stored image states.
    """

    generation: int
    changes: int
    scanner: Scanner
    unused: Indices
    states: Rows

    @property
    def vectors(self) -> Rows:
        return self.scanner.matrix


class LocalStore(Store):
    """The embedded store in a folder.

    Args:
        folder: The folder of the index.

    Raises:
        SearchError: There is no index, or it cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.location = str(folder)
        self._lock = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        self._view: _View | None = None
        self._closed = False
        if not (folder / FILE).is_file():
            raise SearchError(
                f"{folder} must be an index, but has no {FILE}; make one: openblip index FOLDER --out DIR"
            )
        with _translate_errors(folder), _closing(self._connect()) as connection:
            self.settings = IndexSettings.from_json(str(_read_settings(connection).get("settings", "")))

    @staticmethod
    def create(folder: Path, settings: IndexSettings) -> LocalStore:
        """Create an empty store.

        Args:
            folder: A folder that does not exist or is empty.
            settings: The settings of the index.

        Returns:
            The store.

        Raises:
            SearchError: The folder has files, or cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SearchError(f"cannot create {folder}: {error.strerror or error}") from error
        _check_empty(folder)
        with _locked(folder):
            _check_empty(folder)  # another process may have made the index in the meantime
            LocalStore._create_database(folder, settings)
        return LocalStore(folder)

    @staticmethod
    def _create_database(folder: Path, settings: IndexSettings) -> None:
        temporary = folder / f"{FILE}.new"
        for leftover in (temporary, folder / f"{FILE}.new-journal"):
            leftover.unlink(missing_ok=True)
        with _translate_errors(folder), _closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
            connection.executescript(f"BEGIN;{_SCHEMA}")
            values = {"settings": settings.to_json(), "rows": 0, "state_rows": 0, "generation": 0, "changes": 0}
            connection.executemany("INSERT INTO settings VALUES (?, ?)", values.items())
            connection.execute("COMMIT")
        temporary.replace(folder / FILE)

    # Reading. A read transaction sees one state of the database, and the rows that it refers to.

    def count(self) -> int:
        """Return the number of images."""
        with self._reading() as (connection, _):
            return int(connection.execute("SELECT count(*) FROM images").fetchone()[0])

    def changes(self) -> int:
        """Return the number of changes of the index.

        Returns:
            The number of committed batches and compactions.
        """
        with self._reading() as (_, view):
            return view.changes

    def file_bytes(self, name: str) -> int:
        """Return the size of the committed rows of a file.

        Args:
            name: Name of a file of embeddings or states.

        Returns:
            The number of bytes. After a process was killed, the file can be longer.
        """
        with self._reading() as (_, view):
            return (view.vectors if name.startswith("vectors-") else view.states).nbytes

    def roots(self) -> dict[str, bool]:
        """Return the indexed folders, and whether their subfolders are indexed."""
        with self._reading() as (connection, _):
            rows = connection.execute("SELECT path, recursive FROM roots ORDER BY path")
            return {path: bool(recursive) for path, recursive in rows}

    def find_paths(self, paths: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these paths, by path."""
        with self._reading() as (connection, _):
            return {image.path: image for image, _, _ in _select_in(connection, "path", paths)}

    def find_hashes(self, hashes: Sequence[str]) -> dict[str, list[IndexedImage]]:
        """Return the images with these hashes, by hash."""
        images: dict[str, list[IndexedImage]] = {}
        with self._reading() as (connection, _):
            for image, _, _ in _select_in(connection, "hash", hashes):
                images.setdefault(image.hash, []).append(image)
        return images

    def find_ids(self, ids: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these ids, by id."""
        with self._reading() as (connection, _):
            return {image.id: image for image, _, _ in _select_in(connection, "id", ids)}

    def iter_images(self, folder: str | None = None) -> Iterator[IndexedImage]:
        """Yield the images below a folder, or all images, in the order of their paths."""
        clause, values = ("", []) if folder is None else _below([folder.rstrip(os.sep) + os.sep])
        position = ""
        while True:
            with self._reading() as (connection, _):
                condition = f"images.path > ? AND {clause}" if clause else "images.path > ?"
                rows = connection.execute(
                    f"{_SELECT} WHERE {condition} ORDER BY images.path LIMIT 1000", [position, *values]
                ).fetchall()
            yield from (_to_image(row) for row in rows)
            if len(rows) < 1000:
                return
            position = rows[-1][1]

    def list_images(self, n: int, cursor: str | None, where: Filter) -> ImagePage:
        """Return one page of the images that pass a filter, the newest first."""
        with self._reading() as (connection, _):
            clause, values = self._condition(connection, where)
            (total,) = connection.execute(f"SELECT count(*) FROM images WHERE {clause}", values).fetchone()
            if cursor is not None:
                clause += " AND (images.date, images.number) < (?, ?)"
                values = [*values, *parse_cursor(cursor)]
            order = "ORDER BY images.date DESC, images.number DESC LIMIT ?"
            rows = connection.execute(f"{_SELECT} WHERE {clause} {order}", [*values, n + 1]).fetchall()
        images = [_to_image(row) for row in rows[:n]]
        following = f"{images[-1].date}/{rows[n - 1][-2]}" if len(rows) > n else None
        return ImagePage(images, following, total)

    def embeddings(self, ids: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Return the embeddings (E,) of images, by id."""
        with self._reading() as (connection, view):
            rows = _select_in(connection, "id", ids)
            return {image.id: view.vectors[vector].astype(np.float32) for image, _, vector in rows}

    def iter_embeddings(self, size: int) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
        """Yield ids and embeddings of all images, `size` at a time."""
        position = -1
        while True:
            with self._reading() as (connection, view):
                select = "SELECT id, vector FROM images WHERE vector > ? ORDER BY vector LIMIT ?"
                rows = connection.execute(select, (position, size)).fetchall()
                if not rows:
                    return
                vectors = view.vectors[[vector for _, vector in rows]]
            yield [id for id, _ in rows], vectors.astype(np.float32)
            position = rows[-1][1]

    def states(self, ids: Sequence[str]) -> Mapping[str, Rows]:
        """Return the stored states (M, D) of images, by id."""
        states: dict[str, Rows] = {}
        with self._reading() as (connection, view):
            for chunk in _chunks(ids):
                select = f"SELECT id, state FROM images WHERE id IN ({_marks(chunk)}) AND state IS NOT NULL"
                states |= {id: view.states[row] for id, row in connection.execute(select, chunk)}
        return states

    def find_nearest(self, query: NDArray[np.float32], n: int, where: Filter) -> Neighbors:
        """Return the `n` images with the highest cosine among those that pass a filter."""
        with self._reading() as (connection, view):
            rows: Indices | None = None
            if where:
                clause, values = self._condition(connection, where)
                select = f"SELECT vector FROM images WHERE {clause} ORDER BY vector"
                rows = np.fromiter((row for (row,) in connection.execute(select, values)), np.int64)
            excluded = view.unused if rows is None else None
            best, cosines = view.scanner.find(query, n, rows=rows, excluded=excluded)
            images = {vector: image for image, _, vector in _select_in(connection, "vector", best.tolist())}
        searched = len(view.vectors) - len(view.unused) if rows is None else len(rows)
        embeddings = view.vectors[best].astype(np.float32)
        return Neighbors([images[row] for row in best.tolist()], cosines.tolist(), embeddings, searched)

    @contextmanager
    def _reading(self) -> Iterator[tuple[sqlite3.Connection, _View]]:
        """Yield a connection in a read transaction, used by this thread only, and its view of the files."""
        with self._lock:
            if self._closed:
                raise SearchError(f"the index {self.location} is closed")
            connection = self._idle.pop() if self._idle else None
        with _translate_errors(self.folder):
            connection = connection or self._connect()
            try:
                for attempt in range(_ATTEMPTS):
                    connection.execute("BEGIN")
                    try:
                        view = self._look(connection)
                        break
                    except FileNotFoundError:  # another process has compacted the index since the transaction began
                        connection.execute("ROLLBACK")
                        if attempt == _ATTEMPTS - 1:
                            raise
                yield connection, view
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                with self._lock:
                    if self._closed:
                        connection.close()
                    else:
                        self._idle.append(connection)

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / FILE
        if os.access(self.folder, os.W_OK):
            connection = sqlite3.connect(path, _TIMEOUT, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        else:  # a read-only copy, which never changes
            address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
            connection = sqlite3.connect(address, _TIMEOUT, isolation_level=None, check_same_thread=False, uri=True)
        return connection

    def _look(self, connection: sqlite3.Connection) -> _View:
        """Return the view of the files in the transaction of a connection."""
        values = _read_settings(connection)
        generation, changes, count = (int(values[name]) for name in ("generation", "changes", "rows"))
        view = self._view
        if view is not None and (view.generation, view.changes) == (generation, changes):
            return view
        unused = np.fromiter((row for (row,) in connection.execute("SELECT vector FROM unused")), np.int64)
        if view is not None and view.generation == generation and len(view.vectors) == count:
            scanner = view.scanner  # only properties changed
        else:
            scanner = Scanner(self._vectors_file(generation).map(count))
        states = self._states_file(generation).map(int(values["state_rows"]))
        view = self._view = _View(generation, changes, scanner, unused, states)
        return view

    def _condition(self, connection: sqlite3.Connection, where: Filter) -> tuple[str, list[Any]]:
        """Return the SQL condition of a filter, and its values."""
        clauses, values = ["TRUE"], list[Any]()
        if where.folder is not None:
            roots = [path for (path,) in connection.execute("SELECT path FROM roots")]
            clause, prefixes = _below(where.prefixes(roots))
            clauses.append(clause)
            values += prefixes
        for operator, date in ((">=", where.start), ("<", where.end)):
            if date is not None:
                clauses.append(f"images.date {operator} ?")
                values.append(date)
        if where.caption is not None:
            quoted = [f'"{term.text}"{"*" if term.prefix else ""}' for term in where.terms]
            clauses.append("images.number IN (SELECT rowid FROM captions WHERE captions MATCH ?)")
            values.append(" AND ".join(quoted))
        return " AND ".join(clauses), values

    # Writing.

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Return a context manager that gives this process exclusive write access."""
        with _locked(self.folder):
            yield

    def write(self, batch: Batch) -> None:
        """Apply changes atomically, and return when they are on disk."""
        with self._writing() as connection:
            values = _read_settings(connection)
            row, state_row = int(values["rows"]), int(values["state_rows"])
            states = [new.states for new in batch.new if new.states is not None]
            if batch.new:
                self._vectors_file(int(values["generation"])).write(row, np.stack([new.embedding for new in batch.new]))
            if states:
                self._states_file(int(values["generation"])).write(state_row, np.stack(states))
            for chunk in _chunks(batch.removed):
                chosen = f"FROM images WHERE id IN ({_marks(chunk)})"
                connection.execute(f"DELETE FROM captions WHERE rowid IN (SELECT number {chosen})", chunk)
                connection.execute(f"INSERT INTO unused SELECT vector {chosen}", chunk)
                connection.execute(f"DELETE {chosen}", chunk)
            for image in batch.updated:
                _set_caption(connection, _update(connection, image), image.caption)
            for new in batch.new:
                state: int | None = None
                if new.states is not None:
                    state, state_row = state_row, state_row + 1
                elif self.settings.states == "stored":
                    select = "SELECT state FROM images WHERE hash = ? AND state IS NOT NULL LIMIT 1"
                    state = next((value for (value,) in connection.execute(select, (new.image.hash,))), None)
                self._put(connection, new.image, row, state)
                row += 1
            changed = {"rows": row, "state_rows": state_row, "changes": int(values["changes"]) + 1}
            _write_settings(connection, changed)

    def set_roots(self, roots: Mapping[str, bool]) -> None:
        """Replace the indexed folders."""
        with self._writing() as connection:
            connection.execute("DELETE FROM roots")
            connection.executemany("INSERT INTO roots VALUES (?, ?)", list(roots.items()))

    def compact(self) -> int:
        """Free the space of removed images, and return the number of bytes freed."""
        with self._writing() as connection:
            values = _read_settings(connection)
            generation = int(values["generation"])
            freed = self._compact_file(connection, "vector", generation, int(values["rows"]))
            if self.settings.states == "stored":
                freed += self._compact_file(connection, "state", generation, int(values["state_rows"]))
            connection.execute("DELETE FROM unused")
            changed = {"generation": generation + 1, "changes": int(values["changes"]) + 1}
            _write_settings(connection, changed)
        for path in self.folder.glob("*-*.fp*"):
            if f"-{generation + 1}.fp" not in path.name:
                with suppress(OSError):  # Windows does not delete a file that a reader maps
                    path.unlink()
        return freed

    def close(self) -> None:
        """Close files and connections."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
        self._view = None

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection in a transaction that is committed at the end of the block."""
        with _translate_errors(self.folder), _closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

    def _put(self, connection: sqlite3.Connection, image: IndexedImage, row: int, state: int | None) -> None:
        """Add an image, or replace the image with its id, whose row becomes unused."""
        previous = connection.execute("SELECT vector FROM images WHERE id = ?", (image.id,)).fetchone()
        if previous is None:
            names = [*_COLUMNS[:-1], "vector", "state"]
            values = [*(getattr(image, name) for name in _COLUMNS[:-1]), row, state]
            cursor = connection.execute(f"INSERT INTO images ({', '.join(names)}) VALUES ({_marks(names)})", values)
            number = int(cursor.lastrowid or 0)
        else:
            number = _update(connection, image)
            connection.execute("INSERT INTO unused VALUES (?)", previous)
            connection.execute("UPDATE images SET vector = ?, state = ? WHERE number = ?", (row, state, number))
        _set_caption(connection, number, image.caption)

    def _compact_file(
        self, connection: sqlite3.Connection, column: Literal["vector", "state"], generation: int, count: int
    ) -> int:
        """Copy the rows in use into the next generation of their file; return the number of bytes freed."""
        open_file = self._vectors_file if column == "vector" else self._states_file
        select = f"SELECT DISTINCT {column} FROM images WHERE {column} IS NOT NULL ORDER BY {column}"
        rows = np.fromiter((row for (row,) in connection.execute(select)), np.int64)
        file = open_file(generation + 1)
        file.copy_rows(open_file(generation).map(count), rows)
        # New numbers are at most the old ones, so that in this order no two rows ever share one.
        numbers = list(enumerate(rows.tolist()))
        connection.executemany(f"UPDATE images SET {column} = ? WHERE {column} = ?", numbers)
        _write_settings(connection, {"rows" if column == "vector" else "state_rows": len(rows)})
        return (count - len(rows)) * file.row_bytes

    def _vectors_file(self, generation: int) -> MatrixFile:
        dtype = self.settings.dtype
        return MatrixFile(self.folder / f"vectors-{generation}.{dtype}", (self.settings.width,), dtype)

    def _states_file(self, generation: int) -> MatrixFile:
        shape = (self.settings.tokens, self.settings.state_width)
        return MatrixFile(self.folder / f"states-{generation}.fp16", shape, "fp16")


def _read_settings(connection: sqlite3.Connection) -> dict[str, str | int]:
    return dict(connection.execute("SELECT name, value FROM settings"))


def _write_settings(connection: sqlite3.Connection, values: Mapping[str, int]) -> None:
    connection.executemany("UPDATE settings SET value = ? WHERE name = ?", [(v, name) for name, v in values.items()])


def _select_in(
    connection: sqlite3.Connection, column: str, values: Sequence[str] | Sequence[int]
) -> Iterator[tuple[IndexedImage, int, int]]:
    """Yield images by the values of a column, with their numbers and the rows of their embeddings."""
    for chunk in _chunks(values):
        for row in connection.execute(f"{_SELECT} WHERE images.{column} IN ({_marks(chunk)})", chunk):
            yield _to_image(row), row[-2], row[-1]


def _to_image(row: Sequence[Any]) -> IndexedImage:
    return IndexedImage(**dict(zip(_COLUMNS, row, strict=False)))


def _update(connection: sqlite3.Connection, image: IndexedImage) -> int:
    """Store the properties of an image except its caption, and return its number."""
    assignments = ", ".join(f"{name} = ?" for name in _COLUMNS[1:-1])
    values = [*(getattr(image, name) for name in _COLUMNS[1:-1]), image.id]
    connection.execute(f"UPDATE images SET {assignments} WHERE id = ?", values)
    (number,) = connection.execute("SELECT number FROM images WHERE id = ?", (image.id,)).fetchone()
    return int(number)


def _set_caption(connection: sqlite3.Connection, number: int, caption: str | None) -> None:
    connection.execute("DELETE FROM captions WHERE rowid = ?", (number,))
    if caption:
        connection.execute("INSERT INTO captions (rowid, caption) VALUES (?, ?)", (number, caption))


def _below(prefixes: Sequence[str]) -> tuple[str, list[str]]:
    """Return the SQL condition that a path starts with one of the prefixes, and its values."""
    clause = " OR ".join("(images.path >= ? AND images.path < ?)" for _ in prefixes)
    values = [text for prefix in prefixes for text in (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))]
    return f"({clause or 'FALSE'})", values


def _chunks(values: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(values), _CHUNK):
        yield list(values[start : start + _CHUNK])


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


def _check_empty(folder: Path) -> None:
    """Raise `SearchError` if a folder contains an index or other files."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        raise SearchError(f"cannot create {folder}: {error.strerror or error}") from error
    if FILE in names:
        raise SearchError(f"{folder} already contains an index: run openblip index again, or choose another --out")
    # A process that was killed while it created the database leaves a file with a temporary name.
    if names - {"index.lock", f"{FILE}.new", f"{FILE}.new-journal"}:
        raise SearchError(f"{folder} must be empty or not exist; choose another --out")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock for writing, which only one process can have."""
    lock = filelock.FileLock(folder / "index.lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise SearchError(f"another process is writing to {folder}; wait until it ends") from error
    except OSError as error:
        raise SearchError(f"cannot write to {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _closing(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _translate_errors(folder: Path) -> Iterator[None]:
    """Raise `SearchError` for the errors of SQLite, and for a file that disappeared."""
    try:
        yield
    except sqlite3.Error as error:
        raise SearchError(f"cannot use the index {folder}: {error}") from error
    except FileNotFoundError as error:
        raise SearchError(f"the index {folder} is incomplete: {error.filename} is missing") from error

"""The server store: PostgreSQL with pgvector, for an index that several machines share.

One schema per index; `#NAME` at the end of the address names it. Embeddings are `halfvec` with an HNSW index, which is
approximate. Filters are exact: if at most `EXACT_ROWS` images pass a filter, they are compared one by one; otherwise
the HNSW index is scanned until enough images pass (`hnsw.iterative_scan = strict_order`).
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from openblip.errors import InputError, SearchError
from openblip.extras import install_hint
from openblip.search.images import Batch, ImagePage, IndexedImage, Neighbors, parse_cursor
from openblip.search.matrix import Rows
from openblip.search.settings import Filter, IndexSettings
from openblip.search.store import Store

if TYPE_CHECKING:
    import psycopg

MIN_PGVECTOR = (0, 8, 0)
"""First version with iterative scans, without which a filter loses results."""
EXACT_ROWS = 20_000
"""Images that are compared one by one; beyond that the HNSW index is scanned."""
EF_SEARCH = 200
"""Candidates of a scan of the HNSW index."""

_DEFAULT_NAME = "openblip"
_MAX_SCAN = 2**31 - 1  # rows that an iterative scan may visit: all
_PAGE = 1000
_COLUMNS = (
    *("id", "path", "root", "hash", "stamp", "date", "width", "height"),
    *("caption_source", "caption_stamp", "caption"),
)
_SELECT = f"SELECT {', '.join(_COLUMNS)}, number FROM images"
_SCHEMA = """
CREATE SCHEMA {name};
SET LOCAL search_path TO {name}, public;
CREATE TABLE settings (settings TEXT NOT NULL, images BIGINT NOT NULL);
CREATE TABLE roots (path TEXT COLLATE "C" PRIMARY KEY, recursive BOOLEAN NOT NULL);
CREATE TABLE images (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    path TEXT COLLATE "C" NOT NULL UNIQUE,
    root TEXT NOT NULL,
    hash TEXT NOT NULL,
    stamp TEXT NOT NULL,
    date TEXT COLLATE "C" NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    caption_source TEXT NOT NULL,
    caption_stamp TEXT NOT NULL,
    caption TEXT,
    words TSVECTOR GENERATED ALWAYS AS (to_tsvector('simple', coalesce(caption, ''))) STORED,
    embedding {vector}({width}) NOT NULL
);
CREATE TABLE states (hash TEXT PRIMARY KEY, states BYTEA STORAGE EXTERNAL NOT NULL);
CREATE INDEX images_by_hash ON images (hash);
CREATE INDEX images_by_date ON images (date DESC, number DESC);
CREATE INDEX images_by_word ON images USING gin (words);
CREATE INDEX images_by_embedding ON images USING hnsw (embedding {vector}_ip_ops) WITH (m = 16, ef_construction = 128);
"""
_INSERT = f"""
INSERT INTO images ({", ".join(_COLUMNS)}, embedding) VALUES ({", ".join(["%s"] * (len(_COLUMNS) + 1))})
ON CONFLICT (id) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in (*_COLUMNS[1:], "embedding"))}
"""
_UPDATE = f"UPDATE images SET {', '.join(f'{name} = %s' for name in _COLUMNS[1:])} WHERE id = %s"


class PostgresStore(Store):
    """The server store in a schema of a PostgreSQL database.

    Args:
        location: Address of the database, such as "postgresql://user@host/photos". "#NAME" at its end selects one of
            several indexes in the database.

    Raises:
        SearchError: The server cannot be reached, its pgvector is too old, or there is no index.
        InputError: psycopg is not installed, or the name of the index is invalid.
    """

    def __init__(self, location: str) -> None:
        self.address, self.name = split_location(location)
        self.location = location
        self._lock = threading.Lock()
        self._idle: list[psycopg.Connection[tuple[Any, ...]]] = []
        self._closed = False
        with self._translate_errors(), self._connect() as connection:
            if not _has_index(connection, self.name):
                raise SearchError(
                    f"the database has no index {self.name!r}; make one: openblip index FOLDER --out ADDRESS"
                )
            (text,) = _fetch_one(connection, "SELECT settings FROM settings")
        self.settings = IndexSettings.from_json(text)

    @staticmethod
    def create(location: str, settings: IndexSettings) -> PostgresStore:
        """Create an empty store.

        Args:
            location: Address of the database, with "#NAME" for another index than "openblip".
            settings: The settings of the index.

        Returns:
            The store.

        Raises:
            SearchError: There is an index with this name, or pgvector is missing or too old.
            InputError: psycopg is not installed, or the name of the index is invalid.
        """
        address, name = split_location(location)
        psycopg = _import_psycopg()
        try:
            with psycopg.connect(address) as connection:
                _execute(connection, "CREATE EXTENSION IF NOT EXISTS vector")
                check_pgvector(connection)
                kind = "halfvec" if settings.dtype == "fp16" else "vector"
                _execute(connection, _SCHEMA.format(name=name, vector=kind, width=settings.width))
                _execute(connection, "INSERT INTO settings VALUES (%s, 0)", [settings.to_json()])
        except psycopg.errors.DuplicateSchema as error:
            raise SearchError(f"the database already has a schema {name!r}; choose another #NAME") from error
        except psycopg.Error as error:
            raise SearchError(f"cannot create the index {name!r}: {_reason(error)}") from error
        return PostgresStore(location)

    @staticmethod
    def exists(location: str) -> bool:
        """Return whether there is an index at an address.

        Args:
            location: Address of the database, with "#NAME" for another index than "openblip".

        Returns:
            Whether the database has the index.

        Raises:
            SearchError: The server cannot be reached.
            InputError: psycopg is not installed, or the name of the index is invalid.
        """
        address, name = split_location(location)
        psycopg = _import_psycopg()
        try:
            with psycopg.connect(address) as connection:
                return _has_index(connection, name)
        except psycopg.Error as error:
            raise SearchError(f"cannot use the database: {_reason(error)}") from error

    # Reading.

    def count(self) -> int:
        """Return the number of images."""
        with self._reading() as connection:
            return int(_fetch_one(connection, "SELECT images FROM settings")[0])

    def roots(self) -> dict[str, bool]:
        """Return the indexed folders, and whether their subfolders are indexed."""
        with self._reading() as connection:
            return dict(_execute(connection, "SELECT path, recursive FROM roots ORDER BY path"))

    def find_paths(self, paths: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these paths, by path."""
        return {image.path: image for image in self._select_any("path", paths)}

    def find_hashes(self, hashes: Sequence[str]) -> dict[str, list[IndexedImage]]:
        """Return the images with these hashes, by hash."""
        images: dict[str, list[IndexedImage]] = {}
        for image in self._select_any("hash", hashes):
            images.setdefault(image.hash, []).append(image)
        return images

    def find_ids(self, ids: Sequence[str]) -> dict[str, IndexedImage]:
        """Return the images with these ids, by id."""
        return {image.id: image for image in self._select_any("id", ids)}

    def iter_images(self, folder: str | None = None) -> Iterator[IndexedImage]:
        """Yield the images below a folder, or all images, in the order of their paths."""
        condition, values = ("TRUE", []) if folder is None else _below([folder.rstrip(os.sep) + os.sep])
        position = ""
        while True:
            with self._reading() as connection:
                query = f"{_SELECT} WHERE path > %s AND {condition} ORDER BY path LIMIT {_PAGE}"
                rows = _execute(connection, query, [position, *values]).fetchall()
            yield from map(_to_image, rows)
            if len(rows) < _PAGE:
                return
            position = rows[-1][1]

    def list_images(self, n: int, cursor: str | None, where: Filter) -> ImagePage:
        """Return one page of the images that pass a filter, the newest first."""
        with self._reading() as connection:
            condition, values = self._condition(connection, where)
            (total,) = _fetch_one(connection, f"SELECT count(*) FROM images WHERE {condition}", values)
            if cursor is not None:
                condition += " AND (date, number) < (%s, %s)"
                values = [*values, *parse_cursor(cursor)]
            query = f"{_SELECT} WHERE {condition} ORDER BY date DESC, number DESC LIMIT %s"
            rows = _execute(connection, query, [*values, n + 1]).fetchall()
        images = [_to_image(row) for row in rows[:n]]
        following = f"{images[-1].date}/{rows[n - 1][-1]}" if len(rows) > n else None
        return ImagePage(images, following, int(total))

    def embeddings(self, ids: Sequence[str]) -> Mapping[str, NDArray[np.float32]]:
        """Return the embeddings (E,) of images, by id."""
        with self._reading() as connection:
            rows = _execute(connection, "SELECT id, embedding FROM images WHERE id = ANY(%s)", [list(ids)]).fetchall()
        return {name: _to_array(embedding) for name, embedding in rows}

    def iter_embeddings(self, size: int) -> Iterator[tuple[Sequence[str], NDArray[np.float32]]]:
        """Yield ids and embeddings of all images, `size` at a time."""
        position = 0
        while True:
            with self._reading() as connection:
                query = "SELECT id, embedding, number FROM images WHERE number > %s ORDER BY number LIMIT %s"
                rows = _execute(connection, query, [position, size]).fetchall()
            if not rows:
                return
            yield [row[0] for row in rows], np.stack([_to_array(row[1]) for row in rows])
            position = rows[-1][2]

    def states(self, ids: Sequence[str]) -> Mapping[str, Rows]:
        """Return the stored states (M, D) of images, by id."""
        if self.settings.states != "stored":
            return {}
        query = "SELECT images.id, states.states FROM images JOIN states USING (hash) WHERE images.id = ANY(%s)"
        with self._reading() as connection:
            rows = _execute(connection, query, [list(ids)]).fetchall()
        shape = (self.settings.tokens, self.settings.state_width)
        return {name: np.frombuffer(states, "<f2").reshape(shape) for name, states in rows}

    def find_nearest(self, query: NDArray[np.float32], n: int, where: Filter) -> Neighbors:
        """Return the `n` images with the highest cosine among those that pass a filter."""
        with self._reading() as connection:
            condition, values = self._condition(connection, where)
            if where:
                limited = (
                    f"SELECT count(*) FROM (SELECT 1 FROM images WHERE {condition} LIMIT {EXACT_ROWS + 1}) AS found"
                )
                count = int(_fetch_one(connection, limited, values)[0])
            else:
                count = int(_fetch_one(connection, "SELECT images FROM settings")[0])
            vector = self._to_vector(query / np.linalg.norm(query))
            source, conditions = "images", f"WHERE {condition}"
            if count <= EXACT_ROWS:  # a scan of all of them, which no index can shorten
                source, conditions = f"(SELECT * FROM images WHERE {condition} OFFSET 0) AS images", ""
            else:
                for name, value in (
                    ("ef_search", min(1000, max(EF_SEARCH, n))),
                    ("iterative_scan", "strict_order"),
                    ("max_scan_tuples", _MAX_SCAN),
                ):
                    _execute(connection, "SELECT set_config(%s, %s, TRUE)", [f"hnsw.{name}", str(value)])
            select = f"SELECT {', '.join(_COLUMNS)}, embedding, -(embedding <#> %s) FROM {source} {conditions}"
            rows = _execute(
                connection, f"{select} ORDER BY embedding <#> %s LIMIT %s", [vector, *values, vector, n]
            ).fetchall()
            if where and count > EXACT_ROWS:
                count = int(_fetch_one(connection, f"SELECT count(*) FROM images WHERE {condition}", values)[0])
        embeddings = np.empty((len(rows), self.settings.width), np.float32)
        for position, row in enumerate(rows):
            embeddings[position] = _to_array(row[-2])
        return Neighbors([_to_image(row) for row in rows], [float(row[-1]) for row in rows], embeddings, count)

    def _select_any(self, column: str, values: Sequence[str]) -> list[IndexedImage]:
        with self._reading() as connection:
            return [
                _to_image(row) for row in _execute(connection, f"{_SELECT} WHERE {column} = ANY(%s)", [list(values)])
            ]

    def _condition(self, connection: psycopg.Connection[tuple[Any, ...]], where: Filter) -> tuple[str, list[Any]]:
        """Return the SQL condition of a filter, and its values."""
        clauses, values = ["TRUE"], list[Any]()
        if where.folder is not None:
            roots = [path for (path,) in _execute(connection, "SELECT path FROM roots")]
            clause, prefixes = _below(where.prefixes(roots))
            clauses.append(clause)
            values += prefixes
        for operator, date in ((">=", where.start), ("<", where.end)):
            if date is not None:
                clauses.append(f"date {operator} %s")
                values.append(date)
        for term in where.terms:
            parser = "to_tsquery" if term.prefix else "phraseto_tsquery"
            clauses.append(f"words @@ {parser}('simple', %s)")
            quoted = term.text.replace("\\", " ").replace("'", "''")
            values.append(f"'{quoted}':*" if term.prefix else term.text)
        return " AND ".join(clauses), values

    # Writing.

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Return a context manager that gives this process exclusive write access."""
        with self._translate_errors(), self._connect() as connection:
            connection.autocommit = True
            lock = f"openblip.{self.name}"
            (is_free,) = _fetch_one(connection, "SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [lock])
            if not is_free:
                raise SearchError(f"another process is writing to the index {self.name!r}; wait until it ends")
            yield  # the server releases the lock with the connection

    def write(self, batch: Batch) -> None:
        """Apply changes atomically, and return when they are on disk."""
        with self._writing() as connection:
            removed = _execute(connection, "DELETE FROM images WHERE id = ANY(%s)", [batch.removed]).rowcount
            ids = [new.image.id for new in batch.new]
            (replaced,) = _fetch_one(connection, "SELECT count(*) FROM images WHERE id = ANY(%s)", [ids])
            states = [(new.image.hash, new.states) for new in batch.new if new.states is not None]
            with connection.cursor() as cursor:
                updates = [(*_values(image)[1:], image.id) for image in batch.updated]
                cursor.executemany(_UPDATE.encode(), updates)
                rows = [(*_values(new.image), self._to_vector(new.embedding)) for new in batch.new]
                cursor.executemany(_INSERT.encode(), rows)
                cursor.executemany(
                    b"INSERT INTO states VALUES (%s, %s) ON CONFLICT DO NOTHING",
                    [(hash, np.ascontiguousarray(value, "<f2").tobytes()) for hash, value in states],
                )
            change = len(ids) - int(replaced) - removed
            _execute(connection, "UPDATE settings SET images = images + %s", [change])

    def set_roots(self, roots: Mapping[str, bool]) -> None:
        """Replace the indexed folders."""
        with self._writing() as connection:
            _execute(connection, "DELETE FROM roots")
            with connection.cursor() as cursor:
                cursor.executemany(b"INSERT INTO roots VALUES (%s, %s)", list(roots.items()))

    def compact(self) -> int:
        """Free the space of removed images, and return the number of bytes freed."""
        size = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relnamespace = %s::regnamespace"
        with self._translate_errors(), self._connect() as connection:
            connection.autocommit = True
            before = int(_fetch_one(connection, size, [self.name])[0])
            _execute(connection, "DELETE FROM states WHERE hash NOT IN (SELECT hash FROM images)")
            _execute(connection, "VACUUM FULL images")
            _execute(connection, "VACUUM FULL states")
            return max(0, before - int(_fetch_one(connection, size, [self.name])[0]))

    def close(self) -> None:
        """Close files and connections."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connect(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a new connection that sees the schema of the index."""
        connect = _import_psycopg().connect
        from pgvector.psycopg import register_vector

        connection: psycopg.Connection[tuple[Any, ...]] = connect(self.address)
        connection.execute(f"SET search_path TO {self.name}, public".encode())
        connection.commit()
        check_pgvector(connection)
        register_vector(connection)
        connection.commit()
        return connection

    @contextmanager
    def _reading(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Yield a connection in a transaction that sees one state of the database."""
        with self._lock:
            if self._closed:
                raise SearchError(f"the index {self.name!r} is closed")
            connection = self._idle.pop() if self._idle else None
        with self._translate_errors():
            connection = connection or self._connect()
            try:
                _execute(connection, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
                yield connection
                connection.rollback()
            except BaseException:
                connection.close()  # the server may be gone; the next search connects again
                raise
            with self._lock:
                if self._closed:
                    connection.close()
                else:
                    self._idle.append(connection)

    @contextmanager
    def _writing(self) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
        """Yield a connection in a transaction that is committed at the end of the block."""
        with self._translate_errors(), self._connect() as connection:
            yield connection

    @contextmanager
    def _translate_errors(self) -> Iterator[None]:
        psycopg = _import_psycopg()
        try:
            yield
        except psycopg.Error as error:
            raise SearchError(f"cannot use the index {self.name!r}: {_reason(error)}") from error

    def _to_vector(self, embedding: NDArray[np.float32]) -> object:
        """Return an embedding in the type of its column."""
        from pgvector import HalfVector, Vector

        vector: object = HalfVector(embedding) if self.settings.dtype == "fp16" else Vector(embedding)
        return vector


def split_location(location: str) -> tuple[str, str]:
    """Return the address of a database and the name of an index in it.

    Args:
        location: The address, with "#NAME" at its end for another index than "openblip".

    Returns:
        Address and name.

    Raises:
        InputError: The name contains characters other than a to z, digits and "_".
    """
    address, _, name = location.partition("#")
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,59}", name or _DEFAULT_NAME):
        raise InputError(f"the name of an index must contain only lowercase letters, digits and _, got {name!r}")
    return address, name or _DEFAULT_NAME


def check_pgvector(connection: psycopg.Connection[tuple[Any, ...]]) -> None:
    """Check that the database has a version of pgvector that filters without losing results.

    Args:
        connection: A connection to the database.

    Raises:
        SearchError: pgvector is missing or too old. The message names the version.
    """
    row = _execute(connection, "SELECT extversion FROM pg_extension WHERE extname = 'vector'").fetchone()
    wanted = ".".join(map(str, MIN_PGVECTOR))
    if row is None:
        raise SearchError(f"the database must have pgvector {wanted} or later, got none: CREATE EXTENSION vector")
    if tuple(map(int, re.findall(r"\d+", row[0]))) < MIN_PGVECTOR:
        raise SearchError(
            f"the database must have pgvector {wanted} or later, got {row[0]}, which loses results with a filter; "
            "install a later version on the server, then ALTER EXTENSION vector UPDATE"
        )


def _has_index(connection: psycopg.Connection[tuple[Any, ...]], name: str) -> bool:
    return bool(_fetch_one(connection, "SELECT to_regclass(%s) IS NOT NULL", [f"{name}.settings"])[0])


def _execute(
    connection: psycopg.Connection[tuple[Any, ...]], query: str, values: Sequence[Any] = ()
) -> psycopg.Cursor[tuple[Any, ...]]:
    """Run a query whose text contains no value from outside."""
    return connection.execute(query.encode(), values or None)


def _fetch_one(
    connection: psycopg.Connection[tuple[Any, ...]], query: str, values: Sequence[Any] = ()
) -> tuple[Any, ...]:
    row = _execute(connection, query, values).fetchone()
    assert row is not None
    return row


def _values(image: IndexedImage) -> list[Any]:
    return [getattr(image, name) for name in _COLUMNS]


def _to_image(row: Sequence[Any]) -> IndexedImage:
    return IndexedImage(**dict(zip(_COLUMNS, row, strict=False)))


def _to_array(vector: Any) -> NDArray[np.float32]:
    values = vector.to_numpy() if hasattr(vector, "to_numpy") else vector
    return np.asarray(values, np.float32)


def _below(prefixes: Sequence[str]) -> tuple[str, list[str]]:
    """Return the SQL condition that a path starts with one of the prefixes, and its values."""
    clause = " OR ".join("(path >= %s AND path < %s)" for _ in prefixes)
    values = [text for prefix in prefixes for text in (prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))]
    return f"({clause or 'FALSE'})", values


def _reason(error: Exception) -> str:
    """Return the first line of a database error, because the other lines can quote values."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _import_psycopg() -> Any:
    try:
        import psycopg
    except ImportError as error:
        raise InputError(f"an index in PostgreSQL needs psycopg: {install_hint('postgres')}") from error
    return psycopg

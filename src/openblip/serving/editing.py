"""The live contact sheet: the captions of a folder, edited in the browser and saved one by one."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openblip.errors import InputError, JobError, OpenBlipError
from openblip.io.templates import render_html
from openblip.jobs.items import Item, open_items
from openblip.jobs.journal import Edit, Journal
from openblip.jobs.sheet import Card, CardEntry, TextField, encode_thumbnail
from openblip.jobs.sinks.base import Existing, SinkOptions
from openblip.jobs.sinks.sidecars import SidecarSink
from openblip.serving.errors import ApiError

PER_PAGE = 60
"""Images on one page."""
_SESSION_SECONDS = 12 * 3600.0


class Sessions:
    """Sessions of clients that may edit: with the one-time token or an API key. Sessions are stored as hashes."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(24)
        self._token_hash: bytes | None = _hash(self.token)
        self._ends: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def redeem(self, token: str) -> str | None:
        """Return a new session for the one-time token, which is then used up; `None` for another text."""
        with self._lock:
            if self._token_hash is None or not hmac.compare_digest(self._token_hash, _hash(token)):
                return None
            self._token_hash = None
        return self.begin()

    def begin(self) -> str:
        """Return the secret of a new session."""
        session = secrets.token_urlsafe(24)
        now = time.monotonic()
        with self._lock:
            self._ends = {key: end for key, end in self._ends.items() if end > now}
            self._ends[_hash(session)] = now + _SESSION_SECONDS
        return session

    def is_open(self, session: str) -> bool:
        """Return whether a session exists and has not ended."""
        return self._ends.get(_hash(session), 0.0) > time.monotonic()


def _hash(secret: str) -> bytes:
    return hashlib.blake2b(secret.encode("utf-8", "surrogatepass"), digest_size=32).digest()


@dataclass(frozen=True)
class SavedCaption:
    """A caption as it is stored now.

    Attributes:
        text: The text.
        version: Changes with the text; the next edit must name it.
    """

    text: str
    version: str


class LiveSheet:
    """The captions in the sidecar files of a folder.

    Args:
        folder: The folder; its subfolders are included.
        existing: What an edit does to an existing caption.

    Raises:
        InputError: `folder` is not a folder.
    """

    def __init__(self, folder: Path, existing: Existing) -> None:
        if not folder.is_dir():
            raise InputError(f"--edit must name a folder, got {folder}")
        self.sessions = Sessions()
        self._folder = folder.resolve()
        self._sink = SidecarSink(SinkOptions(home=str(self._folder), existing=existing))
        self._salt = secrets.token_bytes(16)
        self._lock = threading.Lock()
        self._items: dict[str, Item] = {}
        self.scan()

    def scan(self) -> None:
        """List the images of the folder again."""
        items = open_items([str(self._folder)], recursive=True, base=self._sink.base)
        self._items = {self._identify(item): item for item in items if isinstance(item, Item) and item.file}

    def __len__(self) -> int:
        return len(self._items)

    def render(self, page: int, nonce: str) -> str:
        """Return a page of the sheet.

        Args:
            page: Number of the page, from 1.
            nonce: Nonce of its scripts and styles, so that the browser runs no others.

        Raises:
            ApiError: There is no such page (404).
        """
        if page == 1:
            self.scan()
        entries = list(self._items.items())
        pages = [entries[start : start + PER_PAGE] for start in range(0, len(entries), PER_PAGE)] or [[]]
        if page > len(pages):
            raise ApiError(404, f"the sheet has {len(pages)} pages", param="page", code="not_found")
        return render_html(
            "openblip.jobs",
            "sheet.html",
            title=self._folder.name,
            first=(page - 1) * PER_PAGE + 1,
            total=len(entries),
            num_failed=0,
            links=[f"edit?page={number + 1}" for number in range(len(pages))],
            current=page - 1,
            export_name="",
            base="",
            sheet_id="",
            nonce=nonce,
            cards=self._cards(pages[page - 1]),
        )

    def _cards(self, entries: Sequence[tuple[str, Item]]) -> list[Card]:
        cards = []
        for image_id, item in entries:
            thumbnail = encode_thumbnail(item.images[0])
            name = Path(os.path.relpath(item.file or "", self._folder)).as_posix()
            try:
                saved = self.read(image_id)
            except OpenBlipError:
                cards.append(Card(name, [thumbnail] if thumbnail else [], "its caption cannot be read", []))
                continue
            num_lines = max(2, min(10, 1 + len(saved.text) // 22 + saved.text.count("\n")))
            data = {"id": image_id, "version": saved.version}
            field = TextField(saved.text, f"caption of {name}", num_lines, data)
            cards.append(Card(name, [thumbnail] if thumbnail else [], None, [CardEntry(field=field)]))
        return cards

    def read(self, image_id: str) -> SavedCaption:
        """Return the stored caption of an image.

        Args:
            image_id: Opaque id of the image.

        Raises:
            ApiError: The id is unknown, or the file no longer exists in the folder (404).
        """
        text = (self._sink.read(self._find(image_id)) or "").strip()
        return SavedCaption(text, self._version(text))

    def save(self, image_id: str, text: str, version: str) -> SavedCaption:
        """Store a caption atomically.

        Args:
            image_id: Opaque id of the image.
            text: The new text.
            version: Version of the text that was edited.

        Returns:
            The stored caption.

        Raises:
            ApiError: The id is unknown (404), the text has changed since, or an existing text must be kept (409).
        """
        item = self._find(image_id)
        with self._lock:
            current = self.read(image_id)
            if current.version != version:  # no secret: the page has it
                raise ApiError(409, "the caption was changed elsewhere", param="version", code="version_conflict")
            if current.text and self._sink.options.existing == "skip":
                raise ApiError(409, "the image must have no caption (--existing skip)", code="caption_exists")
            new = self._sink.join(current.text or None, [text.strip()]).strip()
            if new == current.text:
                return current
            place, key = self._sink.edit_location(item)
            try:
                stored = self._sink.write_edit(place, key, current.text, new)
                if stored:
                    Journal.add_edits(self._sink.journal_path, [(item.key, Edit(current.text, new, ""))])
            except JobError as error:
                raise ApiError(503, "the caption cannot be written now", code="cannot_write", retry_after=5) from error
            except OpenBlipError as error:
                raise ApiError(422, "the caption cannot be written", code="cannot_write") from error
            if not stored:
                raise ApiError(409, "the caption was changed elsewhere", param="version", code="version_conflict")
        return SavedCaption(new, self._version(new))

    def _find(self, image_id: str) -> Item:
        item = self._items.get(image_id)
        if item is None or item.file is None:
            raise ApiError(404, "no image has this id", code="not_found")
        # A link could have been put in place of the file, or of a folder above it.
        resolved = Path(item.file).resolve()
        if not resolved.is_file() or self._folder not in resolved.parents:
            raise ApiError(404, "no image has this id", code="not_found")
        target = Path(self._sink.target(item))
        if target.is_symlink() or self._folder not in target.resolve().parents:
            raise ApiError(404, "no image has this id", code="not_found")
        return item

    def _identify(self, item: Item) -> str:
        return hashlib.blake2b(os.fsencode(item.key), key=self._salt, digest_size=8).hexdigest()

    def _version(self, text: str) -> str:
        content = text.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(content, key=self._salt, digest_size=8).hexdigest()

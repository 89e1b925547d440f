"""API keys: stored as hashes, compared in constant time, read from a file or the environment."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from openblip.errors import InputError

ENVIRONMENT = "OPENBLIP_API_KEYS"
"""Variable with API keys, separated by commas or white space; `name=key` names the client."""
MIN_LENGTH = 16


class KeyStore:
    """Hashes of API keys.

    Args:
        keys: Keys by the name of their client.

    Raises:
        InputError: A key is too short.
    """

    def __init__(self, keys: Mapping[str, str]) -> None:
        for name, key in keys.items():
            if len(key) < MIN_LENGTH:
                raise InputError(f"an API key must have at least {MIN_LENGTH} characters, got {len(key)} for {name!r}")
        self._salt = secrets.token_bytes(16)
        self._hashes = [(self._hash(key), name) for name, key in keys.items()]

    def __bool__(self) -> bool:
        """Return whether there is a key."""
        return bool(self._hashes)

    def find(self, key: str) -> str | None:
        """Return the client of a key, or `None`. The time does not depend on the stored keys."""
        hashed = self._hash(key)
        client = None
        for known, name in self._hashes:
            if hmac.compare_digest(known, hashed):
                client = name
        return client

    def _hash(self, key: str) -> bytes:
        # Keys are random and long, so a fast hash is enough; the salt changes with every start.
        return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), key=self._salt, digest_size=32).digest()


def sent_key(headers: Mapping[str, str]) -> str:
    """Return the key of a request, from `Authorization: Bearer KEY` or from `X-API-Key: KEY`; "" if there is none.

    Args:
        headers: The headers, whose names are found in any case.
    """
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        key = headers.get("x-api-key", "")
    return key.strip()


def parse_keys(text: str) -> dict[str, str]:
    """Return the keys of a file or of the environment variable.

    Args:
        text: One key per line, or separated by commas or spaces, as `key` or `name=key`. `#` starts a comment.

    Returns:
        Keys by name; keys without a name are named `key-1`, `key-2`, …

    Raises:
        InputError: Two keys have the same name.
    """
    keys: dict[str, str] = {}
    for line in text.splitlines():
        for word in line.partition("#")[0].replace(",", " ").split():
            name, separator, key = word.partition("=")
            # A base64 key can end in "=", which is then no separator.
            if not separator or not key.strip("="):
                name, key = f"key-{len(keys) + 1}", word
            if name in keys:
                raise InputError(f"names of API keys must differ, got {name!r} twice")
            keys[name] = key
    return keys


def read_keys(file: Path | None) -> dict[str, str]:
    """Return the keys of a file and of the environment variable `OPENBLIP_API_KEYS`.

    Args:
        file: The file; `None` for none.

    Raises:
        InputError: The file cannot be read or is empty.
    """
    keys = parse_keys(os.environ.get(ENVIRONMENT, ""))
    if file is not None:
        try:
            stored = parse_keys(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise InputError(f"cannot read the API keys {file}: {error.strerror or error}") from error
        if not stored:
            raise InputError(f"the file of API keys must contain a key, got none in {file}")
        if both := keys.keys() & stored.keys():
            stored = {f"{name}-file" if name in both else name: key for name, key in stored.items()}
        keys |= stored
    return keys


def is_readable_by_all(file: Path) -> bool:
    """Return whether every user of the machine can read a file."""
    return os.name == "posix" and bool(file.stat().st_mode & stat.S_IROTH)

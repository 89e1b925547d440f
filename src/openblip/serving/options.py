"""Options of the server: plain data, without the libraries of the extra `serve`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from openblip.errors import InputError
from openblip.jobs.sinks.base import Existing


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of one request, and of all requests together.

    Attributes:
        max_body_bytes: Maximum size of a request body.
        max_pending_bytes: Maximum size of the bodies of all active requests together.
        max_pixels: Maximum number of pixels of an image.
        max_decode_bytes: Maximum memory to decode an image.
        max_images: Maximum number of images per request.
        max_texts: Maximum number of texts, questions, labels or expressions per request.
        max_pairs: Maximum number of image-text pairs per request.
        max_text_chars: Maximum length of a text in characters.
        max_num_beams: Maximum number of beams.
        max_n: Maximum number of results per image.
        max_new_tokens: Maximum number of new tokens of a caption or an answer.
        max_seconds: Deadline of a request, in seconds.
        max_head_seconds: Seconds after which a connection closes if the head of a request has not arrived.
        max_queue_seconds: Maximum length of the queue in seconds of work. More work is refused with status 429.
        client_share: Share of the queue that one client can use, from 0 to 1.
        max_batch_wait: Seconds that a batch waits for requests that are being received.

    Raises:
        InputError: A limit is not positive.
    """

    max_body_bytes: int = 32 * 2**20
    max_pending_bytes: int = 256 * 2**20
    max_pixels: int = 64 * 10**6
    max_decode_bytes: int = 256 * 10**6
    max_images: int = 16
    max_texts: int = 256
    max_pairs: int = 512
    max_text_chars: int = 1000
    max_num_beams: int = 10
    max_n: int = 10
    max_new_tokens: int = 64
    max_seconds: float = 30.0
    max_head_seconds: float = 10.0
    max_queue_seconds: float = 10.0
    client_share: float = 0.5
    max_batch_wait: float = 0.005

    def __post_init__(self) -> None:
        for limit in fields(self):
            value = getattr(self, limit.name)
            if not value > 0:
                raise InputError(f"{limit.name} must be positive, got {value}")
        if self.client_share > 1:
            raise InputError(f"client_share must be at most 1, got {self.client_share}")


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """Options of the server.

    Attributes:
        limits: Limits of requests.
        keys: API keys by the name of their client. Without keys, none is required.
        hosts: Host names that requests may use, without port.
        origins: Other sites whose pages may send requests (CORS).
        allow_fetch: Hosts that images may be fetched from. Without hosts, all addresses are refused.
        index: Folder, or address in PostgreSQL, of a search index.
        edit: Folder whose captions can be edited at `/edit`.
        existing: What an edit does to an existing caption, as in `SinkOptions`; "skip" refuses the edit.
        decode_workers: Number of threads that decode images.
    """

    limits: Limits = field(default_factory=Limits)
    keys: dict[str, str] = field(default_factory=dict, repr=False)
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1")
    origins: tuple[str, ...] = ()
    allow_fetch: tuple[str, ...] = ()
    index: str | None = None
    edit: Path | None = None
    existing: Existing = "overwrite"
    decode_workers: int = 2

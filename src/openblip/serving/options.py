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
        max_body_bytes: Largest body of a request.
        max_pending_bytes: Bodies of all requests that are being received or computed.
        max_pixels: Most pixels of an image.
        max_decode_bytes: Memory that decoding one image may take.
        max_images: Most images of a request.
        max_texts: Most texts, questions, labels or expressions of a request.
        max_pairs: Most pairs of an image and a text of a request.
        max_text_chars: Longest text in characters.
        max_num_beams: Most beams.
        max_n: Most results per image.
        max_new_tokens: Most new tokens of a caption or an answer.
        max_seconds: Seconds after which a request fails.
        max_head_seconds: Seconds in which the head of a request must arrive; later its connection is closed.
        max_queue_seconds: Seconds of computation that may wait; more is refused with status 429.
        client_share: Share of the queue that one client may use.
        max_batch_wait: Seconds that a batch waits for requests that have already arrived.

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
    """How the server behaves.

    Attributes:
        limits: Limits of requests.
        keys: API keys by the name of their client; empty for none.
        hosts: Names that requests may address the server by, without port.
        origins: Origins of other sites whose pages may send requests (CORS); none by default.
        allow_fetch: Hosts that images may be fetched from; empty refuses all addresses.
        index: Folder, or address in PostgreSQL, of a search index.
        edit: Folder whose captions can be edited at `/edit`.
        existing: What an edit does to a caption that exists, as in `SinkOptions`: "skip" edits only images without one.
        decode_workers: Threads that decode images.
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

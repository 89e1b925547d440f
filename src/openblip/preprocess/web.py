"""Pictures from the web: ``https`` only, of limited size, in limited time."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import IO

from openblip._version import __version__
from openblip.errors import ImageError

MAX_BYTES = 64 * 2**20
"""A longer answer is refused: photographs have a few megabytes."""

MAX_SECONDS = 30.0
"""The time for everything: looking up the name, connecting, redirects, and the whole answer."""

_CHUNK = 2**16


def download(address: str) -> bytes:
    """What lies at an ``https`` address, at most ``MAX_BYTES``, within ``MAX_SECONDS``; else ``ImageError``.

    Redirects are followed as long as they stay on ``https``. Addresses within one's own network are not refused: a
    server that takes addresses from strangers must check them first.
    """
    if not _is_https(address):
        raise ImageError(f"cannot fetch {address}: only https addresses and files are read")
    outcome: list[bytes | ImageError] = []
    # A thread of its own, because neither a name look-up nor a server that sends a byte now and then obeys a timeout.
    worker = threading.Thread(target=lambda: outcome.append(_attempt(address)), daemon=True)
    worker.start()
    worker.join(MAX_SECONDS)
    if not outcome:
        raise ImageError(f"cannot fetch {address}: it took more than {MAX_SECONDS:g} s")
    if isinstance(outcome[0], ImageError):
        raise outcome[0]
    return outcome[0]


def _attempt(address: str) -> bytes | ImageError:
    try:
        return _fetch(address)
    except ImageError as error:
        return error
    except urllib.error.HTTPError as error:
        return ImageError(f"cannot fetch {address}: the server says {error.code} {error.reason}")
    except urllib.error.URLError as error:
        return ImageError(f"cannot fetch {address}: {error.reason}")
    except Exception as error:  # a broken answer, an impossible address, a lost connection
        return ImageError(f"cannot fetch {address}: {error or type(error).__name__}")


def _fetch(address: str) -> bytes:
    deadline = time.monotonic() + MAX_SECONDS
    # Letters outside ASCII and spaces are escaped, as browsers do; what is escaped already stays.
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": f"openblip/{__version__}"})
    opener = urllib.request.build_opener(_HttpsRedirects())
    parts: list[bytes] = []
    size = 0
    with opener.open(request, timeout=MAX_SECONDS) as answer:
        while part := answer.read1(_CHUNK):
            parts.append(part)
            size += len(part)
            if size > MAX_BYTES:
                raise ImageError(f"cannot fetch {address}: it is longer than {MAX_BYTES // 2**20} MB")
            if time.monotonic() > deadline:
                raise ImageError(f"cannot fetch {address}: it took more than {MAX_SECONDS:g} s")
        if answer.length:  # what was announced and did not come
            raise ImageError(f"cannot fetch {address}: the connection was lost after {size} bytes")
    return b"".join(parts)


def _is_https(address: str) -> bool:
    return address[:8].lower() == "https://"


class _HttpsRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not _is_https(newurl):
            raise ImageError(f"cannot fetch {req.full_url}: it leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

"""Images from the web: only `https`, with limits on size and time."""

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
"""Maximum size of a file. Photographs have a few megabytes."""

MAX_SECONDS = 30.0
"""Maximum time of a download: name lookup, connection, redirects and the complete response."""

_CHUNK_BYTES = 2**16


def download(address: str) -> bytes:
    """Download a file, following redirects to `https` addresses.

    Addresses in the local network are allowed: a server that accepts addresses from strangers must check them first.

    Args:
        address: An `https` address.

    Returns:
        Content of the file.

    Raises:
        ImageError: Another scheme, a failed request, or more than `MAX_BYTES` or `MAX_SECONDS`.
    """
    if not _is_https(address):
        raise ImageError(f"cannot fetch {address}: only https addresses and files are allowed")
    outcome: list[bytes | ImageError] = []
    # A separate thread, because timeouts do not limit name lookups, or servers that send a byte now and then.
    worker = threading.Thread(target=lambda: outcome.append(_try_fetch(address)), daemon=True)
    worker.start()
    worker.join(MAX_SECONDS)
    if not outcome:
        raise ImageError(f"cannot fetch {address}: it took more than {MAX_SECONDS:g} s")
    if isinstance(outcome[0], ImageError):
        raise outcome[0]
    return outcome[0]


def _try_fetch(address: str) -> bytes | ImageError:
    """Return the content, or an error in its place: the thread has no caller to raise it to."""
    try:
        return _fetch(address)
    except ImageError as error:
        return error
    except urllib.error.HTTPError as error:
        return ImageError(f"cannot fetch {address}: the server returned {error.code} {error.reason}")
    except urllib.error.URLError as error:
        return ImageError(f"cannot fetch {address}: {error.reason}")
    except Exception as error:  # a malformed response, an impossible address, a lost connection
        return ImageError(f"cannot fetch {address}: {error or type(error).__name__}")


def _fetch(address: str) -> bytes:
    deadline = time.monotonic() + MAX_SECONDS
    # Escape spaces and letters outside ASCII, as browsers do, without changing existing escapes.
    quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
    request = urllib.request.Request(quoted, headers={"User-Agent": f"openblip/{__version__}"})
    opener = urllib.request.build_opener(_HttpsRedirectHandler())
    chunks: list[bytes] = []
    size = 0
    with opener.open(request, timeout=MAX_SECONDS) as response:
        while chunk := response.read1(_CHUNK_BYTES):
            chunks.append(chunk)
            size += len(chunk)
            if size > MAX_BYTES:
                raise ImageError(f"cannot fetch {address}: it is larger than {MAX_BYTES // 2**20} MB")
            if time.monotonic() > deadline:
                raise ImageError(f"cannot fetch {address}: it took more than {MAX_SECONDS:g} s")
        if response.length:  # bytes that were announced and did not arrive
            raise ImageError(f"cannot fetch {address}: the connection was lost after {size} bytes")
    return b"".join(chunks)


def _is_https(address: str) -> bool:
    return address[:8].lower() == "https://"


class _HttpsRedirectHandler(urllib.request.HTTPRedirectHandler):
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
            raise ImageError(f"cannot fetch {req.full_url}: it redirects to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

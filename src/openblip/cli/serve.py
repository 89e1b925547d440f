"""`openblip serve`: serve a model over HTTP, with a web page."""

from __future__ import annotations

import logging
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

from openblip.cli import options as o
from openblip.cli.command import Choice, command, option
from openblip.cli.options import PATH, POSITIVE, ModelOptions
from openblip.extras import install_hint

if TYPE_CHECKING:
    from openblip.jobs.sinks import Existing

SERVER = "Server"
SECURITY = "Security"
LIMITS = "Limits"
PORT = click.IntRange(0, 65535)
SECONDS = click.FloatRange(min=0, min_open=True)


@command(
    example="openblip serve --port 8000\nopenblip serve --host 0.0.0.0 --api-keys keys.txt --allow-host example.org"
)
@option("--host", panel=SERVER, metavar="ADDRESS", default="127.0.0.1", help="Address to bind to.")
@option("--port", panel=SERVER, type=PORT, default=8000, help="Port to listen on; 0 chooses a free port.")
@option(
    "--index",
    panel=SERVER,
    metavar="DIR",
    help="Index to search, made by openblip index: a folder or an address in PostgreSQL.",
)
@option(
    "--edit", panel=SERVER, type=PATH, metavar="FOLDER", help="Folder of images whose captions can be edited at /edit."
)
@option(
    "--existing",
    panel=SERVER,
    type=Choice(o.EXISTING),
    default="overwrite",
    help="What an edit does to an existing caption: overwrite, skip, append or prepend.",
)
@option(
    "--also", panel=SERVER, metavar="NAME", multiple=True, help="Another model to serve; repeat the option for more."
)
@option(
    "--log-level",
    panel=SERVER,
    type=Choice(("debug", "info", "warning", "error")),
    default="info",
    help="Level of the log on standard error: debug, info, warning or error.",
)
@option("--drain", panel=SERVER, type=SECONDS, default=30.0, help="Time to finish requests after SIGTERM, in seconds.")
@option(
    "--api-keys",
    panel=SECURITY,
    type=PATH,
    metavar="FILE",
    show_default="OPENBLIP_API_KEYS",
    help="File of API keys, one per line, as KEY or NAME=KEY.",
)
@option("--no-auth", panel=SECURITY, is_flag=True, help="Accept requests from other machines without API keys.")
@option(
    "--allow-host",
    panel=SECURITY,
    metavar="NAME",
    multiple=True,
    show_default="localhost and --host",
    help="Host name that requests may use; repeat the option for more, * allows all.",
)
@option(
    "--allow-origin",
    panel=SECURITY,
    metavar="ORIGIN",
    multiple=True,
    help="Site whose pages may send requests (CORS), such as https://app.example.org; repeat the option for more.",
)
@option(
    "--allow-fetch",
    panel=SECURITY,
    metavar="HOST",
    multiple=True,
    help="Host to fetch images from: NAME, .NAME for its subdomains, or * for all; repeat the option for more.",
)
@option("--max-seconds", panel=LIMITS, type=SECONDS, default=30.0, help="Deadline of a request, in seconds.")
@option(
    "--max-queue", panel=LIMITS, type=SECONDS, default=10.0, help="Maximum length of the queue, in seconds of work."
)
@option("--max-body", panel=LIMITS, type=POSITIVE, default=32, help="Maximum size of a request body, in MiB.")
@option("--max-images", panel=LIMITS, type=POSITIVE, default=16, help="Maximum number of images per request.")
@option("--max-texts", panel=LIMITS, type=POSITIVE, default=256, help="Maximum number of texts per request.")
@o.model_options
def serve(
    host: str,
    port: int,
    index: str | None,
    edit: Path | None,
    existing: Existing,
    also: tuple[str, ...],
    log_level: str,
    drain: float,
    api_keys: Path | None,
    no_auth: bool,
    allow_host: tuple[str, ...],
    allow_origin: tuple[str, ...],
    allow_fetch: tuple[str, ...],
    max_seconds: float,
    max_queue: float,
    max_body: int,
    max_images: int,
    max_texts: int,
    model: ModelOptions,
) -> None:
    """Serve the model over HTTP, with a web page.

    Open http://127.0.0.1:8000 for the page, and /docs for the API. By default, only this machine can connect. To serve
    other machines, set --host and API keys.
    """
    if any(find_spec(name) is None for name in ("fastapi", "uvicorn", "prometheus_client", "python_multipart")):
        raise click.UsageError(f"serving needs an extra: {install_hint('serve')}")
    from openblip.serving.app import create_app
    from openblip.serving.keys import is_readable_by_all, read_keys
    from openblip.serving.models import public_name
    from openblip.serving.options import Limits, ServerOptions
    from openblip.serving.run import check_address, is_loopback, run_server

    keys = read_keys(api_keys)
    if api_keys is not None and is_readable_by_all(api_keys):
        click.echo(f"warning: every user of this machine can read the API keys: chmod o-r {api_keys}", err=True)
    check_address(host, has_keys=bool(keys), no_auth=no_auth)
    defaults = ServerOptions()
    # A name of this machine is no secret, and DNS rebinding needs another one.
    hosts = (*defaults.hosts, *allow_host, *(() if is_loopback(host) else (host,)))
    limits = Limits(
        max_seconds=max_seconds,
        max_queue_seconds=max_queue,
        max_body_bytes=max_body * 2**20,
        max_pending_bytes=max(defaults.limits.max_pending_bytes, 2 * max_body * 2**20),
        max_images=max_images,
        max_texts=max_texts,
    )
    options = ServerOptions(
        limits=limits,
        keys=keys,
        hosts=tuple(name.lower() for name in hosts),
        origins=allow_origin,
        allow_fetch=tuple(name.lower() for name in allow_fetch),
        index=index,
        edit=edit,
        existing=existing,
        decode_workers=model.num_workers or defaults.decode_workers,
    )
    blips = {public_name(name): model.load(name) for name in (model.model, *also)}
    app = create_app(blips, options)
    shown = f"[{host}]" if ":" in host else host
    click.echo(f"serving {', '.join(blips)} at http://{shown}:{port}", err=True)
    if app.service.sheet is not None:
        click.echo(
            f"edit captions, once: http://{shown}:{port}/edit?token={app.service.sheet.sessions.token}", err=True
        )
    run_server(app, host, port, drain_seconds=drain, log_level=getattr(logging, log_level.upper()))

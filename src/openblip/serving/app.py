"""The ASGI application."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from openblip._version import __version__
from openblip.blip import Blip
from openblip.errors import OpenBlipError
from openblip.serving import documents
from openblip.serving.batching import Job, Recorder
from openblip.serving.errors import ApiError
from openblip.serving.gate import Gate, unexpected_error
from openblip.serving.logs import log
from openblip.serving.models import public_name
from openblip.serving.options import ServerOptions
from openblip.serving.routes import edit, meta, openai, page, search, verbs
from openblip.serving.service import ClientGoneError, Service, exchange_of

_DESCRIPTION = (
    "Captions, answers, matches, embeddings, labels, boxes and heat maps of images, and search. "
    "Errors have OpenAI's shape. Every response has an `X-Request-Id`."
)
_WARM_UP_SECONDS = 600.0
_WARM_UP_RUNS = 3  # the first run also allocates memory, so the moving averages need more runs


class Application:
    """The ASGI application: FastAPI behind the gate.

    Args:
        api: FastAPI with the routes.
        service: The models and the queue that the routes share.
    """

    def __init__(self, api: FastAPI, service: Service) -> None:
        self.api, self.service = api, service
        inner: ASGIApp = api
        if service.options.origins:
            inner = CORSMiddleware(
                inner,
                allow_origins=service.options.origins,
                allow_methods=["GET", "POST"],
                allow_headers=["authorization", "content-type", "x-api-key", "x-request-timeout"],
                expose_headers=["x-request-id", "retry-after"],
            )
        self._gate = Gate(
            inner,
            options=service.options,
            keys=service.keys,
            state=service.state,
            admission=service.admission,
            metrics=service.metrics,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a connection."""
        await self._gate(scope, receive, send)


def create_app(
    models: Blip | Mapping[str, Blip], options: ServerOptions | None = None, *, recorder: Recorder | None = None
) -> Application:
    """Return the application of a server.

    Args:
        models: A model, or models by the name that requests select them by; the first is the default.
        options: Options of the server.
        recorder: Receives each batch with its results, for tests.

    Returns:
        The ASGI application. It loads all models when it starts; until then `/readyz` returns 503.

    Raises:
        InputError: An option is invalid.

    Example:
        >>> app = create_app(openblip.load("pocket"))  # doctest: +SKIP
        >>> uvicorn.run(app)  # doctest: +SKIP
    """
    blips = {public_name(models.name): models} if isinstance(models, Blip) else dict(models)
    service = Service(blips, options or ServerOptions(), recorder=recorder)
    api = FastAPI(
        title="OpenBLIP",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=_lifespan,
    )
    api.state.service = service
    for module in (meta, page, verbs, search, openai, edit):
        api.include_router(module.router)
    api.add_exception_handler(ApiError, _api_error)
    api.add_exception_handler(HTTPException, _http_error)
    api.add_exception_handler(RequestValidationError, _parameter_error)
    api.add_exception_handler(ClientGoneError, _client_gone)
    api.add_exception_handler(Exception, _unexpected_error)
    documents.install(api, keys=bool(service.keys))
    return Application(api, service)


@asynccontextmanager
async def _lifespan(api: FastAPI) -> AsyncIterator[None]:
    service: Service = api.state.service
    loading = asyncio.create_task(_load(service))
    try:
        yield
    finally:
        service.state.draining = True
        loading.cancel()
        await asyncio.to_thread(service.batcher.close)


async def _load(service: Service) -> None:
    """Load all models and run each verb, so that the first request is as fast as the others."""
    started = time.monotonic()
    try:
        for model in service.models:
            await asyncio.to_thread(model.load)
            job = Job("warm-up", time.monotonic() + _WARM_UP_SECONDS)
            for plan in verbs.warm_up_plans(model, service.limits):
                for _ in range(_WARM_UP_RUNS):
                    await asyncio.gather(*service.batcher.submit(job, plan.stage, plan.items, units=plan.units))
    except OpenBlipError:
        log("load_failed", level=logging.CRITICAL)
        logging.getLogger("openblip.serving").exception("the models cannot be loaded")
        return
    service.state.ready = True
    log("ready", seconds=round(time.monotonic() - started, 3))


async def _api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http_error(request: Request, error: Exception) -> Response:
    """Return an error of the router, such as 404 or 405, as an `ApiError` response."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
    response = ApiError(error.status_code, str(error.detail), code=code).response()
    response.headers.update(error.headers or {})
    return response


async def _parameter_error(request: Request, error: Exception) -> Response:
    """Return the error of a query parameter."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    param = str(first["loc"][-1])
    return ApiError(422, f"{param}: {first['msg']}", param=param, code="invalid_value").response()


async def _client_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # the client gets no details; the log has them


async def _unexpected_error(request: Request, error: Exception) -> Response:
    """Return the response to an unexpected error, which the gate logs."""
    return unexpected_error(exchange_of(request).id).response()

"""The routes for health, readiness, metrics and models, and the information that the page needs."""

from __future__ import annotations

import time

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from openblip._version import __version__
from openblip.serving.documents import describe
from openblip.serving.errors import ApiError
from openblip.serving.service import service_of

router = APIRouter(tags=["server"])

_STARTED = int(time.time())


class Status(BaseModel):
    """The state of the server."""

    status: str


class IndexInfo(BaseModel):
    """The search index."""

    images: int


class LimitsInfo(BaseModel):
    """Limits of a request."""

    max_body_bytes: int
    max_pixels: int
    max_images: int
    max_texts: int
    max_pairs: int
    max_text_chars: int
    max_num_beams: int
    max_n: int
    max_new_tokens: int
    max_seconds: float


class ModelInfo(BaseModel):
    """The tasks and verbs of a model; no verbs until the models are loaded."""

    tasks: list[str]
    verbs: list[str]


class Info(BaseModel):
    """The features of this server. `tasks` and `verbs` describe the default model."""

    name: str
    version: str
    model: str
    models: list[str]
    tasks: list[str]
    verbs: list[str]
    by_model: dict[str, ModelInfo]
    index: IndexInfo | None
    limits: LimitsInfo
    fetch: bool
    edit: bool


class ModelCard(BaseModel):
    """A model, in the format of OpenAI's API."""

    id: str
    object: str
    created: int
    owned_by: str
    tasks: list[str]
    limits: LimitsInfo


class ModelList(BaseModel):
    """The models of the server."""

    object: str
    data: list[ModelCard]


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", **describe(None, Status, "Whether the process runs."))
async def healthz() -> JSONResponse:
    """Return 200 as long as the process runs, even while it loads models or stops."""
    return JSONResponse({"status": "ok"})


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", **describe(None, Status, "Whether the server takes requests."))
async def readyz(request: Request) -> JSONResponse:
    """Return 503 while the server loads models or stops, otherwise 200."""
    state = service_of(request).state
    if state.draining:
        raise ApiError(503, "the server is stopping", code="draining", retry_after=5)
    if not state.ready:
        raise ApiError(503, "the models are being loaded", code="not_ready", retry_after=2)
    return JSONResponse({"status": "ready"})


@router.get("/metrics", **describe(None, None, "Metrics for Prometheus.", media_type="text/plain"))
async def metrics(request: Request) -> Response:
    """Return the metrics in Prometheus's text format."""
    return Response(service_of(request).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/v1/info", **describe(None, Info, "Tasks, models and limits."))
async def info(request: Request) -> JSONResponse:
    """Return the features of this server."""
    service = service_of(request)
    model = service.models.default
    by_model = {served.name: ModelInfo(tasks=list(served.tasks), verbs=[]) for served in service.models}
    if service.state.ready:
        search = [] if service.gallery is None else ["search"]
        for served in service.models:
            by_model[served.name].verbs = served.verbs() + search
    return JSONResponse(
        Info(
            name="openblip",
            version=__version__,
            model=model.name,
            models=service.models.names,
            tasks=by_model[model.name].tasks,
            verbs=by_model[model.name].verbs,
            by_model=by_model,
            index=None if service.gallery is None else IndexInfo(images=len(service.gallery.index)),
            limits=_limits(request),
            fetch=bool(service.options.allow_fetch),
            edit=service.options.edit is not None,
        ).model_dump()
    )


@router.get("/v1/models", **describe(None, ModelList, "List the models."))
async def models(request: Request) -> JSONResponse:
    """Return the loaded models with their tasks and the limits of requests."""
    cards = [
        ModelCard(
            id=model.name,
            object="model",
            created=_STARTED,
            owned_by="openblip",
            tasks=list(model.tasks),
            limits=_limits(request),
        )
        for model in service_of(request).models
    ]
    return JSONResponse(ModelList(object="list", data=cards).model_dump())


def _limits(request: Request) -> LimitsInfo:
    limits = service_of(request).limits
    return LimitsInfo(**{name: getattr(limits, name) for name in LimitsInfo.model_fields})

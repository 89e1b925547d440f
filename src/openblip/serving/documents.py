"""Add request bodies and common errors to the OpenAPI document."""

from __future__ import annotations

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from openblip._version import __version__
from openblip.serving.schemas import ErrorResponse, ImagesRequest

_ERRORS = {
    400: "The body is malformed.",
    401: "The API key is missing or wrong.",
    403: "The host or the origin is not allowed.",
    404: "The model, the task or the id does not exist.",
    405: "The method is not allowed.",
    408: "The body did not arrive in time.",
    413: "The body, an image or a list is too large.",
    415: "The content type is not supported.",
    422: "A field or an image is invalid; `param` names it.",
    429: "The queue is full; `Retry-After` has the seconds to wait.",
    500: "Internal error.",
    503: "The server is starting or stopping; `Retry-After` has the seconds to wait.",
    504: "The deadline has passed.",
}
_READ_ERRORS = (400, 401, 403, 404)
_MEDIA_TYPE = "x-media-type"
_REF = "#/components/schemas/{model}"

_bodies: dict[str, type[BaseModel]] = {}


def describe(
    request: type[BaseModel] | None,
    response: type[BaseModel] | None,
    summary: str,
    example: dict[str, Any] | None = None,
    *,
    invalid_query: bool = False,
    media_type: str | None = None,
) -> dict[str, Any]:
    """Return the arguments of a route's decorator that document it.

    Args:
        request: Model of the body; `None` for none.
        response: Model of the response; `None` if it is not JSON.
        summary: One line.
        example: An example of the body.
        invalid_query: Whether the route has parameters that can be invalid (422).
        media_type: Type of a response that is not JSON.
    """
    statuses = tuple(_ERRORS) if request is not None else (*_READ_ERRORS, 422) if invalid_query else _READ_ERRORS
    errors = {status: _ERRORS[status] for status in statuses}
    responses: dict[int, dict[str, Any]] = {
        status: {"model": ErrorResponse, "description": text} for status, text in errors.items()
    }
    if response is not None:
        responses[200] = {"model": response, "description": "Done."}
    arguments: dict[str, Any] = {"summary": summary, "responses": responses}
    if media_type is not None:
        arguments["openapi_extra"] = {_MEDIA_TYPE: media_type}
    if request is not None:
        _bodies[request.__name__] = request
        schema: dict[str, Any] = {"$ref": _REF.format(model=request.__name__)}
        content: dict[str, Any] = {"application/json": {"schema": schema}}
        if example is not None:
            content["application/json"]["examples"] = {"example": {"value": example}}
        if issubclass(request, ImagesRequest):
            content["multipart/form-data"] = {"schema": {"$ref": _REF.format(model=f"{request.__name__}Form")}}
        arguments["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
    return arguments


def install(app: FastAPI, *, keys: bool) -> None:
    """Make the application return the complete document.

    Args:
        app: The application.
        keys: Whether requests need an API key.
    """

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _make_document(app, keys=keys)
        return app.openapi_schema

    app.openapi = document  # type: ignore[method-assign]  # the documented way to extend it


def _make_document(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    document = get_openapi(title="OpenBLIP", version=__version__, description=app.description, routes=app.routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    _, definitions = models_json_schema([(model, "validation") for model in _bodies.values()], ref_template=_REF)
    for name, schema in definitions["$defs"].items():
        schemas[name] = schema
        if name in _bodies and issubclass(_bodies[name], ImagesRequest):
            schemas[f"{name}Form"] = _form_schema(schema)
    if keys:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        for path, operations in document["paths"].items():
            for operation in operations.values():
                if path not in ("/", "/healthz"):
                    operation["security"] = [{"bearer": []}, {"header": []}]  # either
    for operations in document["paths"].values():
        for operation in operations.values():
            if (media_type := operation.pop(_MEDIA_TYPE, None)) is not None:
                operation["responses"]["200"]["content"] = {media_type: {"schema": {"type": "string"}}}
            for response in operation["responses"].values():
                response["headers"] = {"X-Request-Id": {"schema": {"type": "string"}}}
    return document


def _form_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a multipart body, with files instead of base64 images."""
    form = copy.deepcopy(schema)
    form["title"] = f"{schema['title']}Form"
    properties = {name: value for name, value in form["properties"].items() if name not in ("image", "images")}
    file = {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}
    form["properties"] = {"image": {"type": "array", "items": file, "description": "Image files."}, **properties}
    return form

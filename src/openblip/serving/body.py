"""Read request bodies, JSON or multipart with files, and validate them with the models of `schemas`."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_origin

from pydantic import TypeAdapter, ValidationError
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from openblip.serving.errors import ApiError
from openblip.serving.schemas import ImagesRequest, RequestModel

ModelT = TypeVar("ModelT", bound=RequestModel)

_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:", re.IGNORECASE)
_ANY = TypeAdapter(object)  # parses JSON as the models of requests do
_SPACE = re.compile(r"\s+")
MAX_FIELDS = 1000


@dataclass(frozen=True)
class ParsedBody(Generic[ModelT]):
    """A body.

    Attributes:
        request: The fields.
        images: Encoded images: bytes, or an address that the server may fetch.
    """

    request: ModelT
    images: Sequence[bytes | str]


class _Parser(MultiPartParser):
    """Keeps files in memory: the body has a size limit, and uploaded images are never written to disk."""

    spool_max_size = 2**62
    is_complete = False

    def on_end(self) -> None:
        """Note that the final boundary has arrived."""
        self.is_complete = True


async def read_body(request: Request, model: type[ModelT]) -> ParsedBody[ModelT]:
    """Read and validate a body.

    Args:
        request: The request.
        model: Model of its fields.

    Returns:
        The fields and images.

    Raises:
        ApiError: The body is malformed (400), its type is not supported (415), or a field is invalid (422).
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if content_type == "application/json" or content_type.endswith("+json"):
            return _parse_json(await request.body(), model)
        if content_type == "multipart/form-data" and issubclass(model, ImagesRequest):
            return await _parse_form(request, model)
    except ClientDisconnect as error:
        raise ApiError(400, "the body is incomplete", code="incomplete_body") from error
    raise ApiError(415, "Content-Type must be application/json or multipart/form-data", code="unsupported_media_type")


def _parse_json(content: bytes, model: type[ModelT]) -> ParsedBody[ModelT]:
    try:
        request = model.model_validate_json(content)
    except ValidationError as error:
        raise validation_error(error, content) from None
    if not isinstance(request, ImagesRequest):
        return ParsedBody(request, ())
    images = [decode_image_text(text, f"images.{index}") for index, text in enumerate(request.image_texts())]
    return ParsedBody(request, images)


async def _parse_form(request: Request, model: type[ModelT]) -> ParsedBody[ModelT]:
    parser = _Parser(
        request.headers, request.stream(), max_files=MAX_FIELDS, max_fields=MAX_FIELDS, max_part_size=2**20
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        if "Too many" in str(error):
            raise ApiError(413, f"a form must have at most {MAX_FIELDS} fields", code="too_many_fields") from None
        raise ApiError(400, f"the multipart body is malformed: {error}", code="malformed_body") from None
    try:
        if not parser.is_complete:
            raise ApiError(400, "the multipart body ends before its final boundary", code="incomplete_body")
        images: list[bytes | str] = []
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                if name not in ("image", "images", "image[]", "images[]"):
                    raise ApiError(422, "files must be sent as image", param="image", code="unknown_field")
                images.append(await value.read())
        fields, texts = _form_fields(form, model)
    finally:
        await form.close()
    images += [decode_image_text(text, f"images.{index}") for index, text in enumerate(texts)]
    try:
        return ParsedBody(model.model_validate(fields, strict=False), images)
    except ValidationError as error:
        raise validation_error(error, fields) from None


def _form_fields(form: FormData, model: type[RequestModel]) -> tuple[dict[str, Any], list[str]]:
    """Return the fields of a form, with repeated fields as lists, and its images that are text."""
    fields: dict[str, Any] = {}
    texts: list[str] = []
    for name in dict.fromkeys(key for key, value in form.multi_items() if isinstance(value, str)):
        values = [value for value in form.getlist(name) if isinstance(value, str)]
        plain = name.removesuffix("[]")
        if plain in ("image", "images"):
            texts += values
            continue
        plural = f"{plain}s"
        if len(values) > 1 and plural in model.model_fields:  # text=a&text=b
            plain = plural
        info = model.model_fields.get(plain)
        if info is not None and ("list" in str(info.annotation) or get_origin(info.annotation) is list):
            fields[plain] = [*fields.get(plain, []), *values]
        elif len(values) > 1:
            raise ApiError(422, f"{plain} must be sent once", param=plain, code="invalid_value")
        else:
            fields[plain] = values[0]
    return fields, texts


def decode_image_text(text: str, param: str) -> bytes | str:
    """Return the image in a text: its bytes, or the `https` address itself.

    Args:
        text: Base64, a data URI, or an address.
        param: Field that contains it.

    Raises:
        ApiError: The text is none of these (422). Paths and other schemes, such as `file:`, are never read.
    """
    prefix = _DATA_URI.match(text[:256])
    if prefix is not None:
        text = text[prefix.end() :]
    elif text[:8].lower().startswith(("https://", "http://")):
        return text
    elif _SCHEME.match(text[:32]):
        raise ApiError(422, "an image must be base64 or a data URI in base64", param=param, code="invalid_image")
    try:
        data = base64.b64decode(_SPACE.sub("", text) if any(map(text.__contains__, " \r\n\t")) else text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            422, "an image must be base64 or a data URI in base64", param=param, code="invalid_image"
        ) from error
    if not data:
        raise ApiError(422, "an image must not be empty", param=param, code="invalid_image")
    return data


def validation_error(error: ValidationError, content: bytes | Mapping[str, Any]) -> ApiError:
    """Return the error of an invalid body. It contains no value of the request.

    Args:
        error: The error of pydantic. A union has an error for each of its members; the one that describes the deepest
            field is reported.
        content: The body: JSON, or the fields of a form.
    """
    details = error.errors(include_url=False, include_context=False, include_input=False)
    if details[0]["type"] == "json_invalid":
        return ApiError(400, "the body must be JSON", code="malformed_body")
    body = _ANY.validate_json(content) if isinstance(content, bytes) else content
    paths = [_sent_path(detail["loc"], detail["type"], body) for detail in details]
    chosen = min(range(len(details)), key=lambda i: (details[i]["type"] != "too_long", -len(paths[i])))
    path, detail = paths[chosen], details[chosen]
    param = ".".join(str(part) for part in path)[:100] or None
    status, code = (413, "too_many_items") if detail["type"] == "too_long" else (422, "invalid_value")
    more = len({other for other in paths if path[: len(other)] != other})
    note = "" if not more else " (and 1 more error)" if more == 1 else f" (and {more} more errors)"
    message = detail["msg"].removeprefix("Value error, ")
    return ApiError(status, f"{param or 'the body'}: {message}{note}", param=param, code=code)


def _sent_path(location: Sequence[int | str], kind: str, body: object) -> tuple[int | str, ...]:
    """Return the location of an error without the names of union members, which no client has sent."""
    path: list[int | str] = []
    value = body
    for place, part in enumerate(location):
        is_key = isinstance(value, Mapping) and part in value
        if is_key or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            path.append(part)
            value = value[part]  # type: ignore[index]
        elif kind == "missing" and place == len(location) - 1:
            path.append(part)
    return tuple(path)

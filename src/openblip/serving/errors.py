"""Errors of requests with their status codes, in the format of OpenAI's API."""

from __future__ import annotations

import math

from starlette.responses import JSONResponse

from openblip.errors import ImageError, InputError, OpenBlipError, StoppedError, UnsupportedTaskError

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""The `type` of the errors of each status."""


class ApiError(Exception):
    """A request that fails.

    Args:
        status: Status code.
        message: The requirement, the value and the remedy. It never contains image data or paths.
        param: The invalid field of the request.
        code: Short name of the reason.
        retry_after: Seconds after which the request may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after

    def body(self) -> dict[str, str | None]:
        """Return the value of the field `error`."""
        return {"message": self.message, "type": TYPES[self.status], "param": self.param, "code": self.code}

    def response(self) -> JSONResponse:
        """Return the response."""
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse({"error": self.body()}, self.status, headers)


def deadline_error(seconds: float) -> ApiError:
    """Return the error of a request that took too long."""
    return ApiError(504, f"the request took longer than its {seconds:g} s", code="deadline_exceeded", retry_after=1)


def from_library(error: OpenBlipError, param: str | None = None) -> ApiError:
    """Convert an error of the library to the error of a request.

    Args:
        error: The error.
        param: Field of the request that caused it, if known.
    """
    if isinstance(error, UnsupportedTaskError):
        return ApiError(404, "the model does not support this task", param="model", code="task_not_available")
    if isinstance(error, StoppedError):
        return ApiError(504, "the request was stopped", code="deadline_exceeded")
    message = OpenBlipError.__str__(error) if error.index is None else str(error.args[0])
    if isinstance(error, ImageError):
        too_large = "too large" in message
        code = "image_too_large" if too_large else "invalid_image"
        return ApiError(413 if too_large else 422, message, param=param, code=code)
    if isinstance(error, InputError):
        return ApiError(422, message, param=param, code="invalid_value")
    return ApiError(500, "the server could not compute the result", code="internal_error")

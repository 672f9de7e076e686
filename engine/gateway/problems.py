"""What goes wrong, as HTTP says it: problem documents (RFC 9457), with the code and the fix that dspex gives everywhere."""

from __future__ import annotations

import math
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from dspex.bus import errors
from dspex.bus.errors import DspexError

MEDIA_TYPE: Final = "application/problem+json"
WAIT: Final = 1.0  # seconds until another try, where the error does not say
_STATUS: Final[tuple[tuple[type[DspexError], int], ...]] = (  # the first that fits
    (errors.Saturated, 429),
    (errors.RateLimited, 429),
    (errors.BudgetExceeded, 429),
    (errors.CallTimeout, 504),
    (errors.Cancelled, 409),
    (errors.CircuitOpen, 503),
    (errors.LMUnavailable, 503),
    (errors.WorkerLost, 503),
    (errors.CallError, 502),
    (errors.PayloadTooLarge, 413),
    (errors.NotAllowed, 403),
    (errors.NotStored, 503),
    (errors.BusError, 503),
    (errors.DataError, 422),
    (errors.RunNotFound, 404),
    (errors.SessionEnded, 410),
    (errors.SessionError, 409),
    (errors.RunError, 409),
    (errors.RecordingIncomplete, 409),
    (errors.Divergence, 409),
    (errors.TopologyError, 404),
)
_WAITS: Final = {429, 503}
_TITLES: Final = {400: "Bad request", 401: "No valid token", 403: "Not allowed", 404: "Not found", 405: "Method not allowed"}


def status_of(error: DspexError) -> int:
    """The HTTP status of an error; 400 for a setting that the request itself gave, and 500 for what is ours."""
    if isinstance(error, errors.ConfigError):
        return 400 if error.code in ("DX101", "DX102", "DX105") else 500
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def problem_of(error: DspexError) -> dict[str, Any]:
    """The problem document of an error; `error` is what dspex says of it everywhere."""
    said = error.as_dict()
    return {
        "type": "about:blank",
        "title": said["type"],
        "status": status_of(error),
        "detail": error.message,
        "code": error.code,
        "fix": error.fix,
        "error": said,
    }


async def of_error(request: Request, error: Exception) -> Response:
    """The response to a request that ended in an error of dspex."""
    assert isinstance(error, DspexError)
    found = problem_of(error)
    status, headers = found["status"], dict[str, str]()
    if status in _WAITS:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after or WAIT)))
    return JSONResponse(found, status, headers, MEDIA_TYPE)


async def of_bug(request: Request, error: Exception) -> Response:
    """The response where something failed that should not. The error goes on to who serves the application, which logs it."""
    return await of_error(request, DspexError("something failed here that should not"))


async def of_refusal(request: Request, error: Exception) -> Response:
    """The response to a request that HTTP itself refuses: no such path, no valid token, a body that is too large."""
    assert isinstance(error, HTTPException)
    status = error.status_code
    found = {"type": "about:blank", "title": _TITLES.get(status, "Refused"), "status": status, "detail": error.detail}
    return JSONResponse(found, status, error.headers, MEDIA_TYPE)

"""Errors as a client sees them: RFC 9457 problem+json, with one sentence of what is wrong and what to do, and no traceback."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

from starlette.responses import Response

from vfm_ops.errors import MediaError, UsageError, VfmError, WeightsUnavailable

log = logging.getLogger("ray.serve")  # what lands in a replica's log file
MEDIA_TYPE = "application/problem+json"
TITLES = {
    400: "bad request",
    401: "unauthorized",
    403: "forbidden",
    404: "not found",
    405: "method not allowed",
    408: "request timeout",
    411: "length required",
    413: "too large",
    415: "unsupported media type",
    416: "range not satisfiable",
    422: "can't be processed",
    429: "too many requests",
    431: "headers too large",
    500: "internal error",
    501: "no such model",
    503: "unavailable",
    504: "deadline exceeded",
}


class Problem(Exception):
    """An answer that is an error. status: HTTP. title: short and stable. detail: one sentence. retry_after_s: a header."""

    def __init__(
        self, status: int, title: str = "", detail: str = "", *, retry_after_s: float | None = None, kind: str = ""
    ) -> None:
        super().__init__(detail or title)
        self.status, self.title, self.detail = status, title or TITLES.get(status, "error"), detail
        self.retry_after_s, self.kind = retry_after_s, kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.status, self.title, self.detail, self.retry_after_s, self.kind)

    def body(self) -> bytes:
        """The JSON document."""
        document = {"type": "about:blank", "title": self.title, "status": self.status, "detail": self.detail}
        return json.dumps(document | ({"kind": self.kind} if self.kind else {})).encode()

    def headers(self) -> dict[str, str]:
        """Headers beyond Content-Type."""
        headers = {"Cache-Control": "no-store"}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(math.ceil(self.retry_after_s))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return headers

    def response(self) -> Response:
        """As an HTTP response."""
        return Response(self.body(), self.status, self.headers(), MEDIA_TYPE)


def _rebuild(status: int, title: str, detail: str, retry_after_s: float | None, kind: str) -> Problem:
    return Problem(status, title, detail, retry_after_s=retry_after_s, kind=kind)


def problem_of(error: BaseException) -> Problem:
    """What a client is told about an exception of ours, of Ray's, or of anyone's. Unexpected ones are logged whole, here."""
    error = cause_of(error)
    if isinstance(error, Problem):
        return error
    if isinstance(error, MediaError):
        return Problem(413 if error.kind in ("bomb", "too_large") else 422, "", str(error), kind=error.kind)
    if isinstance(error, WeightsUnavailable):
        return Problem(503, "weights unavailable", str(error))
    if isinstance(error, UsageError):
        return Problem(400, "", str(error))
    if isinstance(error, VfmError):
        log.error("request failed: %s", error)
        return Problem(503, "", "The lake can't be read just now: try again, and look at the server's log.")
    if isinstance(error, (TimeoutError,)):
        return Problem(504, "", "The request took longer than the server's deadline: ask for less at once.")
    name = type(error).__name__
    if name in ("BackPressureError",):
        return Problem(429, "", "The model's queue is full: try again in a moment.", retry_after_s=1)
    if name in _DEAD:
        return Problem(
            503, "", "The worker that had this request died; another takes over: try again.", retry_after_s=1
        )
    if name == "DeploymentUnavailableError":
        return Problem(503, "", "The model's worker could not be started; the server's log has the reason.")
    log.error("request failed", exc_info=error)
    return Problem(500, "", "The server failed on this request; its log has the reason.")


_DEAD = frozenset(
    {
        "ActorDiedError",
        "RayActorError",
        "ActorUnavailableError",
        "WorkerCrashedError",
        "ReplicaUnavailableError",
        "OwnerDiedError",
        "ObjectLostError",
        "RayChannelError",
        "TaskCancelledError",
        "RequestCancelledError",
        "OutOfMemoryError",
    }
)


def cause_of(error: BaseException) -> BaseException:
    """The exception that a replica raised, out of Ray's wrapping."""
    inner = getattr(error, "cause", None)
    return inner if isinstance(inner, BaseException) else error

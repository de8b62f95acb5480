"""What is refused before any handler sees it, and filters that may reach the lake.

`Guard` is plain ASGI middleware around everything: who may ask, how large, how many at once, how long; it also counts.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any

from jobs.serve.metrics import Metrics
from jobs.serve.problems import Problem, problem_of
from jobs.serve.settings import RequestLimits
from pipelines.lake.schema import is_model_column
from vfm_ops.errors import UsageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "vfm_token"
# Without data: the page's own files, and whether the server lives.
PUBLIC = ("/", "/page/", "/favicon.ico", "/v1/health")
STREAMS = re.compile(r"/v1/track/sessions/[^/]*/stream|/v1/assets/[^/]*")
UPLOADS = re.compile(r"/v1/track/uploads")
SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]


class Guard:
    """The outermost application. token: None answers on loopback only, whatever address the server listens on."""

    def __init__(self, app: App, limits: RequestLimits, token: str | None, metrics: Metrics) -> None:
        self.app, self.limits, self.token, self.metrics = app, limits, token, metrics
        self.in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or passes it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answer = time.perf_counter(), _Answer(send)
        try:
            await self._guarded(scope, receive, answer)
        except Exception as error:
            problem = problem_of(error)
            # A stream that has begun can't become an error any more: it ends short, which HTTP shows.
            if not answer.started:
                await problem.response()(scope, receive, answer)
            elif problem.status >= 500:
                raise
        finally:
            self.metrics.observe(route_of(scope), answer.status, time.perf_counter() - started)

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        path = scope["path"]
        self._admit(scope, path, headers)
        largest = self.limits.video_bytes if UPLOADS.fullmatch(path) else self.limits.body_bytes
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length) > largest:
            raise _too_large(largest)
        if self.in_flight >= self.limits.in_flight and path != "/v1/health":
            raise Problem(
                429, "", f"{self.limits.in_flight} requests are being answered, the limit: try again.", retry_after_s=1
            )
        self.in_flight += 1
        try:
            call = self.app(scope, _limited(receive, largest), answer)
            if STREAMS.fullmatch(path):
                await call
            else:
                async with asyncio.timeout(self.limits.deadline_s):
                    await call
        finally:
            self.in_flight -= 1

    def _admit(self, scope: Scope, path: str, headers: dict[str, str]) -> None:
        """Problem 401 or 403 for who may not ask."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None and origin.partition("://")[2] != host:
            raise Problem(403, "", "Requests from other sites' pages are refused.")
        if self.token is None:
            # The Host header too: a page of another site may point its own name at this machine.
            client = (scope.get("client") or ("", 0))[0]
            if not is_loopback(client) or not is_loopback(host_name(host)):
                raise Problem(403, "", "Without a token this server answers on loopback only: set one on the server.")
            return
        if path == "/" or path in PUBLIC or path.startswith("/page/"):
            return
        given = _bearer(headers)
        if given is None or not hmac.compare_digest(given.encode(), self.token.encode()):
            raise Problem(401, "", "A bearer token is needed: send 'Authorization: Bearer TOKEN'.")


def route_of(scope: Scope) -> str:
    """The template of the route that answered, so that ids do not become labels."""
    path = getattr(scope.get("route"), "path", None)
    if path is None:
        return "other"
    return path if path.startswith("/v1") or not scope["path"].startswith("/v1") else "/v1" + path


class _Answer:
    """`send`, remembering what was begun; adds the headers that keep browsers careful."""

    def __init__(self, send: Send) -> None:
        self._send, self.started, self.status = send, False, 499

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
        await self._send(message)


def _limited(receive: Receive, largest: int) -> Receive:
    """Bodies without a length are counted as they come."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > largest:
                raise _too_large(largest)
        return message

    return counted


def _too_large(largest: int) -> Problem:
    return Problem(413, "", f"The body is larger than {largest:,} bytes, the limit here: send less at once.")


def _bearer(headers: dict[str, str]) -> str | None:
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value:
        return value.strip()
    try:
        cookie = SimpleCookie(headers.get("cookie", ""))
    except CookieError:
        return None
    return cookie[COOKIE].value if COOKIE in cookie else None


def host_name(host: str) -> str:
    """The name or address of a Host header, without its port."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.rpartition(":")[0] or host


def is_loopback(name: str) -> bool:
    """Whether a host name or address is this machine's own loopback."""
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


# -- filters -----------------------------------------------------------------------------------------------------------

MOST_FILTER = 2000
MOST_DEPTH = 12
FUNCTIONS = frozenset({"lower", "upper", "length", "abs", "starts_with", "ends_with", "contains"})
_ALLOWED = re.compile(r"\s+|'(?:[^']|'')*'|[A-Za-z_][\w.]*|\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|<=|>=|<>|!=|[=<>(),+*/%-]")
_NOT_FUNCTIONS = frozenset({"and", "or", "not", "in", "between", "like", "ilike", "when", "then", "else", "case", "is"})


def restricted_filter(where: str | None) -> str | None:
    """A client's SQL condition, or None for an empty one. UsageError for anything but comparisons of columns and literals,
    AND, OR, NOT, IN, LIKE, BETWEEN, IS NULL, arithmetic and a few functions.

    Which columns there are is checked by `split_filter`, and their types by Lance.
    """
    if where is None or not where.strip():
        return None
    if len(where) > MOST_FILTER:
        raise UsageError(f"the filter has {len(where)} characters, over the limit of {MOST_FILTER}: say it shorter")
    at, depth, tokens = 0, 0, []
    while at < len(where):
        match = _ALLOWED.match(where, at)
        if match is None:
            raise UsageError(
                f"the filter has {where[at]!r} at position {at}, which is not allowed: compare columns only"
            )
        token = match.group()
        at = match.end()
        if token.isspace():
            continue
        depth += (token == "(") - (token == ")")
        if depth > MOST_DEPTH:
            raise UsageError(f"the filter nests brackets deeper than {MOST_DEPTH}: say it flatter")
        tokens.append(token)
    for token, after in zip(tokens, [*tokens[1:], ""]):
        word = token.lower()
        if after == "(" and word[0].isalpha() and word not in _NOT_FUNCTIONS and word not in FUNCTIONS:
            raise UsageError(
                f"the filter calls {token}(), which is not allowed; there are {', '.join(sorted(FUNCTIONS))}"
            )
        if word == "jpeg" or is_model_column(word):
            raise UsageError(f"the filter names {token}, which holds media or vectors: filter by another column")
    bare = re.sub(r"'(?:[^']|'')*'", "", where)
    if "--" in bare or "/*" in bare:
        raise UsageError("the filter has a comment in it, which is not allowed")
    return where

"""What is refused before any handler sees it, and filters that may reach the lake.

`Guard` is plain ASGI middleware around everything: who may ask, how large, how many at once, how long; it also counts.

    request ──who──▶ body, as fast as it may be (Bodies) ──▶ a place ──▶ handler ──▶ place given back ──▶ answer sent
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from typing import IO, Any

from jobs.serve.metrics import Metrics
from jobs.serve.problems import Problem, problem_of
from jobs.serve.settings import RequestLimits
from pipelines.lake.filters import columns_of, read_tokens
from vfm_ops.embed.columns import is_model_column
from vfm_ops.errors import UsageError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

COOKIE = "vfm_token"
_IN_MEMORY, _PIECE = 256 << 10, 256 << 10  # of a body that comes in pieces
# Without data: the page's own files, and whether the server lives.
PUBLIC = ("/", "/page/", "/favicon.ico", "/v1/health")
TRACK_STREAM = re.compile(r"/v1/track/sessions/[^/]*/stream")
ASSET = re.compile(r"/v1/assets/[^/]*")
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
        self.bodies = Bodies(limits)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or passes it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, answer = time.perf_counter(), _Answer(send, self.limits.stall_s)
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
        client = (scope.get("client") or ("", 0))[0]
        # A place is taken once the body is there: however slowly bodies come, nobody else waits for them.
        # Without a length there is none in HTTP/1.1, but for chunks; HTTP/2 needs neither header to send one.
        unsaid = "content-length" not in headers and scope.get("method") not in ("GET", "HEAD")
        has_body = length != "0" or "transfer-encoding" in headers or unsaid
        no_json = UPLOADS.fullmatch(path) or headers.get("content-type", "").startswith("multipart/")
        values = sys.maxsize if no_json else self.limits.json_values
        body = self.bodies.received(receive, largest, client, values) if has_body else contextlib.nullcontext(receive)
        async with body as whole:
            with self._place(path) as place:
                if not TRACK_STREAM.fullmatch(path):
                    # What is left is to be sent: a client that reads slowly holds its own connection, and no place.
                    answer.on_start = place.release
                if TRACK_STREAM.fullmatch(path) or ASSET.fullmatch(path):
                    await self.app(scope, whole, answer)
                else:
                    async with asyncio.timeout(self.limits.deadline_s):
                        await self.app(scope, whole, answer)

    def _place(self, path: str) -> _Place:
        if self.in_flight >= self.limits.in_flight and path != "/v1/health":
            raise Problem(
                429, "", f"{self.limits.in_flight} requests are being answered, the limit: try again.", retry_after_s=1
            )
        return _Place(self)

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


class _Place:
    """One of the requests that are answered at once; given back when left, or before."""

    def __init__(self, guard: Guard) -> None:
        self._guard, self._held = guard, True
        guard.in_flight += 1

    def __enter__(self) -> _Place:
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Gives the place to another; a second time it does nothing."""
        self._guard.in_flight -= self._held
        self._held = False


class _Answer:
    """`send`, remembering what was begun; adds the headers that keep browsers careful. stall_s: a client that takes nothing
    for so long is let go."""

    def __init__(self, send: Send, stall_s: float) -> None:
        self._send, self._stall_s = send, stall_s
        self.started, self.status = False, 499
        self.on_start: Callable[[], None] = lambda: None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            message["headers"] = [*message.get("headers", []), *SECURITY_HEADERS]
            self.on_start()
        async with asyncio.timeout(self._stall_s):
            await self._send(message)


@dataclass(eq=False)
class _Body:
    """A body on its way. clock: what ends the wait for it."""

    client: str
    clock: asyncio.Timeout
    seen: int = 0
    commas: int = 0


class Bodies:
    """Bodies on their way, each in a little memory and then on disk. Slow ones are cut off, and when there are too many, the
    slowest one of whoever sends most of them makes room: a client can neither wait for ever nor crowd out the others."""

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._open: set[_Body] = set()
        self._bytes = 0  # of whole ones, while they are answered
        self._most_bytes = 4 * limits.video_bytes

    @property
    def held_bytes(self) -> int:
        """Of all bodies that are on their way or being answered."""
        return self._bytes + sum(body.seen for body in self._open)

    @contextlib.asynccontextmanager
    async def received(
        self, receive: Receive, largest: int, client: str, values: int = sys.maxsize
    ) -> AsyncIterator[Receive]:
        """`receive` of a request whose whole body is here. Problem 408 for a slow one, 413 for one of more than `largest`
        bytes or so many JSON values, 429 while others take all the room."""
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
            try:
                seen = await self._collect(receive, largest, client, values, file)
            except TimeoutError:
                raise Problem(
                    408, "", "The body came too slowly, or stopped: send it on a faster connection, or less at once."
                ) from None
            file.seek(0)
            self._bytes += seen
            try:
                yield _replay(file, receive)
            finally:
                self._bytes -= seen

    async def _collect(self, receive: Receive, largest: int, client: str, values: int, file: IO[bytes]) -> int:
        """Writes a body to a file. Returns its size. TimeoutError when it is too slow, or has to make room for others."""
        started = asyncio.get_running_loop().time()
        async with asyncio.timeout(self._limits.body_grace_s) as clock:
            body = _Body(client, clock)
            self._make_room()
            self._open.add(body)
            try:
                more = True
                while more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Problem(400, "", "The client hung up before its body was whole.")
                    file.write(piece := message.get("body", b""))
                    body.seen += len(piece)
                    body.commas += piece.count(b",")
                    more = message.get("more_body", False)
                    if body.seen > largest:
                        raise _too_large(largest)
                    if body.commas > values:
                        raise Problem(
                            413, "", f"The body has more than {values:,} values, the limit here: send fewer at once."
                        )
                    if self.held_bytes > self._most_bytes:
                        raise Problem(429, "", "Too much is being uploaded at once: try again.", retry_after_s=10)
                    clock.reschedule(started + self._limits.body_grace_s + body.seen / self._limits.body_rate)
                return body.seen
            finally:
                self._open.discard(body)

    def _make_room(self) -> None:
        if len(self._open) < self._limits.bodies:
            return
        held = Counter(body.client for body in self._open)
        most = max(held.values())
        # Who has the least time left has sent the least for its age.
        slowest = min((b for b in self._open if held[b.client] == most), key=lambda b: b.clock.when() or 0)
        slowest.clock.reschedule(0)
        self._open.discard(slowest)


def _replay(file: IO[bytes], receive: Receive) -> Receive:
    """`receive` that tells a body from a file, and then what the client does."""
    ended = False

    async def replayed() -> Message:
        nonlocal ended
        if ended:
            return await receive()
        piece = file.read(_PIECE)
        ended = len(piece) < _PIECE
        return {"type": "http.request", "body": piece, "more_body": not ended}

    return replayed


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
FUNCTIONS = frozenset({"lower", "upper", "length", "abs", "starts_with", "ends_with", "contains"})
# May stand before a bracket, and are no functions.
_OPERATORS = frozenset({"and", "or", "not", "in", "between", "like", "ilike", "when", "then", "else", "case", "is"})


def restricted_filter(where: str | None) -> str | None:
    """A client's SQL condition, or None for an empty one. UsageError for anything but comparisons of columns and literals,
    AND, OR, NOT, IN, LIKE, BETWEEN, IS NULL, arithmetic and a few functions.

    How deep it may be is `filters.bounded`'s, as for everyone; which columns there are is checked by `split_filter`, and
    their types by Lance.
    """
    if where is None or not where.strip():
        return None
    if len(where) > MOST_FILTER:
        raise UsageError(f"the filter has {len(where)} characters, over the limit of {MOST_FILTER}: say it shorter")
    tokens = read_tokens(where)
    for token, after in zip(tokens, [*tokens[1:], None]):
        called = after is not None and after.opens and token.kind in ("word", "quoted")
        if called and token.word not in _OPERATORS and token.word not in FUNCTIONS:
            raise UsageError(
                f"the filter calls {token.text}(), which is not allowed; there are {', '.join(sorted(FUNCTIONS))}"
            )
        if token.text in ("::", "[") or token.word in ("cast", "try_cast"):
            raise UsageError(f"the filter has {token.text} in it, which is not allowed: compare columns with values")
    for name in columns_of(tokens):
        if name.lower() == "jpeg" or is_model_column(name.lower()):
            raise UsageError(f"the filter names {name}, which holds media or vectors: filter by another column")
    return where

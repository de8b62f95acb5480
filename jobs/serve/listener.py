"""HTTP in this process: uvicorn on a thread of its own, with bounds on headers and on time, which httptools has not."""

from __future__ import annotations

import asyncio
import resource
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from jobs.serve.problems import Problem
from vfm_ops.errors import VfmError

if TYPE_CHECKING:
    from jobs.serve.gateway import Gateway

MOST_HEADER_BYTES = 64 << 10
STARTS_WITHIN_S = 60.0
HEAD_WITHIN_S = 10.0
LINGER_S = 2.0
MOST_CONNECTIONS = 1000
THREADS = 64


def most_connections() -> int:
    """How many may be open: half of the file descriptors that this process may have, which others need too."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if allowed == resource.RLIM_INFINITY else max(16, min(MOST_CONNECTIONS, allowed // 2))


class BoundedHeaders(HttpToolsProtocol):
    """Answers 431 and hangs up when a request's line and headers exceed MOST_HEADER_BYTES, and hangs up when they are not there
    HEAD_WITHIN_S after the connection, or their first byte. Of too many connections the longest idle one goes."""

    _head: int | None = 0  # bytes of the unfinished head; None while a body comes
    _late: asyncio.TimerHandle | None = None  # hangs up
    _since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there, and makes room for itself where there is none."""
        super().connection_made(transport)
        self._hang_up_after(HEAD_WITHIN_S)
        if len(self.connections) > most_connections():
            idle = [c for c in self.connections if isinstance(c, BoundedHeaders) and c._is_idle()]
            min(idle, key=lambda c: c._since).transport.close()  # itself where all others are being answered

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._keep()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """What is left of a body that was refused is not waited for; the client has a moment to read why."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.pipeline:
            self._hang_up_after(LINGER_S)

    def _is_idle(self) -> bool:
        return self._late is not None or (self.cycle is not None and self.cycle.response_complete)

    def _hang_up_after(self, seconds: float) -> None:
        self._keep()
        self._since = self.loop.time()
        self._late = self.loop.call_later(seconds, self.transport.close)

    def _keep(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def data_received(self, data: bytes) -> None:
        """Parses; a head as far as it may go."""
        if self._head == 0 and self._late is None:
            self._hang_up_after(HEAD_WITHIN_S)
        while data and self._head is not None and not self.transport.is_closing():
            allowed = MOST_HEADER_BYTES - self._head
            if allowed <= 0:
                self._refuse()
                return
            self._head += min(allowed, len(data))
            super().data_received(data[:allowed])
            data = data[allowed:]
        if data and not self.transport.is_closing():
            super().data_received(data)

    def on_headers_complete(self) -> None:
        """The head ended."""
        self._head = None
        self._keep()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next piece begins a head."""
        self._head = 0
        self._keep()
        super().on_message_complete()

    def _refuse(self) -> None:
        body = Problem(431, "", f"Headers are limited to {MOST_HEADER_BYTES:,} bytes: send fewer.").body()
        head = (
            "HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()


class Listener:
    """A gateway that listens; returns from the constructor when it does. VfmError when it can't.

    make, ended: called on the listener's event loop, before and after.
    """

    def __init__(self, make: Callable[[], Gateway], ended: Callable[[], Awaitable[None]], host: str, port: int) -> None:
        self._make, self._ended = make, ended
        self._config: dict[str, Any] = {
            "host": host,
            "port": port,
            "http": BoundedHeaders,
            "ws": "none",
            "lifespan": "off",
            "access_log": False,
            "log_config": None,
            "server_header": False,
            "proxy_headers": False,  # who asks is who connects: a header must not make a stranger local
            "timeout_graceful_shutdown": 5,
        }
        self._server: uvicorn.Server | None = None
        self._error: BaseException | None = None
        self._decided = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vfm-http", daemon=True)
        self._thread.start()
        self._decided.wait(STARTS_WITHIN_S)
        if self._error is not None or not self._decided.is_set():
            raise VfmError(f"port {port} of {host} could not be listened on") from self._error

    def close(self) -> None:
        """Stops listening, lets requests end for some seconds, and returns."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join(60)

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                runner.run(self._serve())
        except BaseException as error:
            self._error = error
        self._decided.set()

    async def _serve(self) -> None:
        # A scan holds a thread for as long as it takes; with asyncio's own few, six slow ones would hold up everyone.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS, "vfm-http"))
        gateway = self._make()  # here: the handles of the models belong to this loop
        server = uvicorn.Server(uvicorn.Config(gateway.__serve_build_asgi_app__(), **self._config))
        self._server = server
        announced = asyncio.create_task(self._announce(server))
        try:
            await server.serve()
        finally:
            announced.cancel()
            gateway.close()
            await self._ended()
        if not server.started:
            raise VfmError("the address can't be listened on")

    async def _announce(self, server: uvicorn.Server) -> None:
        while not server.started:
            await asyncio.sleep(0.01)
        self._decided.set()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop

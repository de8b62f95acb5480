"""A client that sends, or takes, too slowly costs its own connection and nobody else's place."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import subprocess
import sys

import pytest

from jobs.bench.serve import free_port
from jobs.serve import listener as listening
from jobs.serve.listener import Listener
from jobs.serve.metrics import Metrics
from jobs.serve.safety import Bodies, Guard
from jobs.serve.settings import RequestLimits
from tests.jobs.serve.test_safety import reading

POST = b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n"
GET = b"GET /v1/lake HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


class Guarded:
    """Stands for a gateway: an application that reads all, behind the guard."""

    def __init__(self, **limits) -> None:
        self._limits = RequestLimits(**limits)

    def __serve_build_asgi_app__(self):
        return Guard(reading, self._limits, None, Metrics())

    def close(self) -> None:
        pass


async def nothing() -> None:
    pass


@pytest.fixture
def serve():
    """Starts a guarded application with some limits; returns its port."""
    with contextlib.ExitStack() as open_ones:

        def start(**limits) -> int:
            port = free_port()
            open_ones.callback(Listener(lambda: Guarded(**limits), nothing, "127.0.0.1", port).close)
            return port

        yield start


def connect(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(data)
    return connection


def heard(connection: socket.socket) -> bytes:
    """All that the server says, until it hangs up."""
    answer = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1 << 16):
            answer += piece
    connection.close()
    return answer


def test_slow_bodies_hold_no_place_that_others_need(serve):
    """64 of them gave everyone 429 for as long as they liked."""
    port = serve(in_flight=4)
    slow = [connect(port, POST + b"x") for _ in range(64)]
    assert heard(connect(port, GET)).startswith(b"HTTP/1.1 200")
    whole = POST.replace(b"Host", b"Connection: close\r\nHost") + b"y" * 1000
    assert heard(connect(port, whole)).startswith(b"HTTP/1.1 200")
    for connection in slow:
        connection.close()


def test_a_body_that_stops_is_told_so_and_let_go(serve, monkeypatch):
    monkeypatch.setattr(listening, "LINGER_S", 0.1)
    port = serve(body_grace_s=0.1)
    answer = heard(connect(port, POST + b"x" * 10))
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"came too slowly" in answer


def test_heads_that_stop_are_let_go(serve, monkeypatch):
    monkeypatch.setattr(listening, "HEAD_WITHIN_S", 0.1)
    port = serve()
    assert heard(connect(port, b"GET /v1/lake HTTP/1.1\r\nHost: local")) == b""
    assert heard(connect(port, b"")) == b""


def test_of_too_many_connections_the_longest_idle_one_goes(serve, monkeypatch):
    monkeypatch.setattr(listening, "most_connections", lambda: 20)
    port = serve()
    idle = [connect(port, b"") for _ in range(40)]
    assert heard(connect(port, GET)).startswith(b"HTTP/1.1 200")
    assert heard(idle[0]) == b""
    for connection in idle[1:]:
        connection.close()


def test_a_place_is_given_back_when_the_answer_begins():
    """A client that reads slowly keeps its own connection waiting, not the next client's request."""
    second: list = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/v1/lake":
            await guard(scope | {"path": "/v1/search"}, receive, lambda message: note(second, message))
        await send({"type": "http.response.body", "body": b""})

    guard = Guard(app, RequestLimits(in_flight=1), None, Metrics())
    asyncio.run(guard(scope_of("/v1/lake"), empty, lambda message: note([], message)))
    assert second[0]["status"] == 200
    assert guard.in_flight == 0


def test_a_client_that_takes_nothing_is_let_go():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})

    async def stuck(message):
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    guard = Guard(app, RequestLimits(stall_s=0.05), None, Metrics())
    with pytest.raises(TimeoutError):
        asyncio.run(guard(scope_of("/v1/assets/a"), empty, stuck))
    assert guard.in_flight == 0


def test_who_sends_most_bodies_makes_room_with_the_slowest():
    """So a newcomer is heard, whatever one client holds open."""

    async def run() -> list[str]:
        bodies, ended = Bodies(RequestLimits(bodies=4)), []

        async def send(client: str, first: int) -> None:
            parts = [{"type": "http.request", "body": b"x" * first, "more_body": True}]

            async def receive():
                return parts.pop() if parts else await asyncio.Event().wait()

            try:
                async with bodies.received(receive, 10**6, client):
                    pass
            except Exception as error:
                ended.append(f"{client}-{first} {error.status}")

        tasks = []
        for client, first in (("greedy", 90_000), ("greedy", 1), ("greedy", 50_000), ("modest", 1), ("new", 1)):
            tasks.append(asyncio.create_task(send(client, first)))
            for _ in range(5):
                await asyncio.sleep(0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return ended

    assert asyncio.run(run()) == ["greedy-1 408"]


def test_memory_for_bodies_is_given_back():
    async def run() -> int:
        bodies = Bodies(RequestLimits())
        for _ in range(3):
            parts = [{"type": "http.request", "body": b"x" * 500_000, "more_body": more} for more in (False, True)]

            async def receive(parts=parts):
                return parts.pop()

            async with bodies.received(receive, 10**6, "a") as whole:
                size, more = 0, True
                while more:
                    message = await whole()
                    size, more = size + len(message["body"]), message["more_body"]
                assert size == 1_000_000
        return bodies.held_bytes

    assert asyncio.run(run()) == 0


def test_too_little_address_space_is_said_at_once():
    """Ray's processes died of it, and nothing was said for a minute."""
    limit = "import resource as r; r.setrlimit(r.RLIMIT_AS, (3 << 30, 3 << 30)); "
    code = limit + "import sys; from jobs.cli import main; sys.exit(main(['serve', '--lake', '/nowhere']))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 2
    assert "3.0 GB of address space (ulimit -v)" in ran.stderr


def scope_of(path: str) -> dict:
    return {"type": "http", "path": path, "client": ("127.0.0.1", 1), "headers": [(b"host", b"localhost:1")]}


async def empty():
    return {"type": "http.request", "body": b"", "more_body": False}


async def note(into: list, message: dict) -> None:
    into.append(message)

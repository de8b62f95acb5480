"""Load on a server: clients that each ask again as soon as they are answered, and what became of every request.

Raw sockets and ready-made bytes: on a machine that is shared with the server, a client library's own work would be measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

CLEAN = b"application/problem+json"


@dataclass(frozen=True)
class Answer:
    """One request: which, when it was sent and answered (perf_counter, s), status (0: the connection broke), body."""

    index: int
    sent: float
    seconds: float
    status: int
    body: bytes
    is_problem: bool


@dataclass
class Load:
    """What `clients` got in `seconds`."""

    answers: list[Answer] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> list[Answer]:
        """Those with a status below 400."""
        return [a for a in self.answers if 0 < a.status < 400]

    @property
    def failed(self) -> list[Answer]:
        """The others."""
        return [a for a in self.answers if not 0 < a.status < 400]

    @property
    def rate(self) -> float:
        """Requests/s that were answered well."""
        return len(self.ok) / self.seconds

    def wrong(self, expected: Sequence[bytes]) -> int:
        """Good answers that differ from those expected, by index of the request."""
        return sum(a.body != expected[a.index] for a in self.ok)

    def longest_s(self) -> float:
        """The longest wait for a good answer."""
        return max((a.seconds for a in self.ok), default=0.0)


def post(path: str, body: object, port: int) -> bytes:
    """A JSON request as bytes."""
    return request("POST", path, json.dumps(body).encode(), port)


def request(method: str, path: str, body: bytes, port: int, kind: str = "application/json") -> bytes:
    """A request as bytes."""
    head = (
        f"{method} /v1/{path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}"
    )
    return head.encode() + b"\r\n\r\n" + body


def embed_requests(images: list[bytes], model: str, per_request: int, port: int) -> list[bytes]:
    """One request for each image, with the `per_request - 1` that follow it."""
    texts = [base64.b64encode(data).decode() for data in images]
    bodies = [[texts[(i + j) % len(texts)] for j in range(per_request)] for i in range(len(texts))]
    return [post("embed", {"model": model, "encoding": "base64", "images": b}, port) for b in bodies]


def run_load(
    port: int,
    requests: list[bytes],
    clients: int,
    seconds: float,
    meanwhile: Callable[[float], Coroutine[Any, Any, None]] | None = None,
) -> Load:
    """Loads for some seconds; requests already sent then are waited for. meanwhile: runs beside; gets the start's time."""

    async def run() -> Load:
        load, started = Load(), time.perf_counter()
        beside = [asyncio.create_task(meanwhile(started))] if meanwhile else []
        await asyncio.gather(*(_client(port, requests, n, started + seconds, load) for n in range(clients)), *beside)
        load.seconds = time.perf_counter() - started
        return load

    return asyncio.run(run())


def ask(port: int, requests: list[bytes]) -> list[Answer]:
    """Each request once, one after another."""

    async def run() -> Load:
        load, connection = Load(), _Connection(port)
        for index, data in enumerate(requests):
            load.answers.append(await connection.ask(index, data))
        connection.close()
        return load

    return asyncio.run(run()).answers


async def _client(port: int, requests: list[bytes], number: int, until: float, load: Load) -> None:
    connection, index = _Connection(port), number
    while time.perf_counter() < until:
        index = (index + 1) % len(requests)
        answer = await connection.ask(index, requests[index])
        load.answers.append(answer)
        if answer.status == 0:
            await asyncio.sleep(0.05)
    connection.close()


class _Connection:
    """A kept connection, opened when needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, index: int, data: bytes) -> Answer:
        """One request and its answer."""
        sent = time.perf_counter()
        try:
            status, head, body = await asyncio.wait_for(self._exchange(data), 120)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            self.close()
            return Answer(index, sent, time.perf_counter() - sent, 0, repr(error).encode(), False)
        if b"connection: close" in head:
            self.close()
        return Answer(index, sent, time.perf_counter() - sent, status, body, CLEAN in head)

    def close(self) -> None:
        """Hangs up."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None

    async def _exchange(self, data: bytes) -> tuple[int, bytes, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, limit=1 << 20)
        reader, writer = self._streams
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        return int(head[9:12]), head, await _body(reader, head)


async def _body(reader: asyncio.StreamReader, head: bytes) -> bytes:
    if b"\r\ncontent-length:" in head:
        return await reader.readexactly(int(head.split(b"\r\ncontent-length:")[1].split(b"\r\n")[0]))
    if b"chunked" not in head:
        return b""
    parts = []
    while size := int((await reader.readline()).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readline()
    await reader.readline()
    return b"".join(parts)

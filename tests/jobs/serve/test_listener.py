"""HTTP as this process speaks it: heads are bounded, and a header does not make a stranger local."""

from __future__ import annotations

import contextlib
import json
import socket

import pytest

from jobs.bench.serve import free_port
from jobs.serve.listener import MOST_HEADER_BYTES, Listener
from vfm_ops.errors import VfmError


class Echo:
    """Stands for a gateway: answers with what its application was told of the request."""

    def __serve_build_asgi_app__(self):
        async def app(scope, receive, send):
            size, more = 0, True
            while more:
                message = await receive()
                size, more = size + len(message.get("body", b"")), message.get("more_body", False)
            body = json.dumps({"client": scope["client"][0], "headers": len(scope["headers"]), "size": size}).encode()
            await send(
                {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]}
            )
            await send({"type": "http.response.body", "body": body})

        return app

    def close(self):
        pass


async def nothing() -> None:
    pass


@pytest.fixture
def port():
    number = free_port()
    listener = Listener(Echo, nothing, "127.0.0.1", number)
    yield number
    listener.close()


def said(port: int, data: bytes) -> bytes:
    """What the server says to some bytes, until it hangs up."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        answer = b""
        with contextlib.suppress(OSError):  # it may hang up before it has heard all
            connection.sendall(data)
        with contextlib.suppress(ConnectionResetError):
            while piece := connection.recv(1 << 16):
                answer += piece
        return answer


def test_endless_heads_are_refused(port):
    for line in (b"X: " + b"a" * 2 * MOST_HEADER_BYTES, b"X: y\r\n" * MOST_HEADER_BYTES):
        answer = said(port, b"GET / HTTP/1.1\r\nHost: a\r\n" + line)
        assert answer.startswith(b"HTTP/1.1 431 ") or not answer
    assert said(port, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_large_bodies_and_many_requests_on_one_connection_are_not_heads(port):
    body = b"\r\n\r\n" + b"b" * 5 * MOST_HEADER_BYTES
    post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % len(body)
    answer = said(port, 3 * (post + b"\r\n" + body) + post + b"Connection: close\r\n\r\n" + body)
    assert answer.count(b"HTTP/1.1 200") == 4
    assert answer.count(b'"size": %d' % len(body)) == 4


def test_a_forwarded_address_is_not_believed(port):
    answer = said(port, b"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.9.8.7\r\nConnection: close\r\n\r\n")
    assert b'"client": "127.0.0.1"' in answer


def test_an_address_that_is_taken_is_an_error_at_once(port):
    with pytest.raises(VfmError, match="could not be listened on"):
        Listener(Echo, nothing, "127.0.0.1", port)

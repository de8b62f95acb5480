"""An S3 store on loopback that fails as it is told: moto behind a proxy of ours that injects faults by rules.

    with FaultyStore(seed=7) as store:
        bucket = store.bucket({"in/a.jpg": data})               # straight to moto: nothing fails here
        store.fail("403", method="PUT", path="frames.lance", seconds=25)
        ...                                                     # whoever follows AWS_ENDPOINT_URL meets the rules
        store.heal()

While it is open, its URL and credentials are in the environment, so that processes started meanwhile use it, too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import pytest
from aiohttp import ClientSession, DummyCookieJar, TCPConnector, web
from yarl import URL

Fault = Literal[
    "403",  # refused
    "404",  # not there
    "500",  # failed, and not done
    "503",  # slow down
    "applied",  # done, but answered 500
    "lost",  # done, but the connection is cut before the answer
    "cut",  # the connection is cut before the request is done
    "half",  # half of the answer, then cut
    "slow",  # done and answered, late
]
CODES = {
    "403": "AccessDenied",
    "404": "NoSuchKey",
    "500": "InternalError",
    "503": "SlowDown",
    "applied": "InternalError",
}
SLOW_S = (0.05, 0.6)
OF_ONE_CONNECTION = {"connection", "keep-alive", "transfer-encoding", "upgrade", "expect", "host", "content-length"}


@dataclass
class Rule:
    """When a request fails, and how. path: a regular expression, searched in the path with its query."""

    fault: Fault
    method: str = ""  # any
    path: str = ""
    rate: float = 1.0  # share of the matching requests
    after: int = 0  # so many matching requests pass first
    times: int | None = None  # then so many fail, at most
    seconds: float | None = None  # only so long after the first that failed
    began: float | None = None
    seen: int = 0
    failed: int = 0

    def takes(self, method: str, path: str, chance: float) -> bool:
        """Whether this request fails; counts it. chance: uniform in [0, 1)."""
        if self.method not in ("", method) or not re.search(self.path, path):
            return False
        if self.seconds is not None and self.began is not None and time.monotonic() - self.began > self.seconds:
            return False
        self.seen += 1
        if self.seen <= self.after or (self.times is not None and self.failed >= self.times) or chance >= self.rate:
            return False
        self.failed += 1
        self.began = self.began or time.monotonic()
        return True


class FaultyStore:
    """See the module. `requests` counts (method, fault or 'ok'); `url` is the proxy, `sound_url` moto itself."""

    def __init__(self, seed: int = 0) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.url = self.sound_url = ""
        self._random = random.Random(seed)
        self._rules: list[Rule] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="faulty-store")
        self._environment: dict[str, str | None] = {}

    def __enter__(self) -> FaultyStore:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.sound_url = "http://{}:{}".format(*self._moto.get_host_and_port())
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        settings = {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ALLOW_HTTP": "true",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        self._environment = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)
        return self

    def __exit__(self, *error: object) -> None:
        for name, value in self._environment.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)
        self._loop.close()
        self._moto.stop()

    def client(self) -> Any:
        """A boto3 client of the sound store, for arranging and looking."""
        import boto3

        keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": "us-east-1"}
        return boto3.client("s3", endpoint_url=self.sound_url, **keys)

    def bucket(self, objects: Mapping[str, bytes] | None = None) -> str:
        """The name of a new bucket that holds these objects. New, since filesystems are cached by bucket."""
        name = f"b{uuid.uuid4().hex[:12]}"
        client = self.client()
        client.create_bucket(Bucket=name)
        for key, data in (objects or {}).items():
            client.put_object(Bucket=name, Key=key, Body=data)
        return name

    def fail(self, fault: Fault, **when: Any) -> Rule:
        """From now on, requests fail as the Rule says; the first rule that takes a request decides."""
        assert fault in get_args(Fault), fault
        self._rules.append(Rule(fault, **when))
        return self._rules[-1]

    def heal(self) -> None:
        """Nothing fails any more."""
        self._rules.clear()

    # -- the proxy -------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        # A cookie jar and decompression would change what passes; S3 clients sign what they send.
        self._session = ClientSession(
            connector=TCPConnector(limit=0, force_close=True), cookie_jar=DummyCookieJar(), auto_decompress=False
        )
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{any:.*}", self._answer)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def _stop(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        path = request.raw_path
        fault = next((r.fault for r in list(self._rules) if r.takes(request.method, path, self._random.random())), None)
        self.requests[request.method, fault or "ok"] += 1
        if fault in ("403", "404", "500", "503"):
            return _error(request, fault)
        if fault == "cut":
            return _hang_up(request)
        if fault == "slow":
            await asyncio.sleep(self._random.uniform(*SLOW_S))
        headers = [(k, v) for k, v in request.headers.items() if k.lower() not in OF_ONE_CONNECTION]
        url = URL(self.sound_url + path, encoded=True)
        async with self._session.request(
            request.method, url, data=body, headers=headers, skip_auto_headers=["Content-Type", "User-Agent"]
        ) as done:
            answer = await done.read()
            kept = [(k, v) for k, v in done.headers.items() if k.lower() not in OF_ONE_CONNECTION]
            if request.method == "HEAD" and "Content-Length" in done.headers:
                kept.append(("Content-Length", done.headers["Content-Length"]))
        if fault == "applied":
            return _error(request, fault)
        if fault == "lost":
            return _hang_up(request)
        if fault == "half":
            stream = web.StreamResponse(status=done.status, headers=kept)
            stream.content_length = len(answer)
            await stream.prepare(request)
            await stream.write(answer[: len(answer) // 2])
            return _hang_up(request)
        return web.Response(status=done.status, body=None if request.method == "HEAD" else answer, headers=kept)


def _error(request: web.Request, fault: str) -> web.Response:
    text = f"<?xml version='1.0'?><Error><Code>{CODES[fault]}</Code><Message>injected</Message></Error>"
    status = 500 if fault == "applied" else int(fault)
    return web.Response(
        status=status, body=b"" if request.method == "HEAD" else text.encode(), content_type="application/xml"
    )


def _hang_up(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.abort()
    raise asyncio.CancelledError


@pytest.fixture(scope="module")
def faulty_store():
    """One for a module's tests; each takes buckets of its own, and `heal` comes after each by `healed_store`."""
    pytest.importorskip("moto.server", reason="needs moto[server]: make setup")
    pytest.importorskip("boto3", reason="needs boto3: make setup")
    with FaultyStore() as store:
        yield store


@pytest.fixture
def store(faulty_store: FaultyStore):
    """The module's store, sound at the beginning and at the end of a test."""
    faulty_store.heal()
    yield faulty_store
    faulty_store.heal()

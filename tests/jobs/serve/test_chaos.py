"""Generated conditions, hostile requests and damaged uploads against the real HTTP application (over stand-ins for replicas, so
without Ray): each costs its sender an answer, and the server nothing."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote

import cv2
import numpy as np
import psutil
import pytest
import requests

from jobs.bench.serve import free_port
from jobs.bench.serve_hostile import damaged, hostile_requests
from jobs.bench.serve_load import ask, request
from tests.conftest import chaos_count
from tests.jobs.serve.local import listening, tiny_lake
from tests.pipelines.lake.filter_grammar import make_filter

LIMITS = {"body_bytes": 4 << 20, "video_bytes": 8 << 20, "pixels": 4_000_000, "batch": 32, "deadline_s": 120}


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    lake = tiny_lake(tmp_path_factory.mktemp("chaos") / "lake", 100, 2)
    number = free_port()
    with listening(lake, number, **LIMITS):
        yield number


def photograph() -> bytes:
    rng = np.random.default_rng(0)
    noise = cv2.resize(rng.integers(0, 255, (24, 32, 3), np.uint8), (640, 480), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", noise)[1].tobytes()


def conditions(seed: int, port: int) -> Iterator[bytes]:
    """Requests whose only hostile part is a condition."""
    rng = random.Random(seed)
    while True:
        where = make_filter(rng)
        if rng.random() < 0.5:
            path = f"frames?limit={rng.choice((1, 5, 500))}&where={quote(where[:3000], errors='surrogatepass')}"
            yield request("GET", path, b"", port)
        else:
            yield request("POST", "search", json.dumps({"frame_id": "a000001:0", "where": where}).encode(), port)


def uploads(seed: int, port: int) -> Iterator[bytes]:
    """Files that are no pictures, half of one, or far too much of one, as a form sends them."""
    rng, picture = random.Random(seed), photograph()
    while True:
        parts = [
            b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n'
            + damaged(rng, picture)
            + b"\r\n"
            for _ in range(rng.randrange(1, 4))
        ]
        yield request("POST", "embed/files", b"".join(parts) + b"--b--\r\n", port, "multipart/form-data; boundary=b")


@pytest.mark.chaos
@pytest.mark.parametrize(
    ("make", "sample", "full"),
    [
        (conditions, 60, 5000),
        (uploads, 20, 1500),
        (lambda seed, port: hostile_requests(10**9, photograph(), port, seed), 45, 2000),
    ],
    ids=["conditions", "uploads", "hostile"],
)
def test_every_hostile_request_gets_an_answer_and_the_server_stays(port, make, sample, full):
    """No 5xx but a clean 503, no broken connection, and memory comes back."""
    endless = make(5, port)
    count = chaos_count(sample, full)
    before = psutil.Process().memory_info().rss
    seen: Counter[int] = Counter()
    odd = []
    for start in range(0, count, 100):
        batch = [next(endless) for _ in range(min(100, count - start))]
        for answer in ask(port, batch):
            seen[answer.status] += 1
            if answer.status == 0 or (answer.status >= 400 and not answer.is_problem):
                odd.append((answer.status, answer.body[:200], batch[answer.index][:300]))
    assert odd == []
    assert {status for status in seen if status >= 500} <= {503}
    assert requests.get(f"http://127.0.0.1:{port}/v1/health", timeout=60).status_code == 200
    assert psutil.Process().memory_info().rss - before < 500 << 20

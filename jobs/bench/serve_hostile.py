"""Hostile requests, the same ones every time: bombs, cut and wrong media, wrong types, huge headers, NaN, endless batches,
paths, URLs and SQL where text is expected. Each must cost its sender a 4xx, and the server nothing."""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from itertools import islice

from jobs.bench.serve_load import request

Maker = Callable[[random.Random, bytes], tuple[str, str, bytes, str]]  # -> method, path, body, content type
JSON, PNG_SIDE = "application/json", 60_000
STRINGS = (
    "/etc/passwd",
    "../../../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/",
    "s3://bucket/key",
    "x' OR '1'='1",
    "x'; DROP TABLE frames; --",
    "x' UNION SELECT jpeg FROM frames --",
    "$(id)",
    "\x00",
    "\ud800",
    "a" * 100_000,
    "{{7*7}}",
    "timm:../../../etc",
)
WHERE = (
    "1=1; DROP TABLE frames",
    "read_file('/etc/passwd') = 'x'",
    "frame_id IN (SELECT frame_id FROM frames)",
    "repeat('a', 1000000000) = 'b'",
    "(" * 500 + "width = 1" + ")" * 500,
    "width = 1 OR " * 5000 + "width = 2",
    "jpeg IS NOT NULL",
    "width / 0 = 1",
    "width = 'a'",
    "-- x",
    "\x00",
    "width LIKE '%%%%%'",
)
VALUES: tuple[object, ...] = (None, True, -1, 0, 10**30, 1e308, [], {}, [[]], "", "x", [None], {"a": 1}, [1, "a"], -0.5)
BROKEN = (
    b"{",
    b"\xff\xfe",
    b"NaN",
    b"null",
    b"",
    b"0" * 100_000,
    b"[" * 50_000,
    b'{"a":' * 5000,
    b'{"text": NaN}',
    b'{"scale": 1e999}',
    b'{"box": [NaN, Infinity, 1, 2], "frame_id": "a"}',
)
FIELDS = {
    "search": ("text", "image", "frame_id", "box", "where", "model", "limit", "offset", "exact"),
    "embed": ("images", "texts", "model", "encoding"),
    "classify": ("images", "frame_ids", "labels", "templates", "scale", "top"),
    "detect": ("image", "frame_id", "prompts", "threshold", "limit"),
    "segment/sessions": ("image", "frame_id"),
    "track/sessions": ("asset_id",),
    "selections": ("name", "frame_ids"),
}


def hostile_requests(count: int, photograph: bytes, port: int, seed: int = 0) -> Iterator[bytes]:
    """`count` requests as bytes. photograph: an encoded image of which damaged ones are made."""
    rng = random.Random(seed)
    return islice(_endless(rng, photograph, port), count)


def _endless(rng: random.Random, photograph: bytes, port: int) -> Iterator[bytes]:
    while True:
        for make in (_media, _fields, _strings, _where, _broken_json, _batch, _paths, _multipart):
            method, path, body, kind = make(rng, photograph)
            yield request(method, path, body, port, kind)
        yield _huge_headers(rng, port)


def _media(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    data = base64.b64encode(damaged(rng, photograph)).decode()
    path, body = rng.choice(
        [
            ("embed", {"images": [data]}),
            ("search", {"image": data, "limit": 1}),
            ("segment/sessions", {"image": data}),
        ]
    )
    return "POST", path, json.dumps(body).encode(), JSON


def damaged(rng: random.Random, photograph: bytes) -> bytes:
    """Bytes that are no picture, half of one, or far too much of one."""
    cut = photograph[: rng.randrange(len(photograph) // 2)]
    flipped = bytearray(photograph)
    for _ in range(200):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    return rng.choice(
        [
            cut,
            bytes(flipped[:40] + flipped[-40:]),
            png_bomb(rng.randrange(9_000, PNG_SIDE)),
            rng.randbytes(rng.randrange(5000)),
            b"GIF89a" + b"\xff" * 300,
            b"#EXTM3U\nhttp://127.0.0.1/x",
            b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
            b"%PDF-1.7\n" + b"0" * 500,
            b"PK\x03\x04" + rng.randbytes(500),
        ]
    )


def png_bomb(side: int) -> bytes:
    """A PNG of side x side pixels whose data would inflate to gigabytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 99_999)) + chunk(b"IEND", b"")


def _fields(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    path = rng.choice(list(FIELDS))
    names = rng.sample(FIELDS[path], rng.randint(1, min(4, len(FIELDS[path]))))
    # An empty list of selections' frames, a wrong type: nothing here is a request that would be answered.
    return "POST", path, json.dumps({n: rng.choice(VALUES) for n in names} | {"_": 1}).encode(), JSON


def _strings(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    text = rng.choice(STRINGS)
    path, body = rng.choice(
        [
            ("search", {"frame_id": text}),
            ("search", {"image": text}),
            ("search", {"frame_id": "a:0", "model": text}),
            ("embed", {"images": [text]}),
            ("classify", {"frame_ids": [text], "labels": ["a"]}),
            ("segment/sessions", {"frame_id": text}),
            ("track/sessions", {"asset_id": text}),
            ("selections", {"name": text, "frame_ids": [text]}),
            ("selections", {"name": "fine", "frame_ids": [text]}),
        ]
    )
    return "POST", path, json.dumps(body).encode(), JSON


def _where(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    return "POST", "search", json.dumps({"frame_id": "none:0", "where": rng.choice(WHERE)}).encode(), JSON


def _broken_json(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    body = rng.choice((*BROKEN, b'{"text": "' + rng.randbytes(200) + b'"}'))
    return "POST", rng.choice(list(FIELDS)), body, rng.choice([JSON, "text/plain", "application/xml", ""])


def _batch(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    many = rng.choice([300, 10_000, 1_000_000])
    body = rng.choice(
        [
            b'{"texts": [' + b'"a",' * (many - 1) + b'"a"]}',
            b'{"images": [' + b'"",' * (many - 1) + b'""]}',
            b'{"name": "x", "frame_ids": [' + b'"a",' * (many - 1) + b'"a"]}',
        ]
    )
    return "POST", "selections" if b"frame_ids" in body else "embed", body, JSON


def _paths(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    name = rng.choice(("..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/x", "%00", "%ff%fe", "x'--", "a" * 5000, "%0d%0aX:1"))
    path = rng.choice(("frames/{}", "frames/{}/details", "assets/{}", "assets/{}/tracks", "segment/sessions/{}"))
    return rng.choice(("GET", "DELETE", "PUT", "POST")), path.format(name), b"", JSON


def _multipart(rng: random.Random, photograph: bytes) -> tuple[str, str, bytes, str]:
    data = damaged(rng, photograph)
    disposition = 'Content-Disposition: form-data; name="files"; filename="../../etc/passwd"'
    head = f"--b\r\n{disposition}\r\nContent-Type: image/png\r\n\r\n".encode()
    path = rng.choice(("embed/files", "track/uploads"))
    body = head.replace(b"files", b"file") + data if path == "track/uploads" else head + data
    ending = rng.choice((b"\r\n--b--\r\n", b"", b"\r\n--c--\r\n"))
    return "POST", path, body + ending, rng.choice(("multipart/form-data; boundary=b", "multipart/form-data"))


def _huge_headers(rng: random.Random, port: int) -> bytes:
    size = rng.choice((70_000, 300_000, 2_000_000))
    lines = rng.choice((f"X-A: {'a' * size}\r\n", "X-B: b\r\n" * (size // 8), f"Cookie: {'c=d;' * (size // 4)}\r\n"))
    return f"GET /v1/lake HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{lines}\r\n".encode()

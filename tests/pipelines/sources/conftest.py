"""Small sources, and an S3 server on loopback."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from pipelines.sources import ListingOptions, Tally, list_source, resolve_sources
from tests.conftest import optional_package


def encoded(format: str = "JPEG", shade: int = 0) -> bytes:
    """A small valid image."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(buffer, format)
    return buffer.getvalue()


def listing(*sources: str | Path, options: ListingOptions | None = None) -> tuple[list[dict], Tally]:
    """All rows of some sources, by uri and member, and what was left out."""
    tally, rows = Tally(), []
    for source in resolve_sources(map(str, sources)):
        for batch in list_source(source, options or ListingOptions(), tally):
            rows += batch.to_pylist()
    return sorted(rows, key=lambda r: (r["uri"], r["offset"] or 0)), tally


def names(rows: list[dict]) -> list[str]:
    """Base names of the rows' files."""
    return [r["uri"].rpartition("/")[2] for r in rows]


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    """A plain tar of the members, in order."""
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """A real S3 server on loopback; its URL and credentials are in the environment meanwhile."""
    server_module = optional_package("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ALLOW_HTTP": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    yield settings["AWS_ENDPOINT_URL"]
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})
    server.stop()


@pytest.fixture
def bucket(s3_endpoint: str, request: pytest.FixtureRequest) -> Iterator:
    """An empty bucket: a function that stores objects by key, with the bucket's name as `bucket.name`."""
    client = optional_package("boto3").client("s3", endpoint_url=s3_endpoint)
    name = "b" + str(abs(hash(request.node.nodeid)))
    client.create_bucket(Bucket=name)

    def put(objects: dict[str, bytes]) -> None:
        for key, data in objects.items():
            client.put_object(Bucket=name, Key=key, Body=data)

    put.name = name  # type: ignore[attr-defined]
    return put

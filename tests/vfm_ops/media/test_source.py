"""Bytes from files, archives, URLs and memory are the same bytes."""

from __future__ import annotations

import os
from contextlib import suppress

import pytest

from tests.conftest import optional_package
from vfm_ops.errors import MediaError
from vfm_ops.media.container import open_container
from vfm_ops.media.limits import Limits
from vfm_ops.media.source import MediaSource

DATA = bytes(range(256)) * 40


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "a b%20c.tar"
    path.write_bytes(b"head" + DATA + b"tail")
    return path


def sources(path) -> list[MediaSource]:
    quoted = str(path).replace("%", "%25").replace(" ", "%20")
    return [
        MediaSource(str(path), 4, len(DATA)),
        MediaSource(f"file://{quoted}", 4, len(DATA)),
        MediaSource("cell", data=DATA),
    ]


def test_every_way_reads_the_same_bytes(archive):
    for source in sources(archive):
        assert source.size() == len(DATA)
        assert source.read(10**6) == DATA
        assert source.head(300) == DATA[:300]
        with source.open() as file:
            file.seek(-6, os.SEEK_END)
            assert file.read(100) == DATA[-6:]
            file.seek(1000)
            assert file.read(7) == DATA[1000:1007]
            assert file.tell() == 1007
    assert MediaSource(str(archive)).read(10**6) == b"head" + DATA + b"tail"


def test_an_object_store_reads_like_a_file(monkeypatch):
    server_module = optional_package("moto.server")
    import pyarrow.fs

    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in (
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            monkeypatch.setenv(name, value)
        query = f"?scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true&region=us-east-1"
        store, _ = pyarrow.fs.FileSystem.from_uri(f"s3://bucket/{query}")
        store.create_dir("bucket")
        with store.open_output_stream("bucket/a.bin") as file:
            file.write(b"head" + DATA)
        member = MediaSource(f"s3://bucket/a.bin{query}", 4, len(DATA))
        assert member.read(10**6) == DATA
        assert MediaSource(f"s3://bucket/a.bin{query}").size() == len(DATA) + 4
        with pytest.raises(MediaError, match="does not exist"):
            MediaSource(f"s3://bucket/none.bin{query}").read(10)
    finally:
        server.stop()


def test_what_cannot_be_read_says_what_to_do(tmp_path, archive):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    cases = [
        (MediaSource(str(tmp_path / "none.jpg")), "missing"),
        (MediaSource(str(empty)), "empty"),
        (MediaSource(str(tmp_path)), "not_media"),
        (MediaSource(str(archive), 4, 10**6), "truncated"),
        (MediaSource("ftp-like://nowhere/x.jpg"), "unreadable"),
    ]
    for source, kind in cases:
        with pytest.raises(MediaError) as caught:
            source.read(10**7)
        assert caught.value.kind == kind
        assert source.uri in str(caught.value)
    with pytest.raises(MediaError, match="limit"):
        MediaSource(str(archive)).read(100)
    with pytest.raises(ValueError, match="both"):
        MediaSource("a", offset=3)


def test_a_path_that_was_a_file_and_is_a_pipe_now_is_not_waited_for(tmp_path):
    """Whoever owns a folder can put a pipe into it at any time: neither a run nor the server may hang on it."""
    path = tmp_path / "v.mp4"
    os.mkfifo(path)
    whole, member = MediaSource(str(path)), MediaSource(str(path), 0, 100)
    uses = [s.head for s in (whole, member)] + [s.open for s in (whole, member)]
    uses += [whole.size, *(lambda s=s: s.read(1 << 20) for s in (whole, member))]
    uses += [lambda s=s: open_container(s, Limits()).__enter__() for s in (whole, member)]
    for use in uses:
        with pytest.raises(MediaError, match="is a pipe, not a file") as caught:
            use()
        assert caught.value.kind == "not_media"


def test_native_readers_open_the_file_that_was_checked(archive):
    """Between the look at a file and FFmpeg's opening of it, another may take its place."""
    with MediaSource(str(archive)).native_path() as path:
        archive.rename(archive.with_suffix(".away"))
        os.mkfifo(archive)
        with open(path, "rb") as file:
            assert file.read() == b"head" + DATA + b"tail"


def test_no_descriptor_is_left_open(archive):
    before = len(os.listdir("/proc/self/fd"))
    os.mkfifo(archive.with_suffix(".pipe"))
    link = archive.with_suffix(".link")
    link.symlink_to(archive)
    for source in (MediaSource(str(archive)), MediaSource(str(link), etag="0-0"), MediaSource(f"{archive}.pipe")):
        for use in (lambda: source.open().close(), source.head, source.size, lambda: source.read(1 << 20)):  # noqa: B023
            with suppress(MediaError):
                use()
    assert len(os.listdir("/proc/self/fd")) == before

"""Only media that was processed is served, as the type that its bytes are of, whatever lies under its path by now."""

from __future__ import annotations

import os

import cv2
import numpy as np
import pytest
import requests

from jobs.bench.serve import free_port
from jobs.cli import main
from pipelines.lake import Lake
from tests.jobs.serve.corpus import write
from tests.jobs.serve.local import listening

SECRET = b"root:x:0:0:root:/root:/bin/bash\n"


@pytest.fixture
def media(tmp_path):
    """A folder of pictures: good, in quarantine (no picture at all), cut short but salvaged, and one nobody processed."""
    folder = tmp_path / "media"
    folder.mkdir()
    picture = cv2.imencode(".jpg", np.full((32, 32, 3), 90, np.uint8))[1].tobytes()
    for name in ("good.jpg", "cut.jpg", "pending.jpg", "still.jpg"):
        (folder / name).write_bytes(picture)
    (folder / "bad.jpg").write_bytes(SECRET)
    return folder


@pytest.fixture
def served(media, tmp_path):
    """Its lake as runs would have left it, on loopback: URL of the API, and asset ids by file name."""
    assert main(["ingest", str(media), "--lake", str(tmp_path / "lake")]) == 0
    lake = Lake.open(tmp_path / "lake")
    ids = {row["uri"].rsplit("/", 1)[1]: row["asset_id"] for row in lake.read("assets").to_pylist()}
    for table in ("frames", "detections", "tracks", "shots", "ledger", "quarantine"):
        lake.ensure(table)
    settled = [{"asset_id": ids[n], "run_key": "r.1"} for n in ("good.jpg", "still.jpg")]
    write(lake, "ledger", settled)
    write(lake, "quarantine", [quarantined(ids["bad.jpg"], 0), quarantined(ids["cut.jpg"], 1)])
    frames = [
        {"frame_id": f"{ids[n]}:0", "asset_id": ids[n], "run_key": "r.1", "frame_index": 0}
        for n in ("still.jpg", "bad.jpg")
    ]
    write(lake, "frames", frames)
    with listening(lake, free_port()) as url:
        yield f"{url}/v1", ids


def quarantined(asset_id: str, frames: int) -> dict:
    return {"asset_id": asset_id, "run_key": "r.1", "kind": "damaged", "message": "x", "salvaged_frames": frames}


def test_settled_and_salvaged_media_is_served_as_what_it_is(served, media):
    url, ids = served
    for name in ("good.jpg", "cut.jpg"):
        answer = requests.get(f"{url}/assets/{ids[name]}", timeout=60)
        assert (answer.status_code, answer.content) == (200, (media / name).read_bytes())
        assert (answer.headers["Content-Type"], answer.headers["X-Content-Type-Options"]) == ("image/jpeg", "nosniff")


@pytest.mark.parametrize("name", ["bad.jpg", "pending.jpg"])
def test_what_was_never_seen_to_be_media_is_not_sent(served, name):
    """innocent.jpg -> /etc/passwd was ingested, quarantined, and its bytes served."""
    url, ids = served
    for path in (f"assets/{ids[name]}", f"frames/{ids[name]}:0", f"frames/{ids[name]}:0?size=thumbnail"):
        for headers in ({}, {"Range": "bytes=0-9"}):
            answer = requests.get(f"{url}/{path}", headers=headers, timeout=60)
            assert answer.status_code == 404
            assert b"root" not in answer.content
    opened = requests.post(f"{url}/track/sessions", json={"asset_id": ids[name]}, timeout=60)
    assert opened.status_code == 404


@pytest.mark.parametrize(
    "data", [SECRET, b"<html><script>alert(1)</script>", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b""]
)
def test_a_file_replaced_by_no_media_is_not_sent(served, media, data):
    url, ids = served
    (media / "good.jpg").write_bytes(data)
    (media / "still.jpg").write_bytes(data)
    for path in (f"assets/{ids['good.jpg']}", f"frames/{ids['still.jpg']}:0"):
        answer = requests.get(f"{url}/{path}", timeout=60)
        assert 400 <= answer.status_code < 500
        assert data not in answer.content or not data
        assert "Content-Range" not in answer.headers


def test_a_file_replaced_by_other_media_is_sent_as_that(served, media):
    url, ids = served
    picture = cv2.imencode(".png", np.full((8, 8, 3), 9, np.uint8))[1].tobytes()
    (media / "good.jpg").write_bytes(picture)
    answer = requests.get(f"{url}/assets/{ids['good.jpg']}", timeout=60)
    assert (answer.headers["Content-Type"], answer.content) == ("image/png", picture)


def test_a_file_that_is_gone_is_said_to_be_without_its_path(served, media):
    url, ids = served
    (media / "good.jpg").unlink()
    answer = requests.get(f"{url}/assets/{ids['good.jpg']}", timeout=60)
    assert 400 <= answer.status_code < 500
    assert str(media) not in answer.text
    assert "good.jpg" in answer.json()["detail"]


@pytest.mark.parametrize("trap", ["fifo", "link", "directory", "device"])
def test_a_path_replaced_by_a_trap_is_refused_at_once(served, media, trap, tmp_path):
    """A FIFO hung the server; a link showed whatever it named."""
    url, ids = served
    path = media / "good.jpg"
    path.unlink()
    if trap == "fifo":
        os.mkfifo(path)
    elif trap == "link":
        other = tmp_path / "other.jpg"
        other.write_bytes(cv2.imencode(".jpg", np.full((99, 77, 3), 5, np.uint8))[1].tobytes())
        path.symlink_to(other)
    elif trap == "directory":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    answer = requests.get(f"{url}/assets/{ids['good.jpg']}", timeout=20)
    assert 400 <= answer.status_code < 500
    assert str(media) not in answer.text

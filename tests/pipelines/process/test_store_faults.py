"""What a user loses when a store fails for a while: nothing. No item is blamed for its store, and a second run completes it."""

from __future__ import annotations

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipelines.lake import Lake, verify_lake
from pipelines.lake import lake as stores
from pipelines.process import process
from pipelines.process.recipe import Recipe
from pipelines.settings import validate
from pipelines.sources import ingest
from tests.faulty_store import FaultyStore, faulty_store, store  # noqa: F401
from vfm_ops.errors import VfmError

RECIPE = validate(Recipe, {"shots": {"detector": "none"}, "quality": {"measure": False}, "phash": False}, "test")


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((24, 32, 3), shade, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """One CPU, and pauses between tries that a test can wait for."""
    monkeypatch.setattr("pipelines.process.graph.cpu_count", lambda: 1)
    monkeypatch.setattr(stores, "STORE_WAITS_S", (0.05, 0.05, 0.1, 0.1, 0.2, 0.2, 0.2))


@pytest.fixture
def impatient(monkeypatch):
    """A run waits for its store for a fraction of a second."""
    monkeypatch.setattr(stores, "STORE_WAITS_S", (0.05, 0.05))


@pytest.fixture
def lake_of(store: FaultyStore, tmp_path):  # noqa: F811
    """Makes a lake over some pictures: both in a bucket, or the lake on disk."""
    names = itertools.count()

    def make(count: int = 6, lake_in_bucket: bool = True) -> tuple[Lake, str]:
        bucket = store.bucket({f"in/{i}.jpg": picture(20 * i) for i in range(count)})
        root = f"s3://{bucket}/lake" if lake_in_bucket else str(tmp_path / f"lake{next(names)}")
        ingest([f"s3://{bucket}/in"], root)
        return Lake.open(root), bucket

    return make


def settled(lake: Lake) -> dict[str, str]:
    """What became of each asset, by file name: 'done' or the kind of its error."""
    uris = {r["asset_id"]: Path(r["uri"]).name for r in lake.read("assets", ["asset_id", "uri"]).to_pylist()}
    done = {uris[r["asset_id"]]: "done" for r in lake.read("ledger", ["asset_id"]).to_pylist()}
    bad = {
        uris[r["asset_id"]]: r["error_type"] for r in lake.read("quarantine", ["asset_id", "error_type"]).to_pylist()
    }
    return done | bad


def test_a_burst_of_refused_writes_is_waited_out(store, lake_of):  # noqa: F811
    lake, _ = lake_of()
    rule = store.fail("403", method="PUT", path=r"frames\.lance/data", times=4)
    summary = process(lake, RECIPE)
    assert rule.failed
    assert (summary.counts["assets"], summary.in_quarantine) == (6, 0)
    assert verify_lake(lake).violations == []
    assert lake.count("frames") == 6


def test_a_store_that_refuses_writes_for_good_ends_the_run_and_blames_nobody(store, lake_of, impatient):  # noqa: F811
    lake, _ = lake_of()
    store.fail("403", method="PUT", path=r"frames\.lance/data")
    with pytest.raises(VfmError, match=r"cannot write rows of table frames of s3://") as raised:
        process(lake, RECIPE)
    assert raised.value.exit_code == 3
    assert settled(lake) == {}
    store.heal()
    assert process(lake, RECIPE).counts["assets"] == 6
    assert set(settled(lake).values()) == {"done"}
    assert verify_lake(lake).violations == []


@pytest.mark.parametrize("fault", ["403", "503"])
def test_sources_that_cannot_be_read_for_a_while_are_not_bad_items(fault, store, lake_of):  # noqa: F811
    lake, _ = lake_of(lake_in_bucket=False)
    rule = store.fail(fault, method="GET", path=r"/in/", times=12)
    process(lake, RECIPE)
    assert rule.failed
    assert len(settled(lake)) == 6
    assert set(settled(lake).values()) == {"done"}
    assert verify_lake(lake).violations == []


def test_sources_that_cannot_be_read_at_all_end_the_run_and_stay_pending(store, lake_of, impatient):  # noqa: F811
    lake, bucket = lake_of(lake_in_bucket=False)
    store.fail("403", path=r"/in/")
    with pytest.raises(VfmError, match=f"nothing can be read from s3://{bucket}") as raised:
        process(lake, RECIPE)
    assert raised.value.exit_code == 3
    assert settled(lake) == {}
    store.heal()
    process(lake, RECIPE)
    assert set(settled(lake).values()) == {"done"}


def test_one_object_that_is_refused_or_gone_is_a_bad_item_where_its_neighbours_are_read(store, lake_of):  # noqa: F811
    lake, bucket = lake_of(lake_in_bucket=False)
    store.fail("403", path=r"/in/2\.jpg")
    store.client().delete_object(Bucket=bucket, Key="in/4.jpg")
    summary = process(lake, RECIPE)
    assert summary.in_quarantine == 2
    kinds = settled(lake)
    assert (kinds.pop("2.jpg"), kinds.pop("4.jpg")) == ("unreadable", "missing")
    assert set(kinds.values()) == {"done"}


def test_an_object_that_nothing_else_can_speak_for_stays_pending_and_the_others_are_done(
    store,  # noqa: F811
    tmp_path,
    impatient,
):
    """A bucket of one object that refuses: its store or the object? The run says so, and goes on with the rest."""
    lone, many = (
        store.bucket({"in/lone.jpg": picture(7)}),
        store.bucket({f"in/{i}.jpg": picture(i) for i in range(3)}),
    )
    ingest([f"s3://{lone}/in", f"s3://{many}/in"], str(tmp_path / "lake"))
    lake = Lake.open(tmp_path / "lake")
    store.fail("403", path=rf"{lone}/in/")
    with pytest.raises(VfmError, match="1 items could not be read, since their store failed"):
        process(lake, RECIPE)
    assert settled(lake) == {f"{i}.jpg": "done" for i in range(3)}
    store.heal()
    process(lake, RECIPE)
    assert settled(lake)["lone.jpg"] == "done"


def test_a_video_whose_store_fails_in_the_middle_is_not_salvaged_but_read_again(
    store,  # noqa: F811
    tmp_path,
    long_video,
):
    bucket = store.bucket({"in/v.mp4": long_video, "in/0.jpg": picture(0)})
    ingest([f"s3://{bucket}/in"], str(tmp_path / "lake"))
    lake = Lake.open(tmp_path / "lake")
    calm = store.requests["GET", "ok"]
    process(lake, RECIPE)
    expected, reads = lake.count("frames"), store.requests["GET", "ok"] - calm
    assert expected > 4
    for after in (1, reads // 2):
        root = tmp_path / f"lake{after}"
        ingest([f"s3://{bucket}/in"], str(root))
        lake = Lake.open(root)
        store.fail("403", method="GET", path=r"/in/", after=after, times=6)
        process(lake, RECIPE)
        store.heal()
        assert settled(lake) == {"v.mp4": "done", "0.jpg": "done"}
        assert lake.count("frames") == expected
        assert lake.count("frames", filter="salvaged") == 0
        assert verify_lake(lake).violations == []


@pytest.fixture(scope="module")
def long_video() -> bytes:
    """Sixty frames of noise, so that its bytes come in several requests."""
    import av

    buffer = io.BytesIO()
    noise = np.random.default_rng(0)
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10, width=320, height=240, pix_fmt="yuv420p", bit_rate=20_000_000)
        for _ in range(60):
            pixels = noise.integers(0, 256, (240, 320, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()

"""What an annotator loses whose answers over HTTP are kept as something else, or where they may not be."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from jobs.bench.serve import free_port
from jobs.serve.client import Client, ServerError
from jobs.serve.gateway import Gateway
from jobs.serve.listener import Listener
from jobs.serve.models.segmentation import Segmentation
from jobs.serve.models.tracking import Tracking
from jobs.serve.settings import ModelChoice, RequestLimits, ServeSettings
from pipelines.annotation import find_frames
from pipelines.lake import Lake, Lease, verify_lake
from tests.jobs.serve.test_one_set_of_tools import MODEL, Handle
from tests.jobs.test_storing import FRAMES, HEIGHT, WIDTH, made  # noqa: F401

HALF = [HEIGHT // 2, WIDTH // 2]


@pytest.fixture(scope="module", params=[True, False], ids=["writes", "read-only"])
def served(request, tmp_path_factory, made):  # noqa: F811
    """A client of real replicas over a copy of the lake; whether requests may write; the lake."""
    lake = Lake.open(shutil.copytree(made / "lake", tmp_path_factory.mktemp("served") / "lake"))
    choice = ModelChoice(spec=MODEL, device="cpu", replicas=(1, 1))
    settings = ServeSettings(lake=lake.root, segment=choice, track=choice, selections=request.param)
    replicas: list[Any] = []

    def make() -> Gateway:
        limits = RequestLimits().model_dump()
        replicas.extend((Segmentation(choice.model_dump(), limits), Tracking(choice.model_dump(), limits)))
        return Gateway(settings.model_dump(), None, {}, *map(Handle, replicas))

    async def nothing() -> None:
        pass

    port = free_port()
    listener = Listener(make, nothing, "127.0.0.1", port)
    yield Client(f"http://127.0.0.1:{port}"), request.param, lake
    listener.close()
    replicas[0]._decoder.close()
    replicas[1]._sandbox.close()


def told(client: Client, place: Any) -> list[dict[str, Any]]:
    """The annotations that the page shows of a frame."""
    return client._get(f"frames/{place.frame_id}/details")["annotations"]


def test_a_click_is_kept_and_the_next_one_is_a_version_of_it(served):
    client, writes, lake = served
    (place,) = find_frames(lake, ["discs.png"])
    with client.segment(frame_id=place.frame_id) as session:
        store = {"author": "ann", "label": "disc"}
        before = client._get("lake")["tables"]["annotations"]  # of other tests, which come in any order
        if not writes:
            with pytest.raises(ServerError, match="--read-only") as refused:
                session.click([[20, 24]], [1], store=store)
            assert refused.value.status == 403
            assert not client._get("lake")["writable"]
            assert len(lake.annotations) == before == 0
            return
        with Lease(lake, "a run that writes"):
            best = session.click([[20, 24]], [1], store=store)[0]
        (row,) = lake.annotations.to_arrow("kind = 'mask'").to_pylist()
        assert (row["mask"], row["box"], row["label"]) == (best.rle, list(best.box), "disc")
        assert (row["author"], row["source"]) == ("ann", f"vfm serve {MODEL}")
        assert json.loads(row["prompts"]) == {"prompts": [{"points": [[20.0, 24.0]], "labels": [1]}]}
        session.click([[20, 24], [60, 24]], [1, 0], store=store)
        session.click([[60, 24]], [1], store={"author": "ann", "object": "right"})
        assert sorted(lake.annotations.to_arrow("kind = 'mask'")["version"].to_pylist()) == [1, 2]
        assert {(a["label"], a["version"]) for a in told(client, place)} == {("disc", 2), (None, 1)}
        assert client._get("lake")["tables"]["annotations"] == before + 2
        lake.remove_annotations([row["annotation_id"]], author="ann")
        assert client._get("lake")["tables"]["annotations"] == before + 1
        assert [(a["label"], a["author"]) for a in told(client, place)] == [(None, "ann")]
        many = session.everything(points_per_side=4, min_iou=0.1, min_stability=0.0, store={"author": "bob"})
        assert lake.annotations.count("author = 'bob'") == len(many) > 1
    assert verify_lake(lake).violations == []


def test_what_was_tracked_is_kept_in_pixels_of_the_stored_frame(served):
    client, writes, lake = served
    (place,) = find_frames(lake, ["clip.mp4:0"])
    with client.track(place.asset_id) as session:
        session.add_new_points_or_box(0, 3, box=[20, 16, 100, 80])
        seen = [r["frame_index"] for r in session.propagate_in_video() if any(o["visible"] for o in r["objects"])]
        if not writes:
            with pytest.raises(ServerError, match="--read-only"):
                session.store("ann")
            return
        stored = session.store("ann", labels={3: "bike"})
        rows = lake.annotations.to_arrow("kind = 'track'").to_pylist()
        assert stored == len(rows)
        assert {r["frame_index"] for r in rows} <= set(seen) <= set(range(FRAMES))
        assert rows
        assert all(r["mask"]["size"] == HALF and r["label"] == "bike" for r in rows)
        session.add_new_points_or_box(2, 3, points=[[90, 40]], labels=[1])
        list(session.propagate_in_video())
        session.store("ann")
        again = lake.annotations.to_arrow("kind = 'track'").to_pylist()
        assert {r["object_id"] for r in again} == {r["object_id"] for r in rows}
        assert len(json.loads(again[0]["prompts"])["prompts"]) == 3
    assert verify_lake(lake).violations == []


def test_what_is_not_of_the_lake_is_not_kept(served, made):  # noqa: F811
    client, writes, lake = served
    if not writes:
        return
    before = lake.count("annotations")
    with (
        client.segment(made / "media" / "discs.png") as session,
        pytest.raises(ServerError, match="is not of the lake"),
    ):
        session.click([[20, 24]], [1], store={"author": "ann"})
    with client.track(video=made / "media" / "clip.mp4") as session:
        session.add_new_points_or_box(0, 3, box=[20, 16, 100, 80])
        with pytest.raises(ServerError, match="is not of the lake"):
            session.store("ann")
    assert lake.count("annotations") == before

"""A number shown is that of the set acted on: browsing, filters, the lasso, and selections that every command opens."""

from __future__ import annotations

import json
import tarfile

import cv2
import numpy as np
import pytest
import requests

from jobs.bench.serve import free_port
from jobs.cli import main
from jobs.serve import embedding_map
from jobs.serve.routes import search as routes
from pipelines.curation import selections
from pipelines.lake import Lake
from pipelines.pretraining.items import resolve
from tests.jobs.serve.local import listening, tiny_lake
from tests.pipelines.pretraining.tiny import tiny_plan
from vfm_ops.errors import UsageError

ASSETS, FRAMES = 300, 2
TOTAL = ASSETS * FRAMES


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    return tiny_lake(tmp_path_factory.mktemp("shown") / "lake", ASSETS, FRAMES)


@pytest.fixture(scope="module")
def url(lake):
    with listening(lake, free_port(), results=50) as url:
        yield f"{url}/v1"


def pages(url: str, limit: int, **query) -> tuple[list[str], list[int | None]]:
    """Frame ids of all pages of /frames, and each page's total."""
    ids, totals, offset = [], [], 0
    while offset is not None:
        page = requests.get(f"{url}/frames", params={"limit": limit, "offset": offset, **query}, timeout=60).json()
        ids += [hit["frame_id"] for hit in page["hits"]]
        totals.append(page["total"])
        offset = page["next_offset"]
    return ids, totals


def test_browsing_ends_where_the_frames_do(url, lake):
    """And not at the rank at which searches end, which is 50 here."""
    ids, totals = pages(url, 170)
    assert sorted(ids) == sorted(lake.read("frames", ["frame_id"])["frame_id"].to_pylist())
    assert totals == [TOTAL, None, None, None]


@pytest.mark.parametrize("most", [20_000, 10])
@pytest.mark.parametrize("where", ["media_type = 'image'", "media_type = 'image' AND frame_index = 1"])
def test_a_filter_over_many_assets_leaves_none_out(url, lake, monkeypatch, where, most):
    """Beyond the number of assets that are listed to Lance, only the first ones' frames were found."""
    monkeypatch.setattr(routes, "MOST_LISTED_ASSETS", most)
    ids, totals = pages(url, 90, where=where)
    images = {r["asset_id"] for r in lake.read("assets").to_pylist() if r["media_type"] == "image"}
    wanted = [f"{i}:{n}" for i in images for n in range(FRAMES) if "frame_index" not in where or n == 1]
    assert sorted(ids) == sorted(wanted)
    assert totals[0] == len(wanted)


def test_a_search_says_that_there_is_more_than_its_pages_reach(url):
    """The last page is cut to the limit, and says so; it was an error."""
    offset, seen, capped = 0, 0, False
    while offset is not None:
        body = {"frame_id": "a000000:0", "limit": 20, "offset": offset}
        page = requests.post(f"{url}/search", json=body, timeout=60).json()
        seen, offset, capped = seen + len(page["hits"]), page["next_offset"], page["capped"]
    assert (seen, capped) == (50, True)
    assert requests.post(f"{url}/search", json=body | {"offset": 50}, timeout=60).status_code == 422


def test_a_lasso_takes_all_frames_inside_and_not_only_those_drawn(url, lake):
    """30,000 frames were 4,000 points, and the selection of the points was saved as that of the frames."""
    drawn = requests.get(f"{url}/map", params={"points": 60}, timeout=60).json()
    assert (len(drawn["frame_ids"]), drawn["total"]) == (60, TOTAL)
    everything = [[-2, -2], [2, -2], [2, 2], [-2, 2]]
    body = {"version": drawn["version"], "points": 60, "polygon": everything}
    found = requests.post(f"{url}/map/inside", json=body, timeout=60).json()["frame_ids"]
    assert len(found) == len(set(found)) == TOTAL
    # Around the drawn points of one group: all of that group, drawn or not.
    group = [i for i, name in enumerate(drawn["frame_ids"]) if group_of(name) == 0]
    x, y = (np.array(drawn[axis])[group] for axis in "xy")
    margin = 0.02
    box = [[x.min() - margin, y.min() - margin], [x.max() + margin, y.min() - margin]]
    box += [[x.max() + margin, y.max() + margin], [x.min() - margin, y.max() + margin]]
    found = requests.post(f"{url}/map/inside", json=body | {"polygon": box}, timeout=60).json()["frame_ids"]
    assert sum(group_of(name) == 0 for name in found) >= 0.98 * TOTAL / 4
    assert {drawn["frame_ids"][i] for i in group} <= set(found)


def group_of(frame_id: str) -> int:
    asset, index = frame_id[1:].split(":")
    return (int(asset) * FRAMES + int(index)) % 4


def test_a_lasso_on_a_map_of_a_version_that_is_gone_is_told_so(url):
    body = {"version": 10**6, "polygon": [[0, 0], [1, 0], [0, 1]]}
    answer = requests.post(f"{url}/map/inside", json=body, timeout=60)
    assert answer.status_code == 409
    assert "open the map again" in answer.json()["detail"]


def test_inside_is_what_another_library_calls_inside():
    rng = np.random.default_rng(1)
    for corners in (3, 4, 9):
        polygon, points = rng.normal(size=(corners, 2)), rng.normal(size=(400, 2))
        if corners > 4:  # a star, so that it crosses no edge of its own
            angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
            polygon = np.stack([np.cos(angles), np.sin(angles)], 1) * rng.uniform(0.5, 1.5, (corners, 1))
        elif corners == 4:
            polygon = np.array([[-1, -1], [1, -1], [0.1, 0.2], [-1, 1.0]])
        ours = embedding_map.in_polygon(points, polygon)
        outline = polygon.astype(np.float32)
        theirs = [cv2.pointPolygonTest(outline, (float(x), float(y)), False) > 0 for x, y in points]
        assert ours.tolist() == theirs


# -- one registry of selections ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def picked(url, lake) -> list[str]:
    """Frames that a person selected on the page, under the name `picked`."""
    ids = [f"a{i:06d}:1" for i in (7, 3, 250)]
    answer = requests.post(f"{url}/selections", json={"name": "picked", "frame_ids": ids}, timeout=60)
    assert answer.status_code == 201
    return ids


def test_every_reader_knows_a_selection_made_on_the_page(lake, picked, url):
    assert selections.list_selections(lake) == ["picked"]
    assert selections.kept_frames(lake, "picked")["frame_id"].to_pylist() == picked
    assert requests.get(f"{url}/selections", timeout=60).json() == [{"name": "picked", "frames": 3}]


def test_report_opens_it(lake, picked, tmp_path):
    out = tmp_path / "report.html"
    assert main(["report", "--lake", lake.root, "--selection", "picked", "--out", str(out)]) == 0
    assert '"kept":3' in out.read_text()


def test_export_opens_it(lake, picked, tmp_path):
    out = tmp_path / "shards"
    argv = ["export", "--lake", lake.root, "--format", "webdataset", "--out", str(out), "--selection", "picked"]
    assert main(argv) == 0
    names: list[str] = []
    for shard in out.glob("*.tar"):
        with tarfile.open(shard) as archive:
            names += archive.getnames()
    assert len([name for name in names if name.endswith(".jpg")]) == 3


def test_export_of_an_unknown_selection_says_which_there_are(lake, picked, tmp_path, capsys):
    argv = [
        "export",
        "--lake",
        lake.root,
        "--format",
        "webdataset",
        "--out",
        str(tmp_path / "s"),
        "--selection",
        "pikced",
    ]
    assert main(argv) == 2
    assert "no selection 'pikced'; it has picked" in capsys.readouterr().err


def test_pretrain_opens_it(lake, picked):
    corpus = resolve(lake, tiny_plan("simclr", selection="picked"))
    assert len(corpus.train) == 3


def test_curating_does_not_replace_what_a_person_picked(lake, picked):
    with pytest.raises(UsageError, match="made by hand: curate under another `name`"):
        selections.refuse_by_hand(lake, "picked")
    selections.refuse_by_hand(lake, "another")


def test_a_selected_lake_holds_the_frames_of_the_selection_alone(lake, picked):
    part = selections.SelectedLake(lake, "picked")
    assert sorted(part.read("frames", ["width", "frame_id"])["frame_id"].to_pylist()) == sorted(picked)
    assert part.read("frames", ["width"]).schema.names == ["width"]
    assert sorted(part.read("assets", ["asset_id"])["asset_id"].to_pylist()) == ["a000003", "a000007", "a000250"]
    assert (part.count("frames"), part.count("frames", "frame_index = 0"), part.count("ledger")) == (3, 0, 3)


def test_names_that_only_one_side_could_open_are_refused(url):
    answer = requests.post(f"{url}/selections", json={"name": "a.b", "frame_ids": ["a000001:0"]}, timeout=60)
    assert answer.status_code == 422
    assert json.loads(answer.text)["title"] == "can't be processed"

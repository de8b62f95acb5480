"""What the endpoints answer, against the same models called directly and against brute force over the lake's own vectors."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from jobs.serve.client import Client, ServerError
from tests.jobs.serve.corpus import frame_row, write
from vfm_ops.embed import load_embedder
from vfm_ops.media.frame import DecodeSettings
from vfm_ops.media.sandbox import Sandbox
from vfm_ops.media.source import MediaSource
from vfm_ops.track.masks import decode_rle


@pytest.fixture
def client(served):
    with Client(served.url) as client:
        yield client


@pytest.fixture(scope="module")
def stored(served):
    """Frame ids and vectors of the lake, float32."""
    name = next(n for n in served.lake.schema("frames").names if n.startswith("emb_"))
    rows = served.lake.read("frames", ["frame_id", "asset_id", name])
    return rows["frame_id"].to_pylist(), np.array(rows[name].to_pylist(), np.float32), rows["asset_id"].to_pylist()


@pytest.fixture(scope="module")
def video(served):
    """The asset id of the clip."""
    (row,) = served.lake.read("assets", ["asset_id", "uri"], filter="media_type = 'video'").to_pylist()
    return row["asset_id"]


def test_embed_gives_the_vectors_that_the_lake_holds(served, client, stored):
    assets = {a["uri"]: a["asset_id"] for a in served.lake.read("assets", ["uri", "asset_id"]).to_pylist()}
    paths = sorted(p for p in served.media.iterdir() if p.suffix != ".mp4")
    by_id = dict(zip(stored[0], stored[1]))
    expected = np.stack([by_id[f"{assets[str(p)]}:0"] for p in paths])
    np.testing.assert_allclose(client.embed(images=paths), expected, atol=2e-3)


def test_texts_and_files_and_json_are_embedded_alike(served, client):
    direct = load_embedder(served.clip).embed_texts(["a red circle", "two squares"])
    np.testing.assert_allclose(client.embed(texts=["a red circle", "two squares"]), direct, atol=1e-5)
    data = (served.media / "chelsea.png").read_bytes()
    files = [("files", ("a.png", data)), ("files", ("b.png", data))]
    sent = served.get  # a plain request, as curl makes it
    assert sent("health").json()["status"] == "ok"
    import requests

    answer = requests.post(f"{served.url}/v1/embed/files", files=files, timeout=60).json()
    np.testing.assert_allclose(answer["embeddings"], np.repeat(client.embed(images=[data]), 2, 0), atol=1e-5)


def test_search_ranks_as_brute_force_does(client, stored):
    ids, vectors, _ = stored
    hits = client.search(frame_id=ids[3], limit=10).hits
    scores = vectors @ vectors[3]
    scores[3] = -2
    np.testing.assert_allclose([h.score for h in hits], np.sort(scores)[::-1][:10], atol=3e-3)
    assert ids[3] not in [h.frame_id for h in hits]


def test_pages_of_a_search_join_to_the_whole(client):
    whole = [h.frame_id for h in client.search(text="a red circle", limit=12).hits]
    pages = [client.search(text="a red circle", limit=5, offset=o) for o in (0, 5, 10)]
    assert [h.frame_id for p in pages for h in p.hits][:12] == whole
    assert [p.next_offset for p in pages] == [5, 10, 15]


def test_a_picture_finds_itself_and_a_box_finds_what_is_in_it(served, client):
    path = served.media / "chelsea.png"
    found = client.search(image=path, limit=1).hits[0]
    assert (found.name, round(found.score, 2)) == ("chelsea.png", 1.0)
    box = [40.0, 30.0, 240.0, 190.0]
    by_box = client.search(frame_id=found.frame_id, box=box, limit=40).hits
    stored_jpeg = Image.open(io.BytesIO(client.frame(found.frame_id))).convert("RGB")
    cut = io.BytesIO()
    stored_jpeg.crop((40, 30, 240, 190)).save(cut, "PNG")
    by_cut = client.search(image=cut.getvalue(), where=f"frame_id != '{found.frame_id}'", limit=40).hits
    np.testing.assert_allclose([h.score for h in by_box[:5]], [h.score for h in by_cut[:5]], atol=5e-3)


def test_filters_hold_for_both_tables(client, video):
    hits = client.search(text="a", where="media_type = 'video' AND pts_s >= 5", limit=50).hits
    assert hits
    assert all(h.asset_id == video and h.pts_s >= 5 for h in hits)
    with pytest.raises(ServerError, match="unknown column wdth; did you mean width"):
        client.search(text="a", where="wdth > 3")


def test_classify_averages_the_templates(served, client):
    path, labels, templates = served.media / "coffee.png", ["red circle", "blue square"], ["a {}", "one {} here"]
    embedder = load_embedder(served.clip)
    classes = np.stack([embedder.embed_texts([t.format(label) for t in templates]).mean(0) for label in labels])
    classes /= np.linalg.norm(classes, axis=1, keepdims=True)
    logits = 100 * client.embed(images=[path])[0].astype(np.float64) @ classes.T
    expected = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    got = dict(client.classify([path], labels, templates)[0])
    np.testing.assert_allclose([got[label] for label in labels], expected, atol=1e-3)


def test_detect_gives_the_detectors_boxes(served, client):
    from vfm_ops.detect import load_detector

    path = served.media / "chelsea.png"
    rgb = np.array(Image.open(path).convert("RGB"))
    expected = load_detector(served.detector).detect([rgb], ["cat", "dog"], thresholds=0.1)[0]
    got = client.detect(path, ["cat", "dog"], threshold=0.1)
    assert [d.label for d in got] == expected.labels[: len(got)]
    np.testing.assert_allclose([d.box for d in got], expected.boxes[: len(got)], atol=0.5)


def test_clicks_are_answered_from_one_encoding(served, client):
    from vfm_ops.segment.segmenter import load_segmenter

    path = served.media / "chelsea.png"
    rgb = np.array(Image.open(path).convert("RGB"))
    segmenter = load_segmenter(served.sam2)
    encoded = segmenter.encode(rgb)
    with client.segment(path) as session:
        for x, y in ((100, 80), (300, 200)):
            expected = segmenter.segment(encoded, points=[np.array([[x, y]])], labels=[np.array([1])])
            best = session.click([[x, y]], [1])[0]
            mask = expected.masks()[0][expected.scores[0].argmax()]
            assert (decode_rle(best.rle) != mask).mean() < 0.001
    with pytest.raises(ServerError, match="no such session"):
        session.click([[1, 1]], [1])


def test_sessions_over_the_limit_are_refused_until_one_closes(served, client):
    image = (served.media / "chelsea.png").read_bytes()
    held = [client.segment(image) for _ in range(4)]
    with pytest.raises(ServerError, match="4 sessions are open") as refused:
        client.segment(image)
    assert (refused.value.status, refused.value.retry_after_s > 0) == (429, True)
    held.pop().close()
    held.append(client.segment(image))
    for session in held:
        session.close()


def test_a_track_streams_what_the_tracker_gives(served, client, video):
    from vfm_ops.track.load import load_tracker
    from vfm_ops.track.prompts import Prompt

    with Sandbox(DecodeSettings(jpeg=False, pixels=True)) as sandbox:
        frames = [
            f.pixels.copy() for f in sandbox.frames(MediaSource(str(served.media / "bikes.mp4")), np.arange(2, 8))
        ]
    tracker = load_tracker(served.sam2)
    prompts = {2: [Prompt(1, points=[[200, 100]], labels=[1])]}
    expected = [tracker.track(f, frame_index=i, prompts=prompts.get(i, ())) for i, f in enumerate(frames, 2)]
    with client.track(video) as session:
        session.prompt(2, points=[[200, 100]], labels=[1])
        got = list(session.stream(frames=6))
        assert [r["frame_index"] for r in got] == [2, 3, 4, 5, 6, 7]
        for mine, theirs in zip(got, expected):
            assert (decode_rle(mine["objects"][0]["mask"]) != theirs.masks()[0]).mean() < 0.01  # on other threads
        session.prompt(5, points=[[50, 50]], labels=[1])
        assert [r["frame_index"] for r in session.stream(frames=2)] == [5, 6]


def test_a_client_that_hangs_up_leaves_the_session_usable(served, client, video):
    with client.track(video) as session:
        session.prompt(0, points=[[200, 100]], labels=[1])
        stream = session.stream()
        assert next(stream)["frame_index"] == 0
        stream.close()
        again = _until_free(session)
        assert again["frame_index"] > 0


def _until_free(session):
    """The next result, as soon as the server has seen that the first reader is gone."""
    refused = {409}
    for _ in range(400):
        try:
            return next(session.stream(frames=1))
        except ServerError as busy:
            refused.add(busy.status)
    raise AssertionError(f"the session is still held by a reader that hung up; answers: {refused}")


def test_an_uploaded_video_is_followed(served, client):
    with client.track(video=served.media / "bikes.mp4") as session:
        assert session.facts["frames"] == 250
        session.prompt(0, box=[100, 50, 300, 200])
        assert len(list(session.stream(frames=2))) == 2


@pytest.mark.parametrize(
    ("header", "first", "last"), [("bytes=0-9", 0, 9), ("bytes=100-", 100, -1), ("bytes=-7", -7, -1)]
)
def test_media_is_served_in_ranges(served, video, header, first, last):
    data = (served.media / "bikes.mp4").read_bytes()
    answer = served.get(f"assets/{video}", headers={"Range": header})
    assert (answer.status_code, answer.headers["Content-Type"]) == (206, "video/mp4")
    assert answer.content == data[first : len(data) if last == -1 else last + 1]
    assert served.get(f"assets/{video}", headers={"Range": f"bytes={len(data)}-"}).status_code == 416


def test_thumbnails_are_small_and_frames_are_what_is_stored(served, client, stored):
    row = served.lake.read("frames", ["jpeg"], filter=f"frame_id = '{stored[0][0]}'").to_pylist()[0]
    assert client.frame(stored[0][0]) == row["jpeg"]
    assert max(Image.open(io.BytesIO(client.frame(stored[0][0], thumbnail=True))).size) <= 320


def test_details_have_shots_detections_and_tracks(served, video):
    facts = served.get(f"assets/{video}/details").json()
    assert [s["start_frame"] for s in facts["shots"]] == [0, 30, 76, 137, 187]
    frame = served.get(f"frames/{video}:0/details").json()
    assert [d["label"] for d in frame["detections"]] == ["cat", "person"]
    assert frame["tracks"][0]["label"] == "bicycle"
    assert "uri" not in json.dumps([facts, frame])


def test_new_frames_are_found_without_a_restart(served, client, stored):
    before = client.search(text="a", limit=1).lake_version
    asset = stored[2][0]
    with Sandbox(DecodeSettings(jpeg_max_side=64)) as sandbox:
        frame = sandbox.image(MediaSource(str(served.media / "coffee.png")))
    name = next(n for n in served.lake.schema("frames").names if n.startswith("emb_"))
    row = frame_row(asset, frame) | {
        "frame_id": f"{asset}:99",
        "frame_index": 99,
        name: client.embed(texts=["new"])[0].tolist(),
    }
    write(served.lake, "frames", [row])
    page = client.search(text="new", limit=1)
    assert (page.hits[0].frame_id, page.lake_version > before) == (f"{asset}:99", True)
    served.lake.delete("frames", "frame_id", [f"{asset}:99"])
    assert client.search(text="new", limit=1).hits[0].frame_id != f"{asset}:99"


def test_a_selection_is_written_once(served, client, stored):
    body = {"name": "by-hand", "frame_ids": stored[0][:3]}
    assert served.post("selections", body).status_code == 201
    assert served.post("selections", body).status_code == 409
    assert {"name": "by-hand", "frames": 3} in served.get("selections").json()
    assert served.post("selections", {"name": "none", "frame_ids": ["nope:1"]}).status_code == 422


def test_the_map_holds_every_frame_inside_its_square(served, stored):
    found = served.get("map").json()
    assert sorted(found["frame_ids"]) == sorted(stored[0])
    assert np.abs([found["x"], found["y"]]).max() == pytest.approx(1, abs=1e-3)


def test_metrics_count_requests_by_route(served):
    served.get("health")
    text = served.get("metrics").text
    assert 'vfm_requests_total{route="/v1/health",status="200"}' in text
    assert "vfm_request_seconds_bucket" in text


def test_base64_and_lists_are_the_same_vectors(served):
    body = {"texts": ["a"]}
    listed = served.post("embed", body).json()["embeddings"]
    packed = served.post("embed", body | {"encoding": "base64"}).json()["embeddings"]
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(packed), "<f4"), np.float32(listed[0]))


def test_vfm_search_asks_a_server(served, capsys):
    from jobs.cli import main

    assert main(["search", "a red circle", "--server", served.url, "-k", "3", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hits"]) == 3
    assert main(["search", "a", "--server", "http://127.0.0.1:9"]) == 3
    assert "is `vfm serve` running there?" in capsys.readouterr().err

"""Exported files are read by the field's own readers without a warning, and a perfect prediction scores 1 there."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as rle

from tests.conftest import optional_package
from tests.vfm_ops.evaluate.rows import HEIGHT, WIDTH, detection_rows, encode, frame_rows, track_rows
from vfm_ops.errors import UsageError
from vfm_ops.evaluate.coco import write_coco, write_coco_results
from vfm_ops.evaluate.files import rle_run_lengths, safe_name, whole_file
from vfm_ops.evaluate.mot import write_mot
from vfm_ops.evaluate.webdataset import write_webdataset
from vfm_ops.evaluate.youtube_vis import write_youtube_vis, write_youtube_vis_results


@contextlib.contextmanager
def quiet():
    """Readers print; warnings become errors."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("error")
        yield


@pytest.fixture(scope="session")
def trackeval():
    with contextlib.redirect_stdout(io.StringIO()):
        return optional_package("trackeval")


@pytest.fixture(scope="session")
def motmetrics():
    return optional_package("motmetrics")


def coco_ap(annotations, results) -> float:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with quiet():
        truth = COCO(str(annotations))
        run = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[0]


def test_coco_files_are_read_by_pycocotools_and_score_one(tmp_path):
    counts = write_coco(tmp_path / "gt.json", iter(frame_rows()), iter(detection_rows()))
    assert counts == {"images": 20, "annotations": 40, "categories": 2}
    assert write_coco_results(tmp_path / "dt.json", iter(detection_rows()), tmp_path / "gt.json") == 40
    assert coco_ap(tmp_path / "gt.json", tmp_path / "dt.json") == pytest.approx(1.0)


def test_half_of_the_coco_boxes_score_51_of_101(tmp_path):
    write_coco(tmp_path / "gt.json", frame_rows(), detection_rows())
    half = [r for r in detection_rows() if r["frame_id"].startswith("a")]
    write_coco_results(tmp_path / "dt.json", half, tmp_path / "gt.json")
    assert coco_ap(tmp_path / "gt.json", tmp_path / "dt.json") == pytest.approx(51 / 101)


def test_coco_holds_pictures_sizes_and_masks(tmp_path):
    frames = [{**r, "jpeg": f"jpeg {r['frame_id']}".encode()} for r in frame_rows()]
    rows = [{**d, "mask": t["mask"]} for d, t in zip(detection_rows(), track_rows())]
    write_coco(tmp_path / "gt.json", frames, rows, images_dir=tmp_path / "images", categories=["car", "person"])
    content = json.loads((tmp_path / "gt.json").read_text())
    image = content["images"][3]
    assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
    assert (tmp_path / "images" / image["file_name"]).read_bytes() == f"jpeg {image['frame_id']}".encode()
    assert content["categories"][0] == {"id": 1, "name": "car"}
    first = content["annotations"][0]
    assert first["area"] == 300
    assert (first["bbox"], first["category_id"]) == ([5, 4, 20, 15], 2)
    np.testing.assert_array_equal(rle.decode(first["segmentation"]), rle.decode(track_rows()[0]["mask"]))


def test_coco_refuses_orphans_and_unknown_labels_and_leaves_no_file(tmp_path):
    with pytest.raises(UsageError, match="not among the frames"):
        write_coco(tmp_path / "gt.json", frame_rows()[:3], detection_rows())
    with pytest.raises(UsageError, match="label"):
        write_coco(tmp_path / "gt.json", frame_rows(), detection_rows(), categories=["cat"])
    with pytest.raises(UsageError, match="twice"):
        write_coco(tmp_path / "gt.json", frame_rows() * 2, [])
    assert list(tmp_path.iterdir()) == []


def evaluate(trackeval, dataset, metrics):
    """TrackEval on a dataset, raising what it would print; returns class -> metric -> figures of all sequences."""
    config = {"PRINT_RESULTS": False, "PRINT_CONFIG": False, "TIME_PROGRESS": False, "OUTPUT_SUMMARY": False,
              "OUTPUT_DETAILED": False, "PLOT_CURVES": False, "BREAK_ON_ERROR": True, "OUTPUT_EMPTY_CLASSES": False,
              "LOG_ON_ERROR": None}  # fmt: skip
    with quiet():
        output, messages = trackeval.Evaluator(config).evaluate([dataset], metrics)
    name = dataset.get_name()
    assert all(m == "Success" for m in messages[name].values())
    return output[name]["ours"]["COMBINED_SEQ"]


def youtube_vis(trackeval, tmp_path, predicted, frames=None):
    gt, dt = tmp_path / "youtube_vis_val", tmp_path / "trackers" / "youtube_vis_val" / "ours" / "data"
    counts = write_youtube_vis(gt / "gt.json", frame_rows() if frames is None else frames, iter(track_rows()))
    assert counts == {"videos": 2, "annotations": 4, "categories": 2}
    write_youtube_vis_results(dt / "dt.json", iter(predicted), gt / "gt.json")
    with quiet():
        dataset = trackeval.datasets.YouTubeVIS(
            {"GT_FOLDER": f"{tmp_path}/", "TRACKERS_FOLDER": f"{tmp_path}/trackers/", "SPLIT_TO_EVAL": "val",
             "PRINT_CONFIG": False}
        )  # fmt: skip
        metrics = [
            trackeval.metrics.HOTA(),
            trackeval.metrics.TrackMAP({"USE_TIME_RANGES": False, "PRINT_CONFIG": False}),
        ]
    return evaluate(trackeval, dataset, metrics)


def test_youtube_vis_files_are_read_by_trackeval_and_score_one(trackeval, tmp_path):
    result = youtube_vis(trackeval, tmp_path, track_rows())
    for label in ("person", "car"):
        assert np.mean(result[label]["HOTA"]["HOTA"]) == pytest.approx(1.0)
        assert np.mean(result[label]["TrackMAP"]["AP_all"]) == pytest.approx(1.0)


def test_youtube_vis_without_the_second_half_of_a_track_scores_its_share(trackeval, tmp_path):
    """Cars are seen on 5 of 10 frames: DetA = 1/2; a match's association is 5 of 10: HOTA = sqrt(1/2 * 1/2)."""
    rows = [r for r in track_rows() if r["label"] == "person" or r["frame_index"] < 5]
    result = youtube_vis(trackeval, tmp_path, rows, frames=[])
    assert np.mean(result["person"]["HOTA"]["HOTA"]) == pytest.approx(1.0)
    assert np.mean(result["car"]["HOTA"]["HOTA"]) == pytest.approx(0.5)


def test_youtube_vis_holds_a_null_where_an_object_is_not_seen(tmp_path):
    rows = track_rows(("a",))
    rows[3]["visible"] = False
    write_youtube_vis(tmp_path / "gt.json", frame_rows(("a",), 12), rows)
    content = json.loads((tmp_path / "gt.json").read_text())
    track = content["annotations"][0]
    assert content["videos"][0]["length"] == len(track["segmentations"]) == len(track["bboxes"]) == 12
    assert [i for i, s in enumerate(track["segmentations"]) if s is None] == [3, 10, 11]
    assert track["areas"][0] == 300


@pytest.mark.parametrize(
    ("frames", "tracks", "message"),
    [
        (frame_rows(), track_rows(("b", "a")), "sort"),
        ([], [*track_rows(("a",)), *track_rows(("b",)), *track_rows(("a",))], "scattered"),
        (frame_rows(), [{**r, "mask": None} for r in track_rows()], "no mask"),
        ([], [{**r, "mask": None} for r in track_rows()], "neither a frame nor a mask"),
        ([], [track_rows()[0], {**track_rows()[1], "mask": encode(np.ones((9, 9), bool))}], r"\[9, 9\]"),
    ],
)
def test_youtube_vis_refuses_rows_that_it_can_not_export(tmp_path, frames, tracks, message):
    with pytest.raises(UsageError, match=message):
        write_youtube_vis(tmp_path / "gt.json", frames, tracks)


def mot(trackeval, tmp_path, predicted):
    one_class = [r for r in track_rows() if r["label"] == "person"]
    write_mot(tmp_path / "gt", iter(one_class), ground_truth=True, lengths={"a": 10, "b": 10}, fps=10)
    write_mot(tmp_path / "trackers" / "ours" / "data", iter(predicted), ground_truth=False, lengths={"a": 10, "b": 10})
    with quiet():
        dataset = trackeval.datasets.MotChallenge2DBox(
            {"GT_FOLDER": str(tmp_path / "gt"), "TRACKERS_FOLDER": str(tmp_path / "trackers"), "SKIP_SPLIT_FOL": True,
             "SEQMAP_FILE": str(tmp_path / "gt" / "seqmap.txt"), "PRINT_CONFIG": False}
        )  # fmt: skip
        quiet_config = {"PRINT_CONFIG": False}
        metrics = [trackeval.metrics.HOTA(), trackeval.metrics.CLEAR(quiet_config),
                   trackeval.metrics.Identity(quiet_config)]  # fmt: skip
    return evaluate(trackeval, dataset, metrics)["pedestrian"]


def test_mot_files_are_read_by_trackeval_and_score_one(trackeval, tmp_path):
    result = mot(trackeval, tmp_path, [r for r in track_rows() if r["label"] == "person"])
    assert np.mean(result["HOTA"]["HOTA"]) == pytest.approx(1.0)
    assert result["CLEAR"]["MOTA"] == pytest.approx(1.0)
    assert result["Identity"]["IDF1"] == pytest.approx(1.0)


def test_mot_files_of_one_video_out_of_two_score_half(trackeval, tmp_path):
    rows = [r for r in track_rows() if r["label"] == "person" and r["asset_id"] == "a"]
    result = mot(trackeval, tmp_path, rows)
    assert result["CLEAR"]["MOTA"] == pytest.approx(0.5)
    assert result["Identity"]["IDF1"] == pytest.approx(2 / 3)


def test_mot_files_are_read_by_motmetrics_with_the_pixels_that_went_in(motmetrics, tmp_path):
    write_mot(tmp_path, track_rows(("a",)), ground_truth=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # py-motmetrics itself uses what pandas is about to drop.
        warnings.simplefilter("ignore", DeprecationWarning)
        table = motmetrics.io.loadtxt(str(tmp_path / "a" / "gt" / "gt.txt"), fmt="mot15-2D", min_confidence=1)
    assert len(table) == 20
    first = table.loc[(1, 1)]
    assert (first["X"], first["Y"], first["Width"], first["Height"]) == (5, 4, 20, 15)


def test_mot_leaves_out_what_is_not_visible_and_names_unknown_labels(tmp_path):
    rows = track_rows(("a",))
    rows[0]["visible"] = False
    assert write_mot(tmp_path, rows, ground_truth=False)["boxes"] == 19
    with pytest.raises(UsageError, match="label 'person'"):
        write_mot(tmp_path, rows, ground_truth=False, classes={"car": 3})
    with pytest.raises(UsageError, match="4 frames"):
        write_mot(tmp_path, rows, ground_truth=True, lengths={"a": 4})


def test_webdataset_shards_hold_every_frame_once_and_are_reproducible(tmp_path):
    frames = [{**r, "jpeg": f"jpeg {r['frame_id']}".encode(), "emb": np.float32([1, 2])} for r in frame_rows()]
    rows = detection_rows()

    def on_frame(frame_id):
        return [r for r in rows if r["frame_id"] == frame_id]

    for folder in ("one", "two"):
        counts = write_webdataset(tmp_path / folder, iter(frames), annotations=on_frame, shard_frames=8)
        assert counts == {"shards": 3, "frames": 20}
    seen = {}
    for shard in sorted((tmp_path / "one").iterdir()):
        assert shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes()
        with tarfile.open(shard) as tar:
            for member in tar:
                key, dot, kind = member.name.partition(".")
                assert (dot, key in seen, kind) in {(".", False, "jpg"), (".", True, "json")}
                seen.setdefault(key, []).append(tar.extractfile(member).read())
    assert len(seen) == 20
    for picture, text in seen.values():
        meta = json.loads(text)
        assert picture == f"jpeg {meta['frame_id']}".encode()
        assert (len(meta["detections"]), meta["emb"]) == (2, [1.0, 2.0])


def test_webdataset_shards_end_at_their_size_and_need_pictures(tmp_path):
    frames = [{"frame_id": str(i), "jpeg": b"x" * 100} for i in range(6)]
    assert write_webdataset(tmp_path, frames, shard_bytes=200)["shards"] == 3
    assert write_webdataset(tmp_path / "none", [])["shards"] == 0
    with pytest.raises(UsageError, match="no JPEG"):
        write_webdataset(tmp_path / "bad", [{"frame_id": "1", "jpeg": None}])


@given(st.lists(st.booleans(), min_size=1, max_size=300), st.integers(1, 12))
@settings(max_examples=60)
def test_run_lengths_of_rle_text_are_those_of_the_pixels(bits, height):
    pixels = np.array(bits + [False] * (-len(bits) % height), np.uint8).reshape(-1, height).T
    runs = rle_run_lengths(encode(pixels)["counts"])
    values = np.repeat(np.arange(len(runs)) % 2, runs)
    np.testing.assert_array_equal(values.reshape(-1, height).T, pixels)


@given(st.text(max_size=30), st.text(max_size=30))
def test_names_never_collide_or_escape(a, b):
    names = []
    for text in (a, b):
        try:
            text.encode()
        except UnicodeEncodeError:
            return
        names.append(safe_name(text))
    assert (names[0] == names[1]) == (a == b)
    assert not set(names[0]) & set("/\\.:\0")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def fail():
        with whole_file(path) as file:
            file.write("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]

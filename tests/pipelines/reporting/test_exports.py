"""Exports and scores of a lake, read by others: a user would lose the files' names, or trust a figure that says nothing."""

from __future__ import annotations

import json
import tarfile
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from jobs import eval as eval_job
from jobs import export as export_job
from jobs import overlay as overlay_job
from jobs.cli import run
from pipelines.lake import SCHEMAS, Lake, make_asset_id
from pipelines.reporting.evaluate import evaluate
from pipelines.reporting.export import export
from pipelines.reporting.names import AssetNames
from tests.vfm_ops.evaluate.rows import encode
from vfm_ops.errors import UsageError
from vfm_ops.media.encode import write_video
from vfm_ops.media.jpeg import encode_jpeg

SIZE, STORED = (128, 96), (64, 48)  # width and height of a source; of its stored frame, as jpeg.max_side=64 has it
FRAMES, SEEN = 12, range(3, 7)
PICTURES = ("cats/1.png", "dogs/1.jpg", "dogs/2.png")


def scene(t: int = 0) -> np.ndarray:
    """A bright square that moves four pixels a frame, uint8 RGB of SIZE."""
    picture = np.full((SIZE[1], SIZE[0], 3), 40, np.uint8)
    picture[30:60, 10 + 4 * t : 40 + 4 * t] = (230, 200, 40)
    return picture


def square(t: int) -> np.ndarray:
    """Where it is on the stored frame."""
    mask = np.zeros(STORED[::-1], bool)
    mask[15:30, 5 + 2 * t : 20 + 2 * t] = True
    return mask


def box(t: int) -> list[float]:
    return [5.0 + 2 * t, 15.0, 20.0 + 2 * t, 30.0]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory) -> Lake:
    """Three stills, of which two share a stem, and two videos, of which one has an object in its middle alone."""
    root = tmp_path_factory.mktemp("shelf")
    lake = Lake.create(root / "lake")
    for name in PICTURES:
        (root / name).parent.mkdir(exist_ok=True)
        Image.fromarray(scene()).save(root / name)
    (root / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        write_video(root / "clips" / name, (scene(t) for t in range(FRAMES)), 10)
    uris = [str(root / n) for n in (*PICTURES, "clips/a.mp4", "clips/b.mp4")]
    ids = [make_asset_id(u) for u in uris]
    now = datetime(2026, 1, 1, tzinfo=UTC)
    facts = [
        {"asset_id": i, "uri": u, "media_type": "video" if u.endswith(".mp4") else "image", "discovered_at": now}
        for i, u in zip(ids, uris, strict=True)
    ]
    append(lake, "assets", [facts[0] | {"caption": "a cat"}, *facts[1:]])
    jpeg = encode_jpeg(scene(), 90, 64)
    shown = [(i, 0) for i in ids[:3]] + [(i, t) for i in ids[3:] for t in (0, 5)]
    owners = [{"asset_id": i, "run_key": "r", "frame_id": f"{i}:{t}", "frame_index": t} for i, t in shown]
    quality = {"sharpness": float("nan"), "luminance": 0.5, "contrast": 0.2, "entropy": 1.0}
    picture = {"jpeg": jpeg, "width": STORED[0], "height": STORED[1], "quality": quality, "pts_s": 0.0}
    append(lake, "frames", [owner | picture for owner in owners])
    found = {"detection_id": "d", "label": "square", "score": 0.9}
    append(lake, "detections", [owner | found | {"box": box(owner["frame_index"])} for owner in owners])
    track = {"track_id": f"{ids[3]}:t0", "asset_id": ids[3], "run_key": "r", "label": "square", "visible": True}
    append(lake, "tracks", [track | {"frame_index": t, "box": box(t), "mask": encode(square(t))} for t in SEEN])
    probe = {"width": SIZE[0], "height": SIZE[1], "fps": 10.0, "codec": "h264", "frames": FRAMES, "duration_s": 1.2}
    append(lake, "ledger", [{"asset_id": i, "run_key": "r", "probe": probe} for i in ids[3:]])
    return lake


def append(lake: Lake, table: str, rows: list[dict]) -> None:
    lake.append(table, pa.Table.from_pylist(rows, SCHEMAS[table]))


def coco_file(path: Path, images: list[dict], label: str) -> Path:
    """Ground truth in pixels of the source: one square an image."""
    square = {"category_id": 7, "bbox": [10.0, 30.0, 30.0, 30.0], "area": 900.0, "iscrowd": 0}
    annotations = [{**square, "id": n + 1, "image_id": i["id"]} for n, i in enumerate(images)]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": label}]}
    path.write_text(json.dumps(data))
    return path


def images(*names: str) -> list[dict]:
    return [{"id": 10 + i, "file_name": n, "width": SIZE[0], "height": SIZE[1]} for i, n in enumerate(names)]


def test_coco_names_files_as_the_sources_were_and_each_picture_is_there(shelf, tmp_path):
    from pycocotools.coco import COCO

    counts = export(shelf, "coco", tmp_path / "coco.json")
    coco = COCO(str(tmp_path / "coco.json"))
    assert counts == {"images": 7, "annotations": 7, "categories": 1, "pictures": 7}
    named = {image["file_name"]: image for image in coco.loadImgs(coco.getImgIds())}
    assert set(named) == {
        "cats/1.jpg",
        "dogs/1.jpg",
        "dogs/2.jpg",
        *(f"clips/{v}/00000{t}.jpg" for v in "ab" for t in (0, 5)),
    }
    assert {Path(i["source"]).name for i in named.values()} == {"1.png", "1.jpg", "2.png", "a.mp4", "b.mp4"}
    for name, image in named.items():
        with Image.open(tmp_path / "images" / name) as picture:
            assert (picture.format, picture.size) == ("JPEG", (image["width"], image["height"]))
        (own,) = coco.loadAnns(coco.getAnnIds(image["id"]))
        x, y, w, h = own["bbox"]
        assert (w, h) == (15, 15)
        assert 0 <= x <= image["width"] - w
        assert y == 15


def test_what_was_exported_scores_one_against_the_lake_it_came_from(shelf, tmp_path):
    export(shelf, "coco", tmp_path / "coco.json")
    assert evaluate(shelf, tmp_path / "coco.json")["mAP"] == pytest.approx(1.0)
    pytest.importorskip("trackeval", reason="needs trackeval: pip install 'vfm-pipelines[eval]'")
    export(shelf, "youtube-vis", tmp_path / "vis.json")
    scores = evaluate(shelf, tmp_path / "vis.json")
    assert (scores["HOTA"], scores["J&F"], scores["videos"]) == (pytest.approx(1.0), pytest.approx(1.0), 2)


def test_youtube_vis_covers_every_frame_and_every_listed_jpeg_exists_and_shows_it(shelf, tmp_path):
    counts = export(shelf, "youtube-vis", tmp_path / "vis.json")
    assert counts == {"videos": 2, "annotations": 1, "categories": 1, "pictures": 2 * FRAMES}
    data = json.loads((tmp_path / "vis.json").read_text())
    assert [v["length"] for v in data["videos"]] == [FRAMES] * 2
    (track,) = data["annotations"]
    assert [t for t, s in enumerate(track["segmentations"]) if s] == list(SEEN)
    video = next(v for v in data["videos"] if v["id"] == track["video_id"])
    assert video["file_names"] == [f"clips/a/{t:06d}.jpg" for t in range(FRAMES)]
    for t, name in enumerate(video["file_names"]):
        picture = np.asarray(Image.open(tmp_path / "JPEGImages" / name))
        assert picture.shape[:2] == (video["height"], video["width"])
        bright = picture[..., 0] > 140
        assert (bright & square(t)).sum() / (bright | square(t)).sum() > 0.8
    alone = export(shelf, "youtube-vis", tmp_path / "alone" / "vis.json", pictures=False)
    assert "pictures" not in alone
    assert [p.name for p in (tmp_path / "alone").iterdir()] == ["vis.json"]


def test_mot_files_are_named_after_their_videos_and_keep_the_label(shelf, tmp_path):
    assert export(shelf, "mot", tmp_path / "mot") == {"videos": 2, "tracks": 1, "boxes": len(SEEN)}
    table = np.loadtxt(tmp_path / "mot" / "clips__a.txt", delimiter=",", ndmin=2)
    np.testing.assert_allclose(table[:, 0], np.array(SEEN) + 1)
    np.testing.assert_allclose(table[0, 2:6], [5 + 2 * 3 + 1, 16, 15, 15])
    assert set(table[:, 7]) == {1}
    assert (tmp_path / "mot" / "labels.txt").read_text() == "square\n"
    assert (tmp_path / "mot" / "clips__b.txt").read_text() == ""


def test_webdataset_samples_hold_name_caption_and_boxes_in_strict_json(shelf, tmp_path):
    export(shelf, "webdataset", tmp_path)
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(tmp_path / "shard-000000.tar") as tar:
        for member in tar:
            key, _, kind = member.name.partition(".")
            samples.setdefault(key, {})[kind] = tar.extractfile(member).read()
    assert len(samples) == 7

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    read = [json.loads(s["json"], parse_constant=refuse) for s in samples.values()]
    assert {r["file_name"] for r in read} == {*PICTURES, "clips/a.mp4", "clips/b.mp4"}
    assert [r["caption"] for r in read if "caption" in r] == ["a cat"]
    for sample, row in zip(samples.values(), read):
        height, width = cv2.imdecode(np.frombuffer(sample["jpg"], np.uint8), cv2.IMREAD_COLOR).shape[:2]
        assert (width, height) == (row["width"], row["height"])
        assert len(row["detections"]) == 1


def test_scores_are_in_the_ground_truths_pixels_whatever_size_was_stored(shelf, tmp_path):
    truth = coco_file(tmp_path / "t.json", images("cats/1.png", "2.png"), "square")
    scores = evaluate(shelf, truth)
    assert (scores["mAP"], scores["images"], scores["notes"]) == (pytest.approx(1.0), 2, [])
    narrow = [i | {"width": 40} for i in images("2.png")]
    with pytest.raises(UsageError, match="not the same picture"):
        evaluate(shelf, coco_file(tmp_path / "n.json", narrow, "square"))


def test_disjoint_labels_and_untold_things_are_said_instead_of_scored(shelf, tmp_path, capsys):
    lake = ["--lake", str(shelf.root)]
    truth = coco_file(tmp_path / "dog.json", images("2.png"), "dog")
    assert run(eval_job.command, [*lake, "--truth", str(truth)]) == 2
    assert "share no label: 'dog' there, 'square' here" in capsys.readouterr().err
    two = json.loads(coco_file(tmp_path / "two.json", images("2.png"), "square").read_text())
    two["categories"].append({"id": 8, "name": "cat"})
    two["annotations"].append({**two["annotations"][0], "id": 2, "category_id": 8})
    (tmp_path / "two.json").write_text(json.dumps(two))
    assert run(eval_job.command, [*lake, "--truth", str(tmp_path / "two.json")]) == 0
    told = capsys.readouterr()
    assert "note: never found, and so counted as 0: 'cat'" in told.err
    assert "mAP  0.5" in told.out
    ambiguous = coco_file(tmp_path / "one.json", images("1.bmp"), "square")
    with pytest.raises(UsageError, match=r"2 assets are named '1\.bmp'"):
        evaluate(shelf, ambiguous)
    for content, message in (
        ("[]", "neither a COCO"),
        ('{"images": []}', "no list of annotations"),
        ("{", "cannot read"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(UsageError, match=message):
            evaluate(shelf, tmp_path / "bad.json")


def test_a_crowd_is_not_counted_as_missed(shelf, tmp_path):
    """pycocotools on the same file is the judge: a crowd far away from every detection takes nothing from the score."""
    data = json.loads(coco_file(tmp_path / "t.json", images("2.png"), "square").read_text())
    data["annotations"].append({**data["annotations"][0], "id": 2, "bbox": [80, 0, 40, 20], "iscrowd": 1})
    (tmp_path / "t.json").write_text(json.dumps(data))
    assert evaluate(shelf, tmp_path / "t.json")["mAP"] == pytest.approx(1.0)


def test_videos_are_matched_by_folder_and_frames_by_number(shelf, tmp_path):
    """As YouTube-VIS has it: every fifth frame, in a folder of the video's name, masks as lists of run lengths."""
    pytest.importorskip("trackeval", reason="needs trackeval: pip install 'vfm-pipelines[eval]'")
    from vfm_ops.evaluate.files import rle_run_lengths

    def runs(t: int) -> dict:
        mask = encode(square(t))
        return {"size": mask["size"], "counts": rle_run_lengths(mask["counts"])}

    shown = (0, 5, 10)
    segments = [runs(t) if t in SEEN else None for t in shown]
    video = {
        "id": 1,
        "file_names": [f"a/{t:05d}.jpg" for t in shown],
        "length": 3,
        "width": STORED[0],
        "height": STORED[1],
    }
    annotation = {"id": 1, "video_id": 1, "category_id": 1, "segmentations": segments, "iscrowd": 0}
    data = {"videos": [video], "annotations": [annotation], "categories": [{"id": 1, "name": "anything"}]}
    (tmp_path / "t.json").write_text(json.dumps(data))
    scores = evaluate(shelf, tmp_path / "t.json")
    assert (scores["HOTA"], scores["J&F"]) == (pytest.approx(1.0), pytest.approx(1.0))


def test_an_overlay_fits_frames_that_were_stored_smaller_and_finds_assets_by_id_and_path(shelf, tmp_path, capsys):
    lake = ["--lake", str(shelf.root)]
    assert run(overlay_job.command, [*lake, "--out", str(tmp_path / "o.mp4")]) == 0
    film = cv2.VideoCapture(str(tmp_path / "o.mp4"))
    frames = []
    while (got := film.read())[0]:
        frames.append(got[1][..., ::-1].astype(int))
    assert len(frames) == FRAMES
    assert frames[0].shape[:2] == STORED[::-1]
    inside = square(5)
    assert np.abs(frames[5][inside].mean(axis=0) - (230, 200, 40)).max() > 30  # tinted by its mask
    assert np.abs(frames[0][square(0)].mean(axis=0) - (230, 200, 40)).max() < 30  # no object there
    names = AssetNames(shelf)
    cat = names.find("cats/1")
    for wanted in (cat, "cats/1.png", "2", "b"):
        assert run(overlay_job.command, [*lake, "--out", str(tmp_path / "s.png"), "--asset", wanted]) == 0
        assert (tmp_path / "s.png").stat().st_size > 1000
    capsys.readouterr()
    for options, said in (
        (["--out", str(tmp_path / "s.png"), "--asset", "1"], "2 assets are named '1'"),
        (["--out", str(tmp_path / "s.png"), "--asset", "none"], "no asset 'none'"),
        (["--out", str(tmp_path / "s.gif")], "its name should end in .mp4 or .jpg"),
        (["--out", str(tmp_path / "no" / "s.png")], "is no directory"),
        (["--out", str(tmp_path / "o.mp4"), "--asset", "2"], "has no tracks"),
    ):
        assert run(overlay_job.command, [*lake, *options]) == 2
        assert said in capsys.readouterr().err


def test_an_export_that_can_not_be_written_is_refused_in_a_sentence(shelf, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    arguments = ["--lake", str(shelf.root), "--format", "coco", "--out", str(tmp_path / "file" / "coco.json")]
    assert run(export_job.command, arguments) == 2
    assert "cannot write" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("uris", "pictures"),
    [
        (["/d/a/1.png", "/d/b/1.png"], ["a/1.jpg", "b/1.jpg"]),
        (["/d/1.png", "/d/1.jpg", "/d/1.JPEG"], ["1.png.jpg", "1.jpg", "1.JPEG"]),
        (["s3://x/a b.jpg", "/d/%41.jpg"], ["x/a b.jpg", "d/%41.jpg"]),
        (["/d/.../x.png", "/d/y\\..\\z.png"], [".../x.jpg".replace("...", "%2E%2E%2E"), "y%5C..%5Cz.jpg"]),
        (["file:///d/%C3%A4.jpg"], ["ä.jpg"]),
    ],
)
def test_names_of_pictures_are_those_of_the_sources_apart_and_inside_the_folder(uris, pictures):
    names = AssetNames((str(i), uri, None) for i, uri in enumerate(uris))
    assert [names.picture(str(i)) for i in range(len(uris))] == pictures


def test_members_of_archives_are_named_inside_them():
    names = AssetNames([("1", "/d/s.tar", "k/../../1.png"), ("2", "/d/t.tar", "k/1.png")])
    assert [names.original(i) for i in "12"] == ["s.tar/k/%2E%2E/%2E%2E/1.png", "t.tar/k/1.png"]
    assert names.find("t.tar/k/1") == "2"

"""What a user loses whose COCO file comes into a lake as other boxes, in other pixels, or twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from jobs.cli import main
from pipelines.annotation.coco_import import import_coco
from pipelines.lake import Lake, verify_lake
from pipelines.reporting.export import export
from tests.pipelines.picture_lake import picture_lake
from vfm_ops.errors import UsageError
from vfm_ops.track.masks import decode_rle

WIDE, HIGH = 40, 36  # of the pictures in the file: twice those of the stored frames


@pytest.fixture
def lake(tmp_path) -> Lake:
    return picture_lake(tmp_path / "lake", 4)


def disc() -> np.ndarray:
    y, x = np.mgrid[:HIGH, :WIDE]
    return ((x - 20) ** 2 + (y - 18) ** 2 < 100).astype(np.uint8)


def coco_file(folder: Path, **changes) -> Path:
    rle = coco.encode(np.asfortranarray(disc()))
    compressed = {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = disc().ravel(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    runs = np.diff([0, *edges, len(flat)]).tolist()
    ring = [10, 8, 30, 8, 30, 28, 10, 28]
    images = [{"id": i, "file_name": f"{i}.jpg", "width": WIDE, "height": HIGH} for i in range(3)]
    images.append({"id": 9, "file_name": "elsewhere.jpg", "width": 5, "height": 5})
    base = {"category_id": 7, "iscrowd": 0}
    annotations = [
        {**base, "id": 1, "image_id": 0, "bbox": [4, 6, 20, 10]},
        {**base, "id": 2, "image_id": 1, "bbox": [10, 8, 20, 20], "segmentation": [ring]},
        {**base, "id": 3, "image_id": 1, "bbox": [10, 8, 20, 20], "segmentation": compressed, "category_id": 8},
        {**base, "id": 4, "image_id": 2, "segmentation": {"size": [HIGH, WIDE], "counts": runs}},
        {**base, "id": 5, "image_id": 2, "bbox": [1, 1, 5, 5], "iscrowd": 1},
        {**base, "id": 6, "image_id": 2, "bbox": [1, 1, 0, 5]},
        {**base, "id": 7, "image_id": 9, "bbox": [1, 1, 2, 2]},
    ]
    data = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 7, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    path = folder / "truth.json"
    path.write_text(json.dumps(data | changes))
    return path


def test_boxes_polygons_and_runs_come_in_pixels_of_the_stored_frame(lake, tmp_path):
    counts = import_coco(lake, coco_file(tmp_path), "ann")
    assert counts == {"annotations": 4, "images": 3, "unknown_images": 1, "crowds": 1, "empty": 1}
    rows = {r["object_id"].rpartition(":")[2]: r for r in lake.annotations.to_arrow().to_pylist()}
    assert (rows["1"]["box"], rows["1"]["kind"], rows["1"]["label"]) == ([2, 3, 12, 8], "box", "cat")
    square = np.zeros((18, 20), bool)
    square[4:14, 5:15] = True
    assert (decode_rle(rows["2"]["mask"]) == square).all()
    assert rows["3"]["label"] == "dog"
    small = decode_rle(rows["3"]["mask"])
    y, x = np.mgrid[:18, :20]
    exact = (x - 10) ** 2 + (y - 9) ** 2 < 25
    assert (small & exact).sum() / (small | exact).sum() > 0.85
    assert rows["4"]["mask"] == rows["3"]["mask"]
    assert {r["source"] for r in rows.values()} == {"import coco truth.json"}
    assert not [v for v in verify_lake(lake).violations if "annotations" in v]


def test_the_same_file_again_makes_versions(lake, tmp_path):
    for _ in range(2):
        import_coco(lake, coco_file(tmp_path), "ann")
    assert set(lake.annotations.to_pandas()["version"]) == {2}
    assert len(lake.annotations) == 4


def test_what_was_exported_comes_back_as_it_was(lake, tmp_path):
    import_coco(lake, coco_file(tmp_path), "ann")
    export(lake, "coco", tmp_path / "out.json", annotations=True, pictures=False)
    other = picture_lake(tmp_path / "other", 4)
    import_coco(other, tmp_path / "out.json", "bob")

    def masks(lake: Lake) -> list:
        rows = lake.annotations.to_arrow(columns=["frame_id", "label", "mask", "box"]).to_pylist()
        return sorted(rows, key=str)

    assert masks(other) == masks(lake)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"images": [{"id": 1, "file_name": "none.jpg"}]}, "names no image of the lake, such as 'none.jpg'"),
        ({"annotations": []}, "no list of annotations"),
        ({"annotations": [{"id": 1}]}, "no complete COCO file: KeyError"),
        ({"images": [{"id": 1, "file_name": "1.jpg", "width": 90, "height": 10}]}, "not the same picture"),
    ],
)
def test_what_is_no_such_file_is_said(lake, tmp_path, changes, said):
    with pytest.raises(UsageError) as error:
        import_coco(lake, coco_file(tmp_path, **changes), "ann")
    assert said in str(error.value)
    assert len(lake.annotations) == 0


def test_the_command_counts(lake, tmp_path, capsys):
    assert main(["import", "coco", str(coco_file(tmp_path)), "--lake", lake.root, "--author", "ann"]) == 0
    assert "4 annotations, 3 images, 1 unknown images" in capsys.readouterr().out
    assert main(["import", "coco", str(tmp_path / "none.json"), "--lake", lake.root]) == 2
    assert "cannot read" in capsys.readouterr().err

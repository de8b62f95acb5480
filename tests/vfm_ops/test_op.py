"""If these fail, an op that a user wrote is not found, loses rows of other pictures, or breaks a run without a sentence."""

from __future__ import annotations

import pickle
from importlib.metadata import EntryPoint
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from vfm_ops import op as contract
from vfm_ops import op_registry
from vfm_ops.errors import UsageError
from vfm_ops.media.phash import phash
from vfm_ops.media.quality import frame_quality, quality_gray
from vfm_ops.media.view import View
from vfm_ops.op import Op, OpError, op
from vfm_ops.op_registry import known_ops, load_op


@op(adds={"brightness": pa.float32()}, needs=View(8))
def brightness(images_BHWC):
    return images_BHWC.mean(axis=(1, 2, 3))


@op(adds={"side": pa.int32()})
def side(images):
    if any(i.shape[0] == 13 for i in images):
        raise ValueError("thirteen rows")
    return [i.shape[0] for i in images]


@op()
def tall(images):
    return [i.shape[0] > i.shape[1] for i in images]


@op(adds={"double": pa.float32()}, needs=None, columns=("brightness",))
def double(brightness):
    return [2 * b for b in brightness]


def grey(height: int, width: int, value: int = 100) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_a_function_is_an_op_that_sees_what_it_asked_for():
    assert brightness([grey(20, 30, 10), grey(90, 40, 200)])["brightness"].to_pylist() == [10.0, 200.0]
    assert brightness(np.stack([grey(16, 16)] * 3)).num_rows == 3
    assert brightness([])["brightness"].type == pa.float32()
    assert (View(8).height, View(8).width, View().width, View(10, 20).width) == (8, 8, 224, 20)


def test_a_row_that_raises_costs_itself():
    table = side([grey(10, 10), grey(13, 10), grey(12, 10)])
    assert table["side"].to_pylist() == [10, None, 12]
    assert table["error"].to_pylist() == [None, "op side: ValueError: thirteen rows", None]


def test_a_filter_says_which_rows_go():
    assert tall([grey(10, 20), grey(20, 10)])["dropped"].to_pylist() == ["tall", None]
    quality = load_op({"quality": {"min_luminance": 0.5}})
    found = quality([grey(30, 30, 10), grey(30, 30, 250)])
    assert found["dropped"].to_pylist() == ["luminance below 0.5", None]
    assert [q["luminance"] for q in found["quality"].to_pylist()] == pytest.approx([10 / 255, 250 / 255])


def test_batches_of_datasets_come_back_with_the_columns_and_without_dropped_rows():
    jpeg = cv2.imencode(".png", grey(20, 30, 50))[1].tobytes()
    done = brightness({"image": np.stack([grey(8, 8, 7)] * 2), "name": np.array(["a", "b"])})
    assert done["name"].tolist() == ["a", "b"]
    assert done["brightness"].tolist() == [7.0, 7.0]
    table = brightness(pa.table({"bytes": [jpeg, b"no picture"], "n": [1, 2]}))
    assert table["brightness"].to_pylist() == [50.0, None]
    assert "row 1" in table["error"].to_pylist()[1]
    left = tall({"image": np.array([grey(2, 3), grey(3, 2)], dtype=object), "n": np.array([0, 1])})
    assert left["n"].tolist() == [1]
    with pytest.raises(UsageError, match="op brightness needs pictures"):
        brightness({"n": np.arange(2)})


def test_an_op_of_columns_reads_them():
    assert double(pa.table({"brightness": [1.0, 2.0]}))["double"].to_pylist() == [2.0, 4.0]
    with pytest.raises(UsageError, match="op double reads column brightness, which is not there"):
        double(pa.table({"other": [1.0]}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2], "gave 2 for 3 rows as values of column x"),
        (7, "gave one value for 3 rows"),
        (["a", "b", "c"], "values of column x that are no int32"),
        ({"y": [1, 2, 3]}, r"gave columns \['y'\], and says that it adds \['x'\]"),
        (([1, 2, 3], [1.5, None, True]), "decided 1.5: a filter gives booleans"),
    ],
)
def test_an_op_that_breaks_its_contract_is_named(values, message):
    wrong = op(adds={"x": pa.int32()}, name="wrong")(lambda images: values)
    with pytest.raises(OpError, match=f"op wrong .*{message}|op wrong {message}"):
        wrong([grey(4, 4)] * 3)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("qualiti", "there is no op 'qualiti': did you mean quality"),
        ("nowhere:Op", "op nowhere:Op: there is no module nowhere"),
        ("tests.vfm_ops.test_op:missing", "has no missing"),
        ("tests.vfm_ops.test_op:grey", "grey of tests.vfm_ops.test_op is no op"),
        ({"quality": {"min_lumi": 1}}, "op quality has no setting min_lumi: did you mean min_luminance"),
        ({"quality": {"min_luminance": 3}}, "op quality, setting min_luminance: it should be less than or equal to 1"),
        ({"quality": 3}, "op quality has no main setting"),
        ("embed", "op embed, setting model: it is required"),
        ({"tests.vfm_ops.test_op:brightness": {"x": 1}}, "is a function and has no settings"),
        ({"a": 1, "b": 2}, "an op is one name with its settings, not 2: a, b"),
        ("tests.vfm_ops.test_op:Broken", "op tests.vfm_ops.test_op:Broken can't be built: RuntimeError: no weights"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(entry, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        load_op(entry)


class Broken(Op):
    name = "broken"

    def __init__(self):
        raise RuntimeError("no weights")


def test_ops_of_packages_are_found_by_their_entry_points(monkeypatch):
    point = EntryPoint("bright", "tests.vfm_ops.test_op:brightness", op_registry.ENTRY_POINTS)
    monkeypatch.setattr(op_registry, "entry_points", lambda group: [point])
    assert load_op("bright") is brightness
    assert {"quality", "phash", "embed", "bright"} <= known_ops().keys()
    monkeypatch.setattr(op_registry, "entry_points", lambda group: [EntryPoint("phash", "other:Op", group)])
    with pytest.raises(UsageError, match="two ops are named phash"):
        known_ops()


def test_an_op_travels_to_a_worker():
    import ray.cloudpickle as cloudpickle

    assert pickle.loads(pickle.dumps(brightness)) is brightness
    inner = op(adds={"n": pa.int32()}, name="inner")(lambda images: [len(images)] * len(images))
    assert cloudpickle.loads(cloudpickle.dumps(inner))([grey(4, 4)] * 2)["n"].to_pylist() == [2, 2]


def test_the_built_in_ops_give_what_the_decoder_measures(photographs):
    images = [cv2.cvtColor(cv2.imread(str(p)), cv2.COLOR_BGR2RGB) for p in photographs[:3]]
    measured = load_op("quality")(images)["quality"].to_pylist()
    for image, row, hashed in zip(images, measured, load_op("phash")(images)["phash"].to_pylist()):
        expected = frame_quality(quality_gray(image))
        assert {name: row[name] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert hashed == phash(quality_gray(image))


def test_each_built_in_ops_settings_are_its_own_modules_alone():
    root = Path(contract.__file__).parents[1]
    for where in known_ops().values():
        module = where.split(":")[0]
        if module.startswith(op_registry.BUILT_IN):
            settings = load_class(where).Settings.__name__
            users = [f for f in (root / "vfm_ops").rglob("*.py") if f"import {settings}" in f.read_text()]
            assert users == []


def load_class(where: str):
    return op_registry.find_op(where)


@op(table=contract.Table("rows", {"row": pa.int32()}))
def bright_rows(images):
    return [[{"row": i} for i, row in enumerate(image) if row.mean() > 128] for image in images]


def test_an_op_with_a_table_gives_rows_for_each_picture_whatever_calls_it():
    light = grey(3, 4, 200)
    assert bright_rows([light, grey(2, 2)])["rows"].to_pylist() == [[{"row": 0}, {"row": 1}, {"row": 2}], []]
    batch = bright_rows(pa.table({"image": [cv2.imencode(".png", light)[1].tobytes()]}).rename_columns(["bytes"]))
    assert batch["rows"].to_pylist() == [[{"row": 0}, {"row": 1}, {"row": 2}]]
    numpy = bright_rows({"image": np.stack([light, light])})
    assert [len(r) for r in numpy["rows"]] == [3, 3]


@pytest.mark.parametrize("rows", [[[{"column": 1}]], [[{"row": "one"}]], [[1]], [[], []]])
def test_rows_that_do_not_fit_the_table_are_named(rows):
    @op(table=contract.Table("rows", {"row": pa.int32()}))
    def wrong(images):
        return rows

    with pytest.raises(OpError, match="op wrong gave"):
        wrong([grey(2, 2)])


def test_keys_change_with_what_changes_values_and_with_nothing_else():
    quality = load_op({"quality": {"min_contrast": 0.1}})
    other = load_op({"quality": {"min_contrast": 0.2}})
    assert quality.key() == other.key() == load_op("quality").key()
    assert quality.keep_key() != other.keep_key()
    assert quality.filters
    assert not load_op("quality").filters
    embed = {"model": "timm:pocket"}
    keys = [load_op({"embed": embed | more}).key() for more in ({}, {"batch_size": 4}, {"precision": "exact"})]
    assert len(set(keys)) == 1
    assert load_op({"embed": embed | {"preprocess": "exact"}}).key() != keys[0]
    assert brightness.key({"pictures": "a"}) != brightness.key({"pictures": "b"})


def test_boxes_tracks_and_masks_are_those_of_the_libraries(photograph_of_shapes):
    from vfm_ops.detect import load_detector
    from vfm_ops.segment.automatic import GridSettings, generate_masks
    from vfm_ops.segment.segmenter import load_segmenter

    rgb = photograph_of_shapes
    rows = load_op({"detect": "a red square . a blue circle ."})([rgb])["rows"].to_pylist()[0]
    found = load_detector("owlvit:pocket", device="cpu").detect([rgb], "a red square . a blue circle .", nms_iou=0.5)[0]
    assert [r["label"] for r in rows] == list(found.labels)
    np.testing.assert_allclose([r["box"] for r in rows], found.boxes, atol=0.01)
    loose = {"points_per_side": 3, "min_iou": 0.0, "min_stability": 0.0, "crop_n_layers": 1, "min_mask_region_area": 9}
    masks = load_op({"segment": loose})([rgb])["rows"].to_pylist()[0]
    expected = generate_masks(load_segmenter("sam2:pocket", device="cpu"), rgb, GridSettings(**loose))
    assert len(masks) == len(expected) > 0
    assert [m["area"] for m in masks] == [e.area for e in expected]


@pytest.fixture
def photograph_of_shapes() -> np.ndarray:
    rgb = np.full((96, 128, 3), 220, np.uint8)
    cv2.rectangle(rgb, (15, 20), (50, 60), (220, 30, 30), -1)
    cv2.circle(rgb, (95, 50), 20, (30, 30, 220), -1)
    return rgb

"""What an annotator loses if annotations are lost, doubled, changed by a run, or of what is not there."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.lake import SCHEMAS, Lake, Lease, StoreError, lease, verify_lake
from pipelines.lake.fence import epoch_of
from pipelines.lake.maintenance import maintain
from pipelines.process import process
from pipelines.process.recipe import Recipe
from pipelines.reporting.diff import diff_lake
from pipelines.sources import ingest
from tests.chaos.corpus import change_corpus, draw_corpus
from tests.conftest import optional_package
from tests.lakes import unpack
from tests.pipelines.picture_lake import picture_lake
from vfm_ops.errors import UsageError
from vfm_ops.track.masks import encode_rle

ROOT = Path(__file__).parents[3]
PLAIN = Recipe.model_validate({"sampling": {"fps": 2}, "shots": {"detector": "content"}})


@pytest.fixture
def lake(tmp_path) -> Lake:
    """Six stills of 20 x 18 pixels."""
    return picture_lake(tmp_path / "lake", 6)


def frame(number: int) -> str:
    return f"{number:032x}:0"


def disc(x: int, y: int, radius: int = 4) -> np.ndarray:
    rows, columns = np.mgrid[:18, :20]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def test_the_last_version_counts_and_the_history_stays(lake):
    (first,) = lake.add_annotations([{"frame_id": frame(0), "label": "cat", "box": [1, 2, 9, 10]}], author="ann")
    (again,) = lake.add_annotations(
        [{"annotation_id": first, "frame_id": frame(0), "label": "dog", "box": [1, 2, 9, 11]}], author="bob"
    )
    assert again == first
    (row,) = lake.annotations.to_arrow().to_pylist()
    assert (row["label"], row["box"], row["version"], row["author"]) == ("dog", [1, 2, 9, 11], 2, "bob")
    history = lake.annotation_history(first).to_pylist()
    assert [(r["version"], r["label"], r["author"]) for r in history] == [(1, "cat", "ann"), (2, "dog", "bob")]
    assert lake.remove_annotations(first, author="ann") == 1
    assert len(lake.annotations) == 0
    assert [r["removed"] for r in lake.annotation_history(first).to_pylist()] == [False, False, True]
    with pytest.raises(UsageError, match="or it was removed"):
        lake.remove_annotations(first, author="ann")
    lake.add_annotations([{"annotation_id": first, "frame_id": frame(0), "box": [1, 2, 9, 10]}], author="ann")
    assert lake.annotations.to_arrow(columns=["version"]).to_pylist() == [{"version": 4}]
    assert verify_lake(lake).violations == verify_lake(picture_lake(Path(lake.root).parent / "bare", 6)).violations


def test_a_condition_is_asked_of_what_counts_and_not_of_what_once_did(lake):
    row = {"frame_id": frame(0), "object_id": "left", "box": [1, 2, 9, 10]}
    lake.add_annotations([row | {"label": "cat"}, {"frame_id": frame(1), "label": "cat", "kind": "tag"}], author="ann")
    lake.add_annotations([row | {"label": "dog"}], author="ann")
    assert lake.annotations.count("label = 'cat'") == 1
    assert lake.annotations.to_arrow("label = 'cat'", ["kind"]).to_pylist() == [{"kind": "tag"}]
    assert lake.annotations.to_arrow("label = 'cat' OR label = 'dog'", limit=1).num_rows == 1
    with pytest.raises(UsageError, match="lable"):
        lake.annotations.count("lable = 'cat'")


def test_other_engines_read_what_counts(lake):
    duckdb, polars = optional_package("duckdb"), optional_package("polars")
    for label in ("cat", "dog"):
        lake.add_annotations(
            [{"frame_id": frame(0), "object_id": "o", "label": label, "box": [1, 2, 9, 10]}], author="a"
        )
    annotations = lake.annotations
    assert annotations.to_pandas()["label"].tolist() == ["dog"]
    assert annotations.to_polars(columns=["label"])["label"].to_list() == ["dog"]
    assert polars.DataFrame(annotations).height == 1
    assert duckdb.sql("SELECT label FROM annotations").fetchall() == [("dog",)]
    (item,) = annotations.to_torch(columns=["label", "box"])
    assert (item["label"], item["box"].tolist()) == ("dog", [1, 2, 9, 10])
    assert annotations.dataset.count_rows() == 2
    assert "annotations" in repr(lake)
    assert "1 rows" in repr(lake)


def test_rows_may_come_as_a_table_or_a_frame_of_another_library(lake):
    rows = {"frame_id": [frame(0), frame(1)], "label": ["cat", None], "box": [[1.0, 2.0, 9.0, 10.0]] * 2}
    polars, table = optional_package("polars"), pa.table(rows)
    for made in (table, polars.DataFrame(rows), table.to_pandas()):
        lake.add_annotations(made, author="ann")
    assert lake.annotations.count("label IS NULL") == lake.annotations.count("label = 'cat'") == 3


def test_a_mask_is_kept_as_it_was_with_its_box(lake):
    mask = disc(8, 9)
    lake.add_annotations(
        [{"frame_id": frame(0), "mask": mask}, {"frame_id": frame(1), "mask": encode_rle(mask)}], author="a"
    )
    for row in lake.annotations.to_arrow().to_pylist():
        assert (row["kind"], row["mask"], row["box"]) == ("mask", encode_rle(mask), [4, 5, 13, 14])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"frame_id": f"{'f' * 32}:0", "box": [1, 2, 3, 4]}, "annotation 1: the lake has no asset"),
        ({"frame_id": frame(0), "box": [1, 2, 3, 40]}, "outside its frame of 20 x 18"),
        ({"frame_id": frame(0), "box": [5, 2, 3, 4]}, "x2 > x1"),
        ({"frame_id": frame(0), "mask": np.ones((20, 18), bool)}, "a mask has the size"),
        ({"frame_id": frame(0), "mask": np.zeros((18, 20), bool)}, "a mask without a pixel"),
        ({"frame_id": frame(0), "mask": {"size": [18, 20], "counts": "0"}}, "no COCO RLE"),
        ({"frame_id": frame(0)}, "the kind None"),
        ({"frame_id": frame(0), "kind": "tag"}, "has no label"),
        ({"frame_id": frame(0), "kind": "track", "box": [1, 2, 3, 4]}, "has no object_id"),
        ({"frame_id": frame(0), "lable": "cat", "box": [1, 2, 3, 4]}, "there is no 'lable'"),
        ({"frame_id": "frame", "box": [1, 2, 3, 4]}, "a frame's id is ASSET:INDEX"),
        ({"frame_id": f"{0:032x}:3", "box": [1, 2, 3, 4]}, "which has frame 0 alone"),
        ({"box": [1, 2, 3, 4]}, "neither asset_id nor frame_id"),
    ],
)
def test_what_is_no_annotation_is_refused_whole(lake, row, said):
    good = {"frame_id": frame(0), "label": "cat", "box": [1, 2, 9, 10]}
    with pytest.raises(UsageError) as error:
        lake.add_annotations([row, good], author="ann")
    assert said in str(error.value)
    assert len(lake.annotations) == 0


def test_an_object_that_left_a_frame_is_gone_there_and_others_stay(lake):
    rows = [{"frame_id": frame(i), "object_id": "walker", "box": [1, 2, 9, 10]} for i in range(3)]
    other = {"frame_id": frame(1), "object_id": "other", "box": [1, 2, 9, 10]}
    lake.add_annotations([*rows, other], author="ann")
    lake.add_annotations([rows[1]], author="ann", replace=True)
    left = lake.annotations.to_arrow(columns=["frame_id", "object_id", "version"]).to_pylist()
    there = {(r["frame_id"], r["object_id"]): r["version"] for r in left}
    # Each picture is an asset of its own: the object's rows on others are of other things.
    assert there == {(frame(0), "walker"): 1, (frame(1), "walker"): 2, (frame(2), "walker"): 1, (frame(1), "other"): 1}
    group = [{"frame_id": frame(3), "object_id": f"all/{i}", "box": [i, 2, 9, 10]} for i in range(3)]
    lake.add_annotations(group, author="ann")
    lake.add_annotations(group[:1], author="ann", replace=True)
    assert lake.annotations.count("starts_with(object_id, 'all/')") == 1


def test_two_annotators_beside_a_run_that_holds_the_lease_lose_nothing(tmp_path, monkeypatch):
    corpus = draw_corpus(tmp_path / "corpus")
    root = str(tmp_path / "lake")
    ingest([str(corpus / "first")], root)
    process(Lake.open(root), PLAIN)
    frames = Lake.open(root).read("frames", ["frame_id"])["frame_id"].to_pylist()[:3]
    ingest([str(corpus / "second")], root)
    for name in ("VFM_TEST_HELD", "VFM_TEST_GO"):
        os.mkfifo(tmp_path / name)
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    held = os.open(tmp_path / "VFM_TEST_HELD", os.O_RDONLY | os.O_NONBLOCK)
    slow = PLAIN.model_copy(update={"ops": ("tests.pipelines.lake.annotators:waits_for_annotators",)})
    summary: list = []
    run = threading.Thread(target=lambda: summary.append(process(Lake.open(root), slow)), daemon=True)
    run.start()
    assert select.select([held], [], [], 120)[0], "the run did not begin"
    os.close(held)
    command = [sys.executable, "-m", "tests.pipelines.lake.annotators", root]
    people = [subprocess.Popen([*command, who, "10", *frames], cwd=ROOT) for who in ("ann", "bob")]
    assert [p.wait(120) for p in people] == [0, 0]
    with pytest.raises(UsageError), Lease(Lake.open(root), "other", watch=False):
        pass  # the run holds it all the while
    (tmp_path / "VFM_TEST_GO").write_text("")
    run.join(120)
    lake = Lake.open(root)
    assert summary
    _check_all_is_there(lake, frames)
    maintain(lake)
    _check_all_is_there(lake, frames)


def _check_all_is_there(lake: Lake, frames: list[str]) -> None:
    shared = lake.read("annotations", ["version", "label"], "object_id = 'shared'").sort_by("version").to_pylist()
    assert [row["version"] for row in shared] == list(range(1, 21))
    assert {row["label"] for row in shared} == {f"{who}{n}" for who in ("ann", "bob") for n in range(10)}
    own = lake.annotations.to_arrow("object_id IS NULL", ["author", "label", "frame_id"]).to_pylist()
    wanted = {(who, f"{who}{n}", i) for who in ("ann", "bob") for n in range(10) for i in frames}
    assert {(r["author"], r["label"], r["frame_id"]) for r in own} == wanted
    assert len(own) == len(wanted)
    assert len(lake.annotations) == len(wanted) + 1
    assert verify_lake(lake).violations == []


def test_runs_maintenance_and_a_changed_source_leave_annotations_as_they_are(tmp_path, monkeypatch):
    corpus, root = draw_corpus(tmp_path / "corpus"), str(tmp_path / "lake")
    ingest([str(corpus / "first")], root)
    lake = Lake.open(root)
    process(lake, PLAIN)
    frames = lake.read("frames", ["frame_id", "width", "height"]).to_pylist()
    rows = [{"frame_id": f["frame_id"], "label": "cat", "box": [0, 0, f["width"], f["height"]]} for f in frames]
    lake.add_annotations(rows, author="ann")
    before = lake.read("annotations").sort_by("annotation_id")
    change_corpus(corpus)
    ingest([str(corpus / "first")], root)
    process(lake, PLAIN.model_copy(update={"ops": ("quality",)}))
    process(lake, PLAIN, retry=True)
    maintain(lake)
    killed = Lease(lake, "killed").__enter__()
    killed._stop.set()
    lake.lease = None
    monkeypatch.setattr(lease, "_is_dead", lambda row: True)
    process(lake, PLAIN)  # takes the lake over, and fences its tables
    assert lake.epoch == 0
    assert epoch_of(lake.table("frames")) > epoch_of(lake.table("annotations")) == 0
    assert lake.read("annotations").sort_by("annotation_id").equals(before)
    assert verify_lake(lake).violations == []


def test_a_lake_without_the_table_reads_as_empty_and_gets_it_on_the_first_write(tmp_path):
    old, _ = unpack(1, tmp_path)
    assert len(old.annotations) == 0
    assert old.annotations.to_pandas().empty
    assert "annotations" not in old.tables()
    with pytest.raises(UsageError, match="no annotation"):
        old.annotation_history("none")
    asset = old.read("assets", ["asset_id"])["asset_id"][0].as_py()
    old.add_annotations([{"asset_id": asset, "kind": "tag", "label": "good"}], author="ann")
    assert old.annotations.to_arrow(columns=["label", "frame_id"]).to_pylist() == [{"label": "good", "frame_id": None}]
    assert old.format == 1


def test_verify_tells_what_does_not_fit(lake):
    lake.add_annotations([{"frame_id": frame(0), "label": "cat", "box": [1, 2, 9, 10]}], author="ann")
    assert not any("annotations" in v for v in verify_lake(lake).violations)
    row = lake.read("annotations").to_pylist()[0]
    mask = encode_rle(np.ones((5, 5), bool))
    bad = [
        row,
        {**row, "version": 2, "box": [1, 2, 90, 10]},
        {**row, "version": 3, "mask": mask},
        {**row, "version": 4, "frame_id": frame(1)},
        {**row, "version": 5, "asset_id": "gone", "frame_id": "gone:0"},
    ]
    lake.append("annotations", pa.Table.from_pylist(bad, SCHEMAS["annotations"]))
    said = "\n".join(v for v in verify_lake(lake).violations if "annotations" in v)
    assert "annotation_id and version is not unique: 1 rows" in said
    assert "1 rows have a box outside its frame" in said
    assert "1 rows have a mask that does not fit" in said
    assert "1 rows are of a frame that their asset can't have" in said
    assert "1 rows refer to a asset_id that assets does not have" in said


def test_a_write_whose_answer_was_lost_is_made_once(lake, monkeypatch):
    """The store commits, and the answer never comes: the try that follows finds the rows, and adds none."""
    from pipelines.lake import annotations

    insert, answers = annotations._insert, iter([OSError("connection reset"), None])

    def unclear(dataset, rows):
        insert(dataset, rows)
        if error := next(answers, None):
            raise error

    monkeypatch.setattr(annotations, "_insert", unclear)
    lake.add_annotations([{"frame_id": frame(0), "label": "cat", "box": [1, 2, 9, 10]}], author="ann")
    assert lake.count("annotations") == 1


def test_a_store_that_fails_says_so(lake, monkeypatch):
    from pipelines.lake import annotations

    def fails(dataset, rows):
        raise OSError("no space left")

    monkeypatch.setattr(annotations, "_insert", fails)
    with pytest.raises(StoreError, match="no space left"):
        lake.add_annotations([{"frame_id": frame(0), "label": "cat", "box": [1, 2, 9, 10]}], author="ann")


def test_a_difference_between_two_states_tells_of_annotations(lake):
    lake.add_annotations([{"frame_id": frame(0), "label": "cat", "box": [1, 2, 9, 10]}], author="ann")
    version = lake.table("frames").version
    lake.add_annotations([{"frame_id": frame(1), "label": "cat", "box": [1, 2, 9, 10]}], author="ann")
    told = {t.table: t.added for t in diff_lake(lake, str(version)).tables}
    assert told == {"annotations": 2}

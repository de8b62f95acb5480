"""The main job from a bucket to a lake in a bucket: a real S3 server process on loopback."""

from __future__ import annotations

from pathlib import Path

from pipelines.lake import Lake, verify_lake
from pipelines.process import process
from pipelines.process.recipe import Recipe
from pipelines.search import Query, search
from pipelines.settings import validate
from pipelines.sources import ingest
from tests.pipelines.sources.conftest import bucket, s3_endpoint  # noqa: F401


def test_from_a_bucket_to_a_lake_in_a_bucket(bucket, photographs, bikes, tiny_model):  # noqa: F811
    files = [*photographs[:3], bikes]
    bucket({f"in/{Path(p).name}": Path(p).read_bytes() for p in files} | {"in/bad.jpg": b"\xff\xd8\xff\xe0 no picture"})
    root = f"s3://{bucket.name}/lake"
    ingest([f"s3://{bucket.name}/in"], root)
    lake = Lake.open(root)
    recipe = validate(Recipe, {"embed": [tiny_model], "shots": {"detector": "content"}}, "test")
    summary = process(lake, recipe)
    assert (summary.counts["assets"], summary.counts["quarantined"]) == (5, 1)
    assert lake.count("frames") > 10
    assert lake.count("shots") > 1
    assert verify_lake(lake).violations == []
    assert process(lake, recipe).counts.get("assets", 0) == 0
    frame = lake.read("frames", ["frame_id"])["frame_id"][0].as_py()
    assert len(search(lake, Query(frame_id=frame), k=3).hits) == 3

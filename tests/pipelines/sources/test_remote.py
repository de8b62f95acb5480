"""Object stores, against a real S3 server on loopback."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.sources import ListingOptions, RowReader, media_source
from pipelines.sources.remote import _directory_pages, _s3_pages, glob_expression
from tests.pipelines.sources.conftest import encoded, listing, names, write_tar
from vfm_ops.errors import UsageError


def test_a_prefix_is_listed_sniffed_and_captioned(bucket):
    bucket(
        {
            "data/cat/a.jpg": encoded(),
            "data/cat/a.txt": b"a cat",
            "data/dog/b.mp4": b"x",
            "data/dog/plain": encoded("PNG"),
            "data/dog/prose": b"words",
            "data/.hidden/c.jpg": b"",
            "other/d.jpg": b"",
        }
    )
    options = ListingOptions(captions="sidecar", labels="folder")
    rows, tally = listing(f"s3://{bucket.name}/data", options=options)
    found = [(n, r["media_type"], r["caption"], r["label"]) for n, r in zip(names(rows), rows)]
    assert found == [
        ("a.jpg", "image", "a cat", "cat"),
        ("b.mp4", "video", None, "dog"),
        ("plain", "image", None, "dog"),
    ]
    assert rows[0]["uri"] == f"s3://{bucket.name}/data/cat/a.jpg"
    assert tally.skipped == {".txt": 1, "no known extension": 1, "hidden": 1}


def test_globs_single_objects_and_lists_of_urls(bucket, tmp_path):
    bucket({k: encoded() for k in ("a/1.jpg", "a/2.png", "a/b/3.jpg", "a/b/c/4.jpg")})
    root = f"s3://{bucket.name}"
    assert names(listing(f"{root}/a/*.jpg")[0]) == ["1.jpg"]
    assert names(listing(f"{root}/a/**/*.jpg")[0]) == ["1.jpg", "3.jpg", "4.jpg"]
    assert names(listing(f"{root}/a/b/3.jpg")[0]) == ["3.jpg"]
    (tmp_path / "l.txt").write_text(f"{root}/a/2.png\n{root}/a/none.jpg\n")
    rows, tally = listing(f"@{tmp_path}/l.txt")
    assert names(rows) == ["2.png"]
    assert tally.problems == [f"{root}/a/none.jpg: does not exist"]


def test_shards_and_tables_in_a_bucket_read_back(bucket, tmp_path):
    members = {f"{i}.jpg": encoded(shade=i) for i in range(5)}
    table = io.BytesIO()
    pq.write_table(pa.table({"image": list(members.values())}), table)
    bucket({"s/x.tar": write_tar(tmp_path / "x.tar", members).read_bytes(), "s/y.parquet": table.getvalue()})
    rows, _ = listing(f"s3://{bucket.name}/s")
    reader = RowReader()
    got = [media_source(r, reader).read(1 << 20) for r in rows]
    assert [r["container"] for r in rows] == ["tar"] * 5 + ["parquet"] * 5
    assert got == list(members.values()) * 2


def test_both_ways_of_listing_agree_so_that_nothing_seems_changed(bucket):
    bucket({f"p/{i % 3}/{i}.jpg": b"x" * i for i in range(12)})
    root = f"s3://{bucket.name}/p/"
    by_page, by_directory = ({o for page in pages(root) for o in page} for pages in (_s3_pages, _directory_pages))
    assert by_page == by_directory
    assert len(by_page) == 12


def test_more_objects_than_a_page_holds_are_all_listed(bucket, monkeypatch):
    monkeypatch.setattr("pipelines.sources.remote.PAGE_OBJECTS", 7)
    bucket({f"{i:04}.jpg": b"" for i in range(30)})
    assert len(listing(f"s3://{bucket.name}")[0]) == 30


@pytest.mark.parametrize("key", ["none", "none/*.jpg"])
def test_a_bucket_that_is_not_there_is_one_sentence(s3_endpoint, key):
    with pytest.raises(UsageError, match="no-such-bucket"):
        listing(f"s3://no-such-bucket-here/{key}")


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("a/*.jpg", ["a/x.jpg"], ["a/b/x.jpg", "a/x.jpg.txt"]),
        ("a/**/*.jpg", ["a/x.jpg", "a/b/c/x.jpg"], ["b/x.jpg"]),
        ("a/[!x]?.png", ["a/y1.png"], ["a/x1.png", "a/y/.png"]),
        ("a+b/(1).jpg", ["a+b/(1).jpg"], ["aab/1.jpg"]),
    ],
)
def test_globs_mean_what_a_shell_means(pattern, yes, no):
    import re

    expression = re.compile(glob_expression(pattern))
    assert all(expression.fullmatch(name) for name in yes)
    assert not any(expression.fullmatch(name) for name in no)


def test_keys_that_a_store_has_and_pyarrow_will_not_open_cost_themselves(bucket):
    """S3 takes any key; a listing of millions must not end at the one with two slashes."""
    bucket(dict.fromkeys(("d/a.jpg", "d//plain", "d/x//s.tar", "d/z.jpg"), encoded()))
    rows, tally = listing(f"s3://{bucket.name}/d")
    assert names(rows) == ["a.jpg", "z.jpg"]
    assert tally.unreadable == 2
    assert all("//" in problem for problem in tally.problems)


def test_a_table_in_a_bucket_names_no_file_of_this_machine(bucket, tmp_path):
    """Whoever can write to a bucket must not choose which local files are read."""
    (tmp_path / "private.jpg").write_bytes(encoded())
    table = io.BytesIO()
    paths = ["a.jpg", str(tmp_path / "private.jpg"), f"file://{tmp_path}/private.jpg", "/etc/hostname.jpg"]
    pq.write_table(pa.table({"path": paths}), table)
    bucket({"t/a.jpg": encoded(), "t/t.parquet": table.getvalue()})
    rows, tally = listing(f"s3://{bucket.name}/t/t.parquet")
    assert [r["uri"] for r in rows] == [f"s3://{bucket.name}/t/a.jpg"]
    assert tally.refused == {"outside its source": 3}

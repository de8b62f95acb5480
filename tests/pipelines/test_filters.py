"""One condition over frames and assets, split without changing what it means."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.filters import split_filter
from vfm_ops.errors import UsageError

FRAMES, ASSETS = ["frame_id", "pts_s", "width", "quality", "asset_id"], ["asset_id", "uri", "media_type", "size"]


@pytest.mark.parametrize(
    ("where", "frames", "assets"),
    [
        (None, None, None),
        ("  ", None, None),
        ("width > 100", "(width > 100)", None),
        ("media_type = 'video'", None, "(media_type = 'video')"),
        ("width > 1 and uri LIKE '%and%'", "(width > 1)", "(uri LIKE '%and%')"),
        ("pts_s BETWEEN 1 AND 2 AND size = 3", "(pts_s BETWEEN 1 AND 2)", "(size = 3)"),
        (
            "(width = 1 OR pts_s > 2) AND media_type IN ('a', 'b')",
            "((width = 1 OR pts_s > 2))",
            "(media_type IN ('a', 'b'))",
        ),
        ("quality.sharpness > 10.5e3", "(quality.sharpness > 10.5e3)", None),
        ("uri = 'it''s width' AND asset_id = 'x'", "(asset_id = 'x')", "(uri = 'it''s width')"),
        ("lower(uri) = 'a' AND NOT (width = 1 AND pts_s = 2)", "(NOT (width = 1 AND pts_s = 2))", "(lower(uri) = 'a')"),
        (
            "CASE WHEN width = 1 AND pts_s = 1 THEN true ELSE false END",
            "(CASE WHEN width = 1 AND pts_s = 1 THEN true ELSE false END)",
            None,
        ),
    ],
)
def test_each_part_goes_to_the_table_whose_columns_it_names(where, frames, assets):
    split = split_filter(where, FRAMES, ASSETS)
    assert (split.frames, split.assets) == (frames, assets)


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("widht > 3", "unknown column widht; did you mean width"),
        ("width > 3 OR uri = 'x'", "mixes columns of frames and of assets"),
        ("(width > 3", "open bracket"),
        ("width > 3)", "quote or bracket too many"),
        ("uri = 'x", "quote or bracket too many"),
    ],
)
def test_a_wrong_filter_is_one_sentence(where, message):
    with pytest.raises(UsageError, match=message):
        split_filter(where, FRAMES, ASSETS)


_ATOMS = [
    "f > 1",
    "a > 1",
    "f BETWEEN 0 AND 2",
    "(f = 1 OR f = 3)",
    "a IN (1, 3)",
    "NOT (a = 2 AND a > 0)",
    "'x and y' = 'x and y'",
]


@given(st.lists(st.sampled_from(_ATOMS), min_size=1, max_size=5), st.integers(0, 4), st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_the_parts_together_mean_what_the_whole_meant(atoms, f, a):
    where = " AND ".join(atoms)
    split = split_filter(where, ["f"], ["a"])
    database = sqlite3.connect(":memory:")

    def holds(condition: str | None) -> bool:
        row = f"SELECT {condition or '1'} FROM (SELECT {f} AS f, {a} AS a)"
        return bool(database.execute(row).fetchone()[0])

    assert holds(where) == (holds(split.frames) and holds(split.assets))

"""One condition over frames and assets, split without changing what it means."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.lake import Lake
from pipelines.lake.filters import split_filter
from pipelines.lake.query import check_filter, nearest_frames
from pipelines.search.run import checked_split
from tests.jobs.serve.local import tiny_lake
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


LINKS = ("+1", "*1", "||'a'", "::int", " IS NOT NULL", " IS TRUE", " LIKE 'a'", " = true", "[1]", ".a", " NOT IN (1)")


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("way", ["check", "count", "read", "nearest", "split"])
def test_endless_chains_are_refused_whichever_way_they_reach_lance(lake, link, way):
    """700 terms of +1 ended the server by SIGSEGV, in Lance's planner, with no token needed."""
    where = "width" + link * 994
    with pytest.raises(UsageError, match="in a row"):
        ask(lake, way, where)


def ask(lake: Lake, way: str, where: str) -> None:
    column = next(f.name for f in lake.schema("frames") if f.name.startswith("emb_"))
    {
        "check": lambda: check_filter(lake, "frames", where),
        "count": lambda: lake.count("frames", where),
        "read": lambda: lake.read("frames", ["frame_id"], where),
        "nearest": lambda: nearest_frames(lake, column, np.ones(8), 3, where, ["frame_id"]),
        "split": lambda: checked_split(lake, where),
    }[way]()


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("NOT (" * 36 + "width > 1" + ")" * 36, "nests brackets deeper than 12"),
        (" OR ".join(["width = 1"] * 1002), r"over 1,000 ANDs and ORs: say it with IN"),
        ("width IN (" + ", ".join(f"height + {i}" for i in range(3000)) + ")", "over 5,000 operators and names"),
        ("width = $1", r"has '\$' at position 8"),
        ("width = 1; DROP TABLE frames", "has ';' at position 9"),
        ("width > 3 -- c", "has a comment in it"),
        ("width /* c */ > 3", "has a comment in it"),
        ("shot_id = E'a'", "has E right before a quote"),
        ("repeat(frame_id, 1000000000) = 'a'", r"calls repeat\(\), whose result may have any size"),
        ('media_type = "image"', "write text in single quotes, 'image'"),
        ('"0\u202e\n"', "write text in single quotes, 'text'"),
        ("media_type = “image”", "write text in single quotes, 'image'"),
        ("frame_id = '\ud800'", "half of a UTF-16 pair"),
        ("width / 0 = 1", "Divide by zero"),
        ("CAST(frame_id AS int) = 1", "Cannot cast"),
        ("width = 'a'", "does not fit table frames"),
        ("frame_id LIKE 'a%' ESCAPE '!'", "LIKE does not support escape_char"),
    ],
)
def test_what_can_not_be_asked_is_one_sentence(lake, where, message):
    with pytest.raises(UsageError, match=message) as raised:
        lake.count("frames", where)
    assert "\n" not in str(raised.value)


def test_long_lists_of_ids_are_no_chains(lake):
    """As this package writes them itself, 20,000 at a time."""
    listed = ", ".join(f"'a{i:06d}:0'" for i in range(20_000))
    assert lake.count("frames", f"(width > 3) AND frame_id IN ({listed})") == 30


def test_text_that_looks_like_operators_is_text(lake):
    """And a bracket in it opens no list: what lies between two texts is always counted."""
    assert lake.count("frames", "frame_id <> '" + "+1" * 500 + "(((('") == 60
    with pytest.raises(UsageError, match="in a row"):
        lake.count("frames", "frame_id = '(' " + "|| width " * 200 + "|| ')'")


def test_an_outermost_or_is_not_split_at_the_ands_beside_it():
    """`a AND b OR c` was read as `a AND (b OR c)`: other rows."""
    split = split_filter("width = 1 AND pts_s = 2 OR width = 3", FRAMES, ASSETS)
    assert split.frames == "(width = 1 AND pts_s = 2 OR width = 3)"


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    return tiny_lake(tmp_path_factory.mktemp("filters") / "lake", 30, 2)


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
@settings(max_examples=80)
def test_the_parts_together_mean_what_the_whole_meant(atoms, f, a):
    where = " AND ".join(atoms)
    split = split_filter(where, ["f"], ["a"])
    database = sqlite3.connect(":memory:")

    def holds(condition: str | None) -> bool:
        row = f"SELECT {condition or '1'} FROM (SELECT {f} AS f, {a} AS a)"
        return bool(database.execute(row).fetchone()[0])

    assert holds(where) == (holds(split.frames) and holds(split.assets))

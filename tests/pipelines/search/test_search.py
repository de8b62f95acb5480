"""Search against brute force: what comes back, in which order, under which filter, from which model."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import pipelines.search.run as module
import vfm_ops.embed
from pipelines.lake import SCHEMAS, Lake, embedding_column, embedding_field, make_asset_id
from pipelines.lake.filters import SplitFilter
from pipelines.lake.indices import index_vectors
from pipelines.search import Query, SearchResult, hit_pictures, search
from pipelines.search.run import FRAME_COLUMNS, nearest_hits
from vfm_ops.errors import UsageError, WeightsUnavailable
from vfm_ops.media.view import View

DIM = 8
PLAIN, TEXTUAL = "timm:plain", "clip:textual"
ASSETS = 40


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, shade, shade)).save(buffer, "JPEG")
    return buffer.getvalue()


def vectors(seed: int, count: int = 10 * ASSETS) -> np.ndarray:
    x = np.random.default_rng(seed).normal(size=(count, DIM))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)


def rows_of(schema: pa.Schema, count: int, **columns) -> pa.Table:
    """A table of a schema from some of its columns; the others are null."""
    return pa.table([columns[f.name] if f.name in columns else pa.nulls(count, f.type) for f in schema], schema)


@pytest.fixture(scope="module")
def lake(tmp_path_factory) -> Lake:
    """A lake that no test changes."""
    return make_lake(tmp_path_factory.mktemp("search") / "lake")


def make_lake(root: Path) -> Lake:
    """40 assets, every fourth a video, with ten frames each and vectors of two models; the last frame has none."""
    lake = Lake.create(root)
    ids = [make_asset_id(f"/m/{i}") for i in range(ASSETS)]
    kinds = ["video" if i % 4 == 0 else "image" for i in range(ASSETS)]
    uris = [f"/m/{i}.{'mp4' if k == 'video' else 'jpg'}" for i, k in enumerate(kinds)]
    lake.append(
        "assets",
        pa.Table.from_pylist(
            [{"asset_id": a, "uri": u, "media_type": k} for a, u, k in zip(ids, uris, kinds)], SCHEMAS["assets"]
        ),
    )
    count = 10 * ASSETS
    fields = [
        embedding_field(s, DIM, {"digest": f"digest-of-{s}", "runtime": "torch", "precision": "exact"})
        for s in (PLAIN, TEXTUAL)
    ]
    lake.ensure("frames", fields)
    cells = [pa.array([*vectors(seed)[:-1], None], fields[0].type) for seed in (0, 1)]
    lake.commit(
        "frames",
        lake.write_fragments(
            "frames",
            rows_of(
                lake.schema("frames"),
                count,
                frame_id=[f"{ids[i // 10]}:{i % 10}" for i in range(count)],
                asset_id=[ids[i // 10] for i in range(count)],
                run_key=["r.1"] * count,
                frame_index=pa.array([i % 10 for i in range(count)], pa.int64()),
                pts_s=[(i % 10) / 2 for i in range(count)],
                width=pa.array([100 + i for i in range(count)], pa.int32()),
                jpeg=pa.array([jpeg(i % 250) for i in range(count)], pa.large_binary()),
                **{fields[0].name: cells[0], fields[1].name: cells[1]},
            ),
        ),
    )
    return lake


class FakeEmbedder:
    """Embeds a text or image to a vector that its bytes seed; remembers how it was loaded."""

    loaded: list[tuple[str, dict]] = []  # noqa: RUF012

    def __init__(self, spec: str, **settings) -> None:
        self.spec, self.view = spec, View(8, 8)
        self.digest = f"digest-of-{spec}"
        self.has_text = spec == TEXTUAL
        self.loaded.append((spec, settings))

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        return np.stack([vectors(len(t), 1)[0] for t in texts]).astype(np.float32)

    def embed_images(self, views: np.ndarray) -> np.ndarray:
        assert (views.dtype, views.shape) == (np.uint8, (1, 8, 8, 3))
        return np.stack([vectors(int(v.mean()), 1)[0] for v in views]).astype(np.float32)


@pytest.fixture(autouse=True)
def models(monkeypatch):
    """Both models by fakes."""
    FakeEmbedder.loaded.clear()
    monkeypatch.setattr(vfm_ops.embed, "load_embedder", FakeEmbedder)
    monkeypatch.setattr(vfm_ops.embed, "describe_embedder", FakeEmbedder)


def brute_force(lake: Lake, spec: str, query: np.ndarray, k: int, keep=lambda row: True) -> list[tuple[str, float]]:
    """Ids and float64 cosines of the best k, by numpy over the whole table."""
    rows = lake.read("frames", ["frame_id", "asset_id", "width", "pts_s", embedding_column(spec)]).to_pylist()
    types = {r["asset_id"]: r["media_type"] for r in lake.read("assets").to_pylist()}
    query = np.asarray(query, np.float64) / np.linalg.norm(np.asarray(query, np.float64))
    scored = []
    for row in rows:
        vector = row[embedding_column(spec)]
        if vector is not None and keep(row | {"media_type": types[row["asset_id"]]}):
            v = np.asarray(vector, np.float64)
            scored.append((row["frame_id"], float(v @ query / np.linalg.norm(v))))
    return sorted(scored, key=lambda s: -s[1])[:k]


def assert_same(hits: pa.Table, oracle: list[tuple[str, float]]) -> None:
    np.testing.assert_allclose(hits["score"].to_numpy(), [s for _, s in oracle], atol=1e-3)
    assert sorted(hits["frame_id"].to_pylist()) == sorted(i for i, _ in oracle)


def test_a_text_finds_the_nearest_frames_by_cosine_best_first(lake):
    result = search(lake, Query(text="a red bicycle"), k=7)
    assert result.column.spec == TEXTUAL
    assert_same(result.hits, brute_force(lake, TEXTUAL, vectors(13, 1)[0], 7))
    assert result.hits.schema.names == [*FRAME_COLUMNS, "score", "uri", "member", "media_type"]
    assert result.hits["uri"][0].as_py().startswith("/m/")


def test_an_image_is_embedded_by_the_columns_own_model_runtime_and_precision(lake, tmp_path):
    (tmp_path / "q.jpg").write_bytes(jpeg(77))
    result = search(lake, Query(image=str(tmp_path / "q.jpg")), k=5)
    assert_same(result.hits, brute_force(lake, PLAIN, vectors(77, 1)[0], 5))
    assert FakeEmbedder.loaded == [
        (PLAIN, {"device": "auto", "runtime": "torch", "precision": "exact", "preprocess": "fast"})
    ]
    other = search(lake, Query(image=str(tmp_path / "q.jpg")), model=TEXTUAL, k=5)
    assert_same(other.hits, brute_force(lake, TEXTUAL, vectors(77, 1)[0], 5))


def test_a_frame_finds_its_neighbours_but_not_itself_and_needs_no_model(lake):
    frame = lake.read("frames", ["frame_id"])["frame_id"][123].as_py()
    result = search(lake, Query(frame_id=frame), k=9)
    oracle = brute_force(lake, PLAIN, vectors(0)[123], 9, lambda row: row["frame_id"] != frame)
    assert_same(result.hits, oracle)
    assert FakeEmbedder.loaded == []


def test_a_plain_text_is_a_query_and_hits_are_objects_in_their_order(lake):
    result = search(lake, "a red bicycle", k=7)
    assert result.hits.equals(search(lake, Query(text="a red bicycle"), k=7).hits)
    assert [hit.frame_id for hit in result] == result.hits["frame_id"].to_pylist()
    assert len(result) == 7
    assert result[0].score == max(hit.score for hit in result)
    assert {hit.name for hit in result} <= {f"{i}.{kind}" for i in range(ASSETS) for kind in ("mp4", "jpg")}
    assert all((hit.time == "") == (hit.media_type == "image") for hit in result)
    with pytest.raises(IndexError):
        _ = result[7]


def test_a_result_shows_itself_as_text_and_as_pictures(lake):
    result = search(lake, "x", k=3)
    lines = repr(result).splitlines()
    assert lines[0] == f"3 frames nearest by {TEXTUAL}"
    assert [line.split()[0] for line in lines[1:]] == [f"{hit.score:.4f}" for hit in result]
    assert all(line.endswith(hit.name) for line, hit in zip(lines[1:], result))
    page = result._repr_html_()
    assert page.count('src="data:image/jpeg;base64,') == 3
    assert all(hit.name in page and hit.frame_id in page for hit in result)


def test_a_file_with_markup_for_a_name_is_no_markup_in_the_notebook(lake):
    result = search(lake, "x", k=2)
    evil = "<img src=x onerror=alert(1)>"
    hits = result.hits.set_column(result.hits.schema.get_field_index("member"), "member", pa.array([evil, evil]))
    page = SearchResult(result.column, hits, lake)._repr_html_()
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") == 2


def test_a_notebook_shows_a_page_of_many_hits(lake):
    result = search(lake, "x", k=60)
    assert result._repr_html_().count("<img") == 24
    assert "60 frames nearest" in result._repr_html_()


@pytest.mark.parametrize("listed", [1000, 3], ids=["as a list of ids", "afterwards"])
@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("width < 150", lambda r: r["width"] < 150),
        ("media_type = 'video'", lambda r: r["media_type"] == "video"),
        (
            "media_type = 'video' AND pts_s BETWEEN 1 AND 2",
            lambda r: r["media_type"] == "video" and 1 <= r["pts_s"] <= 2,
        ),
        ("uri LIKE '%nothing%'", lambda r: False),
    ],
)
def test_a_filter_over_frames_and_assets_is_applied_before_the_search(lake, monkeypatch, where, keep, listed):
    monkeypatch.setattr(module, "MOST_LISTED_ASSETS", listed)
    hits = search(lake, Query(text="x"), where=where, k=12).hits
    assert_same(hits, brute_force(lake, TEXTUAL, vectors(1, 1)[0], 12, keep))


def test_an_index_changes_the_speed_and_not_the_answer(tmp_path):
    lake = make_lake(tmp_path / "lake")  # of its own: an index is approximate, and the other tests' answers are exact
    column = embedding_column(TEXTUAL)
    before = search(lake, Query(text="a dog"), k=10, where="media_type = 'image'")
    index_vectors(lake, column, "ivf_flat")
    exact = search(lake, Query(text="a dog"), k=10, where="media_type = 'image'", exact=True)
    assert exact.hits.equals(before.hits)
    # One query may lose several of its ten; what an index is tuned to is the mean over many.
    found = 0
    for vector in vectors(7, 60).astype(np.float32):
        hits = [nearest_hits(lake, column, vector, 10, SplitFilter(None, None), exact=e) for e in (True, False)]
        found += len(set(hits[0]["frame_id"].to_pylist()) & set(hits[1]["frame_id"].to_pylist()))
    assert found >= 0.94 * 600


def test_a_search_reads_an_index_once_and_sees_what_came_since(tmp_path):
    lake = make_lake(tmp_path / "lake")
    column, everything = embedding_column(PLAIN), SplitFilter(None, None)
    index_vectors(lake, column, "ivf_hnsw_sq")
    session = lake.caching().dataset("frames").session()
    assert session.is_same_as(lake.caching().dataset("assets").session())
    query = vectors(0)[3].astype(np.float32)
    sizes = [session.size_bytes()]
    for _ in range(3):
        first = nearest_hits(lake, column, query, 5, everything)
        sizes.append(session.size_bytes())
    assert sizes[0] < sizes[1] == sizes[2] == sizes[3]
    best = first["frame_id"][0].as_py()
    lake.update("frames", {"frame_id": "'renamed'"}, f"frame_id = '{best}'")
    assert nearest_hits(lake, column, query, 5, everything)["frame_id"][0].as_py() == "renamed"


def test_a_lake_that_was_made_anew_at_the_same_place_is_not_answered_from_the_old_one(tmp_path):
    query, everything = vectors(0)[3].astype(np.float32), SplitFilter(None, None)
    for spec in (PLAIN, TEXTUAL):  # whose vectors differ
        lake = make_lake(tmp_path / "lake")
        index_vectors(lake, embedding_column(spec), "ivf_flat")
        hits = nearest_hits(lake, embedding_column(spec), query, 400, everything)
        assert_same(hits.slice(0, 1), brute_force(lake, spec, query, 1))
        shutil.rmtree(tmp_path / "lake")


def test_more_results_than_frames_gives_all_that_have_a_vector(lake):
    assert search(lake, Query(text="x"), k=5000, exact=True).hits.num_rows == 10 * ASSETS - 1


def test_hits_come_with_their_pictures_even_where_no_jpeg_was_kept(lake, tmp_path):
    hits = search(lake, Query(text="x"), k=3).hits
    shades = [int(p.mean()) for p in hit_pictures(lake, hits)]
    rows = {r["frame_id"]: r["jpeg"] for r in lake.read("frames", ["frame_id", "jpeg"]).to_pylist()}
    oracle = [np.asarray(Image.open(io.BytesIO(rows[i]))).mean() for i in hits["frame_id"].to_pylist()]
    np.testing.assert_allclose(shades, oracle, atol=1.5)
    gone = hits.set_column(0, "frame_id", pa.array(["none"] * 3))
    assert [p.shape for p in hit_pictures(lake, gone)] == [(180, 240, 3)] * 3


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        ({"text": "x"}, {"where": "widht > 3"}, "did you mean width"),
        ({"text": "x"}, {"where": "width > 'abc' + "}, "does not fit table frames"),
        ({"text": "x"}, {"where": "media_type = = 1"}, "does not fit table assets"),
        ({"text": "x"}, {"model": PLAIN}, f"{PLAIN} can't embed a text .* name {TEXTUAL} as `model`"),
        ({"text": "x"}, {"model": "clip:other"}, f"there are {PLAIN}, {TEXTUAL}"),
        ({"text": "x"}, {"k": 0}, "at least 1"),
        ({"frame_id": "no:1"}, {}, "there is no frame 'no:1'"),
        ({"frame_id": "it's"}, {}, "there is no frame"),
        ({"image": "/none.jpg"}, {}, "does not exist"),
        ({"image": __file__}, {}, "no image"),
    ],
)
def test_what_cannot_be_searched_is_one_sentence(lake, query, options, message):
    with pytest.raises(UsageError, match=message):
        search(lake, Query(**query), **options)


def test_one_thing_is_searched_at_a_time():
    for query in ({}, {"text": "a", "image": "b"}, {"text": ""}):
        with pytest.raises(UsageError, match="one thing"):
            Query(**query)


def test_other_weights_under_the_same_name_are_refused_with_both_digests(lake, monkeypatch):
    monkeypatch.setattr(vfm_ops.embed, "load_embedder", lambda spec, **s: SimpleNamespace(digest="feedc0de"))
    with pytest.raises(UsageError, match=r"digest feedc0de.*digest-of-clip"):
        search(lake, Query(text="x"))


def test_a_frame_without_a_vector_and_a_lake_without_embeddings_say_what_to_run(lake, tmp_path):
    last = lake.read("frames", ["frame_id"])["frame_id"][10 * ASSETS - 1].as_py()
    with pytest.raises(UsageError, match="vfm embed"):
        search(lake, Query(frame_id=last))
    with pytest.raises(UsageError, match="no embeddings yet"):
        search(Lake.create(tmp_path / "new"), Query(text="x"))


def test_missing_weights_of_the_text_model_are_told_as_such(lake, monkeypatch):
    def describe(spec, **settings):
        if spec == TEXTUAL:
            raise WeightsUnavailable("clip:textual is not on disk")
        return FakeEmbedder(spec)

    monkeypatch.setattr(vfm_ops.embed, "describe_embedder", describe)
    with pytest.raises(WeightsUnavailable, match="not on disk"):
        search(lake, Query(text="x"))

"""What a user loses if `process` breaks its promises: rows after a kill, a good file beside a bad one, equal results."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipelines.lake import CHILD_TABLES, Lake, embedding_column, patches_column, verify_lake
from pipelines.process import process
from pipelines.process.backfill import embed_lake
from pipelines.process.recipe import Recipe, Resources, load_recipe
from pipelines.settings import validate
from pipelines.sources import ingest

pytestmark = pytest.mark.usefixtures("ray_local")
RESOURCES = {"cpus_per_actor": 2}


def recipe_for(model: str, **sections) -> Recipe:
    embed = [{"model": model, "precision": "exact", "dtype": "float32"}]
    return validate(
        Recipe, {"embed": embed, "shots": {"detector": "content"}, "resources": RESOURCES, **sections}, "test"
    )


def rows_of(lake: Lake, table: str, only: set[str] | None = None) -> list[dict]:
    """A table as sorted plain rows; ids and contents, without what names the run."""
    rows = lake.read(table).to_pylist()
    rows = [r for r in rows if only is None or r["asset_id"] in only]
    for row in rows:
        for name in ("run_id", "finished_at", "discovered_at"):
            row.pop(name, None)
    return sorted(rows, key=repr)


def new_lake(tmp_path: Path, corpus: Path, name: str = "lake") -> Lake:
    ingest([str(corpus)], str(tmp_path / name))
    return Lake.open(tmp_path / name)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, corpus, tiny_model, ray_local) -> Lake:
    """A lake after one uninterrupted run."""
    lake = new_lake(tmp_path_factory.mktemp("finished"), corpus)
    process(lake, recipe_for(tiny_model))
    return lake


def test_one_pass_fills_every_table_and_verifies(finished, tiny_model):
    frames = finished.read("frames")
    assert verify_lake(finished).violations == []
    assert finished.count("ledger") == 18
    assert finished.count("quarantine") == 0
    column = frames[embedding_column(tiny_model)].combine_chunks()
    norms = np.linalg.norm(column.flatten().to_numpy().reshape(len(frames), -1), axis=1)
    np.testing.assert_allclose(norms, 1.0, atol=1e-5)
    assert frames["jpeg"].null_count == 0
    assert frames["phash"].null_count == 0
    videos = [r for r in finished.read("ledger", ["frames", "shots", "probe"]).to_pylist() if r["probe"]["codec"]]
    assert len(videos) == 3
    assert all(r["shots"] >= 1 for r in videos)


def test_running_again_does_nothing(finished, tiny_model):
    before = finished.table("frames").version
    assert process(finished, recipe_for(tiny_model)).counts.get("assets", 0) == 0
    assert finished.table("frames").version == before


def test_vectors_equal_the_model_called_directly(finished, corpus, tiny_model):
    """Alone and directly, not in the run's batches, from Pillow's pixels in sRGB: the same vector."""
    from PIL import Image, ImageCms

    from vfm_ops.embed import load_embedder

    embedder = load_embedder(tiny_model, precision="exact", device="cpu")
    uris = {r["asset_id"]: r["uri"] for r in finished.read("assets", ["asset_id", "uri"]).to_pylist()}
    column = embedding_column(tiny_model)
    checked = 0
    for row in finished.read("frames", ["asset_id", column]).to_pylist():
        if uris[row["asset_id"]].endswith(".jpg"):
            image = Image.open(uris[row["asset_id"]].removeprefix("file://"))
            if profile := image.info.get("icc_profile"):
                stored = ImageCms.ImageCmsProfile(io.BytesIO(profile))
                image = ImageCms.profileToProfile(image, stored, ImageCms.createProfile("sRGB"), outputMode="RGB")
            direct = embedder.embed_images(embedder.view.apply(np.array(image.convert("RGB")))[None])[0]
            # A picture far larger than the view is decoded at half its size or less, here and whenever an op comes late.
            assert float(direct @ np.array(row[column])) > 0.999
            checked += 1
    assert checked >= 10


def test_decode_and_model_apart_give_the_rows_of_decode_and_model_together(finished, tmp_path, corpus, tiny_model):
    """On a GPU node decoding feeds the model from other actors: the same rows must come out."""
    lake = new_lake(tmp_path, corpus)
    apart = {"fuse": False, "actors": 1, "decode_actors": 1, "cpus_per_actor": 1}
    process(lake, recipe_for(tiny_model, resources=apart))
    assert verify_lake(lake).violations == []
    for table in CHILD_TABLES:
        assert rows_of(lake, table) == rows_of(finished, table)


@pytest.mark.workers
def test_a_small_corpus_is_done_without_ray_with_the_same_rows(finished, tmp_path, corpus, tiny_model, monkeypatch):
    def no_ray(*_):
        raise AssertionError("Ray was started for a small corpus")

    monkeypatch.setattr("pipelines.process.graph.has_ray", lambda: False)
    monkeypatch.setattr("pipelines.process.graph.cpu_count", lambda: 2)
    monkeypatch.setattr("pipelines.process.run.run_on_ray", no_ray)
    lake = new_lake(tmp_path, corpus)
    process(lake, recipe_for(tiny_model, resources={}))
    assert verify_lake(lake).violations == []
    for table in CHILD_TABLES:
        assert rows_of(lake, table) == rows_of(finished, table)


def bad_files(folder: Path, corpus: Path) -> dict[str, str]:
    """One of each kind of bad file, with the error type that it must get."""
    from PIL import Image

    photo = (corpus / "rocket.jpg").read_bytes()
    video = (corpus / "bikes.mp4").read_bytes()
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "cut.jpg").write_bytes(photo[: len(photo) // 2])
    (folder / "text.png").write_text("not a picture")
    (folder / "noise.jpg").write_bytes(random.Random(0).randbytes(4096))
    (folder / "noise.mp4").write_bytes(random.Random(1).randbytes(4096))
    (folder / "head.mp4").write_bytes(video[:2000])
    Image.new("1", (60_000, 60_000)).save(folder / "bomb.png")
    return {"empty.jpg": "empty", "cut.jpg": "truncated", "bomb.png": "bomb"}


def test_bad_files_cost_themselves_only(finished, tmp_path, corpus, tiny_model, without_ray):
    mixed = tmp_path / "mixed"
    shutil.copytree(corpus, mixed)
    kinds = bad_files(mixed, corpus)
    lake = new_lake(tmp_path, mixed)
    summary = process(lake, recipe_for(tiny_model, resources={}))
    assert summary.counts["quarantined"] == 7
    assert verify_lake(lake).violations == []
    rows = {Path(r["uri"]).name: r for r in lake.read("quarantine").to_pylist()}
    assert sorted(rows) == ["bomb.png", "cut.jpg", "empty.jpg", "head.mp4", "noise.jpg", "noise.mp4", "text.png"]
    assert {name: rows[name]["error_type"] for name in kinds} == kinds
    assert all(len(r["message"]) > 20 for r in rows.values())
    good = {
        n: sorted(f["jpeg"] for f in lake.read("frames", ["jpeg"], filter=f"asset_id = '{i}'").to_pylist())
        for n, i in ids(lake)
    }
    reference = {
        n: sorted(f["jpeg"] for f in finished.read("frames", ["jpeg"], filter=f"asset_id = '{i}'").to_pylist())
        for n, i in ids(finished)
    }
    assert {n: good[n] for n in reference} == reference


def ids(lake: Lake) -> list[tuple[str, str]]:
    return [(Path(r["uri"]).name, r["asset_id"]) for r in lake.read("assets", ["asset_id", "uri"]).to_pylist()]


def test_a_mended_file_leaves_the_quarantine_by_retry(tmp_path, corpus, tiny_model, without_ray):
    folder = tmp_path / "one"
    folder.mkdir()
    data = (corpus / "rocket.jpg").read_bytes()
    (folder / "rocket.jpg").write_bytes(data[:3000])
    lake = new_lake(tmp_path, folder)
    recipe = recipe_for(tiny_model, resources={})
    assert process(lake, recipe).counts["quarantined"] == 1
    assert process(lake, recipe).counts.get("assets", 0) == 0
    (folder / "rocket.jpg").write_bytes(data)
    assert process(lake, recipe, retry=True).counts["frames"] == 1
    assert lake.count("quarantine") == 0
    assert lake.read("ledger", ["attempt"])["attempt"].to_pylist() == [2]
    assert verify_lake(lake).violations == []


def test_a_cut_video_keeps_the_frames_before_the_damage(tmp_path, vtest, tiny_model, without_ray):
    folder = tmp_path / "one"
    folder.mkdir()
    data = vtest.read_bytes()
    (folder / "cut.avi").write_bytes(data[: len(data) // 3])
    lake = new_lake(tmp_path, folder)
    process(lake, recipe_for(tiny_model, resources={}))
    row = lake.read("quarantine").to_pylist()[0]
    frames = lake.read("frames", ["salvaged"])
    assert row["error_type"] in ("truncated", "damaged")
    assert row["salvaged_frames"] == frames.num_rows > 3
    assert frames["salvaged"].to_pylist() == [True] * frames.num_rows
    assert verify_lake(lake).violations == []


def test_a_changed_recipe_re_runs_and_replaces(tmp_path, corpus, tiny_model, without_ray):
    folder = tmp_path / "few"
    folder.mkdir()
    for name in ("rocket.jpg", "b.mp4"):
        shutil.copyfile(corpus / name, folder / name)
    lake = new_lake(tmp_path, folder)
    process(lake, recipe_for(tiny_model, resources={}))
    before = lake.count("frames")
    process(
        lake, recipe_for(tiny_model, resources={}, sampling={"mode": "every_n", "every_n": 5}, jpeg={"quality": 80})
    )
    assert lake.count("frames") > before
    assert len(set(lake.read("frames", ["run_key"])["run_key"].to_pylist())) == 1
    assert verify_lake(lake).violations == []


def test_a_later_model_is_a_new_column_and_no_jpeg_is_rewritten(finished, tmp_path, tiny_model, without_ray):
    shutil.copytree(finished.root, tmp_path / "copy")
    lake = Lake.open(tmp_path / "copy")
    before = {f.path for fragment in lake.table("frames").get_fragments() for f in fragment.data_files()}
    other = tmp_path / "other-model"
    shutil.copytree(tiny_model.removeprefix("timm:"), other)
    model = {"model": f"timm:{other}", "precision": "exact", "dtype": "float32"}
    assert embed_lake(lake, model, Resources()) == lake.count("frames")
    after = {f.path for fragment in lake.table("frames").get_fragments() for f in fragment.data_files()}
    assert before < after
    table = lake.read(
        "frames", [embedding_column(tiny_model), embedding_column(model["model"]), "frame_index", "pts_s"]
    )
    old, new = (
        np.array(table[c].to_pylist()) for c in (embedding_column(tiny_model), embedding_column(model["model"]))
    )
    stills = np.array(table["pts_s"].to_pylist()) == 0.0
    assert (np.sum(old * new, axis=1)[stills] > 0.999).all()
    assert embed_lake(lake, model, Resources()) == 0


def test_patch_tokens_come_with_the_run_or_later_and_are_the_models_own(tmp_path, photographs, tiny_model, without_ray):
    import cv2

    from vfm_ops.embed import load_embedder

    folder = tmp_path / "corpus"
    folder.mkdir()
    for path in photographs[:4]:
        shutil.copyfile(path, folder / path.name)
    model = {"model": tiny_model, "precision": "exact", "dtype": "float32", "patch_tokens": True}
    with_run, later = new_lake(tmp_path, folder, "with"), new_lake(tmp_path, folder, "later")
    process(with_run, Recipe(embed=(model,)))
    process(later, recipe_for(tiny_model, resources={}))
    assert embed_lake(later, model, Resources()) == 4
    column = patches_column(tiny_model)
    tokens = {r["frame_id"]: r[column] for r in with_run.read("frames", ["frame_id", column]).to_pylist()}
    assert len(tokens) == 4
    embedder = load_embedder(tiny_model, precision="exact", device="cpu", patch_tokens=True)
    for row in later.read("frames", ["frame_id", "jpeg", column]).to_pylist():
        # Later, the model sees the stored JPEG, at the size that its view needs, and not the source.
        with_the_run = np.array(tokens[row["frame_id"]])
        now = np.array(row[column])
        assert np.sum(now * with_the_run) > 0.99 * np.linalg.norm(now) * np.linalg.norm(with_the_run)
        rgb = np.ascontiguousarray(cv2.imdecode(np.frombuffer(row["jpeg"], np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1])
        direct = embedder.patch_tokens(embedder.view.apply(rgb)[None])[0]
        stored = np.array(row[column])
        assert stored.shape == direct.shape
        assert np.sum(stored * direct) > 0.99 * np.linalg.norm(stored) * np.linalg.norm(direct)


def test_a_killed_run_resumes_to_the_same_rows(finished, tmp_path, corpus, tiny_model):
    """SIGKILL of the whole process group at random moments, then the same command until it is done."""
    lake = new_lake(tmp_path, corpus)
    (tmp_path / "recipe.yaml").write_text(recipe_for(tiny_model, resources={}).to_yaml())
    command = [sys.executable, "-m", "jobs.process", "--lake", lake.root, "--recipe", str(tmp_path / "recipe.yaml")]
    env = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    moments = random.Random(os.environ.get("VFM_KILL_SEED", "7"))
    for _ in range(int(os.environ.get("VFM_KILLS", "2"))):
        run = subprocess.Popen(
            command, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            run.wait(moments.uniform(4, 15))
        except subprocess.TimeoutExpired:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    assert subprocess.run(command, env=env, capture_output=True).returncode == 0
    assert verify_lake(lake).violations == []
    for table in CHILD_TABLES:
        assert rows_of(lake, table) == rows_of(finished, table)


def test_the_default_recipe_file_says_what_the_code_does():
    written = load_recipe(str(Path(__file__).parents[3] / "jobs" / "recipes" / "default.yaml"))
    assert written == load_recipe(None)


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost(finished, tmp_path, corpus, tiny_model):
    """The model's process is killed once, in the middle of a unit."""
    import threading

    import psutil

    lake = new_lake(tmp_path, corpus)
    stop, killed = threading.Event(), []

    def kill_once() -> None:
        while not stop.wait(0.05) and not killed:
            for process_ in psutil.process_iter(["cmdline"]):
                line = " ".join(process_.info["cmdline"] or [])
                if "MapWorker(MapBatches(Chain))" in line and process_.children():
                    process_.kill()
                    killed.append(process_.pid)
                    return

    thread = threading.Thread(target=kill_once)
    thread.start()
    process(lake, recipe_for(tiny_model))
    stop.set()
    thread.join()
    assert killed
    assert verify_lake(lake).violations == []
    assert rows_of(lake, "frames") == rows_of(finished, "frames")


def test_a_model_that_cannot_be_had_is_refused_before_anything_is_written(tmp_path, corpus):
    from vfm_ops.errors import UsageError

    lake = new_lake(tmp_path, corpus)
    with pytest.raises(UsageError, match="no-such-model"):
        process(lake, recipe_for("timm:/no-such-model"))
    assert lake.dataset("frames") is None


def test_working_tables_survive_frames_of_an_empty_video(tmp_path, tiny_model):
    """Nothing pending at all is not an error."""
    lake = Lake.create(tmp_path / "empty")
    lake.ensure("assets")
    assert process(lake, recipe_for(tiny_model)).counts.get("assets", 0) == 0
    assert isinstance(lake.read("frames"), pa.Table)

"""Loops that `vfm bench peers` times against ours: files of a folder to vectors in a Lance table, as a user would write them.

`python -m jobs.bench.peer_loops KIND NAME FOLDER OUT RUNTIME WORKERS THREADS`: a process of its own, with imports and model.
KIND: `images` (JPEGs) or `videos` (at one frame a second). RUNTIME: `auto` (the fastest, ours) or `torch` (float32). WORKERS,
THREADS: processes that hold the model, and threads of each. All run the same model on the same cores and write the same.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.bench.bare import image_batches, load_default, video_batches
from vfm_ops.embed import Embedder

DIM, SIDE = 1280, 224  # of the default model: its vectors, and the pictures that it sees
BATCH = 32
FPS = 1


def table_of(uris: Sequence[str], vectors: np.ndarray) -> pa.Table:
    """Rows to be written."""
    flat = pa.array(vectors.astype(np.float16).ravel())
    return pa.table({"uri": pa.array(uris, pa.string()), "vector": pa.FixedSizeListArray.from_arrays(flat, DIM)})


def embed_files(kind: str, paths: list[str], embedder: Embedder, threads: int) -> tuple[list[str], np.ndarray]:
    """For each picture, or frame, the file that it is from, and its vector: what every hand-written loop does at its best.

    Decoding is in threads, by OpenCV at the size that the model needs, or by PyAV.
    """
    files = list(map(Path, paths))
    if kind == "images":
        batches = image_batches(files, embedder.view, threads, BATCH)
        return paths, np.concatenate(list(embedder.embed_image_stream(batches)))
    made = list(embedder.embed_image_stream(video_batches(files, embedder.view, FPS, threads)))
    return [path for path, vectors in zip(paths, made) for _ in vectors], np.concatenate(made)


# -- the bare loop -----------------------------------------------------------------------------------------------------


def bare(kind: str, folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """Each of some processes takes its share of the files, and writes one fragment; a commit ends it."""
    import lance

    paths = sorted(map(str, folder.iterdir()))
    shares = [(kind, paths[i::workers], out, runtime, threads) for i in range(workers)]
    if workers == 1:
        made = [_share(*shares[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            made = pool.starmap(_share, shares)
    schema = table_of([], np.zeros((0, DIM), np.float32)).schema
    lance.LanceDataset.commit(out, lance.LanceOperation.Overwrite(schema, [f for share in made for f in share]))


def _share(kind: str, paths: list[str], out: str, runtime: str, threads: int) -> Any:
    from lance.fragment import write_fragments

    from vfm_ops.scheduling import use_batch_scheduling

    use_batch_scheduling()
    return write_fragments(table_of(*embed_files(kind, paths, load_default(runtime, threads), threads)), out)


# -- Daft --------------------------------------------------------------------------------------------------------------


def daft(kind: str, folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """As its documentation has batch inference: glob, download, decode, resize, a class with a model. Videos are decoded in it:
    its own read_video_frames hangs once there is more than one file (0.7.26)."""
    import daft

    # Daft chooses threads or processes; where it is told to fork (use_process=True), one run in three hangs in OpenVINO.
    @daft.cls(max_concurrency=workers)
    class Embed:
        """The model."""

        def __init__(self) -> None:
            self.model = load_default(runtime, threads)

        @daft.method.batch(return_dtype=daft.DataType.embedding(daft.DataType.float32(), DIM), batch_size=BATCH)
        def pictures(self, images: Any) -> Any:
            return self.model.embed_images(np.stack(images.to_pylist()))

        @daft.method.batch(return_dtype=daft.DataType.list(daft.DataType.list(daft.DataType.float32())), batch_size=4)
        def videos(self, paths: Any) -> Any:
            names = [path.removeprefix("file://") for path in paths.to_pylist()]
            uris, vectors = embed_files(kind, names, self.model, threads)
            counts = [uris.count(name) for name in names]
            rows = pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM).cast(pa.list_(pa.float32()))
            return pa.ListArray.from_arrays(np.cumsum([0, *counts]).astype(np.int32), rows)

    frame = daft.from_glob_path(f"{folder}/*")
    if kind == "images":
        vectors = Embed().pictures(frame["path"].download().decode_image(mode="RGB").resize(SIDE, SIDE))
        frame = frame.select(frame["path"].alias("uri"), vectors.alias("vector"))
    else:
        frame = frame.select(frame["path"].alias("uri"), Embed().videos(frame["path"]).alias("vector")).explode(
            "vector"
        )
    rows = frame.to_arrow()
    import lance

    lance.write_dataset(table_of(rows["uri"].to_pylist(), _matrix(rows["vector"])), out, mode="overwrite")


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks()
    flat = flat.storage if isinstance(flat, pa.ExtensionArray) else flat
    return np.asarray(flat.flatten()).reshape(-1, DIM)


# -- Ray Data ----------------------------------------------------------------------------------------------------------


def _ray() -> Any:
    os.environ.update(RAY_worker_niceness="0")  # as ours
    import ray

    ray.init("local", num_cpus=os.cpu_count(), include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    return ray


def ray_documented(kind: str, folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """As its documentation has batch inference: read_images or read_videos, an actor pool with the model, and lance-ray's sink
    (Ray's own fails with the pylance of today)."""
    import lance_ray

    ray = _ray()
    column = "image" if kind == "images" else "frame"

    class Embed:
        """The model."""

        def __init__(self) -> None:
            self.model = load_default(runtime, threads)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"uri": batch["path"], "vector": self.model.embed_images(batch[column]).astype(np.float16)}

    if kind == "images":
        pictures = ray.data.read_images(str(folder), mode="RGB", size=(SIDE, SIDE), include_paths=True)
    else:
        pictures = ray.data.read_videos(str(folder), fps=FPS, resize=(SIDE, SIDE), include_paths=True)
    pool = ray.data.ActorPoolStrategy(size=workers)
    rows = pictures.map_batches(Embed, batch_size=BATCH, compute=pool, num_cpus=threads / 2)
    lance_ray.write_lance(rows, out, mode="overwrite")


def ray_best(kind: str, folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """Decoding (at the size that the model needs) and the model in one actor, so that no picture crosses a process."""
    import lance_ray

    ray = _ray()

    class Embed:
        """The decoder and the model."""

        def __init__(self) -> None:
            self.model = load_default(runtime, threads)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            uris, vectors = embed_files(kind, list(batch["item"]), self.model, threads)
            return {"uri": np.array(uris), "vector": vectors.astype(np.float16)}

    paths = sorted(map(str, folder.iterdir()))
    pool = ray.data.ActorPoolStrategy(size=workers)
    files = ray.data.from_items(paths, override_num_blocks=8 * workers)
    size = 8 * BATCH if kind == "images" else 4
    rows = files.map_batches(Embed, batch_size=size, compute=pool, num_cpus=threads)
    lance_ray.write_lance(rows, out, mode="overwrite")


# -- NeMo Curator ------------------------------------------------------------------------------------------------------


def nemo_curator(kind: str, folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """Images alone, by its pipeline on its Ray Data executor, with stages of our own for CPUs: its reader wants DALI, its
    embedder a hub."""
    os.environ.update(RAY_worker_niceness="0")  # as ours
    import lance
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline

    from jobs.bench.nemo_stages import Embed, Read, groups

    pipeline = Pipeline(name="embed", stages=[Read(), Embed(runtime=runtime, threads=threads, workers=workers)])
    done = pipeline.run(RayDataExecutor(), initial_tasks=groups(folder, 4 * BATCH))
    rows = [(image.image_path, image.embedding) for task in done or () for image in task.data]
    lance.write_dataset(table_of([p for p, _ in rows], np.stack([v for _, v in rows])), out, mode="overwrite")


LOOPS: dict[str, Callable[[str, Path, str, str, int, int], None]] = {
    "bare": bare,
    "daft": daft,
    "ray-documented": ray_documented,
    "ray-best": ray_best,
    "nemo-curator": nemo_curator,
}


def main(argv: list[str]) -> None:
    """See the module."""
    kind, name, folder, out, runtime, workers, threads = argv
    LOOPS[name](kind, Path(folder), out, runtime, int(workers), int(threads))


if __name__ == "__main__":
    main(sys.argv[1:])

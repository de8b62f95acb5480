"""Loops that `vfm bench peers` times against ours: JPEGs of a folder to vectors in a Lance table, as a user would write them.

`python -m jobs.bench.peer_loops NAME FOLDER OUT RUNTIME WORKERS THREADS`: a process of its own, imports and model included.
RUNTIME: `auto` (the fastest, ours) or `torch` (float32). WORKERS, THREADS: processes that hold the model, and threads of each.
All of them run the same model on the same cores and write the same vectors.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from jobs.bench.bare import image_batches, load_default

DIM, SIDE = 1280, 224  # of the default model: its vectors, and the pictures that it sees
BATCH = 32


def table_of(paths: list[str], vectors: np.ndarray) -> pa.Table:
    """Rows to be written."""
    flat = pa.array(vectors.astype(np.float16).ravel())
    return pa.table({"uri": paths, "vector": pa.FixedSizeListArray.from_arrays(flat, DIM)})


# -- the bare loop -----------------------------------------------------------------------------------------------------


def bare(folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """Each of some processes takes its share of the files, and writes one fragment; a commit ends it."""
    import lance

    paths = sorted(map(str, folder.iterdir()))
    shares = [(paths[i::workers], out, runtime, threads) for i in range(workers)]
    if workers == 1:
        made = [_share(*shares[0])]
    else:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            made = pool.starmap(_share, shares)
    schema = table_of([], np.zeros((0, DIM), np.float32)).schema
    lance.LanceDataset.commit(out, lance.LanceOperation.Overwrite(schema, [f for share in made for f in share]))


def _share(paths: list[str], out: str, runtime: str, threads: int) -> Any:
    from lance.fragment import write_fragments

    from vfm_ops.scheduling import use_batch_scheduling

    use_batch_scheduling()
    embedder = load_default(runtime, threads)
    batches = image_batches(list(map(Path, paths)), embedder.view, threads, BATCH)
    return write_fragments(table_of(paths, np.concatenate(list(embedder.embed_image_stream(batches)))), out)


# -- Daft --------------------------------------------------------------------------------------------------------------


def daft(folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """As its documentation has batch inference: glob, download, decode, resize, a class with the model, write_lance's like."""
    import daft

    @daft.cls(max_concurrency=workers)
    class Embed:
        """The model."""

        def __init__(self) -> None:
            self.model = load_default(runtime, threads)

        @daft.method.batch(return_dtype=daft.DataType.embedding(daft.DataType.float32(), DIM), batch_size=BATCH)
        def __call__(self, images: Any) -> Any:
            return self.model.embed_images(np.stack(images.to_pylist()))

    frame = daft.from_glob_path(f"{folder}/*")
    # Daft chooses threads or processes; where it is told to fork (use_process=True), one run in three hangs in OpenVINO.
    pictures = frame["path"].download().decode_image(mode="RGB").resize(SIDE, SIDE)
    frame = frame.select(frame["path"].alias("uri"), Embed()(pictures).alias("vector"))
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


def ray_documented(folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """As its documentation has batch inference: read_images, a map that preprocesses, an actor pool with the model, lance-ray's
    sink (Ray's own fails with the pylance of today)."""
    import lance_ray

    ray = _ray()

    class Embed:
        """The model."""

        def __init__(self) -> None:
            self.model = load_default(runtime, threads)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"uri": batch["path"], "vector": self.model.embed_images(batch["image"]).astype(np.float16)}

    images = ray.data.read_images(str(folder), mode="RGB", size=(SIDE, SIDE), include_paths=True)
    pool = ray.data.ActorPoolStrategy(size=workers)
    rows = images.map_batches(Embed, batch_size=BATCH, compute=pool, num_cpus=threads / 2)
    lance_ray.write_lance(rows, out, mode="overwrite")


def ray_best(folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """Decoding (OpenCV, at the size that the model needs) and the model in one actor, so that no picture crosses a process."""
    import lance_ray

    ray = _ray()

    class Embed:
        """The decoder and the model."""

        def __init__(self) -> None:
            self.model = load_default(runtime, threads)

        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            paths = list(map(Path, batch["item"]))
            pictures = image_batches(paths, self.model.view, threads, BATCH)
            vectors = np.concatenate(list(self.model.embed_image_stream(pictures)))
            return {"uri": batch["item"], "vector": vectors.astype(np.float16)}

    paths = sorted(map(str, folder.iterdir()))
    pool = ray.data.ActorPoolStrategy(size=workers)
    files = ray.data.from_items(paths, override_num_blocks=8 * workers)
    rows = files.map_batches(Embed, batch_size=8 * BATCH, compute=pool, num_cpus=threads)
    lance_ray.write_lance(rows, out, mode="overwrite")


# -- NeMo Curator ------------------------------------------------------------------------------------------------------


def nemo_curator(folder: Path, out: str, runtime: str, workers: int, threads: int) -> None:
    """Its pipeline on its Ray Data executor, with stages of our own for CPUs: its reader wants DALI, its embedder a hub."""
    os.environ.update(RAY_worker_niceness="0")  # as ours
    import lance
    from nemo_curator.backends.ray_data import RayDataExecutor
    from nemo_curator.pipeline import Pipeline

    from jobs.bench.nemo_stages import Embed, Read, groups

    pipeline = Pipeline(name="embed", stages=[Read(), Embed(runtime=runtime, threads=threads, workers=workers)])
    done = pipeline.run(RayDataExecutor(), initial_tasks=groups(folder, 4 * BATCH))
    rows = [(image.image_path, image.embedding) for task in done or () for image in task.data]
    lance.write_dataset(table_of([p for p, _ in rows], np.stack([v for _, v in rows])), out, mode="overwrite")


LOOPS: dict[str, Callable[[Path, str, str, int, int], None]] = {
    "bare": bare,
    "daft": daft,
    "ray-documented": ray_documented,
    "ray-best": ray_best,
    "nemo-curator": nemo_curator,
}


def main(argv: list[str]) -> None:
    """See the module."""
    name, folder, out, runtime, workers, threads = argv
    LOOPS[name](Path(folder), out, runtime, int(workers), int(threads))


if __name__ == "__main__":
    main(sys.argv[1:])

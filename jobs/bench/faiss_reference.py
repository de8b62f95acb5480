"""faiss as a yardstick, in a process of its own: `python -m jobs.bench.faiss_reference kmeans x.npy 1000 20 2`.

faiss carries its own OpenBLAS, whose choice of kernel can halve its speed. `best_of` runs it once for each choice and
takes the fastest, so that nobody is compared with a handicapped faiss.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from vfm_ops.errors import UsageError, VfmError

KERNELS = ("", "SkylakeX", "Zen")


def best_of(task: str, x_ND: np.ndarray, *numbers: float, threads: int) -> dict:
    """The fastest run of a task over faiss's BLAS kernels: its dict, with 'cpu_s', 'wall_s' and 'kernel'.

    task: 'kmeans' (numbers: k, iterations) or 'range' (numbers: threshold, queries). Raises UsageError without faiss.
    """
    if importlib.util.find_spec("faiss") is None:
        raise UsageError("the comparison needs faiss: pip install faiss-cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.npy"
        np.save(path, x_ND)
        runs = [_run(kernel, task, str(path), *map(str, numbers), str(threads)) for kernel in KERNELS]
    return min(runs, key=lambda run: run["cpu_s"])


def _run(kernel: str, *arguments: str) -> dict:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
    if kernel:
        environment["OPENBLAS_CORETYPE"] = kernel
    command = [sys.executable, "-m", "jobs.bench.faiss_reference", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise VfmError(f"faiss failed with BLAS kernel {kernel or 'default'}: {done.stderr.strip()[-300:]}")
    return {**json.loads(done.stdout.splitlines()[-1]), "kernel": kernel or "default"}


def run_kmeans(x_ND: np.ndarray, k: int, iterations: int) -> dict:
    """faiss's k-means over all rows: seconds, and the inertia of its final centroids."""
    import faiss

    wall, cpu = time.perf_counter(), time.process_time()
    model = faiss.Kmeans(x_ND.shape[1], k, niter=iterations, seed=1, max_points_per_centroid=len(x_ND))
    model.train(x_ND)
    seconds = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    square_N, _ = model.index.search(x_ND, 1)
    return {**seconds, "inertia": float(square_N.sum(dtype=np.float64))}


def run_range_search(x_ND: np.ndarray, threshold: float, queries: int) -> dict:
    """faiss's exact range search of the first rows among all, scaled to all rows: its cost is linear in queries."""
    import faiss

    index = faiss.IndexFlatIP(x_ND.shape[1])
    index.add(x_ND)
    wall, cpu = time.perf_counter(), time.process_time()
    limits, _, other = index.range_search(x_ND[:queries], threshold)
    scale = len(x_ND) / queries
    seconds = {"wall_s": (time.perf_counter() - wall) * scale, "cpu_s": (time.process_time() - cpu) * scale}
    query = np.repeat(np.arange(queries), np.diff(limits.astype(np.int64)))
    return {**seconds, "pairs": np.stack([query, other], axis=1)[query != other].tolist()}


def main(arguments: list[str]) -> None:
    """Runs one task and prints its dict as JSON."""
    import faiss

    task, path, first, second, threads = arguments
    faiss.omp_set_num_threads(int(threads))
    x_ND = np.load(path)
    if task == "kmeans":
        print(json.dumps(run_kmeans(x_ND, int(float(first)), int(float(second)))))
    else:
        print(json.dumps(run_range_search(x_ND, float(first), int(float(second)))))


if __name__ == "__main__":
    main(sys.argv[1:])

"""If this fails, `vfm bench pretrain` prints a table with holes."""

from __future__ import annotations

import numpy as np
import pytest

from jobs.bench.pretrain_objectives import Benchmark
from vfm_ops.pretrain import data


@pytest.fixture
def little_fashion(fashion_mnist, tmp_path):
    """300 training and 100 test images of Fashion-MNIST, as its files."""
    import gzip
    import struct

    for split, prefix, count in (("train", "train", 300), ("test", "t10k", 100)):
        whole = data.fashion_mnist(fashion_mnist, split)
        for kind, array in (("images-idx3", whole.images[:count, ..., 0]), ("labels-idx1", whole.labels[:count])):
            head = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            packed = gzip.compress(head + array.astype(np.uint8).tobytes())
            (tmp_path / f"{prefix}-{kind}-ubyte.gz").write_bytes(packed)
    return tmp_path


def test_benchmark_rows_hold_every_figure_of_the_table(little_fashion):
    bench = Benchmark.load(little_fashion, bank=300)
    pixels, rows = bench.pixels(), {name: bench.objective(name, until_step=1) for name in ("mae", "clip")}
    for row in (pixels, *rows.values()):
        assert all(0.1 < row[key] <= 1 for key in ("knn", "knn_1000", "probe"))
    for row in rows.values():
        assert 0.1 < row["random_probe"] <= 1
        assert row["steps"] == 1
        assert row["images_per_cpu_s"] == pytest.approx(128 / (60 * row["cpu_minutes"]))
    assert rows["mae"]["accuracy"] is None
    assert 0 <= rows["clip"]["accuracy"] <= 1
    assert pixels["probe"] > 0.6, "raw pixels of this set are easy to separate"

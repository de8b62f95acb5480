"""Lakes with planted structure: kinds of unequal size in embedding space, copies, blurred pictures, videos."""

from __future__ import annotations

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.lake import SCHEMAS, Lake, embedding_field, make_asset_id
from vfm_ops.media.phash import phash
from vfm_ops.media.quality import frame_quality, quality_gray

DIM = 32
SPEC = "timm:tiny"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


def picture(seed: int, size: int = 64, smooth: int = 8) -> np.ndarray:
    """A random picture, uint8 RGB: noise of a coarse grid, enlarged."""
    coarse = np.random.default_rng(seed).integers(0, 256, (smooth, smooth, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def jpeg(image: np.ndarray, quality: int = 92) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


class LakeBuilder:
    """Adds stills and videos, given as pictures and vectors, to a lake as `process` would."""

    def __init__(self, root: Path, digest: str = "d1", spec: str = SPEC, dim: int = DIM) -> None:
        self.lake = Lake.create(root)
        self.field = embedding_field(spec, dim, {"digest": digest, "runtime": "torch", "precision": "exact"})
        self.lake.ensure("assets")
        self.lake.ensure("frames", [self.field])
        self.count = 0

    def stills(
        self,
        pictures: list[np.ndarray],
        vectors: list[np.ndarray | None],
        quality: int = 92,
        label: str | None = None,
    ) -> list[str]:
        """One asset and frame for each picture. Returns frame ids."""
        uris = [f"/m/{self.count + i}.jpg" for i in range(len(pictures))]
        self.count += len(pictures)
        ids = [make_asset_id(u) for u in uris]
        self._assets(ids, uris, "image", label)
        return self._frames(ids, [0] * len(ids), [0.0] * len(ids), pictures, vectors, quality)

    def video(self, pictures: list[np.ndarray], vectors: list[np.ndarray], fps: float = 2.0) -> list[str]:
        """One asset with a frame for each picture. Returns frame ids."""
        uri = f"/m/{self.count}.mp4"
        self.count += 1
        asset = make_asset_id(uri)
        self._assets([asset], [uri], "video")
        numbers = list(range(len(pictures)))
        return self._frames([asset] * len(pictures), numbers, [i / fps for i in numbers], pictures, vectors, 92)

    def _assets(self, ids: list[str], uris: list[str], kind: str, label: str | None = None) -> None:
        rows = [
            {"asset_id": a, "uri": u, "media_type": kind, "discovered_at": NOW, "label": label}
            for a, u in zip(ids, uris, strict=True)
        ]
        self.lake.append("assets", pa.Table.from_pylist(rows, SCHEMAS["assets"]))

    def _frames(self, assets, numbers, times, pictures, vectors, quality) -> list[str]:
        grays = [quality_gray(p) for p in pictures]
        ids = [f"{a}:{n}" for a, n in zip(assets, numbers, strict=True)]
        schema = self.lake.schema("frames")
        columns = {
            "frame_id": ids,
            "asset_id": assets,
            "run_key": ["r.1"] * len(ids),
            "frame_index": pa.array(numbers, pa.int64()),
            "pts_s": times,
            "width": pa.array([p.shape[1] for p in pictures], pa.int32()),
            "height": pa.array([p.shape[0] for p in pictures], pa.int32()),
            "jpeg": pa.array([jpeg(p, quality) for p in pictures], pa.large_binary()),
            "phash": pa.array([phash(g) for g in grays], pa.uint64()),
            "quality": pa.array([frame_quality(g) for g in grays], schema.field("quality").type),
            self.field.name: pa.array([None if v is None else v.astype(np.float16) for v in vectors], self.field.type),
        }
        rows = pa.table([columns.get(f.name, pa.nulls(len(ids), f.type)) for f in schema], schema)
        self.lake.commit("frames", self.lake.write_fragments("frames", rows))
        return ids


def kinds(sizes: list[int], seed: int = 0, spread: float = 0.6, dim: int = DIM) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of several kinds and their kind: the mean of each kind, and noise of that length around it."""
    rng = np.random.default_rng(seed)
    kind = np.repeat(np.arange(len(sizes)), sizes)
    mean = unit(rng.standard_normal((len(sizes), dim)))
    noise = unit(rng.standard_normal((len(kind), dim)))
    return unit(mean[kind] + spread * noise), kind


@pytest.fixture
def builder(tmp_path) -> LakeBuilder:
    return LakeBuilder(tmp_path / "lake")


@pytest.fixture(scope="session")
def tailed(tmp_path_factory) -> tuple[Lake, np.ndarray]:
    """480 different stills of five kinds of very unequal size, in several fragments; and their kinds, in scan order."""
    builder = LakeBuilder(tmp_path_factory.mktemp("tailed") / "lake")
    x, kind = kinds([300, 100, 50, 20, 10])
    order = np.random.default_rng(1).permutation(len(x))
    for part in np.array_split(order, 5):
        builder.stills([picture(int(i)) for i in part], list(x[part]))
    return builder.lake, kind[order]

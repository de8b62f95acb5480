"""What a run writes beside its checkpoints, to a local folder or an object store.

OUT/run.json        settings, table versions, digest of the items: what a resume must agree with
OUT/tokenizer/      of clip and siglip
OUT/train/          Ray Train's checkpoints
OUT/tensorboard/    logs
OUT/progress.json   step, loss, samples: for whoever watches
OUT/ids/            ids of every step's samples, when trace_ids says so
OUT/model/          the backbone in timm's layout, with its model card
OUT/transformers/   the model in transformers' layout, where it has one (ViTs; not ResNets), with its model card
OUT/metrics.json, OUT/report.html
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from pipelines.lake import filesystem

PROGRESS_S = 1.0


class Output:
    """Rank 0's pen."""

    def __init__(self, out: str) -> None:
        self.out = out
        self._fs, self._root = filesystem(out)
        self._writer: Any = None
        self._written = 0.0
        self._logs = Path(self._root) / "tensorboard" if self._local else Path(tempfile.mkdtemp(prefix="vfm-logs-"))

    @property
    def _local(self) -> bool:
        return isinstance(self._fs, pafs.LocalFileSystem)

    def step(self, logs: dict[str, float], total: int, batch: int) -> None:
        """Logs of one training step."""
        number = int(logs["step"])
        for key, value in logs.items():
            if key != "step":
                self._board.add_scalar(f"train/{key}", value, number)
        now = time.monotonic()
        if now - self._written > PROGRESS_S or number + 1 == total:
            self._written = now
            facts = {"step": number + 1, "total": total, "loss": logs["loss"], "samples": (number + 1) * batch}
            self.put("progress.json", json.dumps(facts).encode())

    def evaluation(self, metrics: dict[str, float]) -> None:
        """Metrics measured during the run."""
        for key, value in metrics.items():
            if key != "step":
                self._board.add_scalar(f"evaluation/{key}", value, int(metrics["step"]))

    @property
    def _board(self) -> Any:
        if self._writer is None:
            from tensorboardX import SummaryWriter

            self._writer = SummaryWriter(str(self._logs))
        return self._writer

    def put(self, name: str, data: bytes) -> None:
        """Writes a file; on a file system, whole or not at all."""
        path = f"{self._root}/{name}"
        self._fs.create_dir(path.rpartition("/")[0], recursive=True)
        target = f"{path}.tmp" if self._local else path
        with self._fs.open_output_stream(target) as file:
            file.write(data)
        if target != path:
            self._fs.move(target, path)

    def get(self, name: str) -> bytes | None:
        """A file's bytes; None when it is not there."""
        try:
            with self._fs.open_input_file(f"{self._root}/{name}") as file:
                return bytes(file.read())
        except FileNotFoundError:
            return None

    def put_folder(self, folder: Path, name: str) -> None:
        """Copies a local folder in."""
        self._fs.create_dir(f"{self._root}/{name}", recursive=True)
        pafs.copy_files(
            str(folder),
            f"{self._root}/{name}",
            source_filesystem=pafs.LocalFileSystem(),
            destination_filesystem=self._fs,
        )

    def trace(self, rank: int, world: int, step: int, ids: list[str]) -> None:
        """One file for each step and rank, so that a resumed run on other workers adds to the same record."""
        self.put(f"ids/step-{step:08d}.{rank}of{world}.json", json.dumps(ids).encode())

    def close(self) -> None:
        """Flushes the logs."""
        if self._writer is not None:
            self._writer.close()
            if not self._local:
                self.put_folder(self._logs, "tensorboard")

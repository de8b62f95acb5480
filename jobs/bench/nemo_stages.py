"""Stages of a NeMo Curator pipeline that decode JPEGs and embed them on CPUs, for `vfm bench peers`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nemo_curator.stages.base import ProcessingStage
from nemo_curator.stages.resources import Resources
from nemo_curator.tasks import FileGroupTask, ImageBatch, ImageObject

from jobs.bench.bare import image_batches, load_default, load_view


def groups(folder: Path, size: int) -> list[FileGroupTask]:
    """Tasks of so many files each."""
    paths = sorted(map(str, folder.iterdir()))
    return [FileGroupTask(dataset_name="jpegs", data=paths[i : i + size]) for i in range(0, len(paths), size)]


@dataclass
class Read(ProcessingStage[FileGroupTask, ImageBatch]):
    """Decodes, at the size that the model needs."""

    name: str = "read"
    resources: Resources = field(default_factory=lambda: Resources(cpus=0.5))

    def inputs(self) -> tuple[list[str], list[str]]:
        """File groups."""
        return [], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Pictures."""
        return ["data"], []

    def setup(self, _: Any = None) -> None:
        """The model's view."""
        self.view = load_view()

    def process(self, task: FileGroupTask) -> ImageBatch:
        """A picture a file."""
        (pictures,) = image_batches(list(map(Path, task.data)), self.view, 1, len(task.data))
        made = [ImageObject(image_path=path, image_data=rgb) for path, rgb in zip(task.data, pictures)]
        return ImageBatch(dataset_name=task.dataset_name, data=made, _metadata=task._metadata)


@dataclass
class Embed(ProcessingStage[ImageBatch, ImageBatch]):
    """The model."""

    runtime: str
    threads: int
    workers: int
    name: str = "embed"

    def __post_init__(self) -> None:
        self.resources = Resources(cpus=self.threads / 2)

    def num_workers(self) -> int:
        """Actors."""
        return self.workers

    def inputs(self) -> tuple[list[str], list[str]]:
        """Pictures."""
        return ["data"], []

    def outputs(self) -> tuple[list[str], list[str]]:
        """Vectors."""
        return ["data"], []

    def setup(self, _: Any = None) -> None:
        """Loads it."""
        self.model = load_default(self.runtime, self.threads)

    def process(self, task: ImageBatch) -> ImageBatch:
        """A vector a picture, in place of it."""
        vectors = self.model.embed_images(np.stack([image.image_data for image in task.data]))
        for image, vector in zip(task.data, vectors):
            image.embedding, image.image_data = vector, None
        return task

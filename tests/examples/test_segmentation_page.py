"""The page on segmenting and following by hand runs as it stands."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from jobs.cli import main
from pipelines.lake import Lake
from pipelines.process import process
from pipelines.process.recipe import Recipe
from pipelines.sources import ingest
from tests.vfm_ops.track.conftest import read_frames
from vfm_ops.media.encode import write_video

PAGE = (Path(__file__).parents[2] / "docs" / "segmentation.md").read_text()
HEIGHT, WIDTH, FRAMES = 180, 240, 8


@pytest.fixture
def folder(tmp_path, monkeypatch, photographs, bikes) -> Path:
    """The files that the page names, and a lake of some of them."""
    (tmp_path / "media").mkdir()
    for name, path in zip(("cat.jpg", "dog.jpg"), (photographs[1], photographs[2])):
        cv2.imwrite(str(tmp_path / name), cv2.resize(cv2.imread(str(path)), (320, 280), interpolation=cv2.INTER_AREA))
    write_video(tmp_path / "clip.mp4", iter(read_frames(bikes, FRAMES, HEIGHT, WIDTH)), 25.0)
    for name, (height, width) in {"coarse.png": (280, 320), "object.png": (HEIGHT, WIDTH)}.items():
        mask = np.zeros((height, width), np.uint8)
        mask[40:130, 50:160] = 255
        cv2.imwrite(str(tmp_path / name), mask)
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, flags=re.S):
        (tmp_path / name).write_text(text)
    for name in ("cat.jpg", "dog.jpg", "clip.mp4"):
        shutil.copy(tmp_path / name, tmp_path.joinpath("media") / name)
    ingest([str(tmp_path / "media")], str(tmp_path / "lake"))
    recipe = {"sampling": {"fps": 5}, "shots": {"detector": "content"}, "ops": []}
    process(Lake.open(tmp_path / "lake"), Recipe.model_validate(recipe))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_pages_commands_run(folder, capsys):
    blocks = re.findall(r"```console run\n(.*?)```", PAGE, flags=re.S)
    commands = [line.removeprefix("$ vfm ") for block in blocks for line in block.splitlines()]
    assert len(commands) == 12
    for command in commands:
        assert main(shlex.split(command)) == 0, f"vfm {command}: {capsys.readouterr().err}"
    assert (folder / "masks.jpg").stat().st_size > 1000
    assert set(np.load(folder / "logits.npz")) == {"cat.jpg/1", "dog.jpg/1", "cat.jpg/2", "dog.jpg/3"}
    stored = Lake.open("lake").annotations.to_pandas()
    assert stored.groupby("kind")["object_id"].nunique().to_dict() == {"mask": 2, "track": 2}
    exported = json.loads((folder / "annotations.json").read_text())["annotations"]
    assert [280, 320] in [a["segmentation"]["size"] for a in exported]
    assert len((folder / "masks.jsonl").read_text().splitlines()) > 0


def test_the_pages_python_runs_in_order(folder, capsys):
    names: dict = {}
    for code in re.findall(r"```python run\n(.*?)```", PAGE, flags=re.S):
        exec(code, names)
    assert names["changed"] == [5, 6, 7]
    assert names["logits"].shape == (1, 1, 280, 320)
    assert set(names["stored"]["label"]) == {"dog", "bike"}
    assert names["mask"].shape == (HEIGHT, WIDTH)

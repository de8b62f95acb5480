"""What a newcomer loses: a notebook of examples/ that does not run as it stands, with no network, in a folder of its own."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import optional_package

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory):
    """Of the kernels: this tree's packages, no network, and nothing of the user's own IPython."""
    folder = tmp_path_factory.mktemp("kernels")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("VFM_CACHE", str(folder / "cache"))
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR"):
            patch.setenv(name, str(folder / name))
        yield


def executed(name: str, folder: Path) -> list[Any]:
    """The cells of a notebook after it ran, from a folder; CellExecutionError where one raised."""
    nbclient, _ = optional_package("nbclient"), optional_package("ipykernel")
    import nbformat

    notebook = nbformat.read(ROOT / "examples" / f"{name}.ipynb", 4)
    client = nbclient.NotebookClient(
        notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(cells: list[Any], source: str, mime: str = "text/plain") -> str:
    """What the cells that begin so displayed, of one type."""
    found = [cell for cell in cells if cell.source.startswith(source)]
    assert found, f"no cell begins with {source}"
    data = [output["data"] for cell in found for output in cell.outputs if "data" in output]
    return "\n".join(str(entry[mime]) for entry in data if mime in entry)


def test_a_first_lake_is_made_shown_searched_and_trained_from(surroundings, tmp_path):
    cells = executed("first-lake", tmp_path)
    assert shown(cells, "from pipelines import").endswith("25")
    assert "<progress" in shown(cells, "recipe =", "text/html")
    assert re.search(r"process: 25 assets, 28 frames, 0 quarantined", shown(cells, "recipe =", "text/html"))
    assert "frames.emb_clip_pocket by clip:pocket, 128 values" in shown(cells, "lake")
    assert shown(cells, "lake.frames", "text/html").count("<img") == 5
    assert shown(cells, "search(lake", "text/html").count("<img") == 4
    assert shown(cells, "from pipelines.search", "text/html").count("<img") == 3
    assert "torch.Size([8, 3, 96, 96]), torch.Size([8, 128])" in shown(cells, "from torch.utils")
    assert "broken.jpg" in shown(cells, "(corpus")
    assert "<progress" not in shown(cells, "(corpus", "text/html")


def test_an_op_of_ones_own_is_tried_and_then_filled_into_a_lake_that_is_there(surroundings, tmp_path):
    cells = executed("your-own-op", tmp_path)
    assert "brightness" in shown(cells, "from my_ops")
    assert shown(cells, "recipe =").endswith("32")
    assert {"frames.brightness by op brightness version 1", "frames.colourful by op colourful version 1"} <= {
        line.strip() for line in shown(cells, "lake").splitlines()
    }
    assert int(shown(cells, "lake.frames.count")) > 0


def test_a_selection_is_curated_and_a_model_trained_on_it_embeds_the_lake(surroundings, tmp_path):
    cells = executed("curate-and-pretrain", tmp_path)
    assert "'exact_duplicate': 8" in shown(cells, "from pipelines.curation")
    assert "'balanced': 32" in shown(cells, "from pipelines.curation")
    assert "same bytes" in shown(cells, "lake.selections")
    assert "'done'" in shown(cells, "from pipelines.pretraining")
    assert shown(cells, "process(lake").endswith("48")
    assert shown(cells, "from pipelines.search", "text/html").count("<img") == 3


def test_every_notebook_is_tested_linked_and_committed_without_outputs():
    names = {path.stem for path in NOTEBOOKS}
    assert names == {"first-lake", "your-own-op", "curate-and-pretrain"}
    readme = (ROOT / "README.md").read_text()
    for path in NOTEBOOKS:
        assert f"(examples/{path.name})" in readme
        text = path.read_text()
        assert '"output_type"' not in text
        assert '"execution_count": null' in text
        assert not re.search(r'"execution_count": \d', text)

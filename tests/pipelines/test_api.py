"""The Python API: a user's `from pipelines import process` is the function whatever was imported before, and costs nothing."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import pipelines
from pipelines.lake import Lake as LakeItself

ROOT = Path(__file__).parents[2]
PACKAGES = ("process", "search", "curation", "pretraining", "reporting", "sources")


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_api_is_what_the_page_says():
    assert pipelines.__all__ == ["Lake", "Recipe", "curate", "export", "ingest", "pretrain", "process", "search"]
    assert pipelines.Lake is LakeItself
    assert all(callable(getattr(pipelines, name)) for name in pipelines.__all__)
    assert set(pipelines.__all__) <= set(dir(pipelines))
    with pytest.raises(AttributeError, match="'pipelines' has no attribute 'proces'"):
        pipelines.proces  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_every_name_that_a_package_exports_is_there(package):
    module = __import__(f"pipelines.{package}", fromlist=["__all__"])
    assert all(getattr(module, name) is not None for name in module.__all__)


def test_importing_the_packages_loads_no_engine():
    imports = "; ".join(f"import pipelines.{package}" for package in PACKAGES)
    heavy = "[m for m in ('ray', 'torch', 'lance', 'pyarrow', 'numpy') if m in sys.modules]"
    assert in_a_fresh_process(f"import sys; {imports}; print({heavy})") == "[]"


@pytest.mark.parametrize("first", ["import pipelines", "import pipelines.process.recipe, pipelines.search.columns"])
def test_packages_that_are_named_after_a_function_are_called_whatever_was_imported_first(first):
    ask = "from pipelines import process, search; print(process(*'ab', retry=True), search(*'cd', k=3))"
    stubs = (
        "import pipelines.process.run as p, pipelines.search.run as s; "
        "p.process = lambda lake, recipe, *, retry: (lake, recipe, retry); s.search = lambda lake, query, *, k: k"
    )
    assert in_a_fresh_process(f"{first}; {stubs}; {ask}") == "('a', 'b', True) 3"


def test_a_called_package_shows_the_signature_and_goes_to_workers():
    """A function that a user sends to Ray refers to it, and is pickled with what it refers to."""
    from pipelines.process.run import process

    assert inspect.signature(pipelines.process) == inspect.signature(process)
    assert pickle.loads(pickle.dumps(pipelines.process)) is sys.modules["pipelines.process"]

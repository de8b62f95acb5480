"""The house: arrows go jobs -> pipelines -> vfm_ops, no module needs itself to be imported, and a function fits on a screen.

Read off the syntax trees, so that an import inside a function, or one for a type checker alone, counts like any other.
"""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("vfm_ops", "pipelines", "jobs")
ABOVE = {"vfm_ops": {"pipelines", "jobs", "ray", "lance", "lance_ray"}, "pipelines": {"jobs"}, "jobs": set()}
LONGEST = 50  # lines of a function, its docstring aside


@cache
def trees(package: str) -> dict[str, ast.Module]:
    """The syntax tree of each module, by its dotted name; a package's own is its __init__."""
    files = sorted((ROOT / package).rglob("*.py"))
    dotted = {".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): f for f in files}
    return {name: ast.parse(file.read_text()) for name, file in dotted.items()}


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """What a module imports, as dotted names: `from a import b` is a.b where that is one of `modules`, else a."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules
            if names - modules:
                found.add(str(node.module))
    return found


def graph(package: str) -> dict[str, set[str]]:
    """Each module of a package, and what it imports, wherever from."""
    known = trees(package)
    return {name: imports(tree, set(known)) for name, tree in known.items()}


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """A way round for each module that reaches itself, each circle once."""
    found: dict[frozenset[str], list[str]] = {}
    for start in sorted(edges):
        came_from: dict[str, str] = {}
        waiting = [start]
        while waiting and start not in came_from:
            here = waiting.pop(0)
            for there in sorted(edges[here] & edges.keys() - came_from.keys()):
                came_from[there] = here
                waiting.append(there)
        if start in came_from:
            way = [start, came_from[start]]
            while way[-1] != start:
                way.append(came_from[way[-1]])
            found.setdefault(frozenset(way), way[::-1])
    return list(found.values())


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from `def` to the end, without the docstring."""
    count = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is not None:
        count -= (function.body[0].end_lineno or 0) - function.body[0].lineno + 1
    return count


def test_a_circle_is_found_wherever_the_import_stands():
    sources = {
        "p.a": "from p import b",
        "p.b": "def f():\n    import p.c",
        "p.c": "from p.a import x",
        "p.d": "import p.a",
    }
    edges = {name: imports(ast.parse(text), set(sources)) for name, text in sources.items()}
    assert circles(edges) == [["p.a", "p.b", "p.c", "p.a"]]
    assert circles({"p.a": {"p.a"}}) == [["p.a", "p.a"]]


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_imports_itself_by_way_of_others(package):
    assert circles(graph(package)) == []


def test_no_folder_of_the_ops_imports_itself_by_way_of_others():
    modules = graph("vfm_ops")
    edges: dict[str, set[str]] = {}
    for name, others in modules.items():
        folders = {".".join(other.split(".")[:2]) for other in others & modules.keys()}
        own = ".".join(name.split(".")[:2])
        edges.setdefault(own, set()).update(folders - {own})
    assert circles(edges) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_import_runs_upward(package):
    upward = [
        f"{name} imports {other}"
        for name, others in graph(package).items()
        for other in others
        if other.partition(".")[0] in ABOVE[package]
    ]
    assert not upward, upward


PEERS = "jobs.bench.peer_loops"  # what others would write


def test_the_lake_alone_imports_lance_and_knows_nothing_of_who_fills_it():
    for name, others in (graph("pipelines") | graph("jobs")).items():
        roots = {other.partition(".")[0] for other in others}
        if name.startswith("pipelines.lake"):
            outside = {o for o in others if o.startswith("pipelines") and not o.startswith("pipelines.lake")}
            assert not outside, f"{name} imports {outside}"
        elif name != PEERS:
            assert not roots & {"lance", "lance_ray"}, f"{name} imports Lance: ask pipelines.lake"


@pytest.mark.parametrize("package", PACKAGES)
def test_every_function_fits_on_a_screen(package):
    long = [
        f"{name}.{node.name}: {lines_of(node)} lines"
        for name, tree in trees(package).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and lines_of(node) > LONGEST
    ]
    assert not long, long


def test_the_pages_name_files_that_exist():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    for page in pages:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
        for name in re.findall(r"`((?:vfm_ops|pipelines|jobs|tests)/[\w/]+(?:\.py)?/?)`", text):
            assert (ROOT / name).exists(), f"{page.name} names {name}"
        for link, heading in re.findall(r"\]\((?!\w+://)([\w./-]*)(?:#([\w-]+))?\)", text):
            target = page.parent / link if link else page
            assert target.exists(), f"{page.name} links to {link}"
            assert not heading or heading in headings(target), f"{page.name} links to {link}#{heading}"


def headings(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}

"""Advice that names a key, an option or a command which does not exist sends its reader nowhere: every sentence is checked."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel
from typer.main import get_command

from jobs.cli import COMMANDS
from jobs.serve.settings import ServeSettings
from pipelines.curation.recipe import CurationRecipe
from pipelines.process.recipe import Recipe

ROOT = Path(__file__).parents[1]
# Options that are not ours: of pip, of the hub's command line, of tar, of docker and of ray; a boundary of multipart.
OTHERS = {"--no-deps", "--local-dir", "--sparse", "--help", "--debug", "--b", "--shm-size", "--cpuset-cpus"}
OTHERS |= {"--object-store-memory"}
FILES = r"\.(json|yaml|safetensors|bin|txt|jpg|png|html|py|pth|csv|parquet|lance|tar)$"
DOTTED = r"(?<![\w./:{\-])([a-z_]+(?:\.[a-z_]+)+)(?![\w/(:-]|\.\w)"
VALUE = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for what an f-string puts in


@lru_cache(maxsize=1)
def sentences() -> list[tuple[str, str]]:
    """(where, text) of every string in the packages that is prose and no docstring, f-strings with VALUE in their gaps."""
    paths = sorted(p for package in ("jobs", "pipelines", "vfm_ops") for p in (ROOT / package).rglob("*.py"))
    return [
        (f"{path.relative_to(ROOT)}:{line}", text)
        for path in paths
        for line, text in strings_of(ast.parse(path.read_text()))
        if " " in text and not re.match(r"[\w-]+/[\w-]+ \S+\.md ", text)  # nor a citation that has a name
    ]


def strings_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Each string of a syntax tree that is an expression's value."""
    seen: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            seen.add(id(body[0].value))  # a docstring
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "official":
            seen.update(map(id, ast.walk(node)))  # cites another repository's file
        if id(node) in seen:
            continue
        if isinstance(node, ast.JoinedStr):
            seen.update(id(part) for part in node.values)
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else VALUE for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value


def keys_of(model: type[BaseModel]) -> set[str]:
    """Dotted names of all keys of a recipe, sections included."""
    found = set()
    for name, field in model.model_fields.items():
        found.add(name)
        for inner in [field.annotation, *getattr(field.annotation, "__args__", ())]:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found |= {f"{name}.{key}" for key in keys_of(inner)}
    return found


KEYS = keys_of(Recipe) | keys_of(CurationRecipe) | keys_of(ServeSettings)
SECTIONS = {key.partition(".")[0] for key in KEYS if "." in key}


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """Each command's options."""
    found = {}
    for name in [*COMMANDS, "pocket"]:  # which is run by `python -m jobs.pocket` alone
        app = typer.Typer(add_completion=False)
        app.command()(importlib.import_module(f"jobs.{name}").command)
        parameters = get_command(app).params
        found[name] = {option for p in parameters for option in [*p.opts, *p.secondary_opts]}
    return found


def test_every_key_that_a_sentence_names_is_one_of_a_recipe():
    wrong = [
        f"{where}: {name}"
        for where, text in sentences()
        for name in re.findall(DOTTED, text)
        if is_advice(name, text) and name not in KEYS
    ]
    assert not wrong, wrong


def is_advice(name: str, text: str) -> bool:
    """Whether a dotted name is meant as a key: of a section that a recipe has, or after a verb that changes a key."""
    if (
        name.startswith("backbone_args.")  # of pretraining: timm's own keys
        or re.search(FILES, name)
        or find_spec(name.partition(".")[0])
        or re.search(rf"import {name}|-m {name}|`{re.escape(name)}`", text)
    ):
        return False
    before = re.search(rf"(set|raise|lower|over|with|--set)\s+{re.escape(name)}", text)
    return name.partition(".")[0] in SECTIONS | {"limits"} or before is not None


def test_every_option_that_a_sentence_names_is_one_of_a_command(options):
    known = set().union(*options.values()) | OTHERS
    wrong = [
        f"{where}: {option}"
        for where, text in sentences()
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text)
        if option not in known
    ]
    assert not wrong, wrong


def test_every_command_line_that_a_sentence_shows_has_a_command_and_its_own_options(options):
    wrong = []
    for where, text in sentences():
        for command, rest in re.findall(r"\bvfm ([a-z]+)((?: [^;,(.]+)?)", text):
            if command not in COMMANDS:
                if re.search(rf"(run|with|:|`|see) *vfm {command}", text):
                    wrong.append(f"{where}: vfm {command}")
                continue
            wrong += [
                f"{where}: vfm {command} {option}"
                for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", rest)
                if option not in options[command] | OTHERS
            ]
    assert not wrong, wrong


# Those whose sentences only a command's user reads, and those that write of a command's options in a page of docs/.
OF_THE_COMMAND_LINE = (
    "pipelines/lake/verify.py",
    "vfm_ops/pretrain/defaults.py",
)


def foreign_words(text: str, required: dict[str, set[str]]) -> list[str]:
    """Options in a sentence that a Python user may read, but for those of a whole command to run, `vfm` and all it requires."""
    for command, rest in re.findall(r"\bvfm ([a-z]+)((?: [^;,(]+)?)", text):
        if command in required and all(option in rest for option in required[command]):
            text = text.replace(f"vfm {command}{rest}", "")
        elif command in required and re.search(rf"(run|with|:|`|see) *vfm {command}", text):
            return [f"vfm {command}"]
    text = re.sub(r"`hf download .*|python -m [\w.]+", "", text)  # the hub's own command; a module to run
    return re.findall(r"(?<![\w-])(?:--[a-z][a-z-]*[a-z]|-[a-z])(?![\w-])", text)


def test_below_the_command_line_a_sentence_speaks_of_arguments_and_not_of_options():
    required = {}
    for name in COMMANDS:
        app = typer.Typer(add_completion=False)
        app.command()(importlib.import_module(f"jobs.{name}").command)
        required[name] = {p.opts[0] for p in get_command(app).params if p.required and p.opts[0].startswith("-")}
    assert foreign_words("pass --lake", required) == ["--lake"]
    assert foreign_words("-k must be at least 1", required) == ["-k"]
    assert foreign_words("it has no frames yet: run vfm process first", required) == ["vfm process"]
    assert foreign_words(f"run vfm process --lake {VALUE} first; or --full", required) == ["--full"]
    wrong = [
        f"{where}: {word}"
        for where, text in sentences()
        if where.startswith(("pipelines/", "vfm_ops/")) and not where.startswith(OF_THE_COMMAND_LINE)
        for word in foreign_words(text, required)
    ]
    assert not wrong, wrong


def test_the_check_sees_what_it_is_for():
    """The kind of sentence that was wrong once, and those that are right."""
    assert is_advice("limits.max_side", "raise limits.max_side if you trust it")
    assert is_advice("frames.jpeg", "process the lake with frames.jpeg on")
    assert "limits.max_side" not in KEYS
    assert "limits.in_flight" in KEYS
    assert {"decode.max_side", "jpeg.store", "sample.target", "deduplicate.semantic.cosine"} <= KEYS
    assert re.findall(DOTTED, f"{VALUE} is over limits.memory_mb; see a.b/c, model.safetensors.") == [
        "limits.memory_mb",
        "model.safetensors",
    ]

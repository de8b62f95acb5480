"""Settings as people write them, for every command: a YAML file, `key.sub=value` over it, validated; errors are sentences."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from vfm_ops.errors import UsageError


def parse_override(text: str, example: str) -> tuple[list[str], Any]:
    """`key.sub=value` to (["key", "sub"], value as YAML reads it). example: for the error. UsageError for what is no such."""
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UsageError(f"`overrides` {text}: write it as key=value, such as {example}")
    try:
        return key.split("."), yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise UsageError(f"`overrides` {text}: the value is no YAML ({str(e).splitlines()[0]}); quote it") from None


def put_override(data: dict[str, Any], text: str, keys: list[str], value: Any) -> None:
    """Puts a value where its keys say, into nested sections. UsageError where one of them is there and no section."""
    node = data
    for key in keys[:-1]:
        if node.get(key) is None:
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise UsageError(f"`overrides` {text}: {key} is not a section")
    node[keys[-1]] = value


def validate(model: type[BaseModel], data: Any, where: str) -> Any:
    """Pydantic validation whose error is one sentence; an unknown key names the nearest known one. UsageError."""
    try:
        return model.model_validate(data)
    except ValidationError as e:
        raise UsageError("; ".join(_explain(model, err, where) for err in e.errors()[:3])) from None


def _explain(model: type[BaseModel], error: Any, where: str) -> str:
    place = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        known = _fields_at(model, error["loc"][:-1])
        if len(error["loc"]) == 1 and hasattr(model, "more_keys"):
            known = [*known, *model.more_keys()]
        near = difflib.get_close_matches(str(error["loc"][-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
        return f"{where}: unknown key {place}; {hint}"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {place}: {message}" if place else f"{where}: {message}"


def _fields_at(model: Any, loc: tuple) -> list[str]:
    """Field names of the section that an error location points into."""
    for part in loc:
        if isinstance(part, int) or part not in getattr(model, "model_fields", {}):
            continue
        annotation = model.model_fields[part].annotation
        inner = [a for a in getattr(annotation, "__args__", ()) if hasattr(a, "model_fields")]
        model = inner[0] if inner else annotation
    return list(getattr(model, "model_fields", {}))


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """A YAML file as it stands, not validated. what: it is called. UsageError where it is missing, unreadable or no mapping."""
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UsageError(f"there is no {what} {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise UsageError(f"cannot read the {what} {path}: {str(e).splitlines()[0]}") from None
    if not isinstance(data, dict):
        raise UsageError(f"the {what} {path} is not a mapping of keys: start from the documented default {what}")
    return data

"""The registry of ops: found by a plain name (built in, or an installed package's entry point) or as `package.module:Name`, and
built from what a recipe says of them. The contract that they keep is `vfm_ops.op`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from vfm_ops.errors import UsageError, VfmError
from vfm_ops.op import Op, validated_settings

BUILT_IN = "vfm_ops.ops"
ENTRY_POINTS = "vfm.ops"


def known_ops() -> dict[str, str]:
    """Where each op that has a plain name lies, as `package.module:Name`: built in, or of an installed package's entry point
    `vfm.ops`. Nothing is imported but the built-in ops' modules. UsageError where two have one name.
    """
    found = dict(_built_in())
    for point in entry_points(group=ENTRY_POINTS):
        if found.get(point.name, point.value) != point.value:
            raise UsageError(
                f"two ops are named {point.name}: {found[point.name]} and {point.value}; uninstall one of them"
            )
        found[point.name] = point.value
    return found


def load_op(entry: str | Mapping[str, Any] | Op) -> Op:
    """Builds an op from what a recipe says of it.

    Args:
        entry: a name, `package.module:Name`, or one of these with its settings: {name: {setting: value}}, or {name: value} for
            the op's main setting. An Op is given back as it is.

    Returns:
        The op, its settings validated.

    Raises:
        UsageError: no such op, one that can't be imported or built, or wrong settings; the sentence names the op.
    """
    if isinstance(entry, Op):
        return entry
    found, settings = parse_entry(entry)
    if isinstance(found, Op):
        return found
    try:
        return found(**settings)
    except VfmError:
        raise
    except Exception as error:
        name = next(iter(entry)) if isinstance(entry, Mapping) else entry
        raise UsageError(f"op {name} can't be built: {type(error).__name__}: {error}") from error


def parse_entry(entry: str | Mapping[str, Any]) -> tuple[type[Op] | Op, dict[str, Any]]:
    """The op that a recipe's entry names, not built yet, and its settings, by name. UsageError as `load_op`."""
    if isinstance(entry, Mapping):
        if len(entry) != 1:
            raise UsageError(
                f"an op is one name with its settings, not {len(entry)}: {', '.join(map(str, entry)) or '{}'}"
            )
        ((name, settings),) = entry.items()
    else:
        name, settings = entry, {}
    found = find_op(str(name))
    if isinstance(found, Op):
        if settings:
            raise UsageError(f"op {name} is a function and has no settings: write a class for one that has")
        return found, {}
    if not isinstance(settings, Mapping):
        if found.main is None:
            raise UsageError(f"op {name} has no main setting: write its settings as {name}: {{setting: value}}")
        settings = {found.main: settings}
    validated_settings(found.name, found.Settings, settings)
    return found, dict(settings)


def find_op(name: str) -> type[Op] | Op:
    """The op of a name or of `package.module:Name`, not built yet: its class, or the object that a decorator made.

    Raises:
        UsageError: there is none, it can't be imported, or it is no op.
    """
    where = name if ":" in name else known_ops().get(name)
    if where is None:
        near = difflib.get_close_matches(name, known_ops(), n=1)
        hint = (
            f"did you mean {near[0]}?"
            if near
            else f"there are {', '.join(sorted(known_ops()))}, or package.module:Name"
        )
        raise UsageError(f"there is no op {name!r}: {hint}")
    module, _, attribute = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UsageError(f"op {name}: there is no module {error.name}; is its package installed here?") from error
    except AttributeError as error:
        raise UsageError(f"op {name}: {module} has no {attribute}") from error
    except Exception as error:
        raise UsageError(f"op {name}: {module} can't be imported: {type(error).__name__}: {error}") from error
    if isinstance(found, Op) or (isinstance(found, type) and issubclass(found, Op)):
        return found
    raise UsageError(
        f"op {name}: {attribute} of {module} is no op: derive it from vfm_ops.op.Op, or decorate it with @op"
    )


@cache
def _built_in() -> dict[str, str]:
    found = {}
    for info in pkgutil.iter_modules(importlib.import_module(BUILT_IN).__path__):
        module = importlib.import_module(f"{BUILT_IN}.{info.name}")
        for attribute, value in vars(module).items():
            if (
                isinstance(value, type)
                and issubclass(value, Op)
                and value.__module__ == module.__name__
                and "name" in vars(value)
            ):
                found[value.name] = f"{module.__name__}:{attribute}"
    return found

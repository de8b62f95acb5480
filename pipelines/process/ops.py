"""The ops of a recipe in a lake: what each is called there, the columns or table that it fills, and the keys of its values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipelines.cluster import has_ray
from pipelines.lake import SCHEMAS, Lake
from pipelines.lake.coverage import cover, covered
from pipelines.lake.keys import op_keys, record_keys
from pipelines.lake.schema import ERROR, facts_of, table_schema
from pipelines.lake.sql import equals, literal
from pipelines.process.recipe import Recipe, split_entry
from vfm_ops.errors import UsageError
from vfm_ops.models.device import resolve_device
from vfm_ops.op import Op, Resources
from vfm_ops.op_registry import load_op

# Of format 1, which did not say what they are of: whoever asks for these ops takes the values that are there.
_ADOPTED = ("phash", "quality")


@dataclass(frozen=True)
class PlannedOp:
    """An op of a recipe, as it is in one lake.

    title: what it is called there. fields: columns of `frames` that it fills; an op with a table fills the number of its rows.
    key: of its values. keep_key: of its decisions, where it is a filter, else empty. resources: actors of its own, if it has
    any.
    """

    title: str
    op: Op
    fields: tuple[pa.Field, ...]
    key: str
    keep_key: str
    resources: Resources | None = None

    @property
    def says(self) -> str:
        """How messages call it."""
        spec = facts_of(self.fields[0]).get("spec") if self.fields else None
        return spec or f"op {self.title}"

    @property
    def judges_columns(self) -> bool:
        """Whether its decisions follow from columns that it has filled, without a picture."""
        return bool(self.keep_key and self.fields)

    @property
    def count(self) -> pa.Field | None:
        """The column with the number of its rows, for an op with a table."""
        return self.fields[0] if self.op.table is not None and not self.op.on_videos else None

    def row(self, adopted: bool = False) -> dict[str, Any]:
        """Its row of `keys`."""
        op = self.op
        return {
            "op": self.title,
            "key": self.key,
            "name": op.name,
            "version": op.version,
            "settings": _settings(op),
            "digest": op.digest(),
            "unit": op.unit,
            "table": op.table.name if op.table else None,
            "columns": [f.name for f in self.fields],
            "reads": list(op.columns),
            "adopted": adopted,
            "recorded_at": datetime.now(UTC),
        }


def plan_ops(recipe: Recipe, known: Iterable[pa.Field], threads: int | None = None) -> list[PlannedOp]:
    """The ops of a recipe, in order. known: the fields that `frames` has.

    Raises UsageError for an op that can't be had, is named twice, reads a column that nothing before it adds, or names a column
    or table that is another's.
    """
    there = {field.name: field for field in [*SCHEMAS["frames"], *known]}
    keys: dict[str, str] = {}  # of columns, by the ops of this recipe
    planned: list[PlannedOp] = []
    for entry in recipe.ops:
        one = _planned(entry, recipe, there, keys, threads)
        if any(one.title == other.title for other in planned):
            raise UsageError(
                f"{one.says} is in the recipe twice: call one of them something else, with `as` in its settings"
            )
        for field in one.fields:
            if field.name in keys:
                raise UsageError(
                    f"{one.says} adds column {field.name}, as an op before it does: give it another name with `as`"
                )
            _check_owner(one, field, there.get(field.name))
            there[field.name] = field
            keys[field.name] = one.key
        planned.append(one)
    return planned


def _planned(
    entry: str | dict[str, Any],
    recipe: Recipe,
    there: Mapping[str, pa.Field],
    keys: Mapping[str, str],
    threads: int | None,
) -> PlannedOp:
    alias, resources, entry = split_entry(entry)
    op = load_op(entry)
    resources = resources or op.resources
    device = resources.device if resources else recipe.resources.device
    if not has_ray():  # a node of a cluster may have no card: it only describes the models that others run
        resolve_device(device)
    op.place(device, threads and resources.cpus if resources else threads)
    op.deadline_s = (resources and resources.deadline_s) or recipe.resources.deadline_s
    if lacking := [name for name in op.columns if name not in there]:
        raise UsageError(f"op {op.name} reads column {lacking[0]}: put an op or model that adds it before it")
    if op.on_videos or op.needs is not None:
        inputs = {"pictures": recipe.video_key if op.on_videos else recipe.picture_key}
    else:
        inputs = {}
    inputs |= {name: keys.get(name) or facts_of(there[name]).get("key", "") for name in op.columns}
    if alias:  # two of a kind may differ in nothing else, and have columns of their own all the same
        inputs["as"] = alias
    key = op.key(inputs)
    if op.table is not None:
        _check_table(op)
    fields = _fields(op, alias, there, key)
    embeds = any("spec" in facts_of(f) for f in fields)
    title = alias or (fields[0].name if embeds else op.name)
    if not title.isidentifier():
        raise UsageError(f"op {op.name!r} has no fit name: letters, digits and _ only, or call it something with `as`")
    return PlannedOp(title, op, fields, key, op.keep_key(inputs) if op.filters else "", resources)


def _fields(op: Op, alias: str, there: Mapping[str, pa.Field], key: str) -> tuple[pa.Field, ...]:
    """Columns of `frames`, with what made them as metadata."""
    facts = {"op": alias or op.name, "version": str(op.version), "digest": op.digest(), "key": key}
    facts["settings"] = _settings(op)
    facts["reads"] = "pictures" if op.needs is not None else "columns"
    if op.on_videos:
        return ()
    if op.table is not None:
        name = f"{alias}_count" if alias else f"{op.table.name}_count"
        return (pa.field(name, pa.int32(), metadata=facts),)
    fields = op.fields(there.values())
    if alias:
        names = [alias] if len(fields) == 1 else [f"{alias}_{f.name}" for f in fields]
        fields = [f.with_name(name) for f, name in zip(fields, names)]
    return tuple(f.with_metadata(facts if not f.metadata else {**f.metadata, b"key": key.encode()}) for f in fields)


def _settings(op: Op) -> str:
    """Settings other than the defaults, without those that change no value, as JSON."""
    return json.dumps(op.settings.given(op.unkeyed), sort_keys=True)


def _check_owner(one: PlannedOp, field: pa.Field, stored: pa.Field | None) -> None:
    """UsageError for a column that is the lake's own, another op's or a model's."""
    if stored is None:
        return
    facts, mine = facts_of(stored), facts_of(field)
    if field.name in _ADOPTED and one.title == field.name:
        return
    if facts.get("spec") != mine.get("spec") or facts.get("op") != mine.get("op"):
        owner = f"op {facts['op']}'s" if "op" in facts else f"{facts['spec']}'s" if "spec" in facts else "the lake's"
        raise UsageError(f"{one.says} adds column {field.name}, which is {owner}: give it another name")


def _check_table(op: Op) -> None:
    assert op.table is not None
    schema, stored = table_schema(op.table, op.unit), SCHEMAS.get(op.table.name)
    taken = stored is not None and (
        op.table.name not in ("detections", "tracks") or set(schema.names) - set(stored.names)
    )
    if taken or not op.table.name.isidentifier():
        raise UsageError(
            f"op {op.name} has a table {op.table.name!r}, which is the lake's own or no name: call it something else"
        )


def prepare(lake: Lake, planned: list[PlannedOp]) -> None:
    """Makes the columns and tables of ops exist, and says what their values are of. Values of another key go."""
    stored = op_keys(lake)
    schema = lake.schema("frames")
    changed = []
    for one in planned:
        before = stored.get(one.title)
        if before is None:
            there = [schema.field(f.name) for f in one.fields if f.name in schema.names]
            adopted = bool(there) and all(_same_facts(old, new) for old, new in zip(there, one.fields))
            if there and not adopted:
                forget_values(lake, one.title, [f.name for f in one.fields])
            changed.append(one.row(adopted))
        elif before["key"] != one.key:
            if (
                adopted := before["adopted"]
                and before["digest"] is None
                and before["settings"] == one.row()["settings"]
            ):
                _take_over(lake, one, before["key"])
            else:
                forget_op(lake, before)
            changed.append(one.row(bool(adopted)))
    for table in ("frames", "dropped"):
        lake.ensure(table, [f for one in planned for f in one.fields])
    for one in planned:
        if one.op.table is not None:
            lake.ensure(one.op.table.name, table_schema(one.op.table, one.op.unit))
    record_keys(lake, changed)


def _take_over(lake: Lake, one: PlannedOp, key: str) -> None:
    """Values of an older format, of which no more than the settings is known, count as those of the op."""
    if one.op.on_videos:
        for table in ("ledger", "quarantine"):
            lake.update(table, {"recipe": literal(one.key)}, f"{equals('recipe', key)} AND {equals('op', one.title)}")
    else:
        cover(lake, {one.key: one.title}, covered(lake, [key])[key], "migration")


def _same_facts(stored: pa.Field, field: pa.Field) -> bool:
    """Whether values that no row of `keys` speaks of are those of an op, by what its column says."""
    old, new = facts_of(stored), facts_of(field)
    if stored.name in _ADOPTED:
        return True
    return all(old.get(k) == new.get(k) for k in ("version", "settings", "digest", "preprocess") if k in old)


def forget_op(lake: Lake, key: Mapping[str, Any]) -> None:
    """Removes the values of an op, by its row of `keys`: what it covered first, so that a kill in between forgets nothing."""
    decisions = [r["op_key"] for r in lake.read("dropped", ["op_key"], equals("op", key["op"])).to_pylist()]
    lake.delete("coverage", "key", {key["key"], *filter(None, decisions)})
    if key["table"] and lake.dataset(key["table"]) is not None:
        lake.delete(key["table"], "op", [key["op"]])
    if key["unit"] != "frame":
        for table in ("ledger", "quarantine"):
            lake.delete(table, "op", [key["op"]])
    forget_values(lake, key["op"], key["columns"] or [])


def drop_op(lake: Lake, key: Mapping[str, Any]) -> None:
    """As `forget_op`, for good: nothing is recorded of the op any more."""
    forget_op(lake, key)
    record_keys(lake, [{**key, "key": ""}])


def forget_values(lake: Lake, title: str, columns: list[str]) -> None:
    """Drops columns of frames, and the reasons why they had no value."""
    for table in ("frames", "dropped"):
        names = [name for name in columns if name in lake.schema(table).names]

        def drop(dataset: Any, names: list[str] = names) -> None:
            dataset.drop_columns(names)

        def landed(dataset: Any, names: list[str] = names) -> bool:
            return not set(names) & set(dataset.schema.names)

        if names and lake.dataset(table) is not None:
            lake.change(table, f"drop columns of op {title} of", drop, landed)
    _forget_errors_in(lake, columns)


def forget_errors(lake: Lake, planned: PlannedOp) -> None:
    """Makes the frames that an op failed on pending again for it."""
    lake.delete("coverage", "key", [planned.key])
    _forget_errors_in(lake, [field.name for field in planned.fields])


def _forget_errors_in(lake: Lake, columns: list[str]) -> None:
    """Makes frames that have no value of these columns, for a reason, pending again. Other columns' reasons in the same rows
    go, too: they are found again."""
    if not columns or ERROR.name not in lake.schema("frames").names:
        return
    told = " OR ".join(f"contains({ERROR.name}, {literal(json.dumps(name))})" for name in columns)
    lake.update("frames", {ERROR.name: "NULL"}, told)


def coverage_keys(planned: Iterable[PlannedOp]) -> dict[str, str]:
    """The keys that an asset is covered under once its frames have passed these ops, each with the op's title."""
    frames = [one for one in planned if not one.op.on_videos]
    keys = {one.key: one.title for one in frames if one.fields}
    return keys | {one.keep_key: one.title for one in frames if one.keep_key}


def decided_by(planned: Iterable[PlannedOp]) -> dict[str, str]:
    """Of each filter, by title, the key of its decisions."""
    return {one.title: one.keep_key for one in planned if one.keep_key}

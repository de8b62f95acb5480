"""Columns of a table, however deep they lie: which one holds the media, and the values of one, whatever its encoding.

Tables come from pandas, polars, `datasets`, DataFusion, Spark: a value may be dictionary-encoded (a categorical), a view, of
a fixed size, an extension type, a field of a struct, an element of a list.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.sources.kinds import IMAGE, VIDEO, words
from vfm_ops.errors import UsageError

_MEDIA_NAMES = words("image images img imgs picture photo jpg jpeg png webp video videos mp4 bytes content data media")
_PATH_NAMES = words(
    """uri url path file filename file_name filepath file_path image_path video_path
    paths files filenames file_names image_paths video_paths"""
)
_AUDIO_NAMES = words("audio audios sound speech wav mp3")
_MOST_LEVELS = 16  # of nested types: a schema is anybody's


@dataclass(frozen=True)
class Leaf:
    """A column of values: `sample.image.bytes`.

    steps: names from the top. type: of a value. lists: how many lists it lies in. number: its place among all leaves, which
    is parquet's own numbering of columns.
    """

    steps: tuple[str, ...]
    type: pa.DataType
    lists: int
    number: int

    @property
    def name(self) -> str:
        """Names of its levels, joined by dots."""
        return ".".join(self.steps)


@dataclass(frozen=True)
class MediaColumn:
    """The column that holds the media: encoded bytes, or paths.

    paths: beside bytes, the names that tell their type, and that stand in for them in a row where they are null, as
    `datasets` writes files that it did not embed. media_type: where the column says it.
    """

    leaf: Leaf
    holds: str  # 'bytes' or 'paths'
    paths: Leaf | None = None
    media_type: str | None = None


def leaves(schema: pa.Schema) -> list[Leaf]:
    """Every column of values of a schema, in order."""
    found = [item for field in schema for item in _descend(field.type, (field.name,), 0)]
    return [Leaf(steps, type_, lists, number) for number, (steps, type_, lists) in enumerate(found)]


def find_leaf(found: Iterable[Leaf], wanted: str) -> Leaf | None:
    """The leaf of this name; else the only one that ends so: `text` finds `sample.text`."""
    found = list(found)
    exact = [leaf for leaf in found if leaf.name == wanted]
    inner = [leaf for leaf in found if leaf.name.endswith(f".{wanted}")]
    return exact[0] if exact else inner[0] if len(inner) == 1 else None


def media_column(schema: pa.Schema, wanted: str | None, uri: str) -> MediaColumn | None:
    """The column of encoded bytes or of paths: `wanted`, or the first that its type and name give away.

    None when there is none. UsageError when `wanted` is no such column.
    """
    found = [leaf for leaf in leaves(schema) if leaf.lists <= 1]
    if wanted is not None:
        for name in (wanted, f"{wanted}.bytes", f"{wanted}.path"):
            leaf = find_leaf(found, name)
            if leaf is not None and (column := _column(leaf, found, schema)) is not None:
                return column
        raise UsageError(f"{uri} has no column {wanted!r} of bytes or text; it has {column_names(schema)}")
    rules = (
        lambda leaf: is_bytes(leaf.type) and (_thing(leaf) in _MEDIA_NAMES or _hint(schema, leaf) is not None),
        lambda leaf: is_bytes(leaf.type) and leaf.steps[-1] == "bytes" and _paths_beside(leaf, found) is not None,
        lambda leaf: is_bytes(leaf.type) and any(step.lower() in _MEDIA_NAMES for step in leaf.steps[:-1]),
        lambda leaf: is_text(leaf.type) and leaf.steps[-1].lower() in _PATH_NAMES,
        lambda leaf: is_text(leaf.type) and leaf.steps[-1].lower() in ("image", "images", "img", "video", "videos"),
    )
    for rule in rules:
        for leaf in found:
            if _thing(leaf) not in _AUDIO_NAMES and _hint(schema, leaf) != "other" and rule(leaf):
                return _column(leaf, found, schema)
    return None


def column_names(schema: pa.Schema, most: int = 20) -> str:
    """The columns there are, for a message."""
    names = [leaf.name for leaf in leaves(schema)]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more if names else "none"


def is_blob(field: pa.Field) -> bool:
    """Whether Lance keeps a column's bytes apart from the table, as it does for long ones on request."""
    name = getattr(field.type, "extension_name", "")
    return name.startswith("lance.blob") or (field.metadata or {}).get(b"lance-encoding:blob") == b"true"


def values_of(batch: pa.RecordBatch, leaf: Leaf) -> tuple[pa.Array, np.ndarray | None]:
    """A leaf's values, decoded, and the row (int64) of each where it lies in a list; None where each row has one value."""
    whole = leaf.name in batch.schema.names  # as it is, or as Lance hands out a field of a struct
    array, steps = batch.column(leaf.name if whole else leaf.steps[0]), () if whole else leaf.steps[1:]
    rows: np.ndarray | None = None
    for step in (*steps, None):
        array = _decoded(array)
        while _is_list(array.type):
            parents = pc.list_parent_indices(array).to_numpy(zero_copy_only=False)
            rows = parents if rows is None else rows[parents]
            array = _decoded(pc.list_flatten(array))
        if step is not None:
            array = pc.struct_field(array, [array.type.get_field_index(step)])
    return array, rows


def texts_of(array: pa.Array, errors: str) -> list[str | None]:
    """Values as text. errors: what becomes of bytes that are no Unicode: `surrogateescape` for paths, else `replace`."""
    if not is_text(array.type):
        return [None if v is None else str(v) for v in array.to_pylist()]
    try:
        return array.to_pylist()
    except UnicodeDecodeError:  # nobody checks what a writer put there
        data = array.cast(pa.large_binary()).to_pylist()
        return [None if v is None else v.decode("utf-8", errors) for v in data]


def is_bytes(type_: pa.DataType) -> bool:
    """Whether values are byte strings."""
    kinds = pa.types
    return any(is_(type_) for is_ in (kinds.is_binary, kinds.is_large_binary, kinds.is_binary_view)) or (
        kinds.is_fixed_size_binary(type_)
    )


def is_text(type_: pa.DataType) -> bool:
    """Whether values are text."""
    return any(is_(type_) for is_ in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)


def _is_list(type_: pa.DataType) -> bool:
    return any(is_(type_) for is_ in _LISTS)


def _descend(
    type_: pa.DataType, steps: tuple[str, ...], lists: int
) -> Iterator[tuple[tuple[str, ...], pa.DataType, int]]:
    if isinstance(type_, pa.BaseExtensionType):
        # Lance shows a blob as where it lies; `RowReader` reads what lies there.
        type_ = pa.large_binary() if type_.extension_name.startswith("lance.blob") else type_.storage_type
    if pa.types.is_dictionary(type_) or pa.types.is_run_end_encoded(type_):
        type_ = type_.value_type
    if len(steps) + lists > _MOST_LEVELS:
        raise UsageError(f"its column {steps[0]!r} has more than {_MOST_LEVELS} levels")
    if pa.types.is_struct(type_):
        for field in type_:
            yield from _descend(field.type, (*steps, field.name), lists)
    elif _is_list(type_):
        yield from _descend(type_.value_type, steps, lists + 1)
    elif pa.types.is_map(type_):  # pairs in a list in parquet; no place for media
        yield from _descend(type_.key_type, (*steps, "key"), lists + 2)
        yield from _descend(type_.item_type, (*steps, "value"), lists + 2)
    else:
        yield steps, type_, lists


def _decoded(array: pa.Array) -> pa.Array:
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def _column(leaf: Leaf, found: list[Leaf], schema: pa.Schema) -> MediaColumn | None:
    if is_text(leaf.type):
        return MediaColumn(leaf, "paths")
    if not is_bytes(leaf.type):
        return None
    hint = _hint(schema, leaf)
    return MediaColumn(
        leaf, "bytes", _paths_beside(leaf, found), hint if hint in ("image", "video") else _hint_by_name(leaf)
    )


def _paths_beside(leaf: Leaf, found: list[Leaf]) -> Leaf | None:
    beside = (*leaf.steps[:-1], "path")
    return next((f for f in found if f.steps == beside and is_text(f.type) and len(beside) > 1), None)


def _thing(leaf: Leaf) -> str:
    """What a leaf is of: `image` for `sample.image.bytes`."""
    wrapped = len(leaf.steps) > 1 and leaf.steps[-1].lower() in ("bytes", "content", "data", "path")
    return leaf.steps[-2 if wrapped else -1].lower()


def _hint(schema: pa.Schema, leaf: Leaf) -> str | None:
    """Media type that `datasets` wrote into the schema's metadata, `other` for another feature (Audio), None for none.

    {"info": {"features": {NAME: {"_type": "Image"}}}}; in a list [{"_type"}] or {"feature": {"_type"}, "_type": "List"}.
    """
    try:
        feature = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        for step in leaf.steps:
            while isinstance(feature, list) or "feature" in feature:
                feature = feature[0] if isinstance(feature, list) else feature["feature"]
            feature = feature.get(step, feature) if "_type" not in feature else feature
        while isinstance(feature, list) or "feature" in feature:
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return {"Image": "image", "Video": "video", "Audio": "other"}.get(feature["_type"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, RecursionError):
        return None


def _hint_by_name(leaf: Leaf) -> str | None:
    thing = _thing(leaf)
    if thing in ("image", "images", "img", "imgs", "picture", "photo") or thing in IMAGE:
        return "image"
    return "video" if thing in ("video", "videos") or thing in VIDEO else None

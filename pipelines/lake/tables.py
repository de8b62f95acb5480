"""A lake as a notebook meets it: `lake.frames` is a table that shows its first rows, and that other engines read.

    lake = Lake.open("lake")
    lake                                                    # what it holds
    lake.frames                                             # the first rows, with their pictures
    lake.frames.to_pandas("width > 640", ["frame_id", "pts_s"])
    duckdb.sql("SELECT count(*) FROM frames")               # where frames = lake.frames

All rows come by `Lake.scan`, `read` and `count`, so that a table here is what every other part of the product sees.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from importlib import import_module
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipelines.lake.arrow import Readable, arrow_reader, schema_with
from pipelines.lake.schema import SCHEMAS, facts_of
from vfm_ops.errors import UsageError, VfmError

if TYPE_CHECKING:
    from pipelines.lake.torch_rows import TorchRows

PICTURE = "jpeg"
SHOWN_ROWS = 5  # in a notebook
_SHOWN_LAST = ("run_key", PICTURE)  # what nobody looks at first, and what is shown as a thumbnail


class Table:
    """One table of a lake. Nothing is read before it is asked for, and each question sees the newest version.

    Any engine that takes Arrow's PyCapsule streams takes it as it is: `pyarrow.table(t)`, `polars.DataFrame(t)`,
    `duckdb.sql("SELECT * FROM t")`; so seen, it has no column `jpeg`, and float16 is float32.

    Example:
        >>> lake = Lake.open("lake")
        >>> len(lake.frames)
        >>> lake.frames.to_pandas(where="width >= 640", columns=["frame_id", "width"])
    """

    def __init__(self, lake: Readable, name: str) -> None:
        self.lake, self.name = lake, name

    # -- what it holds ---------------------------------------------------------------------------------------------

    @property
    def dataset(self) -> Any:
        """The Lance dataset at its newest version, for what only Lance can do. UsageError while the table has no rows."""
        found = self.lake.dataset(self.name)
        if found is None:
            raise UsageError(f"table {self.name} of {self.lake.root} was never written to: it has no dataset yet")
        return found

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema, the columns that models and ops added included."""
        return schema_with(self.lake, self.name, ())

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.schema.names)

    def __len__(self) -> int:
        return self.lake.count(self.name)

    def __bool__(self) -> bool:
        return True  # a table that is empty is still there; without this, `if table` would count its rows

    def count(self, where: str | None = None) -> int:
        """Number of rows for which the SQL condition holds. UsageError when it does not fit the columns."""
        return self.lake.count(self.name, where)

    # -- to other engines ------------------------------------------------------------------------------------------

    def to_pandas(self, where: str | None = None, columns: list[str] | None = None, limit: int | None = None) -> Any:
        """The rows as a pandas DataFrame, in memory.

        Args:
            where: SQL over the table's columns, such as `"width >= 640 AND quality.sharpness > 20"`.
            columns: Names, in the order wanted; None gives all but `jpeg`, which is most of the bytes.
            limit: At most so many rows; None gives all.

        Returns:
            `pandas.DataFrame`; a vector is a numpy array in its cell.

        Raises:
            UsageError: A column that is not there, or a condition that does not fit.
        """
        return self.to_arrow(where, columns, limit).to_pandas()

    def to_arrow(
        self, where: str | None = None, columns: list[str] | None = None, limit: int | None = None
    ) -> pa.Table:
        """The rows as a `pyarrow.Table`, in the types that are stored. Arguments and errors as of `to_pandas`."""
        options = {} if limit is None else {"limit": limit}
        return self.lake.read(self.name, self._names(columns), where, **options)

    def to_polars(self, where: str | None = None, columns: list[str] | None = None) -> Any:
        """The rows as a `polars.DataFrame`, float16 as float32. Arguments as of `to_pandas`.

        Raises:
            UsageError: As `to_pandas`, and where polars is not installed.
        """
        return _optional("polars").DataFrame(self._stream(where, columns))

    def to_duckdb(self, where: str | None = None, columns: list[str] | None = None, connection: Any = None) -> Any:
        """A DuckDB relation over the rows. They are streamed anew by each query; vectors are FLOAT arrays.

        Args:
            where: SQL that Lance answers, by its indices, before a row leaves it.
            columns: Those that queries need; None gives all but `jpeg`.
            connection: A `duckdb` connection; None is the one that `duckdb.sql` uses.

        Returns:
            `duckdb.DuckDBPyRelation`.

        Raises:
            UsageError: As `to_pandas`, and where DuckDB is not installed.

        Example:
            >>> frames = lake.frames.to_duckdb(columns=["asset_id", "quality"])
            >>> frames.aggregate("asset_id, avg(quality.sharpness)").df()
        """
        duckdb = _optional("duckdb")
        return (connection or duckdb).from_arrow(self._stream(where, columns))

    def to_torch(
        self,
        where: str | None = None,
        columns: list[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        *,
        shuffle: bool = False,
        seed: int = 0,
    ) -> TorchRows:
        """The rows as a PyTorch `IterableDataset` of dicts, read in blocks as they are asked for.

        A `DataLoader`'s workers share the rows out among themselves, each row once. Give it
        `multiprocessing_context="spawn"`: in a forked process Lance may wait for ever, so there it is refused. Rows that are
        written later are not seen: the version is the one of this call. A picture that does not decode is left out.

        Args:
            where: SQL over the table's columns. A null can't be put into a batch: `"label IS NOT NULL"`.
            columns: Names. `jpeg` comes decoded, as `image`: uint8 (3, H, W), RGB; vectors are float32 tensors, all else is
                as Python has it. None gives `jpeg`, with the row's id, where there are pictures; else all columns.
            transform: Called with each image, such as one of `torchvision.transforms.v2`.
            shuffle: Visits the rows in an order of `seed` and of the dataset's `set_epoch`.
            seed: Of the order.

        Returns:
            A dataset whose `len` is the number of rows.

        Raises:
            UsageError: A column that is not there, a condition that does not fit, a transform without pictures.

        Example:
            >>> rows = lake.frames.to_torch(columns=["jpeg"], transform=v2.Resize((224, 224)), shuffle=True)
            >>> for batch in torch.utils.data.DataLoader(rows, batch_size=64):
            ...     batch["image"].shape
        """
        from pipelines.lake.torch_rows import TorchRows

        if columns is None:
            columns = [self.columns[0], PICTURE] if PICTURE in self.columns else self.columns
        schema_with(self.lake, self.name, columns)
        return TorchRows(self.lake, self.name, columns, where, transform, shuffle, seed)

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._stream(None, None).__arrow_c_stream__(requested_schema)

    def __arrow_c_schema__(self) -> Any:
        # DuckDB asks for it first, and would otherwise take `schema`, whose float16 it refuses.
        return arrow_reader(self.lake, self.name, self._names(None)).schema.__arrow_c_schema__()

    def _stream(self, where: str | None, columns: list[str] | None) -> _Stream:
        names = self._names(columns)
        if where is not None:
            self.lake.count(self.name, where)  # here, so that what is wrong with it is said in our words
        return _Stream(self.lake, self.name, names, where)

    def _names(self, columns: list[str] | None) -> list[str]:
        schema = schema_with(self.lake, self.name, columns or ())
        return [name for name in schema.names if name != PICTURE] if columns is None else list(columns)

    # -- to a reader -----------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"Table {self.name} of {self.lake.root}: {len(self)} rows of {', '.join(self.columns)}"

    def _repr_html_(self) -> str:
        from pipelines.lake.html import table_html, thumbnail_html

        names = self.columns
        shown = [name for name in names if name not in _SHOWN_LAST]
        rows = self.lake.read(self.name, None, limit=SHOWN_ROWS).to_pylist()
        pictures = PICTURE in names
        cells = [
            ([thumbnail_html(row[PICTURE])] if pictures else []) + [row.get(name) for name in shown] for row in rows
        ]
        caption = f"{self.name}: {len(self)} rows" + (f", the first {len(rows)}" if len(rows) == SHOWN_ROWS else "")
        return table_html(caption, [*(["picture"] if pictures else []), *shown], cells)


class _Stream:
    """Rows for an engine that may ask for them again: each question of its opens the table anew."""

    def __init__(self, lake: Readable, table: str, columns: list[str], where: str | None) -> None:
        self._asked = lake, table, columns, where

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return arrow_reader(*self._asked).__arrow_c_stream__(requested_schema)


def _optional(module: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise UsageError(f"{module} is not installed: pip install {module}") from None


class Tables(Readable):
    """What `Lake` shows of itself: its tables by name, and a text of what they hold."""

    assets: Table
    shots: Table
    frames: Table
    detections: Table
    tracks: Table
    selections: Table
    ledger: Table
    quarantine: Table
    runs: Table

    if TYPE_CHECKING:

        @property
        def annotations(self) -> Table:
            """See `pipelines.lake.annotations.Annotated`."""

    if not TYPE_CHECKING:  # a type checker knows the tables above, and that all else is a mistake

        def __getattr__(self, name: str) -> Table:
            if name in SCHEMAS or (not name.startswith("_") and "root" in vars(self) and name in self.tables()):
                return Table(self, name)
            raise AttributeError(f"a lake has no table or method {name!r}; its tables are {', '.join(SCHEMAS)}")

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *SCHEMAS})

    def __repr__(self) -> str:
        try:
            held = _held(self)
        except VfmError as error:  # a lake whose store is away still has a name
            return f"Lake {self.root}: {error}"
        width = max((len(name) for name, *_ in held), default=0)
        lines = [f"  {name:<{width}}  {rows:>9,} rows" for name, rows, _ in held]
        lines += [f"  {name}.{column}" for name, _, columns in held for column in columns]
        return "\n".join([f"Lake {self.root}" + ("" if held else ": empty"), *lines])

    def _repr_html_(self) -> str:
        from pipelines.lake.html import Html, table_html

        try:
            held = _held(self)
        except VfmError as error:
            return f"<p>Lake {escape(self.root)}: {escape(str(error))}</p>"
        rows = [(name, f"{rows:,}", Html("<br>".join(map(escape, columns)))) for name, rows, columns in held]
        return table_html(f"Lake {self.root}", ["table", "rows", "columns of models and ops"], rows)


def _held(lake: Tables) -> list[tuple[str, int, list[str]]]:
    """Each table that has rows: its name, how many, and what models and ops added to it."""
    tables = [lake.annotations if name == "annotations" else Table(lake, name) for name in lake.tables()]
    counted = [(table.name, len(table)) for table in tables if table.name != "lease"]
    return [(name, rows, _added(lake.schema(name))) for name, rows in counted if rows]


def _added(schema: pa.Schema) -> list[str]:
    found = []
    for field in schema:
        facts = facts_of(field)
        if "version" in facts or "spec" in facts:  # the columns that every lake has say neither
            maker = f"op {facts['op']} version {facts['version']}" if "op" in facts else facts["spec"]
            size = f", {field.type.list_size} values" if pa.types.is_fixed_size_list(field.type) else ""
            found.append(f"{field.name} by {maker}{size}")
    return found

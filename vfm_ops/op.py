"""The contract of an op: what is computed about a corpus, by us, in a user's file, or in another package.

An op on frames says what it needs to see (`needs`) and what it adds: columns (`adds`), or rows of a table of its own (`table`);
it computes a batch in `run`. The same object is called with pictures in a notebook, by `ds.map_batches` on a Ray dataset, by
`vfm try`, and by a recipe. A row that fails carries an error and costs no other row; a filter drops rows, each with a reason.
An op on videos (`VideoOp`) sees every frame, in order, one on shots (`ShotOp`) some frames of each shot. docs/adding-an-op.md
shows the ways to write one.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vfm_ops.deadline import deadline
from vfm_ops.errors import MediaError, UsageError, VfmError
from vfm_ops.media.images import decode_image
from vfm_ops.media.limits import Limits
from vfm_ops.media.view import View

ERROR, DROPPED, ROWS = "error", "dropped", "rows"
IMAGE_COLUMNS = ("image", "jpeg", "bytes")  # where a batch of a dataset has its pictures: arrays, or encoded
NATIVE = View(fit="native")
Pictures = np.ndarray | Sequence[np.ndarray]


class OpError(VfmError):
    """An op broke its contract, whatever the rows: it gave the wrong number, type or shape of values. No row is to blame."""


class Settings(BaseModel):
    """Base of an op's settings: an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def given(self, without: Sequence[str] = ()) -> dict[str, Any]:
        """Those that differ from their defaults, as JSON-able values."""
        return self.model_dump(mode="json", exclude_defaults=True, exclude=set(without))


S = TypeVar("S", bound=Settings)


class Resources(Settings):
    """Actors of an op's own: what each of them gets. Without, an op shares an actor with its neighbours in the recipe."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus: int = Field(1, gt=0)
    gpus: float = Field(0.0, ge=0)  # a fraction shares a card
    memory_mb: int | None = Field(None, gt=0)
    deadline_s: float | None = Field(None, gt=0)  # of one batch, or chunk of a video; None: the recipe's
    custom: dict[str, float] = {}  # Ray's custom resources, such as {"accelerator_a": 0.5}
    actors: int | tuple[int, int] | None = None  # how many, fixed or (min, max); None: as many as find room


@dataclass(frozen=True)
class Table:
    """A table of an op's own, with any number of rows for each frame (or of a video). A lake puts before its columns whose the
    rows are: `row_id`, the frame, the asset, and the op.

    name: of the table. columns: with their Arrow types. id, prefix: the column that names a row of a frame op's table, and what
    stands before a row's number in it, the op's name by default.
    """

    name: str
    columns: Mapping[str, pa.DataType]
    id: str = "row_id"
    prefix: str = ""


@dataclass(frozen=True)
class Result:
    """What an op made of N rows.

    columns: an Arrow array of N for each of the op's `adds`, null where the row has an error. errors: a sentence, or None.
    dropped: why a filter drops the row, or None; a dropped row keeps its values. rows: for each, those of the op's table, None
    where the row has an error; None altogether for an op without a table.
    """

    columns: dict[str, pa.Array]
    errors: list[str | None]
    dropped: list[str | None]
    rows: list[list[dict[str, Any]] | None] | None = None

    def table(self) -> pa.Table:
        """The columns, then `error` and `dropped` (both strings, null where all is well)."""
        notes = {ERROR: pa.array(self.errors, pa.string()), DROPPED: pa.array(self.dropped, pa.string())}
        rows = {} if self.rows is None else {ROWS: pa.array(self.rows)}
        return pa.table({**self.columns, **rows, **notes})


class Op:
    """Base of ops on frames. A subclass states the facts below and computes a batch in `run`; what takes long to build, such as
    a model, is built in `__init__`, once in each process that runs the op.

    name: what recipes and tables call it. version: raised by hand when its values change. adds: the columns, with their Arrow
    types. table: instead, rows of a table of its own. needs: how the pictures are to be cut and sized for it; None where it
    reads columns alone. columns: those of the row that it reads, given to `run` by name. main: the setting that a bare text
    stands for. bounds: settings that only `keep` looks at. unkeyed: settings that change no value, such as a batch size.
    resources: actors of its own, which a recipe's `resources` replaces. deadline_s: set by a recipe; a batch that takes longer
    fails. one_thread: on CPUs, several workers of one thread are faster than one of several threads. runtime: what
    computes it, such as torch or openvino, where it says so. device, threads: where to run, once `place` has told it.

    Args:
        settings: values of `Settings`, by name.

    Raises:
        UsageError: a setting is unknown or wrong.

    Example:
        >>> class Bright(Op):
        ...     name, adds, needs = "bright", {"luma": pa.float32()}, View(64)
        ...     def run(self, images_BHWC):
        ...         return {"luma": images_BHWC.mean(axis=(1, 2, 3)) / 255}
        >>> Bright()([np.full((90, 120, 3), 255, np.uint8)])["luma"].to_pylist()
        [1.0]
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    adds: ClassVar[Mapping[str, pa.DataType]] = {}
    needs: ClassVar[View | None] = NATIVE
    table: ClassVar[Table | None] = None
    columns: ClassVar[tuple[str, ...]] = ()
    main: ClassVar[str | None] = None
    bounds: ClassVar[tuple[str, ...]] = ()
    unkeyed: ClassVar[tuple[str, ...]] = ()
    unit: ClassVar[str] = "frame"
    on_videos: ClassVar[bool] = False
    resources: Resources | None = None
    deadline_s: float | None = None
    one_thread: bool = False
    runtime: str = ""
    device: str = "auto"
    threads: int | None = None
    Settings: ClassVar[type[Settings]] = Settings

    def __init__(self, **settings: Any) -> None:
        self.settings = validated_settings(self.name, self.Settings, settings)

    def run(self, *pictures: Any, **columns: Any) -> Any:
        """Computes a batch of B rows; what a subclass writes.

        Args:
            pictures: one argument, absent where `needs` is None: uint8 RGB (B, H, W, 3) in the size of `needs`, or a list of B
                arrays (H, W, 3) where that leaves each its own.
            columns: each of `columns`, a list of B values.

        Returns:
            {column: B values} for `adds`; the values alone where there is but one column. A filter, which adds nothing: B
            booleans, True for rows to keep, or B reasons to drop them (None to keep). One that measures too returns both, as
            a pair (values, keep). An op with a table: B lists of rows, each a dict of the table's columns.
        """
        raise NotImplementedError(f"op {self.name} has no method run")

    def keep(self, *_: Any, **values: Any) -> Any:
        """What a subclass writes that measures and filters by `bounds`: from a list of B values of each of its columns, B
        booleans or reasons, as `run` of a filter. With other bounds, rows are judged anew and nothing is measured again.
        """
        raise NotImplementedError(f"op {self.name} has no method keep")

    @property
    def filters(self) -> bool:
        """Whether it may drop rows by what it measured (`keep`), or since it adds nothing and can only decide."""
        judges = type(self).keep is not Op.keep and any(getattr(self.settings, b) is not None for b in self.bounds)
        return judges or (not self.on_videos and not self.adds and self.table is None)

    def digest(self) -> str:
        """Of the weights and prompts that the values depend on, as hex; empty where there are none."""
        return ""

    def place(self, device: str, threads: int | None) -> None:
        """Told once, before the first batch, where to run: auto, cpu or cuda, and how many threads are its own."""
        self.device, self.threads = device, threads

    def fields(self, known: Iterable[pa.Field] = ()) -> list[pa.Field]:
        """The columns that it fills in a lake, with what one should know of them as metadata. known: those that are there."""
        return [pa.field(name, type) for name, type in self.adds.items()]

    def key(self, inputs: Mapping[str, str] | None = None) -> str:
        """What decides its values, as hex: name, version, settings that differ from their defaults, digest, and the keys of
        what it reads. A release that adds a setting with a default changes no key.

        inputs: what it reads, by name, with the key of each.
        """
        return self._hash(self.version, self.settings.given((*self.bounds, *self.unkeyed)), self.digest(), inputs or {})

    def keep_key(self, inputs: Mapping[str, str] | None = None) -> str:
        """What decides which rows it drops: its values, and its bounds."""
        return self._hash(self.key(inputs), self.settings.given(self.unkeyed))

    def _hash(self, *facts: Any) -> str:
        text = json.dumps([self.name, *facts], sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()

    def apply(self, pictures: Pictures | None = None, columns: Mapping[str, Sequence[Any]] | None = None) -> Result:
        """Runs a batch; where it raises, each row alone, so that a bad row costs itself.

        Args:
            pictures: N uint8 RGB pictures of any size, (N, H, W, 3) or a list of (H, W, 3).
            columns: values by name, N each; those that `columns` names are used.

        Returns:
            A Result of N rows.

        Raises:
            UsageError: pictures, or a column that it reads, are missing.
            OpError: it gave the wrong number, type or shape of values.
        """
        return self._applied(self._inputs(pictures, columns or {}), self.needs)

    def apply_seen(self, pictures: Pictures, columns: Mapping[str, Sequence[Any]] | None = None) -> Result:
        """As `apply`, of pictures that are cut and sized as `needs` says already, by a decoder."""
        return self._applied(self._inputs(pictures, columns or {}), NATIVE)

    def apply_batches(self, batches: Iterable[tuple[Pictures, Mapping[str, Sequence[Any]]]]) -> Iterator[Result]:
        """`apply_seen` of each batch of (pictures, columns), in order. A subclass whose runtime works on several at once does
        so.
        """
        for pictures, columns in batches:
            yield self.apply(None, columns) if self.needs is None else self.apply_seen(pictures, columns)

    def _applied(self, inputs: list[Sequence[Any]], view: View | None) -> Result:
        """view: what is still to be done to the pictures."""
        count = max((len(values) for values in inputs), default=0)
        if count == 0:
            return self.without_values([])
        try:
            return self._checked(self._call(inputs, view), count)
        except OpError:
            raise
        except Exception as error:
            if count == 1:
                return self.without_values([_sentence(self.name, error)])
        rows = ([values[i : i + 1] for values in inputs] for i in range(count))
        return joined([self._applied(row, view) for row in rows], self.adds)

    def __call__(self, batch: Any) -> Any:
        """Runs on whatever holds pictures, and gives the same back.

        Args:
            batch: pictures, as `apply` takes them: gives the table of `Result.table`. A batch of a Ray dataset, a dict of numpy
                arrays or an Arrow table, with the pictures in column image (arrays), jpeg or bytes (encoded): gives it back
                with the op's columns and `error`, without the rows that a filter drops.
        """
        if isinstance(batch, pa.Table):
            result = self._on_columns({name: batch[name].to_pylist() for name in self._wanted(batch.schema.names)})
            given = [*result.columns.items(), *([] if result.rows is None else [(ROWS, pa.array(result.rows))])]
            for name, values in [*given, (ERROR, pa.array(result.errors, pa.string()))]:
                batch = batch.drop_columns([name]) if name in batch.schema.names else batch
                batch = batch.append_column(name, values)
            return batch.filter(pa.array([reason is None for reason in result.dropped]))
        if isinstance(batch, Mapping):
            result = self._on_columns({name: list(batch[name]) for name in self._wanted(list(batch))})
            added = {name: values.to_numpy(zero_copy_only=False) for name, values in result.columns.items()}
            if result.rows is not None:
                added[ROWS] = np.fromiter(result.rows, object, len(result.rows))
            kept = np.array([reason is None for reason in result.dropped], bool)
            whole = {**batch, **added, ERROR: np.array(result.errors, object)}
            return {name: np.asarray(values)[kept] for name, values in whole.items()}
        return self.apply(batch).table()

    def _wanted(self, names: Sequence[str]) -> list[str]:
        pictures = next((n for n in IMAGE_COLUMNS if n in names), None)
        if self.needs is not None and pictures is None:
            raise UsageError(f"op {self.name} needs pictures: give a column {', '.join(IMAGE_COLUMNS[:-1])} or bytes")
        return [*([pictures] if self.needs is not None and pictures else []), *(n for n in self.columns if n in names)]

    def _on_columns(self, columns: dict[str, list[Any]]) -> Result:
        """columns: the pictures first, where it needs them. A picture that does not decode is an error of its row."""
        if self.needs is None:
            return self.apply(None, columns)
        encoded = next(iter(columns.values()))
        pictures = [_picture(data, f"row {i}") for i, data in enumerate(encoded)]
        sound = {i: picture for i, picture in enumerate(pictures) if isinstance(picture, np.ndarray)}
        done = self.apply(list(sound.values()), {n: [v[i] for i in sound] for n, v in columns.items()})
        rows = {i: row for row, i in enumerate(sound)}
        place = pa.array([rows.get(i) for i in range(len(pictures))], pa.int64())
        errors: list[str | None] = [None if isinstance(picture, np.ndarray) else str(picture) for picture in pictures]
        dropped: list[str | None] = [None] * len(pictures)
        for i, error, reason in zip(sound, done.errors, done.dropped):
            errors[i], dropped[i] = error, reason
        found = None if done.rows is None else [done.rows[rows[i]] if i in rows else None for i in range(len(pictures))]
        return Result({name: values.take(place) for name, values in done.columns.items()}, errors, dropped, found)

    def _inputs(self, pictures: Pictures | None, columns: Mapping[str, Sequence[Any]]) -> list[Sequence[Any]]:
        if lacking := [name for name in self.columns if name not in columns]:
            raise UsageError(
                f"op {self.name} reads column {lacking[0]}, which is not there: run the op that adds it first"
            )
        if self.needs is None:
            return [list(columns[name]) for name in self.columns]
        if pictures is None:
            raise UsageError(f"op {self.name} needs pictures")
        return [list(pictures), *(list(columns[name]) for name in self.columns)]

    def _call(self, inputs: list[Sequence[Any]], view: View | None) -> Any:
        named = dict(zip(self.columns, inputs if self.needs is None else inputs[1:]))
        pictures: list[Any] = []
        if self.needs is not None and view is not None:
            seen = [view.apply(picture) for picture in inputs[0]]
            pictures = [seen if self.needs.ragged else np.stack(seen)]
        with deadline(self.deadline_s, f"op {self.name}"):
            return self.run(*pictures, **named)

    def _checked(self, given: Any, count: int) -> Result:
        keep: Any = None
        if self.table is not None:
            return Result({}, [None] * count, [None] * count, self._rows(self.table, given, count))
        if not self.adds:
            given, keep = {}, given
        elif isinstance(given, tuple) and len(given) == 2:
            given, keep = given
        columns = self._values(given, count)
        if keep is None and self.filters:
            keep = self.keep(**{name: values.to_pylist() for name, values in columns.items()})
        dropped: list[str | None] = [None] * count if keep is None else self._reasons(keep, count)
        return Result(columns, [None] * count, dropped)

    def _values(self, given: Any, count: int) -> dict[str, pa.Array]:
        """What `run` gave, as arrays of the columns that the op adds."""
        if not isinstance(given, Mapping):
            given = {next(iter(self.adds)): given}
        if given.keys() != self.adds.keys():
            raise OpError(f"op {self.name} gave columns {sorted(given)}, and says that it adds {sorted(self.adds)}")
        return {name: self._column(name, type, given[name], count) for name, type in self.adds.items()}

    def judge(self, columns: Mapping[str, Sequence[Any]]) -> list[str | None]:
        """Why each of N rows is dropped by its measures, which `columns` holds, or None; a row without measures stays."""
        there = [i for i, value in enumerate(next(iter(columns.values()))) if value is not None]
        kept = self._reasons(self.keep(**{n: [v[i] for i in there] for n, v in columns.items()}), len(there))
        reasons: list[str | None] = [None] * len(next(iter(columns.values())))
        for i, reason in zip(there, kept):
            reasons[i] = reason
        return reasons

    def _rows(self, table: Table, given: Any, count: int) -> list[list[dict[str, Any]] | None]:
        self._same_length(f"lists of rows of table {table.name}", given, count)
        rows = [list(of_one) for of_one in given]
        for row in (row for of_one in rows for row in of_one):
            if not isinstance(row, Mapping) or row.keys() - table.columns.keys():
                raise OpError(
                    f"op {self.name} gave a row {row!r}: rows of table {table.name} are dicts of {sorted(table.columns)}"
                )
        try:
            pa.array([row for of_one in rows for row in of_one], pa.struct(list(table.columns.items())))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise OpError(f"op {self.name} gave rows that do not fit table {table.name}: {error}") from error
        return rows  # type: ignore[return-value]

    def _column(self, name: str, type: pa.DataType, values: Any, count: int) -> pa.Array:
        self._same_length(f"values of column {name}", values, count)
        try:
            return pa.array(list(values) if isinstance(values, np.ndarray) else values, type, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise OpError(f"op {self.name} gave values of column {name} that are no {type}: {error}") from error

    def _reasons(self, keep: Any, count: int) -> list[str | None]:
        self._same_length("decisions", keep, count)
        if wrong := [k for k in keep if not isinstance(k, str | bool | np.bool_ | None)]:
            raise OpError(f"op {self.name} decided {wrong[0]!r}: a filter gives booleans, or reasons and None")
        return [k if isinstance(k, str | None) else None if k else self.name for k in keep]

    def _same_length(self, what: str, values: Any, count: int) -> None:
        found = len(values) if hasattr(values, "__len__") else None
        if found != count:
            raise OpError(f"op {self.name} gave {'one value' if found is None else found} for {count} rows as {what}")

    def without_values(self, errors: list[str]) -> Result:
        """Of as many rows as there are sentences, which say why each has no values."""
        none: list[Any] = [None] * len(errors)
        columns = {name: pa.nulls(len(errors), type) for name, type in self.adds.items()}
        return Result(columns, list(errors), list(none), list(none) if self.table else None)


@dataclass(frozen=True)
class VideoShot:
    """A shot of a video. shot_id: in the table `shots`. start_frame, end_frame: its first frame and its last, both in it.
    start_s, end_s: in seconds from the start.
    """

    shot_id: str
    start_frame: int
    end_frame: int
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Video:
    """A video that an op on videos is shown.

    asset_id, uri: which. width, height: of its frames as they are stored, in pixels. fps: of its stream, 0 where it does not
    say. frames: how many there are. shots: in order; empty where no shots were looked for.
    """

    asset_id: str
    uri: str
    width: int
    height: int
    fps: float
    frames: int
    shots: tuple[VideoShot, ...] = ()


@dataclass(frozen=True)
class VideoFrame:
    """One frame. index, pts_s: where it is, the time in seconds from the start. pixels: uint8 RGB (H, W, 3). cut: begins a
    shot.
    """

    index: int
    pts_s: float
    pixels: np.ndarray
    cut: bool


class VideoOp(Op):
    """Base of ops on videos: every frame, in order, in chunks; what it gives are rows of its table.

    chunk_frames: frames in a chunk. Between two chunks the state may be saved (`dumps`), so that a run that was killed goes on
    from there; a state of None, or one without `dumps`, begins the video anew.

    Example:
        >>> class Changes(VideoOp):
        ...     name, table = "changes", Table("changes", {"index": pa.int64(), "luma": pa.float32()})
        ...     def chunk(self, video, state, frames):
        ...         return state, [{"index": f.index, "luma": float(f.pixels.mean())} for f in frames]
    """

    unit = "video"
    on_videos = True
    chunk_frames: int = 256

    def wanted(self, video: Video) -> np.ndarray:
        """Index of each frame that it is to see, int64 (N,), ascending: all, unless a subclass wants fewer."""
        return np.arange(video.frames)

    def begin(self, video: Video) -> Any:
        """The state before the first frame."""
        return None

    def chunk(self, video: Video, state: Any, frames: list[VideoFrame]) -> tuple[Any, list[dict[str, Any]]]:
        """The state after these frames, and their rows: what a subclass writes."""
        raise NotImplementedError(f"op {self.name} has no method chunk")

    def end(self, video: Video, state: Any) -> list[dict[str, Any]]:
        """The rows that are due after the last frame, such as those of the whole video; none, unless a subclass has some."""
        return []

    def dumps(self, state: Any) -> bytes | None:
        """A state as bytes; None where it can't be saved."""
        return None

    def loads(self, video: Video, data: bytes) -> Any:
        """The inverse of `dumps`."""
        raise NotImplementedError(f"op {self.name} has no method loads")

    def checked(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows as its table takes them; OpError where they are not."""
        if self.table is None:
            raise OpError(f"op {self.name} has no table: an op on videos gives rows of one")
        return self._rows(self.table, [rows], 1)[0] or []


class ShotOp(VideoOp):
    """Base of ops on shots: some frames of each shot, spread evenly over it, decoded from the source for this op; what it adds
    are rows of a table of the op's name, one a shot, with `shot_id`, `start_s` and `end_s`.

    frames_per_shot: at most so many frames of a shot are shown. needs: their view.

    Example:
        >>> class Motion(ShotOp):
        ...     name, adds, needs = "motion", {"difference": pa.float32()}, View(32)
        ...     def run(self, shots):
        ...         return [np.abs(np.diff(frames.astype(int), axis=0)).mean() if len(frames) > 1 else 0 for frames in shots]
        >>> Motion()([np.zeros((4, 48, 64, 3), np.uint8)])["difference"].to_pylist()
        [0.0]
    """

    unit = "shot"
    needs = View()
    frames_per_shot: int = 8
    chunk_frames = 32  # whole frames wait for their view

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.adds:
            of_shot = {"shot_id": pa.string(), "start_s": pa.float64(), "end_s": pa.float64()}
            cls.table = Table(cls.name, {**of_shot, **cls.adds})

    def run(self, shots: list[Any]) -> Any:  # type: ignore[override]
        """Computes some shots; what a subclass writes.

        Args:
            shots: B arrays, uint8 RGB (T, H, W, 3) in the size of `needs`, T from 1 to `frames_per_shot`; B lists of T arrays
                (H, W, 3) where that leaves each picture its own size.

        Returns:
            {column: B values} for `adds`; the values alone where there is but one column.
        """
        raise NotImplementedError(f"op {self.name} has no method run")

    def __call__(self, shots: Sequence[Pictures]) -> pa.Table:
        """The values of shots, each given as its pictures, of any size: a table of `adds`. OpError as `Op.apply`."""
        seen = [self._shown([self._view.apply(picture) for picture in pictures]) for pictures in shots]
        return pa.table(self._values(self.run(seen), len(seen)))

    def wanted(self, video: Video) -> np.ndarray:
        """The middle of each of `frames_per_shot` equal parts of a shot; all frames of a shorter one."""
        if not video.shots:
            raise OpError(f"op {self.name} is on shots, and none were looked for: set shots.detector in the recipe")
        parts = []
        for shot in video.shots:
            count = shot.end_frame - shot.start_frame + 1
            picks = min(count, self.frames_per_shot)
            parts.append(shot.start_frame + ((np.arange(picks) + 0.5) * count / picks).astype(np.int64))
        return np.concatenate(parts)

    def begin(self, video: Video) -> Any:
        """No frames of a shot that is not over yet."""
        return []

    def chunk(self, video: Video, state: Any, frames: list[VideoFrame]) -> tuple[Any, list[dict[str, Any]]]:
        """The rows of shots that are over."""
        starts = [shot.start_frame for shot in video.shots]
        seen: dict[int, list[np.ndarray]] = {}
        for number, picture in state:
            seen.setdefault(number, []).append(picture)
        for frame in frames:
            number = max(0, bisect_right(starts, frame.index) - 1)
            seen.setdefault(number, []).append(self._view.apply(frame.pixels))
        last = max(seen, default=0)
        over = {number: pictures for number, pictures in seen.items() if number != last}
        return [(last, picture) for picture in seen.get(last, ())], self._rows_of(video, over)

    def end(self, video: Video, state: Any) -> list[dict[str, Any]]:
        """The row of the last shot."""
        return self._rows_of(video, {number: [p for _, p in state] for number, _ in state[:1]})

    @property
    def _view(self) -> View:
        return self.needs or NATIVE

    def _shown(self, pictures: list[np.ndarray]) -> Any:
        return pictures if self._view.ragged else np.stack(pictures)

    def _rows_of(self, video: Video, seen: Mapping[int, list[np.ndarray]]) -> list[dict[str, Any]]:
        if not seen:
            return []
        values = self._values(self.run([self._shown(pictures) for pictures in seen.values()]), len(seen))
        shots = [video.shots[number] for number in seen]
        whose = [{"shot_id": s.shot_id, "start_s": s.start_s, "end_s": s.end_s} for s in shots]
        return [{**of_shot, **row} for of_shot, row in zip(whose, pa.table(values).to_pylist())]


def op(
    adds: Mapping[str, pa.DataType] | None = None,
    needs: View | None = NATIVE,
    columns: Sequence[str] = (),
    version: int = 1,
    name: str | None = None,
    table: Table | None = None,
) -> Callable[[Callable[..., Any]], Op]:
    """Makes an op of a function: the short form.

    Args:
        adds: columns with their Arrow types; none for a filter.
        needs: the view of the pictures; None where the function reads columns alone.
        columns: those that it reads, given by name.
        version: raised by hand when its values change.
        name: the function's own by default.
        table: instead of columns, a table of its own: the function returns for each picture a list of rows (dicts).

    Returns:
        A decorator; what it gives is an Op, ready to be called.

    Example:
        >>> @op(adds={"brightness": pa.float32()}, needs=View(64))
        ... def brightness(images_BHWC):
        ...     return images_BHWC.mean(axis=(1, 2, 3))
        >>> brightness([np.zeros((90, 120, 3), np.uint8)])["brightness"].to_pylist()
        [0.0]
    """

    def made(function: Callable[..., Any]) -> Op:
        return FunctionOp(function, name or function.__name__, version, dict(adds or {}), needs, tuple(columns), table)

    return made


class FunctionOp(Op):
    """An op made of a function by `op`."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        version: int,
        adds: Mapping[str, pa.DataType],
        needs: View | None,
        columns: tuple[str, ...],
        table: Table | None = None,
    ) -> None:
        self.facts = {
            "name": name, "version": version, "adds": adds, "needs": needs, "columns": columns, "table": table,
        }  # fmt: skip
        self.__dict__.update(self.facts)
        self.__doc__, self.__module__ = function.__doc__, function.__module__
        self.function = function
        super().__init__()

    def run(self, *pictures: Any, **columns: Any) -> Any:
        """Calls the function."""
        return self.function(*pictures, **columns)

    def __reduce__(self) -> Any:
        # By name where a module has it, since the function's own name there is the op. A notebook's op travels whole.
        name = self.function.__qualname__
        if self.__module__ != "__main__" and getattr(sys.modules.get(self.__module__), name, None) is self:
            return name
        return _function_op, (self.function, self.facts)


def _function_op(function: Callable[..., Any], facts: dict[str, Any]) -> FunctionOp:
    return FunctionOp(function, **facts)


def validated_settings(name: str, kind: type[S], given: Mapping[str, Any]) -> S:
    """Settings from values by name. UsageError that names the op, the setting at fault, and the nearest known one."""
    try:
        return kind(**given)
    except ValidationError as error:
        first = error.errors()[0]
        setting = ".".join(map(str, first["loc"]))
        if first["type"] != "extra_forbidden":
            reason = "it is required" if first["type"] == "missing" else re.sub("^Input", "it", first["msg"])
            raise UsageError(f"op {name}, setting {setting}: {reason}") from error
        near = difflib.get_close_matches(setting, kind.model_fields, n=1)
        known = ", ".join(kind.model_fields) or "none at all"
        hint = f"did you mean {near[0]}?" if near else f"it has {known}"
        raise UsageError(f"op {name} has no setting {setting}: {hint}") from error


def _picture(data: Any, name: str) -> np.ndarray | str:
    """uint8 RGB (H, W, 3) of a cell: an array, or an encoded still; a sentence where it is neither."""
    if isinstance(data, np.ndarray) and data.ndim == 3 and data.shape[2] == 3 and data.dtype == np.uint8:
        return data
    if not isinstance(data, bytes):
        return f"{name} holds no picture: neither encoded bytes nor uint8 RGB pixels (H, W, 3)"
    try:
        return decode_image(data, Limits(), name)
    except MediaError as error:
        return str(error)


def _sentence(name: str, error: Exception) -> str:
    message = (str(error) or type(error).__name__).splitlines()[0]
    return f"op {name}: {type(error).__name__}: {message}"


def joined(parts: list[Result], adds: Mapping[str, pa.DataType]) -> Result:
    """One result of several, in order. adds: the op's columns."""
    columns = {name: pa.concat_arrays([part.columns[name] for part in parts]) for name in adds}
    rows = None if parts[0].rows is None else [r for part in parts for r in part.rows or ()]
    return Result(
        columns, [e for part in parts for e in part.errors], [d for part in parts for d in part.dropped], rows
    )

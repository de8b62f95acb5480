"""`vfm try`: an op's values on a few pictures, of a lake or of files, or its rows on videos; nothing is written."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from jobs.cli import run
from vfm_ops.errors import MediaError, UsageError, VfmError

if TYPE_CHECKING:
    from vfm_ops.op import Op, Result, VideoOp

LakeOption = Annotated[str | None, typer.Option(help="Lake whose stored frames are shown to the op.")]
LONGEST = 60  # characters of a value on a line


def command(
    op: Annotated[str, typer.Option(help="Name of an op (vfm ops), or package.module:Name.")],
    pictures: Annotated[
        list[Path] | None, typer.Argument(help="Image files, instead of a lake; videos for an op on those.")
    ] = None,
    lake: LakeOption = None,
    count: Annotated[
        int, typer.Option("-n", "--count", min=1, help="How many frames of the lake, or rows of a video.")
    ] = 20,
    where: Annotated[str | None, typer.Option(help="Only frames that satisfy this condition.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the op, key=value; may be repeated.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a picture, or row of a video.")] = False,
) -> int:
    """Shows what an op gives for each picture, and what it drops; of a video, its first rows.

    Exit code 1 where it, a picture or a video failed.
    """
    from vfm_ops.op import VideoOp
    from vfm_ops.op_registry import load_op

    if bool(pictures) == bool(lake):
        raise UsageError("name image files, or a lake with --lake: one of the two")
    if pictures and where:
        raise UsageError("--where chooses among the frames of a lake: name one with --lake instead of image files")
    chosen = load_op({op: settings(set_ or [])})
    if isinstance(chosen, VideoOp):
        if not pictures:
            raise UsageError(f"op {chosen.name} is on {chosen.unit}s: name video files to try it on, instead of a lake")
        return on_videos(chosen, pictures, count, as_json)
    rows = sample_of(lake, chosen, count, where) if lake else pictures_of(pictures or [])
    sound: list[tuple[str, np.ndarray, dict[str, Any]]] = []
    bad = 0
    for name, picture, values in rows:
        if isinstance(picture, MediaError):
            print(f"error: {name}: {picture}", file=sys.stderr)
            bad += 1
        else:
            sound.append((name, picture, values))
    known = [c for c in chosen.columns if all(c in values for *_, values in sound)]
    given = {column: [values[column] for *_, values in sound] for column in known}
    result = chosen.apply([picture for _, picture, _ in sound], given)
    for text in lines([name for name, *_ in sound], result, as_json):
        print(text)
    if not as_json:
        print(summary(chosen, result), file=sys.stderr)
    return 1 if bad or any(result.errors) else 0


def on_videos(op: VideoOp, paths: list[Path], count: int, as_json: bool) -> int:
    """Prints the first rows of each video, and how many there are of all. The exit code."""
    from pipelines.process.recipe import load_recipe
    from pipelines.process.sample import rows_of_video

    recipe, shown, bad = load_recipe(None, ["shots.detector=auto"]), [], 0
    for path in paths:
        try:
            for number, row in enumerate(rows_of_video(op, str(path), recipe)):
                shown.append(row)
                if number < count:
                    print(json.dumps({"video": str(path), **row}, default=str) if as_json else line(str(path), row))
        except Exception as error:  # of the op or of the video: it costs this one, as in a run
            known = (
                str(error) if isinstance(error, VfmError) else f"{path}: op {op.name}: {type(error).__name__}: {error}"
            )
            print(f"error: {known}", file=sys.stderr)
            bad += 1
    if not as_json:
        columns = {name: [row.get(name) for row in shown] for name in (op.table.columns if op.table else ())}
        counts = f"{op.name}: {len(paths)} videos, {len(shown)} rows, {bad} failed; nothing was written"
        print("\n".join([counts, *ranges(columns)]), file=sys.stderr)
    return 1 if bad else 0


def settings(overrides: list[str]) -> dict[str, Any]:
    """{key: value} of key=value, each value as YAML reads it."""
    from pipelines.settings import parse_override, put_override

    found: dict[str, Any] = {}
    for text in overrides:
        put_override(found, text, *parse_override(text, "least=0.5"))
    return found


Row = tuple[str, np.ndarray | MediaError, dict[str, Any]]


def pictures_of(paths: list[Path]) -> Iterator[Row]:
    """Name, pixels (or what is wrong with it) and no values, of each file."""
    from jobs.detect import read_pictures

    for path, picture in read_pictures(paths):
        yield str(path), picture, {}


def sample_of(root: str, op: Op, count: int, where: str | None) -> Iterator[Row]:
    """Frame id, pixels of the stored picture and the values that the op reads, of frames spread evenly over a lake."""
    from pipelines.lake import Lake
    from pipelines.process.sample import sample_frames

    yield from sample_frames(Lake.open(root), list(op.columns), count, where)


def lines(names: list[str], result: Result, as_json: bool) -> Iterator[str]:
    """A line a picture: its values, or its error, and why it is dropped."""
    values: dict[str, list[Any]] = {name: array.to_pylist() for name, array in result.columns.items()}
    if result.rows is not None:
        values["rows"] = list(result.rows)
    for i, name in enumerate(names):
        row = {column: kept[i] for column, kept in values.items()}
        if as_json:
            yield json.dumps(
                {"picture": name, **row, "error": result.errors[i], "dropped": result.dropped[i]}, default=str
            )
            continue
        notes = [result.errors[i] or "", f"dropped: {result.dropped[i]}" if result.dropped[i] else ""]
        yield "  ".join(part for part in (line(name, row), *notes) if part)


def line(name: str, row: Mapping[str, Any]) -> str:
    """A picture's or video's name and its values."""
    return "  ".join([name, *(f"{column} {_short(value)}" for column, value in row.items())])


def summary(op: Op, result: Result) -> str:
    """How many rows, and the least, median and largest of each number."""
    counts = f"{op.name}: {len(result.errors)} pictures, {sum(d is not None for d in result.dropped)} dropped, "
    parts = [counts + f"{sum(e is not None for e in result.errors)} failed; nothing was written"]
    if result.rows is not None:
        parts.append(
            f"  {sum(len(rows or ()) for rows in result.rows)} rows of table {op.table.name if op.table else ''}"
        )
    return "\n".join([*parts, *ranges({name: array.to_pylist() for name, array in result.columns.items()})])


def ranges(columns: Mapping[str, list[Any]]) -> Iterator[str]:
    """The least, median and largest of each column of numbers."""
    for name, values in columns.items():
        if numbers := [v for v in values if isinstance(v, int | float)]:
            low, middle, high = np.percentile(numbers, [0, 50, 100])
            yield f"  {name}: {low:.4g} to {high:.4g}, median {middle:.4g}"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


if __name__ == "__main__":
    sys.exit(run(command))

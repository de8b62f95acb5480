"""`vfm search`: frames like a text, an image or another frame; to a table, JSON, or a picture."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import pyarrow as pa
import typer
from rich.console import Console
from rich.table import Table

from jobs.cli import run
from pipelines.lake import Lake
from pipelines.search import Query, hit_pictures, search
from vfm_ops.errors import UsageError

# Of arguments that are called otherwise than here (`jobs.cli.in_options`).
OPTIONS_OF_ARGUMENTS = {"text": "a TEXT", "frame_id": "--frame"}


def command(
    lake: Annotated[str | None, typer.Option(help="Directory or object-store prefix of the lake.")] = None,
    text: Annotated[str | None, typer.Argument(metavar="[TEXT]", help="What to look for, in words.")] = None,
    image: Annotated[str | None, typer.Option(help="An image to look for: path or URL.")] = None,
    frame: Annotated[str | None, typer.Option(help="A frame of the lake to look for, by id.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Which embeddings: a model spec; the first that can answer.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(help="SQL over columns of frames and assets, such as \"media_type = 'video'\".")
    ] = None,
    k: Annotated[int, typer.Option("-k", help="How many frames.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Scan everything instead of asking the index.")] = False,
    sheet: Annotated[str | None, typer.Option(help="Write a contact sheet: .jpg, .png or .webp.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the hits as JSON.")] = False,
    server: Annotated[str | None, typer.Option(help="Ask this vfm serve (http://HOST:PORT) instead of a lake.")] = None,
) -> int:
    """Finds frames. Scores are cosines."""
    query = Query(text or None, image, frame)
    if server is not None:
        if lake is not None or sheet is not None or exact:
            raise UsageError("--server answers from its own lake: leave --lake, --sheet and --exact out")
        return search_server(server, query, model, where, k, as_json)
    if lake is None:
        raise UsageError("name what to search: --lake DIRECTORY, or --server http://HOST:PORT")
    if sheet is not None:
        from vfm_ops.evaluate.files import PICTURES, check_place

        check_place(Path(sheet), PICTURES)
    target = Lake.open(lake)
    result = search(target, query, model=model, where=where, k=k, exact=exact)
    if sheet is not None and result.hits.num_rows:
        write_sheet(target, result.hits, sheet)
    if as_json:
        print(json.dumps({"model": result.column.spec, "column": result.column.name, "hits": result.hits.to_pylist()}))
    elif not result.hits.num_rows:
        print("nothing found")
    else:
        Console().print(_table(result.column.spec, result.hits.to_pylist()))
        if sheet is not None:
            print(f"wrote {sheet}")
    return 0


def search_server(server: str, query: Query, model: str | None, where: str | None, k: int, as_json: bool) -> int:
    """The same search, answered by a running `vfm serve`. UsageError, or the server's own sentence."""
    from jobs.serve.client import Client

    with Client(server) as client:
        page = client.search(
            text=query.text, image=query.image, frame_id=query.frame_id, model=model, where=where, limit=k
        )
    rows = [asdict(hit) for hit in page.hits]
    if as_json:
        print(json.dumps({"model": page.model, "hits": rows}))
    elif not rows:
        print("nothing found")
    else:
        Console().print(_table(page.model or "", rows))
    return 0


def write_sheet(lake: Lake, hits: pa.Table, path: str) -> None:
    """Writes the hits as one picture, with score, name and time below each. UsageError when it can't be written."""
    from vfm_ops.evaluate.files import write_picture
    from vfm_ops.evaluate.sheet import contact_sheet

    rows = hits.to_pylist()
    captions = [f"{row['score']:.3f} {_time(row)}\n{_name(row)}" for row in rows]
    page = contact_sheet(hit_pictures(lake, hits), captions)
    write_picture(Path(path), page)


def _table(model: str, rows: list[dict]) -> Table:
    table = Table(title=f"nearest by {model}", title_justify="left")
    table.add_column("score", justify="right")
    table.add_column("time", justify="right")
    table.add_column("source", overflow="fold")
    table.add_column("frame", overflow="fold", style="dim")
    for row in rows:
        table.add_row(f"{row['score']:.4f}", _time(row), _name(row), row["frame_id"])
    return table


def _name(row: dict) -> str:
    return row.get("name") or Path(row["member"] or row["uri"] or row["frame_id"]).name


def _time(row: dict) -> str:
    if row["media_type"] == "image" or row["pts_s"] is None:
        return ""
    return f"{int(row['pts_s'] // 60)}:{row['pts_s'] % 60:06.3f}"


if __name__ == "__main__":
    sys.exit(run(command))

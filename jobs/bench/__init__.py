"""`vfm bench WHAT`: ratios measured in one run on one machine, as a table and as JSON. Each benchmark is a module with
`measure(quick) -> list[dict]`; absolute times are printed, but only the ratios mean something elsewhere."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from vfm_ops.errors import UsageError

BENCHMARKS = (
    "process",
    "peers",
    "cluster",
    "decode",
    "track",
    "detect",
    "curate",
    "copies",
    "search",
    "pretrain",
    "serve",
    "scale",
    "soak",
    "gpu",
)
# Long ones: rows that --out already holds are not measured again.
RESUMABLE = ("peers", "curate", "search", "pretrain", "scale", "gpu")
ON_DEVICE = ("gpu",)  # that take --device


def command(
    what: Annotated[str, typer.Argument(metavar="WHAT", help=f"One of: {', '.join(BENCHMARKS)}.")],
    quick: Annotated[bool, typer.Option(help="Smaller inputs: to see that it runs, not to quote.")] = False,
    out: Annotated[Path | None, typer.Option(help="Also write the rows to this JSON file.")] = None,
    into: Annotated[
        Path | None, typer.Option(help="Put the table between <!-- bench:WHAT --> and its end in this Markdown file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of the table.")] = False,
    device: Annotated[str | None, typer.Option(help="Of `gpu`: cuda, cuda:N, or cpu. [default: cuda]")] = None,
    largest: Annotated[
        int | None, typer.Option(min=1000, help="Of `scale`: measure a lake of so many assets, too.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0.5, help="Of `soak`: how long. [default: 40]")] = None,
) -> int:
    """Measures ours against the bare loop and against peers, in one run."""
    available = [name for name in BENCHMARKS if importlib.util.find_spec(f"jobs.bench.{name}")]
    if what not in available:
        raise UsageError(f"there is no benchmark {what!r}: use one of {', '.join(available)}")
    if device is not None and what not in ON_DEVICE:
        raise UsageError(f"--device is of {', '.join(ON_DEVICE)}, not of {what}")
    for option, value, whose in (("largest", largest, "scale"), ("minutes", minutes, "soak")):
        if value is not None and what != whose:
            raise UsageError(f"--{option} is of {whose}, not of {what}")
    device = (device or "cuda") if what in ON_DEVICE else None
    settings: dict[str, Any] = {"kept": out} if what in RESUMABLE else {}
    given = {"device": device, "largest": largest, "minutes": minutes}
    settings |= {name: value for name, value in given.items() if value is not None}
    rows = importlib.import_module(f"jobs.bench.{what}").measure(quick, **settings)
    result = {**heading(what, quick, device), "rows": rows}
    if out:
        out.write_text(json.dumps(result, indent=1))
    if into:
        put_table(into, what, table(result))
    print(json.dumps(result) if as_json else table(result))
    return 0


def heading(what: str, quick: bool, device: str | None = None) -> dict[str, Any]:
    """What rows are told apart by: they belong together when it is the same."""
    return {"benchmark": what, "machine": machine(), "quick": quick, **({"device": device} if device else {})}


class Kept:
    """Rows of a long benchmark in a JSON file, so that one that was cut short goes on; without a path, nothing is kept.

    rows: those of an earlier run of the same heading.
    """

    def __init__(self, path: Path | None, what: str, quick: bool, device: str | None = None) -> None:
        self.path, self.heading = path, heading(what, quick, device)
        earlier = json.loads(path.read_text()) if path and path.exists() else {}
        same = {key: earlier.get(key) for key in self.heading} == self.heading
        self.rows: list[dict[str, Any]] = earlier["rows"] if same else []

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Replaces the file."""
        if self.path:
            self.path.write_text(json.dumps({**self.heading, "rows": rows}, indent=1))

    def measure(self, parts: Mapping[str, Callable[[Path], list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        """Rows of all parts, each measured in a folder of its own, unless its rows are there; they are written part by part."""
        for part, work in parts.items():
            if any(row["part"] == part for row in self.rows):
                continue
            with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
                self.rows += [{"part": part, **row} for row in work(Path(folder))]
            self.write(self.rows)
        return sorted(self.rows, key=lambda row: list(parts).index(row["part"]))


def put_table(path: Path, what: str, text: str) -> None:
    """Replaces what lies between a benchmark's markers. UsageError where the file has none."""
    begin, end = f"<!-- bench:{what} -->\n", f"<!-- /bench:{what} -->"
    before, found, rest = path.read_text().partition(begin)
    _, ended, after = rest.partition(end)
    if not (found and ended):
        raise UsageError(f"{path} has no {begin.strip()} … {end}: write the two markers where the table belongs")
    path.write_text(f"{before}{begin}{text}\n{end}{after}")


def machine() -> str:
    """The processor, its cores, memory and accelerator, in words."""
    import psutil

    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    memory = psutil.virtual_memory().total / 2**30
    words = [f"{os.cpu_count()} cores of {model}", f"{memory:.0f} GiB", *cards(), f"Python {platform.python_version()}"]
    return ", ".join(words)


def cards(folder: Path = Path("/proc/driver/nvidia/gpus")) -> list[str]:
    """The names of NVIDIA's cards, by what their driver says: neither torch nor CUDA is started for it."""
    told = [line for file in sorted(folder.glob("*/information")) for line in file.read_text().splitlines()]
    return [line.partition(":")[2].strip() for line in told if line.startswith("Model:")]


def table(result: dict) -> str:
    """A Markdown table of the rows; columns are the union of their keys, in order of appearance."""
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    lines = [f"{result['benchmark']}, on {result['machine']}", ""]
    lines.append("| " + " | ".join(columns) + " |")
    lines.append("|" + " --- |" * len(columns))
    for row in result["rows"]:
        lines.append("| " + " | ".join(_cell(row.get(c)) for c in columns) + " |")
    return "\n".join(lines)


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)

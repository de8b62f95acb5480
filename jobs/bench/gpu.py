"""`vfm bench gpu`: whether the product uses a card as well as it could: decoding, embedding, tracking, detection, pretraining.

Each part is measured in a process of its own and has its share of ten minutes: one that fails, or hangs in a compiler, costs
its own rows. What it measures lies in `gpu_floors`, `gpu_decode`, `gpu_embed`, `gpu_track`, `gpu_detect`, `gpu_pretrain`;
`gpu_conclusions` says what follows from the rows. With `quick` all of it runs at tiny sizes in this process, on a CPU, too.
"""

from __future__ import annotations

import gc
import importlib
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfm_ops.errors import UsageError

if TYPE_CHECKING:
    from jobs.bench.gpu_measure import Row

# Seconds of each part, start and end of its process included: with what is under way, under ten minutes together.
PARTS = {"floors": 30, "decode": 80, "embed": 210, "track": 85, "detect": 70, "pretrain": 90}
COLUMNS = ("what", "way", "batch", "ours", "floor", "ratio", "bar", "bound by", "MFU", "busy", "MB", "note")
GRACE_S = 5  # of a measurement under way when its part's time is over
CARD, CONCLUSION, OUT_OF_MEMORY = "card", "conclusion: ", "out of memory"
NOT_REACHED = "not reached in this part's time: the same command with --out goes on from here"


def measure(quick: bool, kept: Path | None = None, device: str = "cuda") -> list[dict[str, Any]]:
    """Rows: what, way, batch, ours, floor (the same at the measured peaks of this card), ratio, MFU, busy, MB, bar, note.

    device: cuda, cuda:N or cpu. kept: a file of rows that goes on where it was cut short. UsageError without the
    card that was asked for.
    """
    from jobs.bench import Kept
    from jobs.bench.gpu_conclusions import conclusions

    device = usable(device)
    file = Kept(kept, "gpu", quick, device)
    rows: list[Row] = [row for row in file.rows if is_measured(row)]
    lacking: list[Row] = []
    for part, seconds in PARTS.items():
        request = {"device": device, "quick": quick, "ends": None if quick else time.time() + seconds, "rows": rows}
        for row in (run_part if quick else run_apart)(part, request):
            (rows if is_measured(row) else lacking).append(row)
            file.write(rows)
    return [{key: row.get(key) for key in COLUMNS} for row in (*rows, *lacking, *conclusions(rows))]


def usable(device: str) -> str:
    """The device. UsageError in one sentence where there is none."""
    from vfm_ops.models.device import resolve_device

    try:
        return resolve_device(device)
    except UsageError as error:
        raise UsageError(f"vfm bench gpu: {error}; --device cpu --quick shows that it runs") from error


def run_apart(part: str, request: dict[str, Any]) -> Iterator[Row]:
    """`run_part` in a process of its own, which is ended once its time is over."""
    limit = request["ends"] - time.time() + GRACE_S
    # The request is a file: a pipe breaks where the process is ended before it has read it.
    with tempfile.TemporaryFile("w+") as asked, tempfile.TemporaryFile("w+") as errors:
        json.dump(request, asked)
        asked.seek(0)
        command = [sys.executable, "-m", "jobs.bench.gpu", part]
        child = subprocess.Popen(
            command, stdin=asked, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        timer = threading.Timer(limit, os.killpg, (child.pid, signal.SIGKILL))
        timer.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                if line.startswith(MARK):
                    yield json.loads(line.removeprefix(MARK))
            if code := child.wait():
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
                reason = NOT_REACHED if code == -signal.SIGKILL else f"its process ended with {code}: {last}"
                yield {"what": f"{part}: the rest", "note": reason}
        finally:
            timer.cancel()
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()


MARK = "row: "  # of a line on a part's standard output; libraries write there, too


def run_part(part: str, request: dict[str, Any]) -> Iterator[Row]:
    """The rows of a part that `request["rows"]` lacks, each as soon as it is there.

    request: device, quick, ends (on this machine's clock; None: never), rows.
    """
    import torch

    from jobs.bench.gpu_measure import Session

    ends = request["ends"] or math.inf
    device = torch.device(request["device"])
    if device.type == "cuda":
        device = torch.device("cuda", device.index or 0)
        torch.cuda.set_device(device)
    with private_cache() as folder:
        session = Session(device, folder, request["quick"], request["rows"])
        known = {identity(row) for row in session.known}
        for name, make in importlib.import_module(f"jobs.bench.gpu_{part}").tasks(session):
            if identity(name) in known:
                continue
            late = time.time() > ends
            row = {**name, **({"note": NOT_REACHED} if late else attempt(make))}
            if is_measured(row):
                session.known = [*session.known, row]
            yield row


def is_measured(row: Row) -> bool:
    """Whether a row need not be measured again: conclusions are drawn anew, and what had no figure is tried anew."""
    if row["what"].startswith(CONCLUSION):
        return False
    return row.get("ours") is not None or row["what"] == CARD or row.get("note") == OUT_OF_MEMORY


def identity(row: Row) -> tuple[Any, ...]:
    """What tells a row from others."""
    return row["what"], row.get("way"), row.get("batch")


def attempt(make: Callable[[], Row]) -> Row:
    """A row, or in its place why there is none: one way that does not work here does not end the others."""
    import torch

    try:
        return make()
    except torch.OutOfMemoryError:
        return {"note": OUT_OF_MEMORY}
    except Exception as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else ""
        return {"note": f"failed: {type(error).__name__}: {text[:200]}"}
    finally:
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            if "torch._dynamo" in sys.modules:
                torch.compiler.reset()  # code of one row is none of the next one's, and what is kept has a limit


@contextmanager
def private_cache() -> Iterator[Path]:
    """A folder, and in it the product's cache: what `auto` chose in an earlier run, on other inputs, is not asked."""
    before = os.environ.get("VFM_CACHE")
    with tempfile.TemporaryDirectory(prefix="vfm-bench-") as folder:
        os.environ["VFM_CACHE"] = f"{folder}/cache"
        try:
            yield Path(folder)
        finally:
            os.environ.pop("VFM_CACHE")
            if before is not None:
                os.environ["VFM_CACHE"] = before


def main(part: str) -> None:
    """A part in this process: its request is read from standard input."""
    for row in run_part(part, json.load(sys.stdin)):
        print(MARK + json.dumps(row), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

"""`python -m jobs.bench.serve_cluster`: the application as a cluster has it, behind Ray's HTTP proxy; on "redeploy" from
stdin, all of it is replaced by a new version."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Annotated

import typer

from jobs.serve import THROUGHPUT


def command(
    lake: Annotated[str, typer.Option()],
    embed: Annotated[str, typer.Option()],
    port: Annotated[int, typer.Option()],
) -> int:
    """Serves until interrupted."""
    os.environ.update(THROUGHPUT)
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from jobs.serve import stop
    from jobs.serve.app import APPLICATION, build
    from pipelines.cluster import connect

    def deploy(version: int) -> None:
        # A limit that no request reaches: changed, it makes every deployment another version.
        settings = {"lake": lake, "embed": {"extra": [embed]}, "limits": {"results": 5000 + version}}
        serve.run(build(settings), name=APPLICATION, route_prefix="/", logging_config=quiet)

    connect()
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
    version = 0
    deploy(version)
    print(f"serving {lake}", flush=True)
    try:
        with suppress(KeyboardInterrupt):  # an interrupt is how it is told to end
            for line in sys.stdin:
                if line.strip() == "redeploy":
                    version += 1
                    deploy(version)
                    print("done", flush=True)
    finally:
        stop()
    return 0


if __name__ == "__main__":
    from jobs.cli import run

    sys.exit(run(command))

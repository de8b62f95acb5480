"""`vfm serve`: endpoints and a page that answer from a lake; on one machine here, on a cluster through serve.yaml."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import threading
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vfm_ops.errors import UsageError
from vfm_ops.models.shipped import DEFAULT_DETECTOR, DEFAULT_TRACKER

if TYPE_CHECKING:
    from jobs.serve.listener import Listener

MANY = "may be repeated"
LEAST_ADDRESS_SPACE = 4 << 30  # torch and its libraries alone take over 2
# Requests go to replicas over gRPC instead of as Ray tasks, and stay on one event loop at either end: half the
# processor time of each. On a cluster these are set where `ray start` runs.
THROUGHPUT = {
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "200",
    # Ten turns a second of an idle controller take a thirtieth of a core.
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "0.3",
}
_listening: list[Listener] = []


def command(
    lake: Annotated[str, typer.Option(help="Directory or object-store prefix of the lake.")],
    host: Annotated[str, typer.Option(help="Address to listen on; beyond loopback a token is required.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    embed: Annotated[list[str] | None, typer.Option(help=f"Embedding model beyond the lake's own; {MANY}.")] = None,
    detect: Annotated[
        list[str] | None,
        typer.Option(help=f"Detector, family:name-or-path, or none; {MANY}. Default: {DEFAULT_DETECTOR}."),
    ] = None,
    segment: Annotated[
        str, typer.Option(help="SAM or SAM 2 checkpoint for clicks on images, or none.")
    ] = DEFAULT_TRACKER,
    track: Annotated[str, typer.Option(help="SAM 2 video checkpoint for tracking, or none.")] = DEFAULT_TRACKER,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda, for all models.")] = "auto",
    token_env: Annotated[str, typer.Option(help="Environment variable that holds the bearer token.")] = "VFM_TOKEN",
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Requests write no selections or annotations.")
    ] = False,
    set_: Annotated[list[str] | None, typer.Option("--set", help="limits.NAME=value; may be repeated.")] = None,
) -> int:
    """Answers over HTTP until interrupted: /v1 and a page. Prints the address when it is ready."""
    check_address_space()
    from pipelines.lake import Lake

    Lake.open(lake)
    settings = _settings(lake, embed, detect, segment, track, device, token_env, read_only, set_ or [])
    check_models(settings)
    check_reach(host, token_env)
    check_port(host, port)
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    start(settings, host, port)
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {lake} on http://{shown}:{port}  (API: /v1/openapi.json; stop with Ctrl-C)", flush=True)
    for task, spec in _named(settings):
        print(f"--{task} {spec}", flush=True)
    try:
        while not ended.wait(1.0):
            pass
    finally:
        stop()
    return 0


def start(settings: dict[str, Any], host: str, port: int) -> None:
    """Starts Ray where none runs, the application on it, and HTTP in this process; returns when it answers.

    VfmError when it can't start.
    """
    for name, value in THROUGHPUT.items():
        os.environ.setdefault(name, value)
    from ray import serve
    from ray.serve.schema import LoggingConfig

    from jobs.serve.app import APPLICATION, build, local_gateway
    from jobs.serve.listener import Listener
    from pipelines.cluster import connect
    from vfm_ops.errors import VfmError

    settings = settings | {"gateways": 0}
    application = build(settings)
    connect()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = LoggingConfig(log_level="WARNING", enable_access_log=False)
    serve.start(proxy_location="Disabled", logging_config=quiet)
    try:
        serve.run(application, name=APPLICATION, route_prefix="/", logging_config=quiet)
    except RuntimeError as error:
        stop()
        raise VfmError(f"the server did not start: {str(error).strip().splitlines()[-1]}") from error
    # Serve ends on the loop that its handles live on.
    _listening.append(Listener(lambda: local_gateway(settings), serve.shutdown_async, host, port))


def stop() -> None:
    """Ends HTTP, the application, and the Ray that `start` began."""
    import ray

    end_serving()
    ray.shutdown()


def end_serving() -> None:
    """Ends HTTP and the application; Ray goes on."""
    from ray import serve

    while _listening:
        _listening.pop().close()
    serve.shutdown()


def check_address_space() -> None:
    """UsageError where `ulimit -v` leaves too little: Ray would wait a minute for processes that die, and say nothing."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    if allowed != resource.RLIM_INFINITY and allowed < LEAST_ADDRESS_SPACE:
        raise UsageError(
            f"this shell allows a process {allowed / 2**30:.1f} GB of address space (ulimit -v), too little for torch and Ray: "
            f"allow at least {LEAST_ADDRESS_SPACE >> 30} GB, or start with ulimit -v unlimited"
        )


def check_models(settings: dict[str, Any]) -> None:
    """UsageError for a model whose weights are not to be had: models load when first asked, too late to be told of it."""
    from vfm_ops.models.resolve import find_checkpoint

    for spec in settings["embed"]["extra"]:
        find_checkpoint(spec, "embed")
    for task, spec in _named(settings):
        find_checkpoint(spec, task)


def _named(settings: dict[str, Any]) -> list[tuple[Any, str]]:
    """Task (detect, segment, track) and spec of every model that has replicas of its own."""
    named = [("detect", choice["spec"]) for choice in settings["detect"]]
    return named + [(task, settings[task]["spec"]) for task in ("segment", "track") if settings[task]]


def check_reach(host: str, token_env: str) -> None:
    """UsageError for an address beyond loopback without a token."""
    from jobs.serve.safety import is_loopback

    if not is_loopback(host) and not os.environ.get(token_env):
        raise UsageError(
            f"--host {host} is reachable from other machines, which needs a token: export {token_env}=... first, "
            "or listen on 127.0.0.1"
        )


def check_port(host: str, port: int) -> None:
    """UsageError when nothing can listen on an address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as e:
            reason = "is in use" if e.errno in (48, 98) else f"can't be used: {e.strerror}"
            raise UsageError(f"port {port} of {host} {reason}; choose another with --port") from e


def _settings(
    lake: str,
    embed: list[str] | None,
    detect: list[str] | None,
    segment: str,
    track: str,
    device: str,
    token_env: str,
    read_only: bool,
    overrides: list[str],
) -> dict[str, Any]:
    def model(spec: str) -> dict[str, Any] | None:
        return None if spec == "none" else {"spec": spec, "device": device}

    settings: dict[str, Any] = {
        "lake": lake,
        "embed": {"extra": tuple(embed or []), "device": device},
        "detect": tuple(filter(None, map(model, detect or [DEFAULT_DETECTOR]))),
        "segment": model(segment),
        "track": model(track),
        "token_env": token_env,
        "selections": not read_only,
        "limits": {},
    }
    from pipelines.settings import parse_override

    for item in overrides:
        keys, value = parse_override(item, "limits.in_flight=32")
        if len(keys) != 2 or keys[0] != "limits":
            raise UsageError(f"--set takes limits.NAME=value, such as limits.in_flight=32, not {item!r}")
        settings["limits"][keys[1]] = value
    return settings

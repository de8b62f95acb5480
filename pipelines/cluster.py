"""Ray, started where it runs: a cluster when there is one, else a small local one that starts fast; and where stages go on it.

An actor lies on one node, so it is sized by what single nodes have, never by the sum. Pools start with what fits the nodes
there are and have no upper end: nodes come later, with an autoscaler or by hand.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.process.recipe import Resources
from vfm_ops.errors import UsageError

OBJECT_STORE = 256 << 20  # encoded bytes cross process borders, and few of them
# Every process of Ray reports, every second, what only a dashboard would show; a local one has none.
UNWATCHED = {"RAY_enable_metrics_collection": "0", "RAY_task_events_report_interval_ms": "0"}
MOST_CPUS = 8  # of one actor that decodes and embeds
USED = 0.9  # share of the nodes' CPUs that actors of one size must use, for a larger size to be preferred
SAY_AFTER_S = 60.0  # without any worker, before a sentence says what can't be scheduled
LOOK_EVERY_S = 3.0
BOOTSTRAP = Path(
    "~/ray_bootstrap_config.yaml"
)  # where `ray up` leaves the cluster file on the head, which runs the jobs

logger = logging.getLogger(__name__)


def has_ray() -> bool:
    """Whether a cluster is there to be joined, or joined already. Imports nothing: Ray takes more than a second."""
    return bool(os.environ.get("RAY_ADDRESS")) or ("ray" in sys.modules and sys.modules["ray"].is_initialized())


def connect(object_store: int = OBJECT_STORE) -> None:
    """Joins the cluster of RAY_ADDRESS or of the job that we are; else starts a local Ray without dashboard. Quietly."""
    import ray

    _quiet_raylets()
    if ray.is_initialized():
        return
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
    with _own_sigterm():
        if os.environ.get("RAY_ADDRESS"):
            ray.init(address="auto", **quiet)
        else:
            for name, value in UNWATCHED.items():
                os.environ.setdefault(name, value)
            # Not "auto": a cluster that someone else started here is not ours to fill.
            ray.init(
                "local", num_cpus=os.cpu_count(), object_store_memory=object_store, include_dashboard=False, **quiet
            )


def _quiet_raylets() -> None:
    """What raylets tell of workers that died goes to our log, not into what `--json` prints: Ray writes it to stdout."""
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda data, ignore_prefix=False: logger.debug("%s", data.get("lines"))


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps what SIGTERM does to this process: Ray's handlers end it on the spot, its lease still held."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread set handlers
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def hush() -> None:
    """Keeps Ray Data's plans, metrics and tracebacks out of the log of a job; they stay in Ray's own log files.

    Apart from `connect`, since Ray Data takes a second to import, and not everybody needs it.
    """
    import ray.data

    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")  # in workers, too
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and type(handler).__module__.startswith("ray."):  # no one else's
            handler.setLevel(logging.CRITICAL)
    ray.data.DataContext.get_current().enable_progress_bars = False


# -- nodes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NodeShape:
    """What one node offers."""

    cpus: int
    gpus: float = 0.0

    def holds(self, cpus: int, gpus: float) -> int:
        """How many actors of that size fit on it."""
        return min(self.cpus // cpus, int(self.gpus / gpus) if gpus else sys.maxsize)


Nodes = Mapping[NodeShape, int]  # how many of each shape


def nodes_there() -> Counter[NodeShape]:
    """The nodes that are alive now."""
    import ray

    if not ray.is_initialized():
        return Counter()
    return Counter(_shape(node["Resources"]) for node in ray.nodes() if node["Alive"])


def nodes_to_come() -> Counter[NodeShape]:
    """The most nodes of each shape that an autoscaler may bring; empty where none is known.

    Ray has no public way to ask. What an autoscaler reported lies in the control store; `ray up` leaves the cluster file on the
    head. Under other autoscalers the nodes that come are taken as they are.
    """
    import ray
    from ray._private.state import state

    shapes: Counter[NodeShape] = Counter()
    if not ray.is_initialized():
        return shapes
    config = state.get_cluster_config()
    if config is not None:
        for group in config.node_group_configs:
            most = group.max_count if group.max_count >= 0 else sys.maxsize
            shapes[_shape(dict(group.resources))] += most
    else:
        for node_type in _bootstrap_types():
            shapes[_shape(node_type.get("resources") or {})] += int(node_type.get("max_workers", 0))
    return +shapes


def _bootstrap_types() -> Iterable[dict[str, Any]]:
    import yaml

    try:
        config = yaml.safe_load(BOOTSTRAP.expanduser().read_text())
        return list(config["available_node_types"].values())
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return ()


def _shape(resources: Mapping[str, float]) -> NodeShape:
    return NodeShape(int(resources.get("CPU", 0)), float(resources.get("GPU", 0)))


# -- placement -----------------------------------------------------------------------------------------------------

Pool = tuple[int, int | None]  # least and most actors; None: as many as find room


@dataclass(frozen=True)
class Placement:
    """Where the stages of a run go, decided from single nodes and the recipe."""

    fused: bool
    actors: Pool  # that hold the models
    cpus: int  # per model actor, all on one node
    gpus: float
    decode_actors: Pool
    at_once: int = 1  # model actors that fit the nodes there are: what a pool starts with
    decode_at_once: int = 1

    @property
    def threads(self) -> int:
        """Decoder processes and model streams of one actor."""
        return self.cpus


def place(
    resources: Resources, there: Nodes | None = None, to_come: Nodes | None = None, reserved: Sequence[int] = ()
) -> Placement:
    """Fuses decode and model on CPUs, where a frame need not cross a process; on GPUs, feeds each from many CPU actors.

    there, to_come: nodes by shape; those of the Ray that is joined. Where none is of use yet, an actor asks for one CPU, which
    any node has. reserved: CPUs of each actor that other stages need, at the least.
    """
    there = nodes_there() if there is None else there
    to_come = nodes_to_come() if to_come is None else to_come
    if reserved:
        there = _without(there, reserved, bool(to_come))
    known = Counter(dict(there)) + Counter(dict(to_come))
    on_gpu = resources.device == "cuda" or (resources.device == "auto" and any(n.gpus > 0 for n in known))
    fused = not on_gpu if resources.fuse == "auto" else resources.fuse
    share = resources.gpus_per_actor if on_gpu else 0.0
    useful = {node: count for node, count in known.items() if node.cpus and node.holds(1, share)}
    cpus = _actor_cpus(useful, resources.cpus_per_actor or (MOST_CPUS if fused else 1), bool(resources.cpus_per_actor))
    at_once = sum(node.holds(cpus, share) * count for node, count in there.items())
    models = pool_of(resources.actors)
    spare = sum(node.cpus * count for node, count in there.items()) - at_once * cpus
    return Placement(
        fused,
        models,
        cpus,
        share,
        pool_of(resources.decode_actors),
        within(models, at_once),
        within(pool_of(resources.decode_actors), spare),
    )


def _without(there: Nodes, reserved: Sequence[int], more_come: bool) -> Nodes:
    """What of the nodes is left, once each of these actors has its CPUs on one of them. UsageError where nothing is."""
    left = sorted((node.cpus, node.gpus) for node, count in there.items() for _ in range(count))
    for cpus in sorted(reserved, reverse=True):
        most, gpus = left.pop() if left else (0, 0.0)
        left = sorted([*left, (max(0, most - cpus), gpus)])
    if sum(there.values()) and not more_come and not any(cpus for cpus, _ in left):
        have = sum(node.cpus * count for node, count in there.items())
        raise UsageError(
            f"ops with resources of their own take {sum(reserved)} CPUs of {have} in the cluster, and none is left to decode: "
            "set fewer cpus in an op's resources, or add a node"
        )
    return Counter(NodeShape(cpus, gpus) for cpus, gpus in left)


def actors_that_fit(wanted: Mapping[str, float]) -> int:
    """How many actors with these Ray resources (CPU, GPU, memory in bytes, custom ones) the nodes that are there hold."""
    import ray

    wanted = {name: amount for name, amount in wanted.items() if amount}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]] if ray.is_initialized() else []
    return sum(int(min(node.get(name, 0.0) / amount for name, amount in wanted.items())) for node in nodes)


def _actor_cpus(nodes: Nodes, most: int, as_asked: bool) -> int:
    """CPUs of an actor: as many as asked for where a node has them; else the most by which next to no CPU stays idle.

    Of nodes with 2 and 32 CPUs, actors of 8 use 32 of 34 and win; of four nodes with 4, actors of 8 would use none.
    """
    if not nodes:
        return 1
    largest = min(most, max(node.cpus for node in nodes))
    if as_asked:
        return largest
    used = {p: sum(node.cpus // p * p * count for node, count in nodes.items()) for p in range(1, largest + 1)}
    return max(p for p, cpus in used.items() if cpus >= USED * max(used.values()))


def pool_of(asked: int | tuple[int, int] | None) -> Pool:
    """A pool as a recipe asks for it: fixed, (min, max), or as many as find room."""
    if asked is None:
        return (1, None)
    return (asked, asked) if isinstance(asked, int) else asked


def within(pool: Pool, count: int) -> int:
    """The number of actors nearest to `count` that a pool may have."""
    least, most = pool
    return max(least, count if most is None else min(most, count))


# -- what can't be scheduled ---------------------------------------------------------------------------------------


def wait_for_nodes(resources: Resources) -> None:
    """Returns when a node is there, or known to come, on which an actor of a run finds room.

    Meanwhile a task that wants as much waits: an autoscaler of which nothing else is known brings a node for it.
    """
    import ray

    share = resources.gpus_per_actor if resources.device == "cuda" else 0.0
    if _has_room(share):
        return

    @ray.remote(num_cpus=1, num_gpus=share, max_retries=-1)
    def appear() -> None:
        """Asks for a node by waiting for one."""

    waiting = appear.remote()
    with explaining(lambda: None if _has_room(share) else cannot_schedule(1, share)):
        while not _has_room(share):
            ray.wait([waiting], timeout=LOOK_EVERY_S)
    ray.cancel(waiting, force=True)


def _has_room(share: float) -> bool:
    return any(node.cpus and node.holds(1, share) for node in nodes_there() + nodes_to_come())


@contextmanager
def explaining(problem: Callable[[], str | None], after_s: float | None = None) -> Iterator[None]:
    """Says what `problem` finds wrong, once it did so for a minute, and again every minute; runs beside the body."""
    after = SAY_AFTER_S if after_s is None else after_s
    waited = 0.0

    def look() -> None:
        nonlocal waited
        found = problem()
        waited = waited + min(LOOK_EVERY_S, after) if found else 0.0
        if found and waited >= after:
            logger.warning("%s", found)
            waited = 0.0

    with looking(look, min(LOOK_EVERY_S, after)):
        yield


@contextmanager
def telling_of_nodes() -> Iterator[None]:
    """Says which nodes go and which come; runs beside the body."""
    import ray

    known = {node["NodeID"] for node in ray.nodes() if node["Alive"]}

    def look() -> None:
        for node in ray.nodes():
            name = f"the node {node['NodeManagerAddress']}"
            if node["Alive"] and node["NodeID"] not in known:
                known.add(node["NodeID"])
                cpus = int(node["Resources"].get("CPU", 0))  # of one that is gone, Ray forgets what it had
                logger.warning("%s, with %d CPUs, has come: it is given work", name, cpus)
            elif not node["Alive"] and node["NodeID"] in known:
                known.remove(node["NodeID"])
                why = str(node.get("DeathReasonMessage") or "").strip().rstrip(".")
                logger.warning("%s is gone%s; what it was at work on is done again", name, f" ({why})" if why else "")

    with looking(look, LOOK_EVERY_S):
        yield


@contextmanager
def looking(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Calls `look` now and then beside the body."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.wait(every_s):
            try:
                look()
            except Exception:  # Ray is ending, or busy, or its private tables have changed: less is told, no more
                logger.debug("what Ray's nodes and workers do is not known", exc_info=True)

    thread = threading.Thread(target=loop, daemon=True, name="looking at Ray")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def no_worker(cpus: int, gpus: float) -> str | None:
    """A sentence when this job has waited for actors, and none of them runs; else None."""
    import ray
    from ray._private.state import state

    job = ray.get_runtime_context().get_job_id()
    states = Counter(
        actor["State"]
        for actor in state.actor_table(None, job_id=ray.JobID.from_hex(job)).values()
        if actor["ActorClassName"].startswith("MapWorker")
    )
    waiting = states["PENDING_CREATION"] + states["DEPENDENCIES_UNREADY"] + states["RESTARTING"]
    return cannot_schedule(cpus, gpus) if waiting and not states["ALIVE"] else None


def cannot_schedule(cpus: int, gpus: float) -> str:
    """What an actor wants, what the nodes are, and what to do."""
    there = nodes_there()
    fits = any(node.cpus and node.holds(cpus, gpus) for node in there)
    wanted = f"{cpus} CPU{'s' if cpus > 1 else ''}" + (f" and {gpus:g} GPU" if gpus else "")
    nodes = ", ".join(
        f"{count} with {node.cpus} CPUs" + (f" and {node.gpus:g} GPUs" if node.gpus else "")
        for node, count in sorted(there.items(), key=lambda item: (item[0].cpus, item[0].gpus))
    )
    advice = (
        "they are busy, or it starts slowly, or dies as it starts (Ray's logs say why): end what else runs there, or add a node"
        if fits
        else "add such a node" + (", or set resources.cpus_per_actor lower" if cpus > 1 else "")
    )
    return f"no worker runs yet: it wants {wanted} on one node, and the nodes are: {nodes or 'none'}; {advice}"

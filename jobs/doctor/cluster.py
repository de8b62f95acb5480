"""The cluster of RAY_ADDRESS: whether it can be joined, what its nodes have, and whether they are alike.

A small task on each node tells what Ray does not; it asks for no CPU, so that it runs on a node that is busy, too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.lake.health import Finding

WAIT_S = 30.0  # for all nodes together: a worker starts in a second or two
LEAST_STORE = 0.25  # GiB of a node's object store
FULL = 0.95  # of a node's disk, from where on Ray writes no object to it
ALIKE = ("ray", "vfm-pipelines", "torch", "pylance")  # and Python: what pickles, values and files are made by
BROUGHT = "vfm-pipelines"  # may be missing on all nodes: a job's working directory brings it along


@dataclass(frozen=True)
class NodeFacts:
    """What a task saw on a node. versions: of Python and of packages, "none" where one is missing. disk: the used share."""

    name: str
    versions: dict[str, str]
    disk: float


def examine_cluster() -> list[Finding]:
    """What is wrong or slow about the cluster of RAY_ADDRESS; nothing without that."""
    if not os.environ.get("RAY_ADDRESS"):
        return []
    from pipelines.cluster import connect

    try:
        connect()
    except Exception as error:  # whatever keeps Ray from joining, a job would meet it, too
        reason = str(error).split("\n")[0][:200]
        advice = "is RAY_ADDRESS right, the head running, and Python and Ray the same there as here?"
        return [Finding("cluster", f"can't be joined ({reason})", False, advice)]
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"]]
    facts, silent = ask_nodes(nodes)
    findings = [capacity(), busy(ray.cluster_resources(), ray.available_resources()), *stores(nodes)]
    if silent:
        advice = "ray status, and the logs of their raylets, say why"
        findings.append(Finding("nodes", f"{', '.join(silent)} ran no task within {WAIT_S:.0f} s", False, advice))
    return [*findings, *versions_differ(facts), *disks(facts)]


def capacity() -> Finding:
    """The nodes there are, and those that an autoscaler may bring."""
    from pipelines.cluster import nodes_there, nodes_to_come

    there, to_come = nodes_there(), nodes_to_come()
    cpus = sum(node.cpus * count for node, count in there.items())
    gpus = sum(node.gpus * count for node, count in there.items())
    found = f"{there.total()} nodes, {cpus} CPUs, {gpus:g} GPUs; up to {to_come.total()} more may come"
    fine = cpus > 0 or to_come.total() > 0
    return Finding("cluster", found, fine, "" if fine else "no node has a CPU: add one")


def busy(total: dict[str, float], available: dict[str, float]) -> Finding:
    """Whether a job that comes now finds CPUs and cards that nobody holds."""
    kinds = [kind for kind in ("CPU", "GPU") if total.get(kind)]
    found = (
        ", ".join(f"{available.get(kind, 0):g} of {total[kind]:g} {kind}s free" for kind in kinds) or "nothing to hold"
    )
    full = [kind for kind in kinds if available.get(kind, 0) < 1]
    advice = f"a job waits until another lets go of {' and '.join(full)}s: ray status, ray job list" if full else ""
    return Finding("load", found, advice=advice, slow=bool(full))


def stores(nodes: Sequence[dict[str, Any]]) -> list[Finding]:
    """Nodes whose object store is too small for the blocks that pass through it."""
    small = {
        node["NodeManagerHostname"]: node["Resources"].get("object_store_memory", 0) / 2**30
        for node in nodes
        if node["Resources"].get("CPU") and node["Resources"].get("object_store_memory", 0) / 2**30 < LEAST_STORE
    }
    if not small:
        return []
    found = ", ".join(f"{name} {size:.2f} GiB" for name, size in sorted(small.items()))
    advice = "blocks go to disk there: a larger /dev/shm, or ray start --object-store-memory"
    return [Finding("object stores", found, advice=advice, slow=True)]


def versions_differ(facts: Sequence[NodeFacts]) -> list[Finding]:
    """What is not the same on all nodes; a finding that they are alike where all is."""
    findings = []
    for name in dict.fromkeys(name for one in facts for name in one.versions):
        counted = Counter(one.versions.get(name, "none") for one in facts)
        if len(counted) > 1 or (counted.keys() == {"none"} and name != BROUGHT):
            usual = counted.most_common(1)[0][0]
            odd = sorted(one.name for one in facts if one.versions.get(name, "none") != usual or usual == "none")
            found = ", ".join(f"{value} on {count}" for value, count in counted.most_common())
            advice = f"install the same on all of them, such as one image; look at {', '.join(odd[:5])}"
            findings.append(Finding(f"{name} of nodes", found, False, advice))
    return findings or ([Finding("versions of nodes", "alike")] if facts else [])


def disks(facts: Sequence[NodeFacts]) -> list[Finding]:
    """Nodes whose disk is so full that Ray writes no object to it."""
    full = [f"{one.name} {one.disk:.0%}" for one in facts if one.disk >= FULL]
    advice = "Ray puts no objects on a disk that full: free some space under its temporary directory, or drain the node"
    return [Finding("disks of nodes", f"full: {', '.join(full)}", False, advice)] if full else []


def ask_nodes(nodes: Sequence[dict[str, Any]]) -> tuple[list[NodeFacts], list[str]]:
    """What a task sees on each node, and the names of nodes where none ran in time. nodes: of `ray.nodes()`, alive."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task = ray.remote(num_cpus=0, max_retries=0)(_probe())
    names = {}
    for node in nodes:
        where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        names[task.options(scheduling_strategy=where).remote(ALIKE)] = node["NodeManagerHostname"]
    done, waiting = ray.wait(list(names), num_returns=len(names), timeout=WAIT_S) if names else ([], [])
    facts, silent = [], [names[ref] for ref in waiting]
    for ref in done:
        try:
            found, disk = ray.get(ref)
            facts.append(NodeFacts(names[ref], found, disk))
        except ray.exceptions.RayError:
            silent.append(names[ref])
    for ref in waiting:
        ray.cancel(ref, force=True)
    return facts, sorted(silent)


def _probe() -> Callable[[Sequence[str]], tuple[dict[str, str], float]]:
    """A function of packages that tells their versions and the used share of the disk of Ray's files, wherever it runs."""

    def look(
        packages: Sequence[str],
    ) -> tuple[dict[str, str], float]:  # nested: it travels whole, to nodes without this module
        import platform
        import shutil
        import tempfile
        from importlib.metadata import PackageNotFoundError, version

        found = {"Python": platform.python_version()}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = "none"
        usage = shutil.disk_usage(tempfile.gettempdir())
        return found, usage.used / usage.total

    return look

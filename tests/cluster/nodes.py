"""A Ray cluster on this machine, of nodes that are processes of their own, as `ray start` makes them; with tokens.

A node is killed, paused, drained or cut off as a machine would be. With links, each node but the head lies in a network
namespace of its own, behind a pair of virtual network devices; that takes root, and Linux.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import shutil
import socket
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests

from tests.conftest import debian_program

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
# How soon a node that does not answer is given up; Ray's own figures are made for networks that pause.
IMPATIENT = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",  # a machine that is busy answers late
    "RAY_health_check_failure_threshold": "5",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
    "RAY_worker_niceness": "0",  # jobs and actors get their share of a machine that runs other tests
}
STARTS_S = 90


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the system gives to whoever connects.

    Not by `random`'s own generator: another process of the same tests, with the same seed, would draw the same ones.
    """
    free: list[int] = []
    while len(free) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", port))
            free.append(port)
    return free


@dataclass
class Node:
    """A node's `ray start --block`, and what it has started."""

    process: subprocess.Popen
    log: Path
    link: str = ""  # its network device in the head's namespace

    def processes(self) -> list[psutil.Process]:
        """Its own, the raylet's and the workers'."""
        return [*psutil.Process(self.process.pid).children(recursive=True), psutil.Process(self.process.pid)]

    def kill(self) -> None:
        """As a machine that loses power."""
        for one in self.processes():
            try:
                one.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait(60)

    def workers(self, name: str) -> list[psutil.Process]:
        """Those of its processes whose command line has these words."""
        found = []
        for one in self.processes():
            try:
                if name in " ".join(one.cmdline()):
                    found.append(one)
            except psutil.NoSuchProcess:
                continue
        return found


@dataclass
class Job:
    """What `ray job submit --no-wait` began."""

    cluster: Cluster
    id: str

    @property
    def status(self) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; empty while the head does not answer."""
        return str(self.cluster.asked(f"jobs/{self.id}").get("status", ""))

    @property
    def log(self) -> str:
        """What it has printed."""
        return str(self.cluster.asked(f"jobs/{self.id}/logs").get("logs", ""))

    def wait(self, seconds: float = 300) -> str:
        """Its last status."""
        ended = lambda: self.status in ("SUCCEEDED", "FAILED", "STOPPED") and self.status  # noqa: E731
        return until(ended, seconds, lambda: f"{self.log}\n{self.cluster.logs()}")

    def driver(self) -> psutil.Process:
        """The process that runs the command."""

        def found() -> psutil.Process | None:
            for one in psutil.process_iter():
                try:
                    command = one.cmdline()
                    if one.environ().get("RAY_JOB_ID_OF_TEST") == self.id and command[:2] == [sys.executable, "-m"]:
                        return one
                except psutil.Error:
                    continue
            return None

        return until(found, 60)


@dataclass
class Cluster:
    """A head, which takes no tasks, and nodes. folder: for logs and the token. links: see the module."""

    folder: Path
    links: bool = False
    nodes: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        env |= {"RAY_AUTH_MODE": "token", "HOME": str(self.folder), "RAY_USAGE_STATS_ENABLED": "0", **IMPATIENT}
        env |= {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        self.env = env
        self.port, self.dashboard_port, self.client_port = free_ports(3)
        self.host = "10.77.0.1" if self.links else "127.0.0.1"
        self.temp = Path("/tmp") / f"vfm-ray-{self.port}"  # Ray's sockets need a short path
        self.bridge = f"vfm{self.port}"
        if self.links:
            _ip(
                f"link add {self.bridge} type bridge",
                f"addr add {self.host}/24 dev {self.bridge}",
                f"link set {self.bridge} up",
            )
        self.ray("get-auth-token", "--generate")

    @property
    def dashboard(self) -> str:
        """Where jobs are submitted."""
        return f"http://{self.host}:{self.dashboard_port}"

    def ray(self, *words: str, check: bool = True, timeout: float = 120) -> str:
        """What a command of Ray's says."""
        done = subprocess.run([BIN / "ray", *words], env=self.env, capture_output=True, text=True, timeout=timeout)
        if check and done.returncode:
            raise AssertionError(f"ray {' '.join(words)}: {done.stdout[-1000:]}{done.stderr[-1000:]}")
        return done.stdout + done.stderr

    def start_head(self, object_store_mb: int = 128, cpus: int = 0) -> None:
        """Starts, or starts again, a head that knows of nothing, and waits until it takes jobs."""
        words = ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", f"--num-cpus={cpus}"]
        words += [
            f"--ray-client-server-port={self.client_port}",
            f"--dashboard-host={self.host}",
            "--include-dashboard=true",
        ]
        words += [f"--node-ip-address={self.host}"] if self.links else []
        self.nodes["head"] = self._start("head", [*words, f"--temp-dir={self.temp}"], object_store_mb)
        until(lambda: self.asked("jobs/") != {}, STARTS_S, self.logs)

    def add(self, name: str, cpus: int = 1, object_store_mb: int = 128) -> None:
        """Starts a node, once more if it ends as it starts, and waits until the head knows it."""
        words = [
            f"--address={self.host}:{self.port}",
            f"--num-cpus={cpus}",
            f"--resources={json.dumps({name: 1})}",
        ]
        space, link = "", ""
        if self.links:
            space, link = self._link(name)
            words += [f"--node-ip-address={space_address(name)}"]
        ends = time.monotonic() + STARTS_S
        while time.monotonic() < ends:
            self.nodes[name] = self._start(name, words, object_store_mb, space, link)
            until(lambda: self.knows(name) or self.nodes[name].process.poll() is not None, STARTS_S, self.logs)
            if self.knows(name):
                return
        raise AssertionError(f"{name} does not start: {self.logs()}")

    def _start(self, name: str, words: list[str], object_store_mb: int, space: str = "", link: str = "") -> Node:
        log = self.folder / f"{name}.log"
        command = [str(BIN / "ray"), "start", "--block", *words, f"--object-store-memory={object_store_mb << 20}"]
        command += ["--dashboard-agent-listen-port=0", "--disable-usage-stats"]
        if space:
            command = ["ip", "netns", "exec", space, *command]
        with log.open("a") as out:
            process = subprocess.Popen(command, env=self.env, stdout=out, stderr=out, start_new_session=True)
        return Node(process, log, link)

    def asked(self, what: str, **body: object) -> dict:
        """What the head answers to a question, or a request with a body, of its HTTP interface; nothing while it can't."""
        token = (self.folder / ".ray" / "auth_token").read_text().strip()
        options = {"headers": {"Authorization": f"Bearer {token}"}, "timeout": 20}
        url = f"{self.dashboard}/api/{what}"
        try:
            answer = requests.post(url, json=body, **options) if body else requests.get(url, **options)
            return answer.json() if answer.ok else {}
        except (OSError, ValueError):
            return {}

    def alive(self) -> list[dict]:
        """The nodes that the head takes for alive, itself among them."""
        said = self.asked("v0/nodes?detail=True&limit=100").get("data", {}).get("result", {}).get("result", [])
        return [node for node in said if node["state"] == "ALIVE"]

    def knows(self, name: str) -> bool:
        """Whether the head takes the node of that name for alive."""
        return any(name in node["resources_total"] for node in self.alive())

    def logs(self) -> str:
        """The end of what each node has said."""
        return "\n".join(f"{name}: {node.log.read_text()[-1500:]}" for name, node in self.nodes.items())

    def submit(self, *command: str, host: str = "") -> Job:
        """Submits a command of Python's, run where the product lies. host: where it believes to be; takes root."""
        line = shlex.join([sys.executable, *command])
        if host:
            line = shlex.join(["unshare", "--uts", "sh", "-c", f"hostname {host} && exec {line}"])
        job = f"job-{uuid.uuid4().hex[:8]}"
        env = {"env_vars": {"RAY_JOB_ID_OF_TEST": job, "PYTHONPATH": str(ROOT)}}
        body = {"entrypoint": line, "submission_id": job, "runtime_env": env}
        until(lambda: self.asked("jobs/", **body), STARTS_S)
        return Job(self, job)

    def cut(self, name: str) -> None:
        """No packet comes from a node, or goes to it."""
        _ip(f"link set {self.nodes[name].link} down")

    def mend(self, name: str) -> None:
        """Packets pass again."""
        _ip(f"link set {self.nodes[name].link} up")

    def _link(self, name: str) -> tuple[str, str]:
        """Makes a namespace and its way to the head. Returns its name and that of the device on the head's side."""
        number = space_address(name).rpartition(".")[2]
        space, outer, inner = f"{self.bridge}-{name}", f"v{self.port}{number}", f"w{self.port}{number}"
        _ip(f"netns add {space}", f"link add {outer} type veth peer name {inner}", f"link set {inner} netns {space}")
        _ip(f"link set {outer} master {self.bridge} up")
        for words in (f"addr add {space_address(name)}/24 dev {inner}", f"link set {inner} up", "link set lo up"):
            subprocess.run(["ip", "netns", "exec", space, "ip", *words.split()], check=True)
        return space, outer

    def kill(self) -> None:
        """Everything at once, jobs too: all machines lose power."""
        for node in self.nodes.values():
            if node.process.poll() is None:
                node.kill()
        for one in psutil.process_iter():  # what hangs on a node that is gone
            try:
                if one.environ().get("HOME") == str(self.folder):
                    one.kill()
            except psutil.Error:
                continue

    def close(self) -> None:
        """Ends all of it; asked to end, Ray takes half a minute."""
        self.kill()
        if self.links:
            for name, node in self.nodes.items():
                if node.link:
                    _ip(f"netns del {self.bridge}-{name}", check=False)
                    _ip(f"link del {node.link}", check=False)
            _ip(f"link del {self.bridge}", check=False)
        shutil.rmtree(self.temp, ignore_errors=True)


def space_address(name: str) -> str:
    """The address of a node with a link; its name ends with a number."""
    return f"10.77.0.{10 + int(name[-1])}"


def can_link() -> None:
    """Skips a test that needs links where there can be none."""
    if os.geteuid() != 0 or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux, and root, for network namespaces")
    debian_program("iproute2", "ip")


def until(found, seconds: float, why=lambda: ""):  # type: ignore[no-untyped-def]
    """What `found` returns, once that is something."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.3)
    raise AssertionError(f"waited for {seconds} s: {why()}")


def _ip(*lines: str, check: bool = True) -> None:
    for line in lines:
        subprocess.run(["ip", *line.split()], check=check, capture_output=True)

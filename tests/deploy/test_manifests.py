"""If these fail, Kubernetes refuses the manifests or drops part of them, or a cluster runs them otherwise than they say."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
from collections import Counter
from itertools import pairwise

import jsonschema
import pytest
import typer
import yaml

from jobs.scheduler import cron_trigger
from jobs.serve import THROUGHPUT
from jobs.serve.settings import ServeSettings
from pipelines.cluster import NodeShape, place
from pipelines.curation.recipe import load_curation_recipe
from pipelines.process.recipe import load_recipe
from tests.conftest import optional_package
from tests.deploy.manifests import (
    FILES,
    RAY_KINDS,
    ROOT,
    check_crd,
    closed,
    cluster_of,
    crds,
    documents,
    pod_specs,
    ray_objects,
)

KUBERNETES = "1.31"
each_job = pytest.mark.parametrize(
    "job", [d for d in ray_objects() if d["kind"] == "RayJob"], ids=lambda d: d["metadata"]["generateName"]
)
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()


def of_kind(kind: str, name: str = "") -> dict:
    """The one object of a kind, in a file of a name."""
    (found,) = [d for path in FILES if name in path.name for d in documents(path) if d["kind"] == kind]
    return found


# -- schemas -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ray_objects(), ids=lambda d: d["kind"])
def test_kuberay_knows_every_key(document):
    jsonschema.validate(document["spec"], RAY_KINDS[document["kind"]])
    assert document["apiVersion"] == "ray.io/v1"
    for kind, schema in crds().items():
        if kind == document["kind"]:
            check_crd(document, schema)


def test_a_key_that_a_crd_does_not_know_is_found(tmp_path, monkeypatch):
    known = {
        "type": "object",
        "properties": {"spec": {"type": "object", "properties": {"entrypoint": {"type": "string"}}}},
    }
    names = {"kind": "RayJob"}
    versions = [{"name": "v1alpha1", "schema": {}}, {"name": "v1", "schema": {"openAPIV3Schema": known}}]
    crd = {"kind": "CustomResourceDefinition", "spec": {"names": names, "versions": versions}}
    (tmp_path / "rayjobs.yaml").write_text(yaml.safe_dump(crd))
    monkeypatch.setenv("VFM_KUBERAY_CRDS", str(tmp_path))
    check_crd({"spec": {"entrypoint": "true"}}, crds()["RayJob"])
    for wrong in ({"spec": {"entrypoint": 1}}, {"spec": {"entryPoint": "true"}}):
        with pytest.raises(jsonschema.ValidationError):
            check_crd(wrong, crds()["RayJob"])
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong["spec"], closed(entrypoint={"type": "string"}))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_kubernetes_accepts_every_object_and_every_pod(path):
    validate = optional_package("kubernetes_validate").validate
    found = documents(path)
    for document in found:
        if not document["apiVersion"].startswith("ray.io/"):
            validate(document, KUBERNETES, strict=True)
        for spec in pod_specs(document):
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec}
            validate(pod, KUBERNETES, strict=True)
        options = cluster_of(document).get("autoscalerOptions", {}) if document in ray_objects() else {}
        if options:  # of the autoscaler's container
            container = {"name": "autoscaler", **{k: options[k] for k in ("resources", "securityContext")}}
            pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": {"containers": [container]}}
            validate(pod, KUBERNETES, strict=True)


def test_ray_serve_deploys_what_the_service_says():
    from ray.serve.schema import ServeDeploySchema

    config = yaml.safe_load(of_kind("RayService")["spec"]["serveConfigV2"])
    ServeDeploySchema.model_validate(config)
    (application,) = config["applications"]
    ServeSettings.model_validate(application["args"])
    assert config == yaml.safe_load((ROOT / "jobs" / "serve" / "serve.yaml").read_text())


# -- commands ----------------------------------------------------------------------------------------------------------


def commands(entrypoint: str) -> list[list[str]]:
    """What an entrypoint runs, as words: one command, or several in a shell."""
    words = shlex.split(entrypoint)
    if words[:2] != ["bash", "-c"]:
        return [words]
    return [shlex.split(part) for part in words[2].split(" && ")]


@pytest.mark.parametrize(
    "job", [d for d in ray_objects() if d["kind"] == "RayJob"], ids=lambda d: d["metadata"]["generateName"]
)
def test_every_command_is_one_of_ours(job):
    for python, module_option, module, *arguments in commands(job["spec"]["entrypoint"]):
        assert (python, module_option) == ("python", "-m")
        app = typer.Typer(add_completion=False)
        app.command()(importlib.import_module(module).command)
        given = typer.main.get_command(app).make_context(module, arguments).params
        if module == "jobs.process":
            load_recipe(given["recipe"], given["set_"])


@pytest.mark.parametrize(
    "job", [d for d in ray_objects() if d["kind"] == "RayJob"], ids=lambda d: d["metadata"]["generateName"]
)
def test_an_entrypoint_outlives_the_shells_that_it_passes(job, tmp_path):
    """KubeRay puts it into a line of a submitter's shell, from whose words Ray's command line makes a line for the head's."""
    seen = tmp_path / "seen"
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nprintf "%s\\n" "python $*" >>{seen}\n')
    python.chmod(0o755)
    entrypoint = job["spec"]["entrypoint"]
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\0' {entrypoint}"], capture_output=True, text=True, check=True
    ).stdout.split("\0")[:-1]
    for line in (shlex.join(words), entrypoint):  # K8sJobMode; HTTPMode
        seen.unlink(missing_ok=True)
        subprocess.run(line, shell=True, env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=True)
        assert seen.read_text().splitlines() == [" ".join(command) for command in commands(entrypoint)]


# -- what runs where ---------------------------------------------------------------------------------------------------


def shape(group: dict) -> NodeShape:
    """What Ray finds on a pod: KubeRay tells `ray start` the limits of the first container, unless the parameters say else."""
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    cpus = int(group["rayStartParams"].get("num-cpus", limits["cpu"]))
    return NodeShape(cpus, float(limits.get("nvidia.com/gpu", 0)))


def test_decoding_and_models_each_find_their_nodes():
    job = of_kind("RayJob", "process")
    cluster = cluster_of(job)
    (process,) = [c for c in commands(job["spec"]["entrypoint"]) if c[2] == "jobs.process"]
    recipe = load_recipe(None, [value for option, value in pairwise(process) if option == "--set"])
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    shapes = {name: shape(group) for name, group in groups.items()}
    there = Counter({shape(cluster["headGroupSpec"]): 1})
    there += Counter({shapes[name]: group["replicas"] for name, group in groups.items()})
    for at_first in (there, there + Counter({shapes["models"]: 1})):  # before and after a node for models has come
        where = place(recipe.resources, at_first, {})
        assert not where.fused
        assert where.gpus > 0
        assert shapes["models"].holds(where.cpus, where.gpus) >= 1
        assert shapes["decode"].holds(where.cpus, where.gpus) == 0
        assert where.decode_at_once >= groups["decode"]["replicas"] * shapes["decode"].cpus
    assert shape(cluster["headGroupSpec"]).cpus == 0
    assert cluster["enableInTreeAutoscaling"]
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] < group["maxReplicas"]


def test_the_replicas_of_the_server_fit_its_nodes():
    service = of_kind("RayService")
    settings = ServeSettings.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"])
    (group,) = cluster_of(service)["workerGroupSpecs"]
    choices = [settings.embed, *settings.detect, settings.segment, settings.track]
    one_of_each = sum(choice.gpus for choice in choices)
    least = sum(choice.gpus * choice.replicas[0] for choice in choices)
    assert least <= group["minReplicas"] * shape(group).gpus
    assert all(choice.gpus <= shape(group).gpus and choice.gpus > 0 for choice in choices)
    assert one_of_each <= group["maxReplicas"] * shape(group).gpus


def test_the_serving_nodes_know_the_token_and_spend_as_little_on_a_request_as_vfm_serve():
    service = of_kind("RayService")
    settings = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]
    for spec in pod_specs(service):
        environment = {e["name"]: e for e in spec["containers"][0]["env"]}
        assert "secretKeyRef" in environment[settings["token_env"]]["valueFrom"]
        tuned = {name: e["value"] for name, e in environment.items() if name.startswith("RAY_SERVE_")}
        assert tuned
        assert tuned.items() <= THROUGHPUT.items()
    backend = of_kind("Ingress")["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
    port = yaml.safe_load(service["spec"]["serveConfigV2"])["http_options"]["port"]
    assert backend == {"name": f"{service['metadata']['name']}-serve-svc", "port": {"number": port}}
    assert of_kind("Ingress")["spec"]["tls"]


# -- images, and what they may -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("document", ray_objects(), ids=lambda d: d["kind"])
def test_every_pod_of_ray_runs_the_image_that_the_dockerfile_makes(document):
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.M)
    (ray,) = re.findall(r"^ARG RAY_VERSION=(.+)$", DOCKERFILE, re.M)
    assert cluster_of(document)["rayVersion"] == ray
    for spec in pod_specs(document):
        (container,) = spec["containers"]
        on_card = "nvidia.com/gpu" in container["resources"]["limits"]
        assert container["image"] in (("vfm:cuda",) if on_card else ("vfm:cpu", "vfm:cuda"))
        assert spec["securityContext"]["runAsUser"] == int(user)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_pod_has_rights_or_secrets_that_it_does_not_need(path):
    for document in documents(path):
        for spec in pod_specs(document):
            assert spec["securityContext"]["runAsNonRoot"]
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            for container in spec["containers"]:
                assert container["securityContext"] == {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                }
                assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
                assert {"cpu", "memory"} <= container["resources"]["requests"].keys()
                for variable in container.get("env", []):
                    secret = re.search("TOKEN|SECRET|PASSWORD|ACCESS_KEY", variable["name"])
                    assert not (secret and "value" in variable), variable["name"]
        if document in ray_objects():
            assert cluster_of(document)["authOptions"] == {"mode": "token"}


# -- tries, and times --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "job", [d for d in ray_objects() if d["kind"] == "RayJob"], ids=lambda d: d["metadata"]["generateName"]
)
def test_a_job_is_tried_again_ends_and_leaves_no_cluster(job):
    spec = job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["shutdownAfterJobFinishes"]
    assert spec["ttlSecondsAfterFinished"] > 0


def test_items_in_quarantine_fail_no_job():
    head = cluster_of(of_kind("RayJob", "process"))["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert {"name": "VFM_QUARANTINE_EXIT_CODE", "value": "0"} in head["env"]


def test_a_valid_curation_runs_every_night_one_at_a_time(tmp_path):
    files = of_kind("ConfigMap")["data"]
    (tmp_path / "curate.yaml").write_text(files["curate.yaml"])
    load_curation_recipe(str(tmp_path / "curate.yaml"))
    job = of_kind("RayJob", "curate")
    words = shlex.split(job["spec"]["entrypoint"])
    (mount,) = cluster_of(job)["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    assert words[words.index("--recipe") + 1] == mount["mountPath"] + "/curate.yaml"
    cron = of_kind("CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    cron_trigger(cron["schedule"], cron["timeZone"])


@pytest.mark.parametrize(("status", "code"), [("Complete", 0), ("Failed", 1)])
def test_the_cron_job_creates_the_ray_job_and_ends_as_it_does(status, code, tmp_path):
    (container,) = of_kind("CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    (tmp_path / "rayjob.yaml").write_text(of_kind("ConfigMap")["data"]["rayjob.yaml"])
    for name, text in (
        (
            "kubectl",
            f'[ "$1" = create ] && cat >{tmp_path}/made && echo rayjob/x && exit\n'
            f'case "$4" in *Status*) cat {tmp_path}/status; echo {status} >{tmp_path}/status;; *) echo told;; esac',
        ),
        ("sleep", "true"),
    ):
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "status").write_text("Running\n")
    (script,) = container["args"]
    done = subprocess.run(
        [*container["command"], script.replace("/etc/vfm", str(tmp_path))],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin", "JOB_NAME": "vfm-curate-1", "JOB_UID": "u-1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (code, "created rayjob/x\n"), done.stderr
    assert done.stderr == ("told\n" if code else "")
    (owner,) = yaml.safe_load((tmp_path / "made").read_text())["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["uid"]) == ("Job", "vfm-curate-1", "u-1")
    names = {e["name"] for e in container["env"]}
    assert names == {"JOB_NAME", "JOB_UID"}

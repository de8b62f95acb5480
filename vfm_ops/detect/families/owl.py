"""OWL-ViT and OWLv2 (Minderer et al. 2022, https://arxiv.org/abs/2205.06230; 2023, https://arxiv.org/abs/2306.09683).

One box a patch of the image, one sigmoid a query. Queries are embeddings: of texts, kept from call to call, or of an
object shown in another image (one-shot).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from vfm_ops.detect.base import Detector, check_image, check_limits
from vfm_ops.detect.family import DetectorFamily
from vfm_ops.detect.postprocess import Candidates, cxcywh_to_pixels, select
from vfm_ops.detect.prompts import threshold_of_each
from vfm_ops.detect.types import Detections
from vfm_ops.errors import UsageError
from vfm_ops.models.cards import APACHE, OURS, POCKET_NOTE, ModelCard, shipped_model, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    import torch
    from torch import nn

QUERY_LABEL = "query image"
CACHED_PROMPTS = 4096


def images_of(model: Any) -> nn.Module:
    """The part of an OWL model that sees pictures: pixels (B, 3, S, S) -> features (B, N, D), boxes (B, N, 4) cxcywh in 0-1."""
    from torch import nn

    class OwlImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            grid_BhwD = self.model.image_embedder(pixel_values=pixels)[0]
            features_BND = grid_BhwD.flatten(1, 2)
            return features_BND, self.model.box_predictor(features_BND, grid_BhwD)

    return OwlImages().eval()


class OwlDetector(Detector):
    """What both generations share; they differ in their classes in transformers, and in how an image is padded."""

    default_threshold = 0.1
    threshold_source = "transformers, post_process_grounded_object_detection of OWL-ViT's and OWLv2's processors"
    pads_to_square: ClassVar[bool]
    model_name: ClassVar[str]
    processor_name: ClassVar[str]

    def __init__(self, folder: Path, device: torch.device, autocast: torch.dtype | None, batch_size: int) -> None:
        import transformers

        from vfm_ops.models.weights import load_processor, load_transformers

        super().__init__(device, autocast, batch_size)
        self.processor = load_processor(getattr(transformers, self.processor_name), folder)
        self.model = load_transformers(getattr(transformers, self.model_name), folder).to(device)
        self.backbone: Any = getattr(self.model, self.model.base_model_prefix)
        self.see = images_of(self.model)
        self._texts: OrderedDict[str, torch.Tensor] = OrderedDict()

    def image_network(self) -> tuple[nn.Module, np.ndarray]:
        """Its pictures are squares."""
        side = self.model.config.vision_config.image_size
        return images_of(self.model), np.zeros((1, 3, side, side), np.float32)

    def detect_like(
        self,
        images: Sequence[np.ndarray],
        query_image: np.ndarray,
        query_box: Sequence[float] | None = None,
        *,
        threshold: float = 0.6,
        nms_iou: float | None = 0.3,
        max_detections: int = 300,
        clip: bool = True,
    ) -> list[Detections]:
        """Find objects like the one in `query_box` of `query_image` (one-shot, image-guided).

        query_box: xyxy in pixels of the query image; None is the whole of it. The result's only prompt is
        'query image'. Raises UsageError for a box that is not finite, has no area, or leaves the image.
        """
        for i, image in enumerate([query_image, *images]):
            check_image(image, "query_image" if i == 0 else f"images[{i - 1}]")
        check_limits(nms_iou, max_detections)
        limits = threshold_of_each([QUERY_LABEL], threshold, threshold)
        with self._inference():
            query = self._query_from_image(query_image, check_query_box(query_box, query_image))
        results = []
        for start in range(0, len(images), self.batch_size):
            batch = list(images[start : start + self.batch_size])
            with self._inference():
                found = self._match(batch, [query[None]] * len(batch))
            for image, candidates in zip(batch, found):
                size = (image.shape[0], image.shape[1])
                results.append(select(candidates, [QUERY_LABEL], limits, size, nms_iou, max_detections, clip))
        return results

    def _candidates(self, images: list[np.ndarray], prompts: list[list[str]]) -> list[Candidates]:
        import torch

        self._embed_texts([p for own in prompts for p in own])
        return self._match(images, [torch.stack([self._texts[p] for p in own]) for own in prompts])

    def _match(self, images: list[np.ndarray], queries: list[torch.Tensor]) -> list[Candidates]:
        """Score every patch of each image against that image's own queries, each (P, D)."""
        import torch

        longest = max(len(q) for q in queries)
        queries_BPD = torch.stack([torch.nn.functional.pad(q, (0, 0, 0, longest - len(q))) for q in queries])
        features_BND, boxes_BN4 = self._encode(images)
        logits_BNP = self.model.class_predictor(features_BND, queries_BPD)[0].float()
        results = []
        for i, image in enumerate(images):
            score = logits_BNP[i, :, : len(queries[i])].max(dim=-1)
            width, height = self._box_scale(image)
            results.append(
                Candidates(cxcywh_to_pixels(boxes_BN4[i], width, height), score.values.sigmoid(), score.indices)
            )
        return results

    def _encode(self, images: list[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = self.processor.image_processor(
            images, return_tensors="pt", input_data_format="channels_last", device=self.device
        )
        features_BND, boxes_BN4 = self.see(pixels["pixel_values"].to(self.device))
        return features_BND, boxes_BN4

    def _box_scale(self, image: np.ndarray) -> tuple[int, int]:
        height, width = image.shape[:2]
        return (max(height, width),) * 2 if self.pads_to_square else (width, height)

    def _embed_texts(self, prompts: list[str]) -> None:
        """Put the embeddings (D,) of prompts into the cache; a corpus asks for the same few again and again."""
        import torch

        for known in set(prompts) & self._texts.keys():
            self._texts.move_to_end(known)
        new = list(dict.fromkeys(p for p in prompts if p not in self._texts))
        if new:
            window = self.model.config.text_config.max_position_embeddings
            tokens = self.processor.tokenizer(new, padding="max_length", max_length=window, return_tensors="pt")
            if tokens["input_ids"].shape[1] > window:
                counts = [len(self.processor.tokenizer(p)["input_ids"]) for p in new]
                worst = int(np.argmax(counts))
                raise UsageError(
                    f"the prompt {new[worst][:60]!r} has {counts[worst]} tokens; {self.family} reads {window}"
                )
            ids, mask = tokens["input_ids"].to(self.device), tokens["attention_mask"].to(self.device)
            pooled = self.backbone.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
            unit = pooled / torch.linalg.norm(pooled, dim=-1, keepdim=True)
            self._texts.update(zip(new, unit))
        while len(self._texts) > max(CACHED_PROMPTS, len(set(prompts))):
            self._texts.popitem(last=False)

    def _query_from_image(self, image: np.ndarray, box: tuple[float, ...]) -> torch.Tensor:
        """Embedding (D,) of the object in `box` (paper, appendix A1.7): among the predicted boxes that fit nearly as
        well as the best, the one least like the image's mean embedding, which is mostly background."""
        from torchvision.ops import box_iou, generalized_box_iou

        features_1ND, boxes_1N4 = self._encode([image])
        embeds_ND = self.model.class_predictor(features_1ND)[1][0].float()
        width, height = self._box_scale(image)
        boxes_N4 = cxcywh_to_pixels(boxes_1N4[0], width, height)
        wanted = boxes_N4.new_tensor([box])
        iou = box_iou(wanted, boxes_N4)[0]
        if not bool((iou > 0).any()):
            iou = generalized_box_iou(wanted, boxes_N4)[0]
        # The sign makes "within 80 % of the best" hold for generalised IoU too, which may be negative.
        fitting = (iou >= iou.max() - 0.2 * iou.max().abs()).nonzero()[:, 0]
        similarity = embeds_ND[fitting] @ embeds_ND.mean(dim=0)
        return embeds_ND[fitting[similarity.argmin()]]


class OwlVit(OwlDetector):
    """OWL-ViT: images are stretched to the model's square."""

    family = "owlvit"
    pads_to_square = False
    model_name, processor_name = "OwlViTForObjectDetection", "OwlViTProcessor"


class OwlV2(OwlDetector):
    """OWLv2: images are padded to a square at the right or at the bottom, so boxes are relative to the longer side."""

    family = "owlv2"
    pads_to_square = True
    model_name, processor_name = "Owlv2ForObjectDetection", "Owlv2Processor"

    def __init__(self, folder: Path, device: torch.device, autocast: torch.dtype | None, batch_size: int) -> None:
        from vfm_ops.detect.owl_pixels import BlursByAxis

        super().__init__(folder, device, autocast, batch_size)
        self.processor.image_processor = BlursByAxis.from_dict(self.processor.image_processor.to_dict())


def check_query_box(box: Sequence[float] | None, image: np.ndarray) -> tuple[float, ...]:
    """The box as four floats; the whole image for None. UsageError unless it is finite, inside and not empty."""
    height, width = image.shape[:2]
    if box is None:
        return (0.0, 0.0, float(width), float(height))
    values = np.asarray(box, dtype=np.float64).reshape(-1)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise UsageError(f"query_box is {list(box)}: give four finite numbers x0, y0, x1, y1 in pixels")
    x0, y0, x1, y1 = values.tolist()
    if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
        raise UsageError(
            f"query_box {[x0, y0, x1, y1]} is empty or leaves the query image of {width} x {height} pixels"
        )
    return (x0, y0, x1, y1)


register(
    DetectorFamily(
        name="owlvit",
        model_types=("owlvit",),
        detector=lambda: OwlVit,
        cards=(
            ModelCard(
                "pocket",
                f"boxes from phrases; {POCKET_NOTE}",
                APACHE,
                shipped_model("owlvit", "OwlViTForObjectDetection", "OwlViTConfig"),
                package=OURS,
            ),
            ModelCard(
                "google/owlvit-base-patch32",
                "boxes from phrases or example images",
                APACHE,
                transformers_model("OwlViTForObjectDetection", "OwlViTConfig"),
            ),
        ),
    )
)

register(
    DetectorFamily(
        name="owlv2",
        model_types=("owlv2",),
        detector=lambda: OwlV2,
        cards=(
            ModelCard(
                "google/owlv2-base-patch16-ensemble",
                "OWL-ViT with self-training: better on rare objects",
                APACHE,
                transformers_model(
                    "Owlv2ForObjectDetection", "Owlv2Config", vision_config={"image_size": 960, "patch_size": 16}
                ),
            ),
        ),
    )
)

"""OmDet-Turbo (Zhao et al. 2024, https://arxiv.org/abs/2403.06892) on transformers' model: real time, permissive."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vfm_ops.detect.base import Detector, pack_by_tokens
from vfm_ops.detect.family import DetectorFamily
from vfm_ops.detect.postprocess import Candidates, cxcywh_to_pixels
from vfm_ops.errors import UsageError
from vfm_ops.models.cards import APACHE, ModelCard, transformers_model
from vfm_ops.models.registry import register

if TYPE_CHECKING:
    import torch
    from torch import nn


def images_of(model: Any) -> nn.Module:
    """The part of the model that sees pictures, backbone and hybrid encoder: pixels (B, 3, S, S) -> its maps."""
    from torch import nn

    class OmDetImages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.vision_backbone, self.encoder = model.vision_backbone, model.encoder

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.encoder(self.vision_backbone(pixels), return_dict=True).extracted_states)

    return OmDetImages().eval()


class OmDetTurbo(Detector):
    """The best (query, prompt) pairs of an image, as many as the model has queries."""

    family = "omdet-turbo"
    default_threshold = 0.3
    threshold_source = "transformers, OmDetTurboProcessor.post_process_grounded_object_detection"

    def __init__(self, folder: Path, device: torch.device, autocast: torch.dtype | None, batch_size: int) -> None:
        from transformers import OmDetTurboForObjectDetection, OmDetTurboProcessor

        from vfm_ops.models.weights import load_processor, load_transformers

        super().__init__(device, autocast, batch_size)
        self.processor: Any = load_processor(OmDetTurboProcessor, folder)
        self.model: Any = load_transformers(OmDetTurboForObjectDetection, folder).to(device)
        self.window = int(self.processor.text_kwargs["max_length"])
        self.see = images_of(self.model)

    def image_network(self) -> tuple[nn.Module, np.ndarray]:
        """Its pictures are stretched to one size."""
        size = self.processor.image_processor.size
        return images_of(self.model), np.zeros((1, 3, size["height"], size["width"]), np.float32)

    def _vocabulary_parts(self, prompts: list[str]) -> list[list[int]]:
        """The task sentence "Detect a, b, c." must fit the text window whole; the processor would cut it silently."""

        def tokens(text: str) -> int:
            return len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"])

        room = self.window - 2 - tokens("Detect") - tokens(".")
        counts = [tokens(f"{prompt},") for prompt in prompts]
        for prompt, count in zip(prompts, counts):
            if count > room:
                raise UsageError(f"the prompt {prompt[:40]!r}... has {count} tokens; {room} fit into {self.family}")
        return pack_by_tokens(counts, room)

    def _candidates(self, images: list[np.ndarray], prompts: list[list[str]]) -> list[Candidates]:
        """Images with equally many prompts share a forward pass: the model lets padded classes choose its queries."""
        results: dict[int, Candidates] = {}
        for count in sorted({len(own) for own in prompts}):
            rows = [i for i, own in enumerate(prompts) if len(own) == count]
            found = self._equal_prompts([images[i] for i in rows], [prompts[i] for i in rows])
            results.update(zip(rows, found))
        return [results[i] for i in range(len(images))]

    def _equal_prompts(self, images: list[np.ndarray], prompts: list[list[str]]) -> list[Candidates]:
        inputs = self.processor(
            images=images,
            text=prompts,
            return_tensors="pt",
            images_kwargs={"input_data_format": "channels_last", "device": self.device},
        )
        texts = ("classes_input_ids", "classes_attention_mask", "tasks_input_ids", "tasks_attention_mask")
        inputs = inputs.to(self.device)
        language = self.model.get_language_embedding(*(inputs[name] for name in texts), inputs["classes_structure"])
        outputs = self.model.decoder(self.see(inputs["pixel_values"]), *language, return_dict=True)
        results = []
        for i, image in enumerate(images):
            probs_QP = outputs.decoder_classes[-1][i].float().sigmoid()
            height, width = image.shape[:2]
            boxes_Q4 = cxcywh_to_pixels(outputs.decoder_coords[-1][i], width, height)
            best = probs_QP.flatten().topk(len(probs_QP), sorted=False)
            query, prompt = best.indices // probs_QP.shape[1], best.indices % probs_QP.shape[1]
            results.append(Candidates(boxes_Q4[query], best.values, prompt))
        return results


register(
    DetectorFamily(
        name="omdet-turbo",
        model_types=("omdet-turbo",),
        detector=lambda: OmDetTurbo,
        cards=(
            ModelCard(
                "omlab/omdet-turbo-swin-tiny-hf",
                "boxes from phrases in real time",
                APACHE,
                transformers_model("OmDetTurboForObjectDetection", "OmDetTurboConfig"),
            ),
        ),
    )
)

"""Grounding DINO (Liu et al. 2023, https://arxiv.org/abs/2303.05499) on transformers' model.

The text is one string, "person. bicycle."; a query's logits are per token. A phrase read off from tokens above a
threshold can merge two prompts, so each box goes to the prompt whose token span holds its highest logit instead.
"""

from __future__ import annotations

import re
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


def join_prompts(prompts: list[str]) -> tuple[str, list[tuple[int, int]]]:
    """Lower-cased, dot-separated text, and the (start, end) characters of each prompt in it.

    A dot inside a prompt would split it into two phrases of the model, so it becomes a space.
    """
    text, spans = "", []
    for prompt in prompts:
        words = re.sub(r"[.\s]+", " ", prompt.lower()).strip()
        if not words:
            raise UsageError(f"the prompt {prompt!r} holds no word: name what to look for")
        start = len(text) + (1 if text else 0)
        text += (" " if text else "") + words + "."
        spans.append((start, start + len(words)))
    return text, spans


def token_positions(offsets: list[tuple[int, int]], span: tuple[int, int]) -> list[int]:
    """Positions of the tokens that lie within a prompt's characters; special tokens have empty offsets."""
    return [i for i, (a, b) in enumerate(offsets) if b > a and a >= span[0] and b <= span[1]]


class GroundingDino(Detector):
    """One box a query; its score is the highest over the text's tokens, its prompt is that of the best token span."""

    family = "grounding-dino"
    default_threshold = 0.25
    threshold_source = "transformers, GroundingDinoProcessor.post_process_grounded_object_detection"

    def __init__(self, folder: Path, device: torch.device, autocast: torch.dtype | None, batch_size: int) -> None:
        from transformers import GroundingDinoForObjectDetection, GroundingDinoProcessor

        from vfm_ops.models.weights import load_processor, load_transformers

        super().__init__(device, autocast, batch_size)
        self.processor: Any = load_processor(GroundingDinoProcessor, folder)
        self.model: Any = load_transformers(GroundingDinoForObjectDetection, folder).to(device)
        self.window = int(self.model.config.max_text_len)

    def _vocabulary_parts(self, prompts: list[str]) -> list[list[int]]:
        counts = []
        for prompt in prompts:
            text, _ = join_prompts([prompt])
            counts.append(len(self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]))
            if counts[-1] > self.window - 2:
                raise UsageError(f"the prompt {prompt[:40]!r}... has {counts[-1]} tokens; {self.window - 2} fit")
        return pack_by_tokens(counts, self.window - 2)

    def _candidates(self, images: list[np.ndarray], prompts: list[list[str]]) -> list[Candidates]:
        texts, spans = zip(*(join_prompts(own) for own in prompts))
        encoded = self.processor.tokenizer(
            list(texts), padding=True, return_offsets_mapping=True, return_token_type_ids=True, return_tensors="pt"
        )
        offsets = encoded.pop("offset_mapping").tolist()
        pixels = self.processor.image_processor(
            images, return_tensors="pt", input_data_format="channels_last", device=self.device
        )
        outputs = self.model(**encoded.to(self.device), **pixels.to(self.device))
        results = []
        for i, image in enumerate(images):
            probs = outputs.logits[i].float().sigmoid()
            height, width = image.shape[:2]
            results.append(
                Candidates(
                    cxcywh_to_pixels(outputs.pred_boxes[i], width, height),
                    probs.amax(dim=-1),
                    self._prompt_of_each(probs, offsets[i], spans[i], prompts[i]),
                )
            )
        return results

    def _prompt_of_each(
        self, probs_QT: torch.Tensor, offsets: list[tuple[int, int]], spans: list[tuple[int, int]], prompts: list[str]
    ) -> torch.Tensor:
        """Long (Q,): for each query the prompt with the highest probability over its own tokens."""
        import torch

        best = []
        for prompt, span in zip(prompts, spans):
            positions = token_positions(offsets, span)
            if not positions:
                raise UsageError(f"the tokenizer makes no token of the prompt {prompt!r}: use another word")
            best.append(probs_QT[:, positions].amax(dim=-1))
        return torch.stack(best, dim=-1).argmax(dim=-1)


register(
    DetectorFamily(
        name="grounding-dino",
        model_types=("grounding-dino",),
        detector=lambda: GroundingDino,
        cards=(
            ModelCard(
                "IDEA-Research/grounding-dino-tiny",
                "boxes from phrases, accurate",
                APACHE,
                transformers_model("GroundingDinoForObjectDetection", "GroundingDinoConfig"),
            ),
        ),
    )
)

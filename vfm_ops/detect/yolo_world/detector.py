"""YOLO-World behind the common interface."""

from __future__ import annotations

from typing import Self

import cv2
import numpy as np
import torch
from torch import Tensor

from vfm_ops.detect.base import Detector
from vfm_ops.detect.postprocess import Candidates
from vfm_ops.detect.prompts import Prompts, prompts_per_image
from vfm_ops.detect.yolo_world.backbone import STRIDES
from vfm_ops.detect.yolo_world.checkpoint import load_network, text_encoder_weights
from vfm_ops.detect.yolo_world.fold import fold_vocabulary
from vfm_ops.detect.yolo_world.network import YoloWorldNetwork
from vfm_ops.detect.yolo_world.text import TextEncoder, load_text_encoder
from vfm_ops.errors import UsageError
from vfm_ops.models.checkpoint import Checkpoint
from vfm_ops.models.weights import read_state_dict

# What surrounds a picture that is not square; the networks were trained with this grey.
PAD = 114
# Pairs of box and prompt that reach suppression, of an image whose boxes may have several labels: the official `nms_pre`.
MOST_PAIRS = 30_000


class YoloWorld(Detector):
    """Any number of prompts in one pass. `set_vocabulary` folds a fixed vocabulary into the network ahead of time."""

    family = "yolo-world"
    default_threshold = 0.05
    threshold_source = "AILab-CVC/YOLO-World, demo/gradio_demo.py"

    def __init__(
        self,
        network: YoloWorldNetwork,
        text: TextEncoder,
        device: torch.device,
        autocast: torch.dtype | None,
        batch_size: int,
        image_size: int = 640,
    ) -> None:
        """image_size: longer side, in pixels, to which a picture is scaled; a multiple of 32."""
        super().__init__(device, autocast, batch_size)
        if image_size < 32 or image_size % 32:
            raise UsageError(f"image_size is {image_size}: it must be a multiple of 32")
        self.network = network.eval().to(device)
        self.text = text
        self.image_size = image_size
        self._folded: tuple[tuple[str, ...], YoloWorldNetwork] | None = None

    @classmethod
    def from_checkpoint(
        cls, checkpoint: Checkpoint, device: torch.device, autocast: torch.dtype | None, batch_size: int
    ) -> Self:
        """From a published .pth or a .safetensors file with the same keys.

        Its folder may also hold text_encoder/ (a transformers CLIP text model) and tokenizer/.
        """
        file = checkpoint.weights[0]
        state = read_state_dict(file)
        network = load_network(state, file)
        text = load_text_encoder(text_encoder_weights(state), file.parent, device)
        dimension = int(text.model.config.projection_dim)
        if dimension != network.text_dim:
            raise UsageError(
                f"{file} expects text embeddings of {network.text_dim}, its text encoder gives {dimension}"
            )
        return cls(network, text, device, autocast, batch_size)

    def set_vocabulary(self, prompts: Prompts) -> tuple[str, ...]:
        """Fold these prompts into the network's convolutions; calls of `detect` with the same prompts then use them.

        Returns the prompts, split and without duplicates.
        """
        vocabulary = tuple(prompts_per_image(prompts, 1)[0])
        self._folded = (vocabulary, fold_vocabulary(self.network, self.text(list(vocabulary))))
        return vocabulary

    def _candidates(self, images: list[np.ndarray], prompts: list[list[str]]) -> list[Candidates]:
        """Images with equal canvases share a forward pass, so that none depends on its neighbours in the batch."""
        results: dict[int, Candidates] = {}
        shapes = [canvas_shape(image.shape[0], image.shape[1], self.image_size) for image in images]
        for shape in sorted(set(shapes)):
            rows = [i for i, own in enumerate(shapes) if own == shape]
            found = self._equal_canvases([images[i] for i in rows], [prompts[i] for i in rows], shape)
            results.update(zip(rows, found))
        return [results[i] for i in range(len(images))]

    def _equal_canvases(
        self, images: list[np.ndarray], prompts: list[list[str]], shape: tuple[int, int]
    ) -> list[Candidates]:
        canvases, ways_back = zip(*(letterbox(image, shape, self.image_size) for image in images))
        pixels = torch.from_numpy(np.stack(canvases)).to(self.device).permute(0, 3, 1, 2).float() / 255
        text_BND, valid_BN = self._text_batch(prompts)
        network = self.network
        if self._folded is not None and all(tuple(own) == self._folded[0] for own in prompts):
            network = self._folded[1]
        logits_BAN, boxes_BA4 = network(pixels, text_BND, valid_BN)
        results = []
        for i, own in enumerate(prompts):
            logits_AN = logits_BAN[i, :, : len(own)].float()
            offset, scale = (boxes_BA4.new_tensor(v * 2) for v in ways_back[i])
            boxes_A4 = (boxes_BA4[i] - offset) / scale
            results.append(every_label(logits_AN, boxes_A4) if self.multi_label else best_label(logits_AN, boxes_A4))
        return results

    def _text_batch(self, prompts: list[list[str]]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, N, D), padded with zeros to the longest vocabulary, and which are real, bool (B, N)."""
        longest = max(len(own) for own in prompts)
        texts = [self.text(own) for own in prompts]
        padded = [torch.nn.functional.pad(t, (0, 0, 0, longest - len(t))) for t in texts]
        counts = torch.tensor([len(own) for own in prompts], device=self.device)
        return torch.stack(padded), torch.arange(longest, device=self.device) < counts[:, None]


def best_label(logits_AN: Tensor, boxes_A4: Tensor) -> Candidates:
    """Every box under the prompt that it scores most for."""
    best = logits_AN.max(dim=-1)
    return Candidates(boxes_A4, best.values.sigmoid(), best.indices)


def every_label(logits_AN: Tensor, boxes_A4: Tensor) -> Candidates:
    """Every box under every prompt, the best `MOST_PAIRS` of these pairs.

    As the official head tests (mmyolo, YOLOv5Head.predict_by_feat with multi_label; configs/pretrain of YOLO-World):
    scores above the threshold, suppression within each label, the best 300.
    """
    prompts = logits_AN.shape[1]
    top = logits_AN.flatten().topk(min(MOST_PAIRS, logits_AN.numel()))
    return Candidates(boxes_A4[top.indices // prompts], top.values.sigmoid(), top.indices % prompts)


def canvas_shape(height: int, width: int, side: int) -> tuple[int, int]:
    """(H, W) of the smallest canvas, in multiples of the coarsest stride, for a picture whose longer side is `side`."""
    scaled = _scaled(height, width, side)
    return -(-scaled[0] // STRIDES[-1]) * STRIDES[-1], -(-scaled[1] // STRIDES[-1]) * STRIDES[-1]


def letterbox(
    image: np.ndarray, shape: tuple[int, int], side: int
) -> tuple[np.ndarray, tuple[tuple[float, float], tuple[float, float]]]:
    """The picture in the middle of a grey canvas, uint8 (*shape, 3), and the way back to the picture's pixels.

    The way back is an offset (x, y) in pixels of the canvas and a scale (x, y): p = (canvas - offset) / scale.
    """
    height, width = image.shape[:2]
    new_height, new_width = _scaled(height, width, side)
    top, left = (shape[0] - new_height) // 2, (shape[1] - new_width) // 2
    kind = cv2.INTER_AREA if new_height < height else cv2.INTER_LINEAR
    canvas = np.full((*shape, 3), PAD, np.uint8)
    canvas[top : top + new_height, left : left + new_width] = cv2.resize(
        image, (new_width, new_height), interpolation=kind
    )
    return canvas, ((float(left), float(top)), (new_width / width, new_height / height))


def _scaled(height: int, width: int, side: int) -> tuple[int, int]:
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))

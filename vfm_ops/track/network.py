"""SAM 2's video network as plain functions of tensors: no session, no state, every object a row of the batch.

Uses the weights and submodules of transformers' `Sam2VideoModel`. Letters: N objects, C hidden width, M memory width,
h and w the top-level feature map's size, S the model's square input size, L = h * w.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm_ops.allocator import keep_freed_memory
from vfm_ops.track.memory_attention import BatchedMemoryAttention, PackedMemory
from vfm_ops.track.prompts import Clicks

ABSENT_LOGIT = -1024.0  # mask logit of an object that is not on the frame
MOST_PREVIOUS_LOGIT = 32.0  # of a mask that clicks correct; larger ones make the decoder numerically unstable
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# uint8 (B, S, S, 3) -> (fine, middle, top) feature maps; `VideoImageEncoder`, or the same module in a faster runtime.
ImageEncoder = Callable[[Tensor], Sequence[Tensor | np.ndarray]]


@dataclass(frozen=True)
class ImageFeatures:
    """What the image encoder gives for one frame: two finer maps, projected for the mask decoder, and the top level."""

    fine: Tensor
    middle: Tensor
    top_1Chw: Tensor


@dataclass(frozen=True)
class DecodedMasks:
    """One mask for each object. logits_Nhw: at a quarter of S, in float32 or the network's precision where that is higher.
    full_N1SS: at S, float32. pointer_NC. score_N: object score logits. iou_N: predicted IoU."""

    logits_Nhw: Tensor
    full_N1SS: Tensor
    pointer_NC: Tensor
    score_N: Tensor
    iou_N: Tensor


class VideoImageEncoder(nn.Module):
    """Square frames, uint8 (B, S, S, 3) -> (fine, middle, top) maps; the module to hand to a faster runtime."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.vision_encoder = model.vision_encoder
        self.project_fine = model.mask_decoder.conv_s0
        self.project_middle = model.mask_decoder.conv_s1
        weight = model.no_memory_embedding
        self.dtype = weight.dtype
        self.register_buffer("mean", torch.tensor(mean, device=weight.device).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(std, device=weight.device).view(3, 1, 1) * 255)

    def forward(self, squares: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns maps of (B, C/8, S/4, S/4), (B, C/4, S/8, S/8) and (B, C, S/16, S/16)."""
        pixels = (squares.permute(0, 3, 1, 2).float() - self.mean) / self.std
        fine, middle, top = self.vision_encoder(pixels.to(self.dtype), return_dict=True).fpn_hidden_states
        return self.project_fine(fine), self.project_middle(middle), top


class Sam2Network:
    """The parts of a SAM 2 checkpoint that tracking calls, and the constants that follow from its weights.

    model: transformers' `Sam2VideoModel`. device, dtype: where and how it runs; mask logits are float32 always.
    mean, std: of the checkpoint's preprocessing, RGB in 0-1.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
    ) -> None:
        self.model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.config = model.config
        self.device, self.dtype = torch.device(device), dtype
        self.image_size: int = model.image_size
        self.feature_size: tuple[int, int] = tuple(model.backbone_feature_sizes[-1])
        self.memory_width: int = model.mem_dim
        self.image_encoder = VideoImageEncoder(model, mean, std).eval()
        self.compiled_encoder: ImageEncoder | None = None  # the same in a faster runtime: see `load_network`
        self.attention = BatchedMemoryAttention(model.memory_attention)
        self._prepare_constants()
        if self.device.type == "cpu":
            keep_freed_memory()

    @torch.inference_mode()
    def _prepare_constants(self) -> None:
        model, (h, w), c = self.model, self.feature_size, self.model.hidden_dim
        self.grid_position_1Chw = model.get_image_wide_positional_embeddings()
        neck_position = model.vision_encoder.neck.position_encoding((1, c, h, w), self.device, self.dtype)
        self.image_position_1LC = neck_position.flatten(2).transpose(1, 2).to(self.dtype)
        spatial = model.memory_encoder.position_encoding((1, self.memory_width, h, w), self.device, self.dtype)
        spatial_1LM = spatial.to(self.dtype).flatten(2).transpose(1, 2)
        # Row 0 (a prompted frame) uses the last temporal embedding, row k (k frames away) the k-th: index k - 1.
        temporal_T1M = torch.roll(model.memory_temporal_positional_encoding.reshape(-1, 1, self.memory_width), 1, 0)
        self.memory_position_TLM = spatial_1LM + temporal_T1M
        self.no_clicks = self._embed_clicks(
            torch.zeros(1, 1, 1, 2, device=self.device), -torch.ones(1, 1, 1, dtype=torch.int32, device=self.device)
        )

    def fingerprint(self) -> str:
        """Short digest of the weights, so that a saved state is never continued with other ones."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            sample = tensor.flatten()[:16].float().cpu().numpy()
            digest.update(f"{name}{tuple(tensor.shape)}".encode() + sample.tobytes())
        return digest.hexdigest()[:16]

    def encode_image(self, square: Tensor, encoder: ImageEncoder | None = None) -> ImageFeatures:
        """uint8 (1, S, S, 3) -> features, by the checkpoint's encoder or by a faster callable of the same signature."""
        maps = (encoder or self.compiled_encoder or self.image_encoder)(square.to(self.device))
        return ImageFeatures(*(torch.as_tensor(m).to(self.device, self.dtype) for m in maps))

    def without_memory(self, features: ImageFeatures, count: int) -> Tensor:
        """Features for objects that are seen for the first time, (count, C, h, w): the "no memory" embedding added."""
        embedding = self.model.no_memory_embedding.reshape(1, -1, 1, 1)
        return (features.top_1Chw + embedding).expand(count, -1, -1, -1)

    def with_memory(self, features: ImageFeatures, memory: PackedMemory) -> Tensor:
        """Features conditioned on each object's memories, (N, C, h, w)."""
        image_1LC = features.top_1Chw.flatten(2).transpose(1, 2)
        out_NLC = self.attention(image_1LC, self.image_position_1LC, memory)
        return out_NLC.transpose(1, 2).reshape(len(out_NLC), -1, *self.feature_size)

    def pointer_tokens(self, pointers_NQC: Tensor, distances_NQ: Tensor, max_pointers: int) -> tuple[Tensor, Tensor]:
        """Q object pointers with their distances in frames -> (N, P, M) tokens and positions, C / M tokens a pointer."""
        n, q, c = pointers_NQC.shape
        splits = c // self.memory_width
        if self.config.enable_temporal_pos_encoding_for_object_pointers:
            position = _sine_position(distances_NQ / (max_pointers - 1), c).to(self.dtype)
            position = self.model.temporal_positional_encoding_projection_layer(position)
        else:
            position = pointers_NQC.new_zeros(n, q, self.memory_width)
        tokens = pointers_NQC.to(self.dtype).reshape(n, q * splits, self.memory_width)
        return tokens, position.repeat_interleave(splits, 1)

    def decode(
        self,
        features: ImageFeatures,
        conditioned_NChw: Tensor,
        clicks: list[Clicks] | None,
        multimask: bool,
        previous_Nhw: Tensor | None = None,
    ) -> DecodedMasks:
        """The mask decoder for N objects; clicks: None, or one entry an object with equally many points in each.

        multimask: choose among three candidates by predicted IoU (for none or one point, where a prompt is ambiguous).
        previous_Nhw: with clicks, the mask logits that they correct; clamped, as in SAM 2's own predictor.
        """
        sparse, dense = self.no_clicks
        if clicks is not None:
            points = torch.from_numpy(np.stack([c.points for c in clicks])).to(self.device)
            labels = torch.from_numpy(np.stack([c.labels for c in clicks])).to(self.device)
            sparse, dense = self._embed_clicks(points[:, None], labels[:, None], previous_Nhw)
        return self._run_decoder(features, conditioned_NChw, sparse, dense, multimask)

    def decode_mask_prompt(self, features: ImageFeatures, masks_N1SS: Tensor) -> DecodedMasks:
        """A given mask is the answer; only its object pointer comes from the decoder (SAM 2, appendix C).

        masks_N1SS: 0 / 1, float. Logits are 20 * mask - 10.
        """
        model = self.model
        full = masks_N1SS * 20.0 - 10.0
        size = model.prompt_encoder.mask_input_size
        logits = F.interpolate(full, size=size, mode="bilinear", align_corners=False, antialias=True)
        dense = model.prompt_encoder.mask_embed(
            _resize_antialias(model.mask_downsample(masks_N1SS.to(self.dtype)), size)
        )
        top = features.top_1Chw.expand(len(full), -1, -1, -1)
        decoded = self._run_decoder(features, top, self.no_clicks[0], dense, True)
        present_N1 = (masks_N1SS.flatten(1) > 0).any(1, keepdim=True).to(self.dtype)
        pointer = present_N1 * decoded.pointer_NC + (1 - present_N1) * model.no_object_pointer
        score_N = 20.0 * present_N1[:, 0].float() - 10.0
        return DecodedMasks(logits[:, 0], full, pointer, score_N, torch.ones_like(score_N))

    def encode_memory(self, features: ImageFeatures, masks_N1SS: Tensor, score_N: Tensor, binarise: bool) -> Tensor:
        """Spatial memories (N, L, M), bfloat16, of masks on this frame.

        binarise: hard masks, for frames that a user has prompted; else sigmoid(logits). Both scaled to -10 ... 10. The
        frame's projection is the same for all objects, so it is computed once and the masks are added to it.
        """
        encoder, config = self.model.memory_encoder, self.config
        masks_N1SS = masks_N1SS.to(torch.promote_types(self.dtype, torch.float32))
        masks = (masks_N1SS > 0).to(masks_N1SS.dtype) if binarise else torch.sigmoid(masks_N1SS)
        masks = masks * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        fused = encoder.feature_projection(features.top_1Chw) + _downsample(
            encoder.mask_downsampler, masks.to(self.dtype)
        )
        memory_NMhw = encoder.projection(encoder.memory_fuser(fused))
        occlusion = self.model.occlusion_spatial_embedding_parameter
        if occlusion is not None:
            absent_N111 = (score_N <= 0).to(self.dtype)[:, None, None, None]
            memory_NMhw = memory_NMhw + absent_N111 * occlusion[..., None, None]
        return memory_NMhw.to(torch.bfloat16).flatten(2).transpose(1, 2).contiguous()

    def _embed_clicks(
        self, points: Tensor, labels: Tensor, previous_Nhw: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        masks = None
        if previous_Nhw is not None:
            masks = previous_Nhw[:, None].clamp(-MOST_PREVIOUS_LOGIT, MOST_PREVIOUS_LOGIT).to(self.dtype)
        return self.model.prompt_encoder(input_points=points, input_labels=labels, input_boxes=None, input_masks=masks)

    def _run_decoder(
        self, features: ImageFeatures, image_NChw: Tensor, sparse: Tensor, dense: Tensor, multimask: bool
    ) -> DecodedMasks:
        n = len(image_NChw)
        masks, iou, tokens, score = self.model.mask_decoder(
            image_embeddings=image_NChw,
            image_positional_embeddings=self.grid_position_1Chw.expand(n, -1, -1, -1),
            sparse_prompt_embeddings=sparse.expand(n, -1, -1, -1),
            dense_prompt_embeddings=dense.expand(n, -1, -1, -1),
            multimask_output=multimask,
            high_resolution_features=[m.expand(n, -1, -1, -1) for m in (features.fine, features.middle)],
        )
        row = torch.arange(n, device=masks.device)
        best = iou[:, 0].argmax(-1) if multimask else torch.zeros_like(row)
        token = tokens[row, 0, best if tokens.shape[2] > 1 else 0]
        present_N1 = score[:, 0] > 0
        kept = torch.promote_types(self.dtype, torch.float32)
        logits = torch.where(present_N1[:, :, None], masks[row, 0, best].to(kept), ABSENT_LOGIT)
        shown = present_N1.to(self.dtype)
        pointer = shown * self.model.object_pointer_proj(token) + (1 - shown) * self.model.no_object_pointer
        size = (self.image_size, self.image_size)
        full = F.interpolate(logits[:, None].float(), size=size, mode="bilinear", align_corners=False)
        return DecodedMasks(logits, full, pointer, score[:, 0, 0].float(), iou[row, 0, best].float())


def _downsample(module: nn.Module, masks_N1SS: Tensor) -> Tensor:
    """The memory encoder's mask downsampler, with a quicker norm for its first layers: they have 4 and 16 channels."""
    x = masks_N1SS
    for layer in module.layers:
        x = layer.conv(x)
        x = layer.activation(_norm_few_channels(x, layer.layer_norm) if x.shape[1] <= 16 else layer.layer_norm(x))
    return module.final_conv(x)


def _norm_few_channels(x_NCHW: Tensor, norm: nn.Module) -> Tensor:
    """Layer norm over C: with the channels outermost every step runs along whole maps, not along rows of C numbers."""
    x_CNHW = x_NCHW.transpose(0, 1).contiguous()
    centred = x_CNHW - x_CNHW.mean(0)
    inverse = ((centred * centred).mean(0) + norm.eps).rsqrt()
    weight, bias = norm.weight[:, None, None, None], norm.bias[:, None, None, None]
    return (centred * inverse * weight + bias).transpose(0, 1)


def _sine_position(position: Tensor, width: int) -> Tensor:
    """Transformer position encoding of real positions (Vaswani et al. 2017, 3.5), sines first, then cosines."""
    half = width // 2
    channel = torch.arange(half, dtype=torch.float32, device=position.device)
    angle = position.float()[..., None] / 10000 ** (2 * (channel // 2) / half)
    return torch.cat([angle.sin(), angle.cos()], -1)


def _resize_antialias(x: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x.float(), size=size, mode="bilinear", align_corners=False, antialias=True).to(x.dtype)

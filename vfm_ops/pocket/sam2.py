"""pocket-sam2: transformers' Sam2Video architecture at 128 px, hidden 128, memory 64; its configuration, batched steps, saving.

transformers' own forward serves one object of one session at a time and puts -1024 in place of absent objects' masks, which
has no gradient; the steps here run the same modules on batches (B images x N objects).
Legend: B images, N objects of an image, T frames, L tokens of the memory grid (8 x 8), C channels, S mask side (32).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vfm_ops.pocket.train import save_half
from vfm_ops.track.network import MOST_PREVIOUS_LOGIT

SIZE, HIDDEN, MEMORY = 128, 128, 64
FEATURES = ((32, 32), (16, 16), (8, 8))
MAX_POINTERS = 8
# What the released SAM 2 processors use; users' own loaders will normalise so.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def make_model() -> Any:
    """A randomly initialised transformers Sam2VideoModel with an initialisation that can learn (see `mend_initialisation`)."""
    from transformers import Sam2VideoConfig, Sam2VideoModel

    hiera = {
        "hidden_size": 32, "num_attention_heads": 1, "image_size": [SIZE, SIZE], "blocks_per_stage": [1, 2, 3, 1],
        "embed_dim_per_stage": [32, 64, 128, 192], "num_attention_heads_per_stage": [1, 2, 4, 6],
        "window_size_per_stage": [8, 4, 8, 4], "global_attention_blocks": [4, 5],
        "window_positional_embedding_background_size": [8, 8], "mlp_ratio": 3.0, "model_type": "sam2_hiera_det_model",
    }  # fmt: skip
    vision = {
        "model_type": "sam2_vision_model", "backbone_config": hiera, "backbone_channel_list": [192, 128, 64, 32],
        "backbone_feature_sizes": [list(s) for s in FEATURES], "fpn_hidden_size": HIDDEN,
    }  # fmt: skip
    config = Sam2VideoConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": HIDDEN, "image_size": SIZE, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": HIDDEN, "mlp_dim": 256, "num_attention_heads": 4, "iou_head_hidden_dim": HIDDEN,
            "dynamic_multimask_via_stability": False,
        },
        image_size=SIZE, multimask_output_for_tracking=False, max_object_pointers_in_encoder=MAX_POINTERS,
        memory_attention_hidden_size=HIDDEN, memory_attention_num_layers=2, memory_attention_feed_forward_hidden_size=256,
        memory_attention_rope_feat_sizes=list(FEATURES[-1]), memory_attention_dropout=0.0, memory_attention_rope_dropout=0.0,
        memory_encoder_hidden_size=HIDDEN, memory_encoder_output_channels=MEMORY, mask_downsampler_embed_dim=HIDDEN,
        memory_fuser_embed_dim=HIDDEN, memory_fuser_intermediate_dim=2 * HIDDEN,
    )  # fmt: skip
    model = Sam2VideoModel(config)
    mend_initialisation(model)
    return model


@torch.no_grad()
def mend_initialisation(model: Any) -> None:
    """Keeps the signal's size from layer to layer, and opens what the library leaves closed.

    The library draws every weight with deviation 0.02, whatever its fan-in: features fade to 0.005 at the fine levels (and an
    object score below zero then replaces all masks by -1024). Here weights have variance 1 / fan-in, the memory fuser's layer
    scales start at 0.1 instead of 0, and temporal and no-object embeddings differ from the start. Output tokens and point
    labels start as large as the positions that they are added to. Prompts and image share one Fourier basis, as in released
    weights (the library draws two), of 0.1 to 0.6 cycles a half image: in the library's, of 1, a corner is like no place
    farther than a token away, and for a thousand steps nothing tells the inside of a box from its outside.
    """
    directions = torch.rand(HIDDEN // 2) * 2 * torch.pi
    cycles = torch.logspace(math.log10(0.1), math.log10(0.6), HIDDEN // 2)
    positions = torch.stack([directions.cos(), directions.sin()]) * cycles
    for embedding in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        embedding.positional_embedding.copy_(positions)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            taps = module.kernel_size[0] * module.kernel_size[1] if not isinstance(module, nn.Linear) else 1
            # A transposed convolution at stride = kernel adds its input channels only; a grouped one sees its group's.
            transposed = isinstance(module, nn.ConvTranspose2d)
            fan_in = module.weight.shape[0] if transposed else module.weight.shape[1] * taps
            module.weight.normal_(0, fan_in**-0.5)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Embedding):
            module.weight.normal_(0, 0.5)
    # Equal projections of queries and keys: prompts look where they are from the first step (Trockman & Kolter 2023).
    decoder = model.mask_decoder.transformer
    crossings = [
        getattr(b, f"cross_attn_{way}") for b in decoder.layers for way in ("token_to_image", "image_to_token")
    ]
    for attention in (*crossings, decoder.final_attn_token_to_image):
        attention.q_proj.weight.mul_(1.5)
        attention.k_proj.weight.copy_(attention.q_proj.weight)
    for mlp in model.mask_decoder.output_hypernetworks_mlps:
        mlp.proj_out.weight.mul_(0.5)
    for block in model.memory_encoder.memory_fuser.layers:
        block.scale.fill_(0.1)
    for parameter in (model.memory_temporal_positional_encoding, model.no_object_pointer, model.no_memory_embedding,
                      model.occlusion_spatial_embedding_parameter):  # fmt: skip
        nn.init.trunc_normal_(parameter, std=0.02)


@torch.no_grad()
def open_memory(model: Any, pixels_BCHW: Tensor, logits_BSS: Tensor) -> None:
    """Before the first clip: brings what meets in memory to one size, measured on images and masks (logits) of objects.

    Features that stills have taught are a hundred times as large as a mask's embedding, which they would drown, and as what
    attention reads from memory. Here they have deviation 1, a mask 2, and what is read is about as large as the
    features that it is added to. Beyond that, memory attention first leaves a frame nearly as the decoder knows it: its closing
    norm has the features' own mean and size, and its layers' other changes are small. Equal biases of queries and keys make
    them look where they are: under rotary positions the product of a constant with itself falls with the distance, here by
    1.7 a cell.
    """
    features, encoder, attention = encode(model, pixels_BCHW), model.memory_encoder, model.memory_attention
    known_BCHW = without_memory(model, features)
    size = known_BCHW.std()
    _resize(encoder.feature_projection, encoder.feature_projection(features.low_BCHW).std())
    masks = F.interpolate(logits_BSS[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False).sigmoid()
    masks = masks * model.config.sigmoid_scale_for_mem_enc + model.config.sigmoid_bias_for_mem_enc
    _resize(encoder.mask_downsampler.final_conv, encoder.mask_downsampler(masks).std() / 2)
    attention.layer_norm.weight.copy_(known_BCHW.std((0, 2, 3)))
    attention.layer_norm.bias.copy_(known_BCHW.mean((0, 2, 3)))
    for layer in attention.layers:
        layer.self_attn.o_proj.weight.mul_(0.2)
        layer.linear2.weight.mul_(0.2)
        layer.cross_attn_image.o_proj.weight.mul_(size)
        layer.cross_attn_image.q_proj.bias.fill_(3.0)
        layer.cross_attn_image.k_proj.bias.fill_(3.0)


@torch.no_grad()
def open_mask_prompts(model: Any, pixels_BCHW: Tensor, logits_BSS: Tensor) -> None:
    """Before the first mask prompt: makes its embedding half as large as the features that it is added to.

    Features that stills have taught are a hundred times as large as what the mask embedding was drawn with: a mask given as a
    prompt would move logits of 20 by 0.1, and the decoder would never learn to listen. Sizes are deviations over places.
    A mask of 0 and 1 that tracking starts from is brought to the same scale as logits are, -10 to 10.
    """
    model.mask_downsample.weight.fill_(20 / model.mask_downsample.weight[0].numel())
    model.mask_downsample.bias.fill_(-10)
    embed = model.prompt_encoder.mask_embed
    said = embed(logits_BSS[:, None]).std((0, 2, 3)).mean()
    _resize(embed.conv3, 2 * said / encode(model, pixels_BCHW).low_BCHW.std((0, 2, 3)).mean())


def _resize(layer: Any, size: Tensor) -> None:
    """Divides what a linear layer or convolution gives."""
    layer.weight.div_(size)
    layer.bias.div_(size)


def to_pixels(rgb_BHWC: Any) -> Tensor:
    """uint8 RGB (B, H, W, 3) to normalised float32 (B, 3, H, W)."""
    x = torch.as_tensor(rgb_BHWC).permute(0, 3, 1, 2).float() / 255
    return (x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@dataclass
class Features:
    """An encoded batch: fine to coarse maps (B, C', h, w) as the mask decoder takes them, the last without any memory."""

    high: list[Tensor]
    low_BCHW: Tensor

    def of(self, index: Tensor) -> Features:
        """The features of some of the images, repeats allowed."""
        return Features([f[index] for f in self.high], self.low_BCHW[index])


def encode(model: Any, pixels_BCHW: Tensor) -> Features:
    """Image encoder once per image."""
    maps = model.get_image_features(pixels_BCHW, return_dict=True).fpn_hidden_states
    b = len(pixels_BCHW)
    shaped = [m.permute(1, 2, 0).reshape(b, -1, *size) for m, size in zip(maps, FEATURES, strict=True)]
    return Features(shaped[:-1], shaped[-1])


@dataclass
class Decoded:
    """masks_BNMSS: logits of M masks; iou_BNM: predicted quality; pointers_BNMC; present_BN: logit that the object is there."""

    masks_BNMSS: Tensor
    iou_BNM: Tensor
    pointers_BNMC: Tensor
    present_BN: Tensor


def decode(
    model: Any,
    features: Features,
    conditioned_BCHW: Tensor,
    points: Tensor | None,
    labels: Tensor | None,
    multimask: bool,
    previous_BSS: Tensor | None = None,
) -> Decoded:
    """Mask decoder for N prompts an image.

    points (B, N, P, 2) pixels, labels (B, N, P): 1 and 0 clicks, 2 and 3 box corners; both None: no prompt (tracking, N = 1).
    previous_BSS: logits of a mask that the prompts correct (N = 1).
    """
    b = len(conditioned_BCHW)
    if points is None or labels is None:
        points, labels = torch.zeros(b, 1, 1, 2), -torch.ones(b, 1, 1, dtype=torch.int32)
    masks = None if previous_BSS is None else previous_BSS[:, None].clamp(-MOST_PREVIOUS_LOGIT, MOST_PREVIOUS_LOGIT)
    sparse, dense = model.prompt_encoder(input_points=points, input_labels=labels, input_boxes=None, input_masks=masks)
    positions = model.get_image_wide_positional_embeddings().repeat(b, 1, 1, 1)
    masks, iou, tokens, present = model.mask_decoder(
        image_embeddings=conditioned_BCHW,
        image_positional_embeddings=positions,
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        high_resolution_features=features.high,
    )
    return Decoded(masks.float(), iou.float(), model.object_pointer_proj(tokens), present.squeeze(-1).float())


def without_memory(model: Any, features: Features) -> Tensor:
    """What the decoder sees on an image or a prompted first frame."""
    return features.low_BCHW + model.no_memory_embedding.view(1, -1, 1, 1)


def encode_memory(model: Any, low_BCHW: Tensor, logits_BSS: Tensor, present_B: Tensor, binarise: bool) -> Tensor:
    """Memory tokens (L, B, 64) of frames with their predicted masks (section 4, memory encoder).

    present_B: logits; frames without the object get the occlusion embedding. binarise: for prompted frames.
    """
    full = F.interpolate(logits_BSS[:, None], (SIZE, SIZE), mode="bilinear", align_corners=False)
    mask = (full > 0).float() if binarise else full.sigmoid()
    mask = mask * model.config.sigmoid_scale_for_mem_enc + model.config.sigmoid_bias_for_mem_enc
    memory, _ = model.memory_encoder(low_BCHW, mask)
    absent = (present_B <= 0).float().view(-1, 1, 1, 1)
    memory = memory + absent * model.occlusion_spatial_embedding_parameter[..., None, None]
    return memory.flatten(2).permute(2, 0, 1)


def with_memory(
    model: Any, low_BCHW: Tensor, memories: list[tuple[int, Tensor]], pointers: list[tuple[int, Tensor]]
) -> Tensor:
    """Conditions features on the past through memory attention.

    memories: (frames ago, or 0 for the prompted frame; (L, B, 64)); pointers: (frames ago, (B, C)). Returns (B, C, h, w).
    """
    b, c, h, w = low_BCHW.shape
    spatial = model.memory_encoder.position_encoding((b, MEMORY, h, w), low_BCHW.device, low_BCHW.dtype)
    spatial_LBC = spatial.flatten(2).permute(2, 0, 1).expand(-1, b, -1)
    tokens = [m for _, m in memories]
    places = [spatial_LBC + model.memory_temporal_positional_encoding[ago - 1] for ago, _ in memories]
    stacked = torch.stack([p for _, p in pointers])
    pointer_tokens, pointer_places = model._process_object_pointers(
        [ago for ago, _ in pointers], list(stacked), MAX_POINTERS, b, c, low_BCHW.device
    )
    position = model.vision_encoder.neck.position_encoding((b, c, h, w), low_BCHW.device, low_BCHW.dtype)
    out = model.memory_attention(
        current_vision_features=low_BCHW.flatten(2).permute(2, 0, 1),
        current_vision_position_embeddings=position.flatten(2).permute(2, 0, 1).expand(-1, b, -1),
        memory=torch.cat([*tokens, pointer_tokens]),
        memory_posision_embeddings=torch.cat([*places, pointer_places]),
        num_object_pointer_tokens=len(pointer_tokens),
    )
    return out.reshape(b, h * w, c).transpose(1, 2).reshape(b, c, h, w)


def pointer_of(model: Any, tokens_BC: Tensor, present_B: Tensor) -> Tensor:
    """The object pointer, or the learnt no-object pointer where the object is judged absent."""
    there = (present_B > 0).float()[:, None]
    return there * tokens_BC + (1 - there) * model.no_object_pointer


def save(model: Any, directory: Path) -> None:
    """Writes model and processor, loadable by Sam2VideoModel and Sam2VideoProcessor.from_pretrained."""
    from transformers import Sam2ImageProcessor, Sam2VideoProcessor, Sam2VideoVideoProcessor

    save_half(model, directory)
    size = {"height": SIZE, "width": SIZE}
    settings = {
        "size": size,
        "mask_size": {"height": SIZE // 4, "width": SIZE // 4},
        "image_mean": list(MEAN),
        "image_std": list(STD),
    }
    processor = Sam2VideoProcessor(
        image_processor=Sam2ImageProcessor(**settings),
        video_processor=Sam2VideoVideoProcessor(size=size, image_mean=list(MEAN), image_std=list(STD)),
        target_size=SIZE,
    )
    processor.save_pretrained(directory)

"""A tiny SAM 2 with random weights, real frames, and transformers' own session as the independent oracle."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.conftest import package_dir

IMAGE_SIZE = 128
OBJECT_SCORE_BIAS = 2.0
CROSS_GAIN = 0.5


def tiny_config(image_size: int = IMAGE_SIZE):
    """1.7 M parameters; hidden 128 and memory 64, the smallest that transformers' module takes."""
    from transformers import Sam2VideoConfig

    sizes = [[image_size // s] * 2 for s in (4, 8, 16)]
    width = 128
    return Sam2VideoConfig(
        image_size=image_size,
        vision_config={
            "model_type": "sam2_vision_model",
            "backbone_config": {
                "model_type": "sam2_hiera_det_model",
                "hidden_size": 16,
                "image_size": [image_size, image_size],
                "embed_dim_per_stage": [16, 32, 64, 128],
                "num_attention_heads_per_stage": [1, 2, 4, 8],
                "blocks_per_stage": [1, 1, 2, 1],
                "global_attention_blocks": [3],
                "window_positional_embedding_background_size": [7, 7],
            },
            "backbone_channel_list": [128, 64, 32, 16],
            "backbone_feature_sizes": sizes,
            "fpn_hidden_size": width,
        },
        prompt_encoder_config={"hidden_size": width, "image_size": image_size, "patch_size": 16},
        mask_decoder_config={
            "hidden_size": width,
            "mlp_dim": 128,
            "iou_head_hidden_dim": width,
            "num_attention_heads": 4,
        },
        memory_attention_hidden_size=width,
        memory_attention_num_layers=2,
        memory_attention_feed_forward_hidden_size=256,
        memory_attention_rope_feat_sizes=[image_size // 16, image_size // 16],
        memory_encoder_hidden_size=width,
        memory_encoder_output_channels=64,
        mask_downsampler_embed_dim=width,
        memory_fuser_embed_dim=width,
        memory_fuser_intermediate_dim=256,
    )


def calm(model) -> None:
    """Makes tracking contractive, as training does: at full gain one bfloat16 step in a memory grows into another mask
    within a few frames, and any two implementations part, transformers' own on two machines included."""
    model.mask_decoder.pred_obj_score_head.proj_out.weight.mul_(8.0)
    model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(OBJECT_SCORE_BIAS)
    model.memory_encoder.projection.weight.mul_(0.1)
    for layer in model.memory_attention.layers:
        for gain, part in ((0.3, "q_proj"), (0.3, "k_proj"), (CROSS_GAIN, "o_proj")):
            getattr(layer.cross_attn_image, part).weight.mul_(gain)


def tiny_model(seed: int = 7, image_size: int = IMAGE_SIZE):
    """Random weights brought to life: transformers' init leaves memory and occlusion embeddings at zero and puts mask
    logits at +-512, where nothing that a memory says would show. Here every layer keeps its input's scale, and object
    scores change sign from time to time."""
    import torch
    from transformers import Sam2VideoModel

    torch.manual_seed(seed)
    model = Sam2VideoModel(tiny_config(image_size)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            elif ("embed" in name and "mask_embed" not in name and "patch_embed" not in name) or "token" in name:
                parameter.normal_(0, 1.0)
            elif parameter.dim() == 1 or "encoding" in name or "no_object_pointer" in name:
                parameter.normal_(0, 0.3)
            else:
                parameter.normal_(0, 1.4 / (parameter.numel() / len(parameter)) ** 0.5)
        calm(model)
    return model


@pytest.fixture(scope="session")
def model():
    return tiny_model()


@pytest.fixture(scope="session")
def network(model):
    from vfm_ops.track.network import Sam2Network

    return Sam2Network(model)


@pytest.fixture(scope="session")
def exact():
    """(model, network) in float64 at 64 px: what two orders of summation differ by is then far below a bfloat16 step of
    the stored memories, so that any visible difference is one of method."""
    import torch

    from vfm_ops.track.network import Sam2Network

    model = tiny_model(image_size=64).double()
    return model, Sam2Network(model, dtype=torch.float64)


def read_frames(path: Path, count: int, height: int = 96, width: int = 128) -> list[np.ndarray]:
    """The first `count` frames, RGB, resized so that tests stay quick."""
    capture = cv2.VideoCapture(str(path))
    frames = []
    while len(frames) < count:
        ok, bgr = capture.read()
        if not ok:
            break
        frames.append(cv2.cvtColor(cv2.resize(bgr, (width, height), interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB))
    capture.release()
    return frames


@pytest.fixture(scope="session")
def frames(vtest) -> list[np.ndarray]:
    """200 real frames of 96 x 128, for a quokka to walk over."""
    package_dir("imgaug")
    return read_frames(vtest, 200)


class Oracle:
    """transformers' own session over a whole video, driven the way its documentation says."""

    def __init__(self, model, frames: list[np.ndarray]) -> None:
        import torch
        from transformers import Sam2ImageProcessor, Sam2VideoProcessor, Sam2VideoVideoProcessor
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        side = {"height": model.image_size, "width": model.image_size}
        self.model = model
        self.processor = Sam2VideoProcessor(
            Sam2ImageProcessor(size=side), Sam2VideoVideoProcessor(size=side), target_size=model.image_size
        )
        frames_T3HW = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
        video = self.processor.video_processor(videos=[frames_T3HW], return_tensors="pt").pixel_values_videos[0]
        height, width = frames[0].shape[:2]
        self.session = Sam2VideoInferenceSession(
            video=video, video_height=height, video_width=width, dtype=model.no_memory_embedding.dtype
        )

    def prompt(self, frame_index: int, prompts) -> None:
        """Adds prompts of one kind for several objects, or of several kinds one by one."""
        pending = []
        for p in prompts:
            keys = {"input_points": None, "input_labels": None, "input_boxes": None, "input_masks": None}
            if p.points is not None:
                keys |= {"input_points": [[np.asarray(p.points).tolist()]], "input_labels": [[list(p.labels)]]}
            if p.box is not None:
                keys["input_boxes"] = [[list(map(float, p.box))]]
            if p.mask is not None:
                keys["input_masks"] = [p.mask]
            self.processor.add_inputs_to_inference_session(
                self.session, frame_index, [p.object_id], **keys, clear_old_inputs=not p.append
            )
            pending.append(p.object_id)
        self.session.obj_with_new_inputs = pending

    def forward(self, frame_index: int, reverse: bool = False):
        """(mask logits (N, h, w), object logits (N,)) of all objects, in order of first prompt."""
        out = self.model(self.session, frame_idx=frame_index, reverse=reverse)
        return out.pred_masks[:, 0], out.object_score_logits.flatten()

"""Tiny, randomly initialised checkpoints of every detector, saved as transformers saves them, with real tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertTokenizerFast,
    CLIPTextConfig,
    CLIPTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    OmDetTurboConfig,
    OmDetTurboForObjectDetection,
    OmDetTurboProcessor,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessor,
    Owlv2Processor,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
    RTDetrImageProcessor,
    SwinConfig,
)

WORDS = ["person", "bicycle", "cat", "dog", "traffic", "light", "red", "car", "a", "the", "st", "bernard", "couch"]


def bert_tokenizer() -> BertTokenizerFast:
    """WordPiece with BERT's own ids of the special tokens, '.' and '?', which Grounding DINO has built in."""
    vocabulary = {f"[unused{i}]": i for i in range(1100)}
    special = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ".": 1012, "?": 1029, ",": 1010}
    pieces = (
        WORDS + ["##s", "##ing"] + list("bcdefghijklmnopqrstuvwxyz") + [f"##{c}" for c in "abcdefghijklmnopqrtuvwxyz"]
    )
    ids = {**special, **{w: 200 + i for i, w in enumerate(dict.fromkeys(pieces))}}
    taken = set(ids.values())
    vocab = {**{w: i for w, i in vocabulary.items() if i not in taken}, **ids}
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer.decoder = decoders.WordPiece()
    return BertTokenizerFast(tokenizer_object=tokenizer)


def clip_tokenizer(max_length: int) -> CLIPTokenizerFast:
    """Byte-level BPE without merges: one token a letter, as CLIP's tokenizer would have it with an empty merge list."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = letters + [f"{c}</w>" for c in letters] + ["<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(tokens)}
    return CLIPTokenizerFast(vocab=vocab, merges=[], model_max_length=max_length, pad_token="<|endoftext|>")


def clip_vocabulary_size() -> int:
    return 2 * len(pre_tokenizers.ByteLevel.alphabet()) + 2


def spread(model: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    """Redraw all weight matrices, so that outputs differ from box to box and from prompt to prompt."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * scale / parameter[0].numel() ** 0.25
                )


def save(folder: Path, model: Any, processor: Any) -> Path:
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def swin() -> SwinConfig:
    return SwinConfig(
        image_size=64, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )


def grounding_dino(folder: Path, max_text_len: int = 64) -> Path:
    text = BertConfig(
        vocab_size=1100, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=512,
    )  # fmt: skip
    config = GroundingDinoConfig(
        backbone_config=swin(), text_config=text, num_queries=30, d_model=64, encoder_layers=1, decoder_layers=2,
        encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2, decoder_attention_heads=2,
        max_text_len=max_text_len,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GroundingDinoForObjectDetection(config)
    spread(model, 1)
    size = {"shortest_edge": 64, "longest_edge": 96}
    processor = GroundingDinoProcessor(GroundingDinoImageProcessor(size=size), bert_tokenizer())
    return save(folder, model, processor)


def owl(folder: Path, generation: int) -> Path:
    text = {
        "vocab_size": clip_vocabulary_size(), "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 24, "bos_token_id": clip_vocabulary_size() - 2,
        "eos_token_id": clip_vocabulary_size() - 1, "pad_token_id": clip_vocabulary_size() - 1,
    }  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 64, "patch_size": 8,
    }  # fmt: skip
    classes: tuple[Any, ...] = (OwlViTConfig, OwlViTForObjectDetection, OwlViTImageProcessor, OwlViTProcessor)
    if generation == 2:
        classes = (Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor, Owlv2Processor)
    torch.manual_seed(0)
    model = classes[1](classes[0](text_config=text, vision_config=vision, projection_dim=24))
    spread(model, 2)
    images = classes[2](size={"height": 64, "width": 64})
    return save(folder, model, classes[3](images, clip_tokenizer(24)))


def omdet_turbo(folder: Path) -> Path:
    text = CLIPTextConfig(
        vocab_size=clip_vocabulary_size(), hidden_size=48, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=77, projection_dim=32,
        bos_token_id=clip_vocabulary_size() - 2, eos_token_id=clip_vocabulary_size() - 1,
    )  # fmt: skip
    config = OmDetTurboConfig(
        text_config=text, backbone_config=swin(), image_size=64, text_projection_in_dim=48, text_projection_out_dim=48,
        class_embed_dim=48, task_encoder_hidden_dim=32, num_queries=20, encoder_hidden_dim=32,
        encoder_in_channels=[24, 48, 96],
        vision_features_channels=[32, 32, 32], encoder_attention_heads=2, encoder_dim_feedforward=32,
        decoder_hidden_dim=32, decoder_num_heads=2, decoder_num_layers=2, decoder_dim_feedforward=32,
        apply_layernorm_after_vision_backbone=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = OmDetTurboForObjectDetection(config)
    spread(model, 3)
    images = RTDetrImageProcessor(size={"height": 64, "width": 64})
    return save(folder, model, OmDetTurboProcessor(images, clip_tokenizer(77)))


def frames(sizes: list[tuple[int, int]], seed: int = 0) -> list[np.ndarray]:
    """Smooth random pictures, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    pictures = []
    for height, width in sizes:
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pictures.append(np.ascontiguousarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8))[:height, :width]))
    return pictures


__all__ = ["bert_tokenizer", "clip_tokenizer", "frames", "grounding_dino", "omdet_turbo", "owl"]

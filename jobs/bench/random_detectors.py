"""Detectors with random weights, saved as transformers saves them: for benchmarks and tests, where nothing is to be had.

A tokenizer is built from a few words, with the special ids of the real one. Sizes: 'tiny' (milliseconds on a CPU), and
'real', the published architecture with its published input size.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from vfm_ops.errors import UsageError

if TYPE_CHECKING:
    import torch

WORDS = ("person", "bicycle", "cat", "dog", "traffic", "light", "red", "car", "a", "the", "st", "bernard", "couch")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
BERT_SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103, ",": 1010, ".": 1012, "?": 1029}
BERT_VOCABULARY = 1100


def save_random(family: str, folder: Path, *, size: str = "tiny", seed: int = 0, max_text_len: int = 64) -> Path:
    """Write a checkpoint of grounding-dino, owlvit, owlv2 or omdet-turbo; returns its folder.

    max_text_len is that of a tiny Grounding DINO. Raises UsageError for another family or size.
    """
    import torch

    if size not in ("tiny", "real"):
        raise UsageError(f"size {size!r} is unknown: tiny or real")
    torch.manual_seed(seed)
    if family == "grounding-dino":
        model, processor = _grounding_dino(size, max_text_len)
    elif family in ("owlvit", "owlv2"):
        model, processor = _owl(size, family)
    elif family == "omdet-turbo":
        model, processor = _omdet_turbo(size)
    else:
        raise UsageError(f"{family!r} has no random weights: grounding-dino, owlvit, owlv2 or omdet-turbo")
    spread(model, seed + 1)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def spread(model: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    """Redraw all weight matrices, so that outputs differ from box to box and from prompt to prompt."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                width = parameter[0].numel() ** 0.25
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale / width)


def bert_tokenizer() -> Any:
    """WordPiece with BERT's own ids of the special tokens, '.' and '?', which Grounding DINO has built in."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertTokenizerFast

    pieces = dict.fromkeys([*WORDS, "##s", "##ing", *LETTERS, *(f"##{c}" for c in LETTERS)])
    ids = {**BERT_SPECIAL, **{piece: 200 + i for i, piece in enumerate(pieces)}}
    taken = set(ids.values())
    vocab = {f"[unused{i}]": i for i in range(BERT_VOCABULARY) if i not in taken} | ids
    tokenizer = Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    return BertTokenizerFast(tokenizer_object=tokenizer)


def clip_tokenizer(max_length: int) -> Any:
    """Byte-level BPE without merges: one token a letter, as CLIP's tokenizer would have it with an empty merge list."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {t: i for i, t in enumerate(tokens)}
    return CLIPTokenizerFast(vocab=vocab, merges=[], model_max_length=max_length, pad_token="<|endoftext|>")


def clip_vocabulary_size() -> int:
    """Tokens of `clip_tokenizer`: 256 bytes, each also at a word's end, and two special ones."""
    return 2 * 256 + 2


def clip_text_config(**sizes: int) -> dict[str, int]:
    """Keyword arguments of a CLIP text config for `clip_tokenizer`, and the sizes given."""
    end = clip_vocabulary_size() - 1
    return {"vocab_size": end + 1, "bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end, **sizes}


def _tiny_swin() -> Any:
    from transformers import SwinConfig

    return SwinConfig(
        image_size=64, embed_dim=12, depths=[1, 1, 1, 1], num_heads=[1, 2, 2, 2], window_size=4, out_indices=[2, 3, 4]
    )


def _grounding_dino(size: str, max_text_len: int) -> tuple[Any, Any]:
    import transformers as tf

    if size == "tiny":
        text = tf.BertConfig(
            vocab_size=BERT_VOCABULARY, hidden_size=24, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=32, max_position_embeddings=512,
        )  # fmt: skip
        config = tf.GroundingDinoConfig(
            backbone_config=_tiny_swin(), text_config=text, num_queries=30, d_model=64, encoder_layers=1,
            decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=2,
            decoder_attention_heads=2, max_text_len=max_text_len,
        )  # fmt: skip
        images = tf.GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    else:
        config, images = tf.GroundingDinoConfig(), tf.GroundingDinoImageProcessor()
    return tf.GroundingDinoForObjectDetection(config), tf.GroundingDinoProcessor(images, bert_tokenizer())


def _owl(size: str, family: str) -> tuple[Any, Any]:
    import transformers as tf

    names = "OwlViT" if family == "owlvit" else "Owlv2"
    classes = [getattr(tf, names + part) for part in ("Config", "ForObjectDetection", "ImageProcessor", "Processor")]
    if size == "tiny":
        text = clip_text_config(
            hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=24
        )
        vision = {
            "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "image_size": 64, "patch_size": 8,
        }  # fmt: skip
        config = classes[0](text_config=text, vision_config=vision, projection_dim=24)
        images = classes[2](size={"height": 64, "width": 64})
    else:
        # One token a letter needs a longer window than the published 16. OWLv2 was published at 960 px, and not at 768.
        vision = {"image_size": 960} if family == "owlv2" else {}
        config = classes[0](text_config=clip_text_config(max_position_embeddings=32), vision_config=vision)
        side = config.vision_config.image_size
        images = classes[2](size={"height": side, "width": side})
    tokenizer = clip_tokenizer(config.text_config.max_position_embeddings)
    return classes[1](config), classes[3](images, tokenizer)


def _omdet_turbo(size: str) -> tuple[Any, Any]:
    import transformers as tf

    if size == "tiny":
        text = tf.CLIPTextConfig(
            **clip_text_config(
                hidden_size=48, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                max_position_embeddings=77, projection_dim=32,
            )
        )  # fmt: skip
        config = tf.OmDetTurboConfig(
            text_config=text, backbone_config=_tiny_swin(), image_size=64, text_projection_in_dim=48,
            text_projection_out_dim=48, class_embed_dim=48, task_encoder_hidden_dim=32, num_queries=20,
            encoder_hidden_dim=32, encoder_in_channels=[24, 48, 96], vision_features_channels=[32, 32, 32],
            encoder_attention_heads=2, encoder_dim_feedforward=32, decoder_hidden_dim=32, decoder_num_heads=2,
            decoder_num_layers=2, decoder_dim_feedforward=32, apply_layernorm_after_vision_backbone=False,
        )  # fmt: skip
        side = 64
    else:
        config, side = tf.OmDetTurboConfig(), 640
    images = tf.RTDetrImageProcessor(size={"height": side, "width": side})
    return tf.OmDetTurboForObjectDetection(config), tf.OmDetTurboProcessor(images, clip_tokenizer(77))

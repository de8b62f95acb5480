"""Image and text embeddings: CLIP, SigLIP, OpenCLIP, and every timm / DINO / MAE / BEiT backbone, behind one Embedder."""

from vfm_ops.embed.embedder import (
    Embedder,
    EmbedderDescription,
    describe_embedder,
    load_embedder,
    remembered_choice,
)

__all__ = [
    "Embedder",
    "EmbedderDescription",
    "describe_embedder",
    "load_embedder",
    "remembered_choice",
]

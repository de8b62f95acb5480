"""Operations on one batch: torch, timm, transformers, decord, OpenCV. No Ray, no Lance: an op runs in a notebook."""

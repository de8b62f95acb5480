"""Embedding families, a file each: how its features are read, how it wants pixels, and the checkpoints worth knowing."""

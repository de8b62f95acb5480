"""Detectors, a file each: what it is, and how it answers a batch of images with prompts."""

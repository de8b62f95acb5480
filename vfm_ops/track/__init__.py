"""Tracking: SAM 2 with a streaming memory bank (`tracker`), and detection-to-track association (`associate`)."""

"""The parts of `pipelines.pretrain`: settings, the items of a lake, the feed, the worker's loop, checkpoints, the report."""

"""Replicas that hold models: one deployment a task. They get bytes and numbers, never a path or URL from a client."""

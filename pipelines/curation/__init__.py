"""Curation of a lake, step by step: what the items are, where their vectors lie, who is dropped and why."""

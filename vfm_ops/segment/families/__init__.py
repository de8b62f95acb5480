"""Families that segment and track, a file each."""

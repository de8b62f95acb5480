"""Families that find shots, a file each."""

"""Checkpoints: writing, reading, removing old ones, reading those of other programs."""

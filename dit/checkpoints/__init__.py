"""Checkpoints: writing, reading, removing old ones, converting published ones."""

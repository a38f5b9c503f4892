"""Checkpoints: written, read, converted."""

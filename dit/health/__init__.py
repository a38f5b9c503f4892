"""Checks of a training, and the log of what they find."""

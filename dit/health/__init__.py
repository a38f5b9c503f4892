"""Whether a training is healthy."""

"""dit-scaling: measures how diffusion transformers scale, from images to a verdict with its uncertainty."""

__version__ = "0.1.0"

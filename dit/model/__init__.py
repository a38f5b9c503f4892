"""The diffusion transformer. No files, no ranks."""

"""The diffusion process of the paper: schedule, training losses, samplers. No files, no ranks."""

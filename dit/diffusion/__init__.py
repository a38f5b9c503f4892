"""The diffusion process: noise schedule, training losses, samplers. No files, no ranks."""

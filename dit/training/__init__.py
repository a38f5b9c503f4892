"""Training: the step, the loop around it, checkpoints, and what watches over them."""

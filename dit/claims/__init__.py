"""The paper's claims, judged from intervals. Torch-free."""

"""What a study costs: Gflops, memory, hours. Torch-free."""

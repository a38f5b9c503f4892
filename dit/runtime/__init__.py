"""This process and its machine: device, threads, ranks."""

"""Benchmarks: each row against a plain reference in the same run."""

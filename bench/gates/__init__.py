"""Proof of the health checks: broken runs that they must name, and healthy runs that they must pass."""

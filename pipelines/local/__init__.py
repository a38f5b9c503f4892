"""The pipeline on this machine: worker processes or containers."""

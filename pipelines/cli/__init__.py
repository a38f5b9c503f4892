"""The commands that the platform adds to `dit`."""

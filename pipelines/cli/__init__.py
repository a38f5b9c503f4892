"""Commands of the platform, added to `dit`."""

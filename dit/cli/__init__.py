"""The `dit` command."""

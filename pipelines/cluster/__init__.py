"""The cluster: its API, secrets, services, and why its pods do not run."""

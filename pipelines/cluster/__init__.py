"""The cluster's API, secrets and addresses."""

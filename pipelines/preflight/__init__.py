"""`dit preflight`: checks before a submission whether a study can run on a cluster."""

"""Whether a study can run on a cluster, found out before anything is submitted."""

"""Training and sampling as jobs of many pods on Kubernetes: what a job is, how one is started, watched and judged."""

"""The platform: the study as a Kubeflow pipeline, and the runner that executes it on this machine."""

"""The study as a Kubeflow pipeline."""

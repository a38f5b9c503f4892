"""From a source of images to shards, and from shards to training batches."""

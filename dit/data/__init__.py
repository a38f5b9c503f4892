"""Images to shards, and shards to training batches."""

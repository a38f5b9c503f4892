"""How far images are from the dataset: feature extractors, Fréchet distance, precision and recall, their intervals."""

"""Measures sample sets: feature extractors, Fréchet distance, precision and recall, and their intervals.

table.py                the table of metrics, which names the functions of sample_metrics.py
sample_metrics.py       every metric of one sample set, with its interval
frechet.py              Fréchet distance; precision_recall.py: precision and recall; bootstrap.py: intervals
extractors.py           images to features; digits_extractor.py: the extractor for 8x8 digits
reference.py            statistics of real images; reference_cache.py: the folder where they are kept
inputs.py               files that the user provides: Inception's weights and ADM's reference
setup.py                extractor, reference and noise floor of a study, made once
"""

"""The paper's three claims, judged from intervals. Torch-free.

results.py       reads a complete study; verdicts.py: judges its claims
two_level.py     intervals over seeds and samples; judged.py: the variants at the judged step, which can be compared
ordering.py      claims 1 and 2, pair by pair; predictors.py: the fits of claim 3
notes.py         warnings beside a verdict; metric_names.py: labels of metrics and intervals in texts
"""

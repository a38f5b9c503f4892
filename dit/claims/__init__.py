"""The paper's three claims, judged from intervals. Torch-free.

results.py       reads a complete study; verdicts.py: judges its claims; predictors.py: the fits of claim 3
notes.py         warnings beside a verdict; metric_names.py: labels of metrics and intervals in texts
"""

"""What a study costs, what it can decide, and forecasts of a training. Torch-free.

cost.py          hours, memory and disk; stages.py: the work beside the models; accelerators.py: data sheets
prior.py         what is known before a study; find_prior.py: from earlier.py (records) or published.py (the paper)
power.py         the probability of each verdict; budget.py: for each length and number of seeds, and the cheapest
tables.py, budget_tables.py, budget_notes.py, notes.py, lines.py    what `dit plan` prints
forecast.py      a power law over the steps of a training, with its own track record
"""

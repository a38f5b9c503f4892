"""The report: page, charts, tables. Torch-free.

page.py        the HTML page, from report.html.j2; provenance.py: its texts on terms and on how numbers were made
plots.py       its charts of the metric; loss_chart.py: that of the losses; style.py: how both look
svg.py         matplotlib's figures in the page's colours; axes.py: logarithmic axes; labels.py: where labels go
tables.py      tables for the page and the terminal, and runs.csv; cost.py: what the study took
evidence.py    previews, loss curves, checkpoints
"""

"""The report: page, charts, tables. Torch-free.

page.py        the HTML page, from report.html.j2; provenance.py: its texts on how numbers were made
plots.py       its charts; axes.py: their logarithmic axes
tables.py      tables for the page and the terminal, and runs.csv; evidence.py: previews, loss curves, checkpoints
"""

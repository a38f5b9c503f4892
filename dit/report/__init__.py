"""The report: page, plots, tables. Torch-free."""

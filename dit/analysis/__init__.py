"""From records to a verdict, a price and a report. Torch-free."""

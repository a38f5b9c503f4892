"""`dit study`: the pipeline on this machine, in worker processes or containers."""

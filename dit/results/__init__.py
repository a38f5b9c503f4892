"""Which stages of a study are complete: one answer for every reader. Torch-free.

    work = Work(config, store)
    if not is_complete(SAMPLE, work, spec):
        checkpoint_meta = require(work, checkpoint(work, spec, step))

stages.py     the table of stages; outputs.py: their outputs; output.py: the conditions of an output
state.py      compares the table with a store: complete, missing, or made with another configuration
protocols.py  other sampling protocols under which the same models were evaluated
progress.py   how far each stage is, for `dit status`
"""

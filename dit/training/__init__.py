"""Training: the steps of one variant, from a plan to its record.

plan.py        what is left to do: where to start, where to stop, which checkpoints to keep (torch-free)
run.py         one launch: joins the ranks, builds the parts, writes the record at the end
loop.py        step after step: when to log, to save, to stop
trainer.py     one step: global batch in, one update of weights and average out
optimizer.py   AdamW, and its state in a checkpoint
ema.py         the exponential moving average of the weights
window.py      losses since the last log line, kept on the device until they are read
telemetry.py   what the steps measured, sent to the tracker: loss, rate, memory
signals.py     a signal asks the loop to save and stop
"""

"""Training: from a plan to the steps of one variant and its record.

plan.py        remaining work: first step, last step, checkpoints to keep (torch-free)
run.py         one launch: joins the ranks, builds the objects below, writes the record
loop.py        the loop over steps: when to log, save and stop
trainer.py     one step: global batch in, updated weights and EMA out
optimizer.py   AdamW, and its state in a checkpoint
ema.py         the exponential moving average of the weights
watch.py       what the health checks see of it
pace.py        seconds that a rank computes by itself, which show for whom the others wait
heartbeat.py   each rank's record of how far it is, in the store
window.py      losses since the last log line, kept on the device until the loop reads them
telemetry.py   loss, rate and memory for the tracker and the record
signals.py     SIGTERM and SIGINT as a request to save and stop
"""

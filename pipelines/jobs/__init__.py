"""Training and sampling as jobs of many pods on Kubernetes.

names.py, spec.py      what a job is: its name and labels, its stage, variant, pods and root
kind.py, registry.py   the interface of a job kind, and the table of kinds
pytorchjob.py          kind: PyTorchJob of the Training Operator
trainjob.py            kind: TrainJob of Trainer v2
pod_template.py        the pod that all kinds share
torchrun.py            the process in the pod: waits for the rendezvous, returns the exit code of the failed rank
submit.py              creates the job, or adopts the one that exists
watch.py, logs.py      wait for its end: polls the cluster, follows the logs of its pods
snapshot.py            the job, its pods and events at one moment
supervisor.py          decides from snapshots: report, wait on, or give up
pending_reason.py      why pods do not run
failure_cause.py       which pod caused a failure, and whether a retry can help
permissions.py         what a launcher may do in the cluster
launch.py              all of it for one stage: from the submission to the records
"""

"""Why steps of a run failed or wait, from their pods and logs."""

from __future__ import annotations

from collections.abc import Sequence

from dit.errors import DitError, one_line
from pipelines.cluster.client import ApiRefused, Cluster
from pipelines.cluster.objects import Object, pod_name, pod_phase
from pipelines.cluster.retry import RETRY
from pipelines.jobs.names import KFP_RUN
from pipelines.runs.model import Run
from pipelines.runs.steps import CONTAINER, last_death, reason_in, steps, title_of, waiting

_LOG_LINES = 100
_LAST_LINES = 5


def reasons(run: Run, titles: Sequence[str], namespace: str) -> dict[str, str]:
    """Step -> reason of its failure: the message of its newest pod, or else the command that shows its pods."""
    see = f"kubectl get pods -n {namespace} -l {KFP_RUN}={run.uid}"
    try:
        cluster = Cluster.connect().within(namespace)
        pods = cluster.pods(f"{KFP_RUN}={run.uid}")
        return {title: _reason(cluster, title, last_death(run, title, pods)) or f"failed; {see}" for title in titles}
    except DitError as error:
        return {title: f"failed; {see}; its pods cannot be read from here: {error}" for title in titles}


def _reason(cluster: Cluster, title: str, death: tuple[str, str] | None) -> str:
    if death is None:
        return ""
    pod, reason = death
    reason = reason or reason_in(cluster.last_log(pod, CONTAINER, _LOG_LINES))
    return f"{reason.removeprefix(f'{title}: ') or 'failed'}; kubectl logs -n {cluster.namespace} {pod} -c {CONTAINER}"


def delays(run: Run, cluster: Cluster) -> list[str]:
    """Why pods of a run's steps do not run, why steps are retried, and what running steps wait for."""
    pods = cluster.pods(f"{KFP_RUN}={run.uid}")
    lines = [f"{step}: {why}" for step, why in waiting(run, pods).items()]
    for step in steps(run):
        death = last_death(run, step.name, pods) if step.state == "RUNNING" else None
        if death is not None:
            message = f": {death[1]}" if death[1] else ""
            lines.append(
                f"{step.name}: retry after pod {death[0]} failed{message};"
                f" kubectl logs -n {cluster.namespace} {death[0]} -c {CONTAINER}"
            )
    working = [pod for pod in pods if pod_phase(pod) == "Running" and title_of(run, pod)]
    lines += [f"{title_of(run, pod)}: {line}" for pod in working if (line := _waits_for(cluster, pod))]
    return lines


def _waits_for(cluster: Cluster, pod: Object) -> str:
    """The last line of a step's log if it announces a retry; empty otherwise."""
    try:
        lines = cluster.last_log(pod_name(pod), CONTAINER, _LAST_LINES).strip().splitlines()
    except ApiRefused:
        return ""  # its container has not started, or has just ended
    return one_line(lines[-1]) if lines and RETRY in lines[-1] else ""

"""Runs a command on this machine with the store and the MLflow server of a study's pods."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import nullcontext

from dit.errors import InputError
from dit.study.cluster import ClusterConfig
from pipelines.cluster.client import Cluster
from pipelines.cluster.pod_environment import reached, settings, store_as_pods_see_it

_TRACKING = "MLFLOW_"
_TRACKING_URI = "MLFLOW_TRACKING_URI"


def run_here(command: Sequence[str], cluster: Cluster, config: ClusterConfig) -> int:
    """The exit code of a command that has the settings of a study's pods; services are reached by forwarded ports.

    Raises MissingError when a setting does not exist, ApiRefused when we may not read it.
    Raises ServiceUnreachable when a service cannot be reached, InputError when there is no such command.
    """
    namespace = config.namespace
    variables = settings(cluster, config, namespace)
    tracking = {name: value for name, value in variables.items() if name.startswith(_TRACKING)}
    address = tracking.get(_TRACKING_URI, "")
    server = reached(address, namespace) if address.startswith("http") else nullcontext(address)
    with store_as_pods_see_it(variables, namespace), server as uri:
        given = {**os.environ, **tracking, **({_TRACKING_URI: uri} if uri else {})}
        try:
            return subprocess.run(command, env=given, check=False).returncode
        except OSError as error:
            raise InputError(f"{command[0]}: {error.strerror}; give a command, such as dit report STUDY") from None

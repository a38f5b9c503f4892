"""The store of a study's pods, opened from a pod or from a workstation, and waited for while it is away."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from dit.console import say
from dit.errors import CredentialsError, DitError, InputError, MissingError, StoreError
from dit.storage import Store, open_store
from dit.study.cluster import ClusterConfig
from dit.study.config import StudyConfig
from pipelines.cluster.client import ApiRefused, ApiUnavailable, Cluster
from pipelines.cluster.pod_environment import (
    data_of,
    see,
    settings,
    store_as_pods_see_it,
    tracking_as_pods_see_it,
)
from pipelines.cluster.port_forward import ServiceUnreachable
from pipelines.cluster.retry import retry

SECRETS = Path("/var/run/secrets/dit-scaling")
"""Folder in which launchers have the study's secrets as files: the variables of a running pod stay as they are."""

_S3 = "AWS_"
T = TypeVar("T")


def in_pod() -> bool:
    """Whether this process runs in a pod: it has the settings of pods in its environment."""
    return "KUBERNETES_SERVICE_HOST" in os.environ


@contextmanager
def study_store(
    cluster: Cluster | None, config: ClusterConfig, root: str, remark: Callable[[str], object] = say
) -> Iterator[Store]:
    """The store at `root`, with the S3 server and the credentials of the study's pods while the body runs.

    Outside a pod they come from the cluster's API, and a server that only the cluster reaches is reached through
    kubectl port-forward. Where the API does not give them, this machine's settings are used, and `remark` is called
    with the reason.

    Raises as `open_store`, ServiceUnreachable when forwarding fails, ApiUnavailable when the API does not answer.
    """
    with store_as_pods_see_it(_settings(cluster, config, remark), config.namespace):
        yield open_store(root)


def _settings(cluster: Cluster | None, config: ClusterConfig, remark: Callable[[str], object]) -> dict[str, str]:
    """The variables of the study's pods; empty in a pod, which has them, and where the API does not give them."""
    if cluster is None or in_pod():
        return {}
    try:
        return settings(cluster, config, config.namespace)
    except (ApiRefused, MissingError) as error:
        remark(f"the store is read with this machine's settings: {error}")
        return {}


@contextmanager
def study_tracker(cluster: Cluster, study: StudyConfig) -> Iterator[None]:
    """While the body runs, studies are tracked to the server of the study's pods.

    This machine's settings are used where the API does not give them.

    Raises ServiceUnreachable when forwarding fails, ApiUnavailable when the API does not answer.
    """
    config = study.cluster
    variables = _settings(cluster, config, lambda _: None) if study.tracking.kind != "none" else {}
    with tracking_as_pods_see_it(variables, config.namespace):
        yield


def run_here(command: Sequence[str], cluster: Cluster, study: StudyConfig) -> int:
    """The exit code of a command on this machine that has the store and the tracking server of the study's pods.

    Raises as `settings`, ServiceUnreachable when forwarding fails, InputError when there is no such command.
    """
    namespace = study.cluster.namespace
    variables = settings(cluster, study.cluster, namespace)
    with store_as_pods_see_it(variables, namespace), study_tracker(cluster, study):
        try:
            return subprocess.run(command, check=False).returncode
        except OSError as error:
            raise InputError(f"{command[0]}: {error.strerror}; give a command, such as dit report STUDY") from None


def waited_for(call: Callable[[], T], config: ClusterConfig, transient: type[StoreError] = StoreError) -> T:
    """The result of `call`; a store or an API that is away is waited for up to `cluster.patience.api`.

    `transient` are the errors of the store that are worth waiting for.

    A pod has the credentials of its start. When the store refuses them, they are read from the study's secrets.

    Raises CredentialsError, which names the secret, when the time is up and the credentials are still refused.
    """

    def attempt() -> T:
        try:
            return call()
        except CredentialsError as error:
            problem = _renewed(config)
            if not problem:
                say("the store refused this pod's credentials; newer ones of the secret are used from now on")
                return call()
            raise CredentialsError(f"{error}; {problem}") from error

    return retry(attempt, (transient, ApiUnavailable, ServiceUnreachable), config.patience.api)


def holds_s3_keys(keys: Iterable[str]) -> bool:
    """Whether a secret with these keys has credentials of the store."""
    return any(key.startswith(_S3) for key in keys)


def _renewed(config: ClusterConfig) -> str:
    """Take newer credentials from the study's secrets into the environment; returns why that does not help, or ""."""
    secrets = {name: keys for name, keys in config.secrets.items() if holds_s3_keys(keys)}
    commands = ", ".join(see("secret", config.namespace, name) for name in secrets)
    where = f"they come from secret {', '.join(secrets)} in namespace {config.namespace}: {commands}"
    if not in_pod():
        # Outside a pod they were read from the secret just now.
        return where
    found: dict[str, str] = {}
    try:
        for name, keys in secrets.items():
            data = _mounted(name) or data_of(Cluster.connect(), "secret", config.namespace, name)
            found |= {key: data[key] for key in keys if key.startswith(_S3) and key in data}
    except DitError as error:
        return f"{where}; this pod has those of its start, and may not read newer ones: {error}; start it again"
    newer = {key: value for key, value in found.items() if os.environ.get(key) != value}
    os.environ.update(newer)
    copied = ", or has not been copied to this pod's namespace: dit deploy pipelines" if SECRETS.is_dir() else ""
    return "" if newer else f"{where}, which still has these{copied}"


def _mounted(name: str) -> dict[str, str]:
    """Content of a secret that is mounted, which Kubernetes keeps up to date; empty if it is not."""
    folder = SECRETS / name
    try:
        return {path.name: path.read_text() for path in folder.iterdir() if path.is_file()}
    except OSError:
        return {}

"""The store of a study's pods, opened from a pod or from a workstation, and waited for while it is away."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from dit.console import say
from dit.errors import CredentialsError, DitError, MissingError, StoreError
from dit.storage import Store, open_store
from dit.study.cluster import ClusterConfig
from pipelines.cluster.client import ApiRefused, ApiUnavailable, Cluster
from pipelines.cluster.pod_environment import data_of, see, settings, store_as_pods_see_it
from pipelines.cluster.port_forward import ServiceUnreachable
from pipelines.cluster.retry import retry

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
    variables: dict[str, str] = {}
    if cluster is not None and not in_pod():
        try:
            variables = settings(cluster, config, config.namespace)
        except (ApiRefused, MissingError) as error:
            remark(f"the store is read with this machine's settings: {error}")
    with store_as_pods_see_it(variables, config.namespace):
        yield open_store(root)


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
                say("the store refused this pod's credentials; its secret has newer ones, which are used from now on")
                return call()
            raise CredentialsError(f"{error}; {problem}") from error

    return retry(attempt, (transient, ApiUnavailable, ServiceUnreachable), config.patience.api)


def _renewed(config: ClusterConfig) -> str:
    """Take newer credentials from the study's secrets into the environment; returns why that does not help, or ""."""
    names = [name for name, keys in config.secrets.items() if any(key.startswith(_S3) for key in keys)]
    commands = ", ".join(see("secret", config.namespace, name) for name in names)
    where = f"they come from secret {', '.join(names)} in namespace {config.namespace}: {commands}"
    if not in_pod():
        return where
    try:
        cluster = Cluster.connect()
        found = {key: value for name in names for key, value in _s3_keys(cluster, config, name)}
    except DitError as error:
        return f"{where}; this pod has the keys of its start and cannot read newer ones: {error}"
    newer = {key: value for key, value in found.items() if os.environ.get(key) != value}
    os.environ.update(newer)
    return "" if newer else f"{where}, which still has these keys"


def _s3_keys(cluster: Cluster, config: ClusterConfig, name: str) -> Iterator[tuple[str, str]]:
    data = data_of(cluster, "secret", config.namespace, name)
    return ((key, data[key]) for key in config.secrets[name] if key.startswith(_S3) and key in data)

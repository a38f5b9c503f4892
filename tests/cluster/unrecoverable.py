"""Jobs that cannot start. Their launchers start before all tests, and wait for the reasons in parallel."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import yaml
from kube import NAMESPACE, OURS, SESSION, Object, apply, delete
from studies import EARLY, STUDY_FILE, Running, Site, Study

ONE = ("cluster.replicas=1",)
POWERLESS = f"test-powerless-{SESSION}"
FORBIDDEN = "cluster.secrets.dit-mlflow-server=[MLFLOW_AUTH_ADMIN_PASSWORD]"
NO_IMAGE = "dit-scaling:of-no-such-tag"


@contextmanager
def launched(site: Site) -> Iterator[dict[str, Running]]:
    """Cause -> launcher."""
    metadata = {"name": POWERLESS, "namespace": NAMESPACE, "labels": OURS}
    apply({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata})
    yield {
        "gpus": _launch(site, "gpus", "cluster.gpus_per_pod=9", "train.global_batch=63"),
        "image": _launch(site, "image", image=f"{os.environ['REGISTRY']}/{NO_IMAGE}"),
        "secret": _launch(site, "secret", "cluster.secrets.dit-s3=[OF_NO_SUCH_KEY]"),
        "forbidden": _launch(site, "forbidden", FORBIDDEN),
        "account": _launch(site, "account", "cluster.service_account=of-no-such-name"),
        "restricted": _launch(site, "restricted", injected=True),
        "rights": _launch(site, "rights", account=POWERLESS),
    }
    delete("serviceaccount", POWERLESS)


def _launch(site: Site, what: str, *overrides: str, injected: bool = False, **changed: str) -> Running:
    study = site.study(f"{EARLY}-{what}", *ONE, *overrides)
    if injected:
        apply(_privileged(study))
    return study.launch(early=True, **changed)


def _privileged(study: Study) -> Object:
    """The job of a launcher, with a privileged container, as an admission webhook could add it."""
    command = [sys.executable, "-m", "dit", "render", str(STUDY_FILE), "--root", study.site.root]
    command += ["--variant", "mini-S/2", "--image", study.site.image]
    command += [word for override in study.overrides for word in ("--set", override)]
    job: Object = yaml.safe_load(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    container = job["spec"]["pytorchReplicaSpecs"]["Worker"]["template"]["spec"]["containers"][0]
    container["securityContext"] = {"privileged": True}
    return job

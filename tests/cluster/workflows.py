"""Pipeline runs for launcher and reaper: a Workflow, and the pod of one of its steps.

Without Kubeflow Pipelines, the kind Workflow is created for the test; its controller is not needed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from kube import OURS, SELECTOR, Object, apply, delete, get, kubectl, until
from studies import MOUNT, Running, Study, pod, study_config_map

from pipelines.deploy import ROOT

NAMESPACE = "kubeflow"
CRD = "workflows.argoproj.io"
# The call of a pipeline step; Kubeflow Pipelines sets a variable with the name of its pod.
_STEP = """
import pathlib, sys
from dit.storage import open_store
from dit.study import study_file
from pipelines.step import step, submitted
from pipelines.step.share import Share
study, root, variant, image, *overrides = sys.argv[1:]
config = study_file.load(pathlib.Path(study), overrides)
step.run_variant(["train"], submitted.write(config, open_store(root)), variant, Share(), image)
"""


@dataclass(frozen=True)
class Run:
    """A running pipeline run."""

    name: str

    @classmethod
    def start(cls, name: str) -> Run:
        """Start a run that lasts until it is terminated."""
        wait = {"name": "main", "suspend": {}}
        apply(
            {
                "apiVersion": "argoproj.io/v1alpha1",
                "kind": "Workflow",
                "metadata": {"name": name, "namespace": NAMESPACE, "labels": OURS},
                "spec": {"entrypoint": "main", "templates": [wait]},
            }
        )
        return cls(name)

    def launch(self, study: Study, variant: str = "mini-S/2") -> Running:
        """Start the step that launches a variant's training."""
        site, name = study.site, f"{self.name}-launch"
        command = ["python", "-c", _STEP, f"{MOUNT}/study.yaml", site.root, variant, site.image, *study.overrides]
        step = pod(name, site.image, command, "dit-launcher", NAMESPACE)
        workflow = get(CRD, self.name, NAMESPACE)
        assert workflow is not None
        owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": self.name}
        step["metadata"]["ownerReferences"] = [{**owner, "uid": workflow["metadata"]["uid"]}]
        step["metadata"]["labels"]["pipeline/runid"] = self.name
        step["spec"]["containers"][0]["env"].append({"name": "KFP_POD_NAME", "value": name})
        apply(step)
        return Running(name, NAMESPACE)

    def terminate(self) -> None:
        """Terminate the run as Kubeflow Pipelines does."""
        kubectl("patch", CRD, self.name, "-n", NAMESPACE, "--type=merge", "-p", '{"spec":{"activeDeadlineSeconds":0}}')


@contextmanager
def pipelines_namespace() -> Iterator[None]:
    """Deploy overlay `pipelines`; create the namespace and the kind Workflow if they do not exist."""
    made = []
    if get("crd", CRD) is None:
        made.append(("crd", CRD))
        apply(_crd())
        until(f"{CRD} is served", lambda: kubectl("get", CRD, "-A") is not None, 30)
    if get("namespace", NAMESPACE) is None:
        made.append(("namespace", NAMESPACE))
        kubectl("create", "namespace", NAMESPACE)
    subprocess.run([sys.executable, "-m", "dit", "deploy", "pipelines"], cwd=ROOT, check=True)
    apply(study_config_map(NAMESPACE))
    try:
        yield
    finally:
        kubectl("delete", f"pods,configmaps,{CRD}", "-n", NAMESPACE, "-l", SELECTOR, "--grace-period=1")
        for kind, name in made:
            delete(kind, name, "")


def _crd() -> Object:
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
    }
    names = {"plural": "workflows", "singular": "workflow", "kind": "Workflow", "listKind": "WorkflowList"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": CRD},
        "spec": {"group": "argoproj.io", "scope": "Namespaced", "names": names, "versions": [version]},
    }

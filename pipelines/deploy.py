"""Applies the manifests of k8s/ to a cluster and removes them: `dit deploy`, `dit undeploy`, `dit secrets`.

Deploying labels its objects; undeploying deletes the objects with that label, except those that hold data. Needs a
checkout of the project, which has the manifests.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from dit.errors import DitError, InputError
from pipelines.cluster import rollout
from pipelines.cluster.kubectl import check_cluster, kubectl
from pipelines.cluster.secrets import check_secrets, create_secret, missing_secrets, required_secrets
from pipelines.jobs import names
from pipelines.jobs.registry import KINDS

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[1]
IMAGES = {"dit-scaling": "image.digest", "dit-scaling-mlflow": "mlflow.digest"}
"""Name of an image in the manifests -> the file in build/ with its reference, written by `make push`."""

KEPT = frozenset({"Namespace", "PersistentVolumeClaim"})
"""Kinds that undeploying keeps: claims hold data, and the namespace holds claims and secrets."""

SETTINGS = (("ConfigMap", "dit-services"), ("Secret", "dit-s3"), ("Secret", "dit-mlflow"))
"""Kind and name of the objects that steps and jobs read."""

SETTINGS_FROM = "dit-scaling/settings-from"
"""Annotation of a service account: the namespace from which its pods' settings are copied."""

INVENTED = "kind"
"""Overlays with this prefix deploy all their services, so random secrets work."""

LABEL = "dit-scaling/deployed-as"
DELETE_SECONDS = 120
BUILD = ROOT / "build"


def overlays() -> list[str]:
    """Names of all overlays."""
    return sorted(path.parent.name for path in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))


def render(overlay: str, build: Path = BUILD, *, images: bool = True) -> list[Manifest]:
    """The labelled objects of an overlay, with images by digest; without `images`, with names that no node can pull.

    Writes their kustomization to build/deploy/OVERLAY.

    Raises InputError when the overlay does not exist or the images were not pushed.
    """
    if overlay not in overlays():
        raise InputError(f"overlay {overlay} does not exist; choose from {', '.join(overlays())}")
    folder = build / "deploy" / overlay
    folder.mkdir(parents=True, exist_ok=True)
    # kustomize takes relative paths only.
    source = Path(*[".."] * len(folder.resolve().parts[1:]), *(ROOT / "k8s" / "overlays" / overlay).parts[1:])
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [str(source)],
        "labels": [{"pairs": {LABEL: overlay}}],
        "images": [_pushed(name, build / file) for name, file in IMAGES.items()] if images else [],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization, sort_keys=False))
    return [manifest for manifest in yaml.safe_load_all(kubectl("kustomize", str(folder))) if manifest]


def deploy(overlay: str, force: bool = False, build: Path = BUILD) -> None:
    """Apply an overlay and wait until its deployments are ready.

    Raises InputError when an image has no digest, except in overlay `kind`.
    Raises InputError when someone has changed fields since, with `kubectl edit` for example; `force` overwrites them.
    Raises DitError when a deployment does not become ready.
    """
    manifests = render(overlay, build)
    _check_images(overlay, manifests)
    check_cluster()
    if namespaces := [manifest for manifest in manifests if manifest["kind"] == "Namespace"]:
        _apply(namespaces)
    check_secrets(manifests)
    _apply([*manifests, *_settings(manifests, overlay)], force)
    for manifest in manifests:
        if manifest["kind"] == "Deployment":
            name, namespace = manifest["metadata"]["name"], manifest["metadata"]["namespace"]
            _say(f"waiting for {name}")
            rollout.wait(name, namespace)
    _say(f"deployed {overlay}: {len(manifests)} objects")


def _check_images(overlay: str, manifests: list[Manifest]) -> None:
    pods = [item["spec"]["template"]["spec"] for item in manifests if item["kind"] == "Deployment"]
    containers = [one for pod in pods for one in [*pod.get("initContainers", []), *pod["containers"]]]
    tagged = sorted({one["image"] for one in containers if not names.BY_DIGEST.match(one["image"])})
    if tagged and not overlay.startswith(INVENTED):
        raise InputError(
            f"overlay {overlay}: image {tagged[0]}: a tag may mean another image tomorrow; give its digest below"
            f" images: in k8s/overlays/{overlay}/kustomization.yaml"
        )


def undeploy(overlay: str, build: Path = BUILD) -> None:
    """Remove the objects that `deploy` created; claims, secrets and the namespace stay.

    Raises InputError while jobs run there: they need the objects, and Kueue keeps a queue while it has jobs.
    """
    manifests = render(overlay, build, images=False)
    check_cluster()
    kinds_of = removable(manifests)
    for namespace in filter(None, kinds_of):
        _check_idle(namespace)
    for _, namespace in _readers(manifests):
        kinds_of[namespace] += ["configmap", "secret"]
    for namespace, kinds in kinds_of.items():
        sys.stdout.write(_delete(kinds, overlay, namespace))
    _say(f"undeployed {overlay}; volume claims and secrets stay until their namespace is deleted")


def _check_idle(namespace: str) -> None:
    working: dict[str, list[str]] = {}
    for kind in KINDS.values():
        resource = f"{kind.resource.plural}.{kind.resource.group}"
        try:
            text = kubectl("get", resource, "-n", namespace, "-l", names.SELECTOR, "-o", "json")
        except DitError as error:
            if "have a resource type" not in str(error):
                raise
            continue
        if jobs := [job["metadata"]["name"] for job in json.loads(text)["items"] if not kind.phase(job).ended]:
            working[resource] = jobs
    if working:
        jobs = [name for group in working.values() for name in group]
        raise InputError(
            f"jobs in namespace {namespace} have not ended: {', '.join(jobs)}; end those of pipelines by"
            f" dit terminate RUN_ID, others by kubectl delete {','.join(working)} -n {namespace} NAME"
        )


def _delete(kinds: list[str], overlay: str, namespace: str) -> str:
    """The output of `kubectl delete`.

    Raises DitError when an object is not gone in time.
    """
    place = [",".join(kinds), "-l", f"{LABEL}={overlay}", *(["-n", namespace] if namespace else [])]
    try:
        return kubectl("delete", *place, "--ignore-not-found", f"--timeout={DELETE_SECONDS}s")
    except DitError as error:
        if "timed out" not in str(error):
            raise
        queue = "; a queue is deleted when its jobs in all namespaces have ended: kubectl get workloads -A"
        see = f"metadata.finalizers names what keeps it: kubectl get {' '.join(place)} -o yaml"
        raise DitError(f"{error}; {see}{queue if any('queue' in kind for kind in kinds) else ''}") from None


def removable(manifests: list[Manifest]) -> dict[str, list[str]]:
    """Namespace -> kinds to delete, as kubectl arguments; "" has the kinds without a namespace."""
    kinds: dict[str, list[str]] = {}
    for manifest in manifests:
        if manifest["kind"] in KEPT:
            continue
        group, _, version = manifest["apiVersion"].rpartition("/")
        kind = ".".join([manifest["kind"].lower(), *([version, group] if group else [])])
        chosen = kinds.setdefault(manifest["metadata"].get("namespace", ""), [])
        if kind not in chosen:
            chosen.append(kind)
    return kinds


def create_secrets(overlay: str, build: Path = BUILD) -> None:
    """Create the missing secrets of an overlay with random values; existing ones are not changed.

    Raises InputError when secrets are missing that belong to existing services.
    """
    manifests = render(overlay, build)
    check_cluster()
    _apply([manifest for manifest in manifests if manifest["kind"] == "Namespace"])
    missing = missing_secrets(manifests)
    if missing and not overlay.startswith(INVENTED):
        check_secrets(manifests)
    needed = required_secrets(manifests)
    for place in missing:
        create_secret(place, needed[place])


def _readers(manifests: list[Manifest]) -> list[tuple[str, str]]:
    """(source, target): namespaces with settings, and namespaces to which they are copied."""
    accounts = [manifest["metadata"] for manifest in manifests if manifest["kind"] == "ServiceAccount"]
    sources = [(account.get("annotations", {}).get(SETTINGS_FROM), account["namespace"]) for account in accounts]
    return [(source, namespace) for source, namespace in sources if source]


def _settings(manifests: list[Manifest], overlay: str) -> list[Manifest]:
    """Copies of the settings for other namespaces.

    Raises InputError when the settings do not exist yet.
    """
    labels = {"app.kubernetes.io/part-of": "dit-scaling", LABEL: overlay}
    copies = []
    for source, namespace in _readers(manifests):
        objects = [f"{kind.lower()}/{name}" for kind, name in SETTINGS]
        # An overlay that deploys the services has their addresses; their secrets are already in the cluster.
        given = [entry for entry in manifests if _place(entry) in {(kind, source, name) for kind, name in SETTINGS}]
        known = {f"{entry['kind'].lower()}/{entry['metadata']['name']}" for entry in given}
        objects = [entry for entry in objects if entry not in known]
        try:
            originals = json.loads(kubectl("get", *objects, "-n", source, "-o", "json"))["items"]
        except DitError as error:
            raise InputError(f"{error}; deploy the services first: dit deploy kind") from None
        for original in [*given, *originals]:
            metadata = {"name": original["metadata"]["name"], "namespace": namespace, "labels": labels}
            copies.append(
                {"apiVersion": "v1", "kind": original["kind"], "metadata": metadata, "data": original["data"]}
            )
    return copies


def _place(manifest: Manifest) -> tuple[str, str, str]:
    return manifest["kind"], manifest["metadata"].get("namespace", ""), manifest["metadata"]["name"]


def _pushed(name: str, file: Path) -> dict[str, str]:
    if not file.is_file():
        raise InputError(f"build/{file.name} does not exist; run 'make build push REGISTRY=...' first")
    remote, at, digest = file.read_text().strip().partition("@")
    if not at:
        raise InputError(f"build/{file.name} is not NAME@DIGEST; run 'make push REGISTRY=...' again")
    return {"name": name, "newName": remote, "digest": digest}


def _apply(manifests: list[Manifest], force: bool = False) -> None:
    options = ["--server-side", "--field-manager=dit-scaling", "--validate=strict"]
    options += ["--force-conflicts"] if force else []
    try:
        kubectl("apply", *options, "-f", "-", stdin=yaml.safe_dump_all(manifests))
    except DitError as error:
        # kubectl lists the conflicting fields, then explains its own options.
        conflicts, advice, _ = str(error).partition(" Please review the fields above")
        if not advice:
            raise
        raise InputError(f"changed since it was deployed: {conflicts}; to overwrite it, add --force") from None


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")

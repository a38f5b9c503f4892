"""The manifests of k8s/ onto a cluster and off it again, by kubectl: `dit deploy`, `dit undeploy`, `dit secrets`.

Deploying labels what it makes; undeploying removes what carries the label, except for what holds data. Works in a
checkout of the project, where the manifests are.
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
from pipelines.jobs.registry import all_kinds

Manifest = dict[str, Any]

ROOT = Path(__file__).parents[1]
IMAGES = {"dit-scaling": "image.digest", "dit-scaling-mlflow": "mlflow.digest"}
"""Names of our images in the manifests, and the files below build/ with the references that `make push` wrote."""

KEPT = frozenset({"Namespace", "PersistentVolumeClaim"})
"""Kinds that stay when the rest is removed: claims hold data, and the namespace holds claims and secrets."""

SETTINGS = (("ConfigMap", "dit-services"), ("Secret", "dit-s3"), ("Secret", "dit-mlflow"))
"""What steps and jobs read, by kind and name; the rest is the servers' own."""

SETTINGS_FROM = "dit-scaling/settings-from"
"""Annotation of an account in another namespace: where the settings that its pods read are copied from."""

INVENTED = "kind"
"""Overlays of this prefix bring all their services with them, so that any secret will do."""

LABEL = "dit-scaling/deployed-as"
DELETE_SECONDS = 120
BUILD = ROOT / "build"


def overlays() -> list[str]:
    """Names of the overlays that can be deployed."""
    return sorted(path.parent.name for path in (ROOT / "k8s" / "overlays").glob("*/kustomization.yaml"))


def render(overlay: str, build: Path = BUILD, *, images: bool = True) -> list[Manifest]:
    """An overlay's objects, labelled, with our images by digest; without `images` with names that no node can pull.

    Writes the kustomization that makes them into build/deploy/OVERLAY. Raises InputError for an unknown overlay or
    images that were not pushed.
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
    """Apply an overlay and wait until its deployments are up.

    Raises InputError for fields that somebody else has set since, with `kubectl edit` for example; `force` sets them.
    """
    manifests = render(overlay, build)
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


def undeploy(overlay: str, build: Path = BUILD) -> None:
    """Remove what `deploy` made of an overlay; claims, secrets and the namespace stay.

    Raises InputError while jobs work there: they need what goes, and Kueue lets no queue go before the jobs in it.
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
    for kind in all_kinds():
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
    """What kubectl says of the objects that it deleted; DitError for one that does not go."""
    place = [",".join(kinds), "-l", f"{LABEL}={overlay}", *(["-n", namespace] if namespace else [])]
    try:
        return kubectl("delete", *place, "--ignore-not-found", f"--timeout={DELETE_SECONDS}s")
    except DitError as error:
        if "timed out" not in str(error):
            raise
        queue = "; a queue goes when the jobs in it have ended, of any namespace: kubectl get workloads -A"
        see = f"metadata.finalizers says what holds it: kubectl get {' '.join(place)} -o yaml"
        raise DitError(f"{error}; {see}{queue if any('queue' in kind for kind in kinds) else ''}") from None


def removable(manifests: list[Manifest]) -> dict[str, list[str]]:
    """What undeploying asks to delete: kinds, as kubectl tells them apart, by namespace; "" is the whole cluster."""
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
    """Create an overlay's missing secrets with random values.

    What is there is never changed. Raises InputError for an overlay whose secrets belong to services that exist.
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
    """(from, to): the namespaces that have settings, and those of accounts whose pods read them, too."""
    accounts = [manifest["metadata"] for manifest in manifests if manifest["kind"] == "ServiceAccount"]
    sources = [(account.get("annotations", {}).get(SETTINGS_FROM), account["namespace"]) for account in accounts]
    return [(source, namespace) for source, namespace in sources if source]


def _settings(manifests: list[Manifest], overlay: str) -> list[Manifest]:
    """Copies of the settings; InputError where there are none yet."""
    labels = {"app.kubernetes.io/part-of": "dit-scaling", LABEL: overlay}
    copies = []
    for source, namespace in _readers(manifests):
        objects = [f"{kind.lower()}/{name}" for kind, name in SETTINGS]
        try:
            originals = json.loads(kubectl("get", *objects, "-n", source, "-o", "json"))["items"]
        except DitError as error:
            raise InputError(f"{error}; deploy what makes it first: dit deploy kind") from None
        for original in originals:
            metadata = {"name": original["metadata"]["name"], "namespace": namespace, "labels": labels}
            copies.append(
                {"apiVersion": "v1", "kind": original["kind"], "metadata": metadata, "data": original["data"]}
            )
    return copies


def _pushed(name: str, file: Path) -> dict[str, str]:
    if not file.is_file():
        raise InputError(f"no build/{file.name}; run 'make build push REGISTRY=...' first")
    remote, at, digest = file.read_text().strip().partition("@")
    if not at:
        raise InputError(f"build/{file.name} holds no NAME@DIGEST; run 'make push REGISTRY=...' again")
    return {"name": name, "newName": remote, "digest": digest}


def _apply(manifests: list[Manifest], force: bool = False) -> None:
    options = ["--server-side", "--field-manager=dit-scaling", "--validate=strict"]
    options += ["--force-conflicts"] if force else []
    try:
        kubectl("apply", *options, "-f", "-", stdin=yaml.safe_dump_all(manifests))
    except DitError as error:
        # kubectl names who set which fields, and goes on with advice for its own options.
        conflicts, advice, _ = str(error).partition(" Please review the fields above")
        if not advice:
            raise
        raise InputError(f"changed since it was deployed: {conflicts}; to overwrite it, add --force") from None


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")

"""Checks the store, the input files of the study, and MLflow, as pods reach them."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

from dit.errors import CredentialsError, DitError, MissingError, StoreError, one_line
from dit.storage import Store, open_store, read_record
from dit.study import layout
from dit.study.addresses import same_origin
from dit.study.config import AdmReference, StudyConfig, TarSource, VaeCodec
from dit.study.records import DatasetManifest
from dit.tracking.mlflow_ui import DIRECTLY
from pipelines.cluster.client import FORBIDDEN, ApiRefused
from pipelines.cluster.pod_environment import how, reached, see, settings, store_as_pods_see_it
from pipelines.preflight.finding import Finding, Site, failed, ok, unknown

_SECONDS = 20
_URI = "MLFLOW_TRACKING_URI"
_USER, _PASSWORD = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"


def store(site: Site) -> Iterator[Finding]:
    """Whether the bucket is writable with the study's credentials, and the study's input files are in the store."""
    try:
        variables = settings(site.cluster, site.config.cluster, site.namespace)
    except MissingError as error:
        yield failed("bucket", f"not checked: {error}")
        return
    except ApiRefused as error:
        if error.status != FORBIDDEN:
            raise
        yield unknown("bucket", f"not checked: we may not read its address and credentials: {error}")
        return
    with store_as_pods_see_it(variables, site.namespace) as way:
        try:
            place = open_store(site.root)
        except StoreError as error:
            # Pods may reach a server that this machine does not.
            certain = site.inside or isinstance(error, CredentialsError)
            yield failed("bucket", str(error)) if certain else unknown("bucket", f"checked from here: {error}")
            return
        place.check_writable()
        yield ok("bucket", f"{site.root} exists and is writable, {way}")
        yield from _files(site.config, place)


def _files(config: StudyConfig, store: Store) -> Iterator[Finding]:
    """The input files that no stage makes, if a stage still needs them."""
    dataset, evaluation = config.dataset, config.evaluation
    manifest = read_record(store, f"{layout.dataset(config)}/{layout.MANIFEST}", DatasetManifest)
    prepared = manifest is not None and manifest.config_hash == config.dataset_hash()
    if prepared:
        yield ok("dataset", f"is prepared, {store.url}/{layout.dataset(config)}")
    elif dataset.source.kind != "digits":
        shown = "dataset.source.path"
        if not isinstance(dataset.source, TarSource):
            yield failed(
                "images",
                f"{shown}={dataset.source.path} is a folder on this machine, which pods cannot read; put tar files"
                " of it into the store, and add --set dataset.source.kind=tar --set dataset.source.path=s3://...",
            )
        else:
            yield _folder("images", shown, dataset.source.path)
    if isinstance(dataset.codec, VaeCodec):
        if not prepared or not dataset.codec.decoder:
            yield _folder("autoencoder", "dataset.codec.weights", dataset.codec.weights)
        if dataset.codec.decoder:
            yield _folder("decoder", "dataset.codec.decoder", dataset.codec.decoder)
    if evaluation.extractor == "inception":
        address = evaluation.extractor_weights or f"{store.url}/{layout.weights(layout.INCEPTION_FILE)}"
        yield _file("InceptionV3", "evaluation.extractor_weights", address)
    if isinstance(evaluation.reference, AdmReference):
        yield _file("reference", "evaluation.reference.path", evaluation.reference.path)


def _folder(subject: str, key: str, address: str) -> Finding:
    return _named(subject, key, address, lambda place, name: bool(place.list(name)))


def _file(subject: str, key: str, address: str) -> Finding:
    """Whether the file exists; the stage that reads it verifies its hash."""
    return _named(subject, key, address, lambda place, name: place.exists(name))


def _named(subject: str, key: str, address: str, there: Callable[[Store, str], bool]) -> Finding:
    """Whether the store has the object or folder at the address of a key of the study."""
    if not address.startswith("s3://"):
        return failed(
            subject,
            f"{key}={address} is a path on this machine, which pods cannot read; store it and add --set {key}=s3://...",
        )
    folder, _, name = address.rstrip("/").rpartition("/")
    try:
        result = there(open_store(folder), name)
    except DitError as error:
        return failed(subject, f"{key}: {error}")
    if result:
        return ok(subject, f"{address} exists")
    return failed(subject, f"{key}={address} does not exist; store it there, or add --set {key}=s3://...")


def tracking(site: Site) -> Iterator[Finding]:
    """Whether MLflow answers at the address of the pods, and accepts their password."""
    subject, config = "MLflow", site.config
    if config.tracking.kind == "none":
        return
    variables = settings(site.cluster, config.cluster, site.namespace)
    address = (config.tracking.uri or variables.get(_URI) or "").rstrip("/")
    if not address.startswith(("http://", "https://")):
        named = f"{address} is not an http address" if address else f"no config map has {_URI}"
        yield failed(subject, f"{named}; correct cluster.config_maps, or add --set tracking.kind=none")
        return
    with reached(address, site.namespace) as local:
        yield _asked(site, address, local, variables)


def _asked(site: Site, address: str, local: str, variables: Mapping[str, str]) -> Finding:
    """Send a request that needs the password and an allowed host name."""
    subject, where = "MLflow", how(address, local)
    login = base64.b64encode(f"{variables.get(_USER, '')}:{variables.get(_PASSWORD, '')}".encode()).decode()
    request = urllib.request.Request(
        f"{local}/api/2.0/mlflow/experiments/search?max_results=1",
        headers={
            "Host": urlsplit(address).netloc,
            # The password is for the deployment's own server, not for any that a study file names.
            **({"Authorization": f"Basic {login}"} if same_origin(address, variables.get(_URI, "")) else {}),
        },
    )
    logs = f"kubectl logs -n {site.namespace} deployment/mlflow"
    ask = urllib.request.urlopen if local == address else DIRECTLY.open
    try:
        with ask(request, timeout=_SECONDS):
            return ok(subject, f"answers {where}, and accepts the password")
    except urllib.error.HTTPError as error:
        message = one_line(error.read(200).decode(errors="replace"))
        remedy = {
            401: f"the server does not accept the password; {see('secret', site.namespace, 'dit-mlflow')}",
            403: "add the name to MLFLOW_SERVER_ALLOWED_HOSTS in mlflow/deployment.yaml, then dit deploy",
        }.get(error.code, logs)
        return failed(subject, f"answers {error.code} {where}: {message}; {remedy}")
    except OSError as error:
        reason = getattr(error, "reason", error)
        mark = failed if site.inside or local != address else unknown
        return mark(subject, f"does not answer {where}: {reason}; {logs}")

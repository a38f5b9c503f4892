"""The `cluster:` section of a study file: what its jobs ask of Kubernetes. Changes no result. Torch-free."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from dit.study.fields import Natural, Positive, Section, Slug

PRODUCT_LABEL = "nvidia.com/gpu.product"
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001")}
_SUFFIXES |= {letter: Decimal(1000**power) for power, letter in enumerate("kMGT", 1)}
_SUFFIXES |= {f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGT", 1)}
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
# The operators and torchrun own these: a value from the study would tear the ranks apart.
_LAUNCHERS = re.compile(
    r"^(PET_|TORCHELASTIC_|(RANK|LOCAL_RANK|GROUP_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|MASTER_ADDR|MASTER_PORT)$)"
)
_SECRET = re.compile(r"(PASSWORD|TOKEN|SECRET)")
# What `make deploy` makes.
_SERVICES: dict[str, tuple[str, ...]] = {"dit-services": ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MLFLOW_TRACKING_URI")}
_IDENTITIES: dict[str, tuple[str, ...]] = {
    "dit-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "dit-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}


def quantity(text: str) -> Decimal:
    """The number behind a Kubernetes quantity: `500m` is 0.5, `2Gi` is 2147483648; ValueError for anything else."""
    match = _QUANTITY.match(text)
    if match is None or Decimal(match[1]) == 0:
        raise ValueError("must be a quantity above 0, such as 500m, 4, 512Mi or 64Gi")
    return Decimal(match[1]) * _SUFFIXES[match[2] or ""]


def _checked(text: str) -> str:
    quantity(text)
    return text


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Quantity = Annotated[str, BeforeValidator(_as_text), AfterValidator(_checked)]
ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Label = Annotated[str, BeforeValidator(_as_text), Field(pattern=r"^([A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?)?$")]
LabelKey = Annotated[str, Field(pattern=r"^([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class _Resources(Section):
    """What every pod is given."""

    cpu: Quantity = "1"
    """Cores that are set aside; more may be used where they are idle."""
    memory: Quantity = "4Gi"
    """Set aside and the limit: a pod that takes more ends as OOMKilled."""
    shared_memory: Quantity = "1Gi"
    """Size of /dev/shm, which counts towards `memory`."""

    @model_validator(mode="after")
    def _shared_memory_fits(self) -> Self:
        if quantity(self.shared_memory) >= quantity(self.memory):
            raise ValueError(
                f"shared_memory={self.shared_memory} must be below memory={self.memory}, of which it is part"
            )
        return self


class StepConfig(_Resources):
    """What the pod of a pipeline's step is given, where the step does not leave its work to a job."""

    scratch: Quantity = "10Gi"
    """Size of /tmp on the node's disk, for what is downloaded. No node sets it aside for a step; a pod that takes more
    is evicted."""
    gpus: Natural = 0
    timeout_seconds: Positive | None = None
    """The step fails when a try has taken so long; unset, it may take as long as it needs."""


class GpuStepConfig(StepConfig):
    """A step that computes itself."""

    cpu: Quantity = "8"
    memory: Quantity = "32Gi"
    shared_memory: Quantity = "8Gi"
    scratch: Quantity = "100Gi"
    gpus: Natural = 1


class PrepareStepConfig(GpuStepConfig):
    """A part of the preparation."""

    scratch: Quantity = "200Gi"


class LaunchStepConfig(StepConfig):
    """A step that waits for its job."""

    cpu: Quantity = "100m"
    memory: Quantity = "1Gi"
    shared_memory: Quantity = "64Mi"
    scratch: Quantity = "1Gi"


class StepsConfig(Section):
    """The steps of a pipeline run."""

    prepare: PrepareStepConfig = PrepareStepConfig()
    """Each part of the preparation: decodes images and encodes them to latents. Its scratch holds all tar files of the
    source, of which every part reads: 148 GB for ImageNet."""
    launch: LaunchStepConfig = LaunchStepConfig()
    """Each step that starts a job and waits for it, for days where need be."""
    evaluate: GpuStepConfig = GpuStepConfig()
    """Its scratch holds a variant's sample sets: up to 10 GB for each 50,000 images of 256x256."""
    report: StepConfig = StepConfig()
    """The report, and the step that joins the parts of the preparation."""
    parts: Positive = 1
    """Pods that share the preparation."""
    variants_at_a_time: Positive | None = None
    """Variants under way at once; unset, all of them where `queue` starts jobs whole, and else one: jobs that start
    pod by pod take the GPUs from each other, and none gets all of its own."""
    retries: Natural = 3
    """How often a step is tried again whose pod was deleted, as draining a node does, or lost with its node. One that
    failed is not: by itself it would fail again; and of one that its node ended, short of memory or disk or about to
    shut down, Argo knows no better. Submitted again, the run goes on."""
    retry_seconds: Positive = 30
    """Pause before the first of these tries; it doubles from one to the next."""


class PodConfig(_Resources):
    """What one pod of a job is given."""

    cpu: Quantity = "8"
    memory: Quantity = "64Gi"
    shared_memory: Quantity = "16Gi"
    scratch: Quantity = "100Gi"
    """Size of /tmp on the node's disk: copies of shards, weights and compiled kernels."""
    grace_seconds: Positive = 300
    """How long a pod that is told to end may take: training then ends its step and writes a checkpoint, 10.8 GB for
    DiT-XL/2."""


class Toleration(Section):
    """A taint of nodes that the pods accept."""

    key: LabelKey
    operator: Literal["Exists", "Equal"] = "Exists"
    value: Label | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Unset: every effect."""

    @model_validator(mode="after")
    def _value_when_equal(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(f"{self.key}: operator Equal needs a value, and Exists takes none")
        return self


class PatienceConfig(Section):
    """How long the launcher of a job waits for what, in seconds."""

    start: Positive = 86_400
    """For all pods to run, while nodes, quota or the queue may still become free; also later, for one that is lost."""
    hopeless: Positive = 90
    """For what no waiting mends by itself: an image that cannot be pulled, a refused pod, a missing secret. A job whose
    pods have all run has `start` for that, too, and the reason is in its launcher's log."""
    api: Positive = 3600
    """For an API server or store that does not answer."""

    @model_validator(mode="after")
    def _hopeless_is_shorter(self) -> PatienceConfig:
        if self.hopeless > self.start:
            raise ValueError(f"hopeless={self.hopeless} is longer than start={self.start}")
        return self


class ClusterConfig(Section):
    """How a variant's training, and its sampling, become a job of pods on Kubernetes.

    The names of other objects are by default those that `make deploy` makes.
    """

    namespace: Slug = "dit-scaling"
    """Where the jobs are."""
    job: Literal["pytorchjob", "trainjob"] = "pytorchjob"
    """PyTorchJob of the Training Operator (v1), whose pods are restarted in place; or TrainJob of Trainer v2, which
    fails at the first pod that fails."""
    replicas: Annotated[Positive, Field(le=512)] = 8
    """Pods of a job."""
    gpus_per_pod: Natural = 1
    """GPUs of a pod, with one process each; 0 is one process on CPUs."""
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """Name under which nodes offer their GPUs."""
    gpu_product: Label | None = None
    """Kind of GPU, as nodes are labelled (nvidia.com/gpu.product); unset, any."""
    pod: PodConfig = PodConfig()
    node_selector: dict[LabelKey, Label] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    queue: ObjectName | None = None
    """Kueue's LocalQueue, which starts a job when there is room for all of its pods; unset, no queue."""
    priority_class: ObjectName | None = None
    service_account: ObjectName = "dit-worker"
    """Of the pods, which are given no token for it."""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    config_maps: dict[ObjectName, tuple[Variable, ...]] = Field(default_factory=lambda: dict(_SERVICES))
    """Config map -> those of its keys that become variables of pods and steps: where the services are."""
    secrets: dict[ObjectName, tuple[Variable, ...]] = Field(default_factory=lambda: dict(_IDENTITIES))
    """Secret -> those of its keys that become variables of pods and steps: who we are to the services."""
    env: dict[Variable, Annotated[str, BeforeValidator(_as_text)]] = Field(default_factory=dict)
    """Further variables of pods and steps, such as NCCL_DEBUG; they replace those of config maps and secrets."""
    max_restarts: Natural = 0
    """How often torchrun starts its processes again inside a running pod. Not for a TrainJob."""
    backoff_limit: Natural = 32
    """The incident at which a job fails. Each restarts all pods, since one that is lost takes the others along; the
    operator, which adds up restarts of single pods, is given this times `replicas`. Not for a TrainJob."""
    ttl_seconds: Positive = 86_400
    """How long a finished job, with the logs of its failed pods, is kept. Not for a TrainJob."""
    deadline_seconds: Positive | None = None
    """The job fails when it has been active for so long; unset, it may take as long as it needs."""
    patience: PatienceConfig = PatienceConfig()
    steps: StepsConfig = StepsConfig()

    @property
    def variants_at_a_time(self) -> int | None:
        """How many variants are under way at once; None is all."""
        return self.steps.variants_at_a_time or (None if self.queue else 1)

    @property
    def processes_per_pod(self) -> int:
        """One for each GPU; one without."""
        return max(1, self.gpus_per_pod)

    @property
    def world_size(self) -> int:
        """Processes of a job."""
        return self.replicas * self.processes_per_pod

    @field_validator("env")
    @classmethod
    def _no_ranks_and_no_secrets(cls, env: dict[str, str]) -> dict[str, str]:
        for name in env:
            if _LAUNCHERS.match(name):
                raise ValueError(f"{name} is set by the operator and torchrun; remove it")
            if _SECRET.search(name):
                raise ValueError(f"{name} looks like a secret; put it into a Secret and name that in cluster.secrets")
        return env

    @model_validator(mode="after")
    def _gpus_add_up(self) -> ClusterConfig:
        if self.gpu_product is not None and self.gpus_per_pod == 0:
            raise ValueError(f"gpu_product={self.gpu_product} asks for a kind of GPU, and gpus_per_pod=0 for none")
        if self.gpu_product is not None and PRODUCT_LABEL in self.node_selector:
            raise ValueError(f"gpu_product and node_selector both give {PRODUCT_LABEL}; remove one")
        return self

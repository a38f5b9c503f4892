"""The `cluster:` section of a study file: how its jobs run on Kubernetes. Changes no result. Torch-free."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from dit.study.fields import Natural, Positive, Section, Slug, TypeName, matching
from dit.study.pod_variables import check_variable

PRODUCT_LABEL = "nvidia.com/gpu.product"
_SUFFIXES = {"": Decimal(1), "m": Decimal("0.001")}
_SUFFIXES |= {letter: Decimal(1000**power) for power, letter in enumerate("kMGT", 1)}
_SUFFIXES |= {f"{letter}i": Decimal(1024**power) for power, letter in enumerate("KMGT", 1)}
_QUANTITY = re.compile(r"^(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?$")
# The config map and the secrets that `dit deploy` creates.
_SERVICES: dict[str, tuple[str, ...]] = {"dit-services": ("AWS_ENDPOINT_URL_S3", "AWS_REGION", "MLFLOW_TRACKING_URI")}
_IDENTITIES: dict[str, tuple[str, ...]] = {
    "dit-s3": ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    "dit-mlflow": ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"),
}


def quantity(text: str) -> Decimal:
    """The value of a Kubernetes quantity: `500m` is 0.5, `2Gi` is 2147483648.

    Raises ValueError for any other text.
    """
    match = _QUANTITY.match(text)
    if match is None or Decimal(match[1]) == 0:
        raise ValueError("must be a quantity above 0, such as 500m, 4, 512Mi or 64Gi")
    return Decimal(match[1]) * _SUFFIXES[match[2] or ""]


def _checked(text: str) -> str:
    quantity(text)
    return text


def _as_text(value: object) -> object:
    # Of 1.10 or 1e3, YAML leaves only the number: as text it would be another one.
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _number_as_text(value: object) -> object:
    return str(value) if isinstance(value, float) else _as_text(value)


Quantity = Annotated[
    str, BeforeValidator(_number_as_text), AfterValidator(_checked), TypeName("quantity, such as 500m, 4 or 64Gi")
]
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_WORDS = "at most 63 letters, digits, '.', '_' and '-', with a letter or digit first and last"
Text = Annotated[str, BeforeValidator(_as_text)]
ObjectName = Annotated[
    str,
    matching(
        r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?",
        "a name in Kubernetes: a-z, 0-9, '.' and '-', with a letter or digit first and last",
    ),
    TypeName("name in Kubernetes"),
]
Label = Annotated[Text, matching(f"({_LABEL})?", _LABEL_WORDS), TypeName("label")]
LabelKey = Annotated[
    str, matching(rf"([a-z0-9.-]{{1,253}}/)?{_LABEL}", f"a label's key: {_LABEL_WORDS}"), TypeName("label's key")
]
Variable = Annotated[
    str,
    matching(r"[A-Za-z_][A-Za-z0-9_]*", "a variable's name: letters, digits and '_', with no digit first"),
    TypeName("variable"),
]


class _Resources(Section):
    """Resources of every pod."""

    cpu: Quantity = "1"
    """Cores to request. There is no limit: a pod may use idle cores, too."""
    memory: Quantity = "4Gi"
    """Memory to request, and its limit: a pod that uses more ends as OOMKilled."""
    shared_memory: Quantity = "1Gi"
    """Size of /dev/shm, which counts towards `memory`."""

    @model_validator(mode="after")
    def _shared_memory_fits(self) -> Self:
        if quantity(self.shared_memory) >= quantity(self.memory):
            raise ValueError(f"shared_memory={self.shared_memory} must be below memory={self.memory}, which holds it")
        return self


class StepConfig(_Resources):
    """The pod of a pipeline step that does its work itself."""

    scratch: Quantity = "10Gi"
    """Limit of /tmp on the node's disk, for downloads. It is not requested from the node; a pod that uses more is
    evicted."""
    gpus: Natural = 0
    """GPUs of the pod."""
    timeout_seconds: Positive | None = None
    """Timeout of one attempt, after which the step fails; unset, none."""


class GpuStepConfig(StepConfig):
    """A step that computes on a GPU."""

    cpu: Quantity = "8"
    memory: Quantity = "32Gi"
    shared_memory: Quantity = "8Gi"
    scratch: Quantity = "100Gi"
    gpus: Natural = 1


class PrepareStepConfig(GpuStepConfig):
    """One part of the preparation."""

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
    """Each part of the preparation: decodes images and encodes them to latents. Every part reads some of every tar
    file of the source, so its scratch holds all of them: 148 GB for ImageNet."""
    launch: LaunchStepConfig = LaunchStepConfig()
    """Each step that starts a job and waits for it, if need be for days."""
    evaluate: GpuStepConfig = GpuStepConfig()
    """Its scratch holds a variant's sample sets: up to 10 GB for each 50,000 images of 256x256. Where a
    pipeline step does a whole checkpoint or variant, these are the resources of a job's pod."""
    report: StepConfig = StepConfig()
    """The report, and the step that joins the parts of the preparation."""
    parts: Positive = 1
    """Pods that share the preparation."""
    variants_at_a_time: Positive | None = None
    """Runs (a variant with a seed) that are worked on at the same time; unset, all of them with `queue`, else one.
    Without a queue, jobs start pod by pod, and two jobs could each hold some of the GPUs that the other needs."""
    retries: Natural = 3
    """Retries for a step whose pod was deleted (a node drain, for example) or lost with its node. A step that exits
    with an error is not retried. Argo also counts a pod that its node stopped (memory or disk pressure, shutdown) as an
    error; submit the run again to continue. A launcher whose process is killed is started again as often, in its
    pod."""
    retry_seconds: Positive = 30
    """Pause before the first retry; it doubles with each one."""


class PodConfig(_Resources):
    """One pod of a job."""

    cpu: Quantity = "8"
    memory: Quantity = "64Gi"
    shared_memory: Quantity = "16Gi"
    scratch: Quantity = "100Gi"
    """Size of /tmp on the node's disk: copies of shards, weights and compiled kernels."""
    grace_seconds: Positive = 300
    """Time between SIGTERM and SIGKILL: training ends its step and writes a checkpoint, 10.8 GB for DiT-XL/2."""


class Toleration(Section):
    """A taint that the pods tolerate."""

    key: LabelKey
    """The taint's key."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether any value is tolerated, or only `value`."""
    value: Label | None = None
    """The taint's value, with Equal."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; unset, every effect."""

    @model_validator(mode="after")
    def _value_when_equal(self) -> Toleration:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError(f"{self.key}: operator Equal needs a value, and Exists takes none")
        return self


class PatienceConfig(Section):
    """Timeouts of a job's launcher, in seconds."""

    start: Positive = 86_400
    """Until all pods run, while nodes, quota or the queue may still become free; later also for a lost pod."""
    hopeless: Positive = 90
    """For a problem that waiting cannot solve: an image that cannot be pulled, a refused pod, a missing secret. Once
    all pods have run, `start` holds instead, and the reason is in the launcher's log."""
    api: Positive = 3600
    """For an API server or a store that is away, and for a store that is full or refuses the credentials."""
    stall: Positive = 900
    """For a training that does not get on: a frozen process, or a collective that never returns. Its job is then
    deleted and created again, and resumes from its last checkpoint, up to `backoff_limit` times. The ranks are named
    after 4 minutes, or after 20 steps where these take longer, so a shorter time has no effect."""

    @model_validator(mode="after")
    def _hopeless_is_shorter(self) -> PatienceConfig:
        if self.hopeless > self.start:
            raise ValueError(f"hopeless={self.hopeless} is longer than start={self.start}")
        return self


class ClusterConfig(Section):
    """How a variant's training or sampling runs as a job of pods on Kubernetes.

    By default it names the objects that `dit deploy` creates.
    """

    namespace: Slug = "dit-scaling"
    """Namespace of the jobs."""
    job: Literal["pytorchjob", "trainjob"] = "pytorchjob"
    """PyTorchJob of the Training Operator (v1), whose pods are restarted in place; or TrainJob of Trainer v2, which
    fails at the first pod that fails."""
    replicas: Annotated[Positive, Field(le=512)] = 8
    """Pods of a job."""
    gpus_per_pod: Natural = 1
    """GPUs of a pod, with one process each; 0 is one process on CPUs."""
    gpu_resource: LabelKey = "nvidia.com/gpu"
    """Resource name of the nodes' GPUs."""
    gpu_product: Label | None = None
    """Kind of GPU: a node's label nvidia.com/gpu.product; unset, any."""
    pod: PodConfig = PodConfig()
    node_selector: dict[LabelKey, Label] = Field(default_factory=dict)
    """Labels that a node must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that the pods tolerate."""
    queue: ObjectName | None = None
    """Kueue's LocalQueue, which starts a job when there is room for all of its pods; unset, no queue."""
    priority_class: ObjectName | None = None
    """PriorityClass of the pods; unset, the cluster's default."""
    service_account: ObjectName = "dit-worker"
    """The pods' account; its token is not mounted."""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    """Secrets with credentials of the image's registry."""
    config_maps: dict[ObjectName, tuple[Variable, ...]] = Field(default_factory=lambda: dict(_SERVICES))
    """Config map -> its keys that become variables of pods and steps: the services' addresses."""
    secrets: dict[ObjectName, tuple[Variable, ...]] = Field(default_factory=lambda: dict(_IDENTITIES))
    """Secret -> its keys that become variables of pods and steps: credentials for the services."""
    env: dict[Variable, Text] = Field(default_factory=dict)
    """Further variables of pods and steps, such as NCCL_DEBUG; they replace those of config maps and secrets. Not for
    addresses of services, and not for variables that load code."""
    max_restarts: Natural = 0
    """How often torchrun restarts its processes inside a running pod. Not for a TrainJob."""
    backoff_limit: Natural = 32
    """Number of incidents after which the job fails. One lost pod restarts all pods, and the operator counts restarts
    per pod, so it is given `backoff_limit` x `replicas`. Not for a TrainJob."""
    ttl_seconds: Positive = 86_400
    """How long a finished job, with the logs of its failed pods, is kept. Not for a TrainJob."""
    deadline_seconds: Positive | None = None
    """Timeout of a job's active time; unset, none."""
    patience: PatienceConfig = PatienceConfig()
    steps: StepsConfig = StepsConfig()

    @property
    def variants_at_a_time(self) -> int | None:
        """How many runs are worked on at the same time; None is all."""
        return self.steps.variants_at_a_time or (None if self.queue else 1)

    @property
    def processes_per_pod(self) -> int:
        """One per GPU; one without GPUs."""
        return max(1, self.gpus_per_pod)

    @property
    def world_size(self) -> int:
        """Processes of a job."""
        return self.replicas * self.processes_per_pod

    @field_validator("env")
    @classmethod
    def _only_settings(cls, env: dict[str, str]) -> dict[str, str]:
        for name, value in env.items():
            check_variable(name, value)
        return env

    @model_validator(mode="after")
    def _gpus_add_up(self) -> ClusterConfig:
        if self.gpu_product is not None and self.gpus_per_pod == 0:
            raise ValueError(f"gpu_product={self.gpu_product} needs a GPU, but gpus_per_pod=0; change one")
        if self.gpu_product is not None and PRODUCT_LABEL in self.node_selector:
            raise ValueError(f"gpu_product and node_selector both set {PRODUCT_LABEL}; remove one")
        return self

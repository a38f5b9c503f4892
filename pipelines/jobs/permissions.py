"""The permissions that a launcher needs, granted by k8s/base/jobs/launcher.yaml, and whether it has them."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from dit.study.cluster import ClusterConfig
from pipelines.cluster.client import WORKLOADS, Cluster
from pipelines.jobs.registry import KINDS

_MANAGED = ("get", "create", "patch", "delete")


@dataclass(frozen=True)
class Right:
    """One verb on one kind of object in one namespace: the fields of an access review."""

    namespace: str
    group: str
    resource: str
    verb: str
    subresource: str = ""

    def __str__(self) -> str:
        path = f"{self.resource}/{self.subresource}" if self.subresource else self.resource
        return f"{self.verb} {path}{f'.{self.group}' if self.group else ''}"


@dataclass(frozen=True)
class Account:
    """A service account."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"system:serviceaccount:{self.namespace}:{self.name}"

    @property
    def groups(self) -> list[str]:
        """Groups of every service account in this namespace."""
        return ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]


def of_launcher(cluster: ClusterConfig) -> tuple[Right, ...]:
    """Permissions to start, adopt, watch, explain and delete the jobs of a study."""
    own, kind = cluster.namespace, KINDS[cluster.job]
    managed = [kind.resource, *kind.companion_resources]
    rights = [Right(own, resource.group, resource.plural, verb) for resource in managed for verb in _MANAGED]
    rights += [Right(own, "", "pods", "list"), Right(own, "", "events", "list"), Right(own, "", "pods", "get", "log")]
    if cluster.queue:
        rights.append(Right(own, WORKLOADS.group, WORKLOADS.plural, "list"))
    return tuple(rights)


def of_launching_steps(namespace: str) -> tuple[Right, ...]:
    """Permissions of the launcher's account in the namespace of the run: to find the step's own pod."""
    return (Right(namespace, "", "pods", "list"),)


def of_steps(namespace: str) -> tuple[Right, ...]:
    """Permissions of the account of all steps in the namespace of the run: to report to Argo."""
    reported = "workflowtaskresults"
    return (Right(namespace, "argoproj.io", reported, "create"), Right(namespace, "argoproj.io", reported, "patch"))


def allowed(cluster: Cluster, right: Right, account: Account | None) -> bool:
    """Whether an account has a permission; None is the caller.

    Raises ApiRefused when the caller may not ask about that account.
    """
    review = "SubjectAccessReview" if account else "SelfSubjectAccessReview"
    spec: dict[str, object] = {"resourceAttributes": asdict(right)}
    if account:
        spec |= {"user": str(account), "groups": account.groups}
    answer = cluster.ask(
        f"/apis/authorization.k8s.io/v1/{review.lower()}s",
        {"apiVersion": "authorization.k8s.io/v1", "kind": review, "spec": spec},
    )
    return bool(answer["status"]["allowed"])

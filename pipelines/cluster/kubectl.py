"""The program kubectl, and its failures as one line."""

from __future__ import annotations

import subprocess

from dit.errors import DitError, InputError, one_line


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """What kubectl prints; DitError with its reason where it fails, InputError where there is none."""
    try:
        done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("kubectl is not on PATH; it is needed to render and to apply manifests") from None
    if done.returncode:
        reason = one_line(done.stderr) or f"exit code {done.returncode}"
        raise DitError(f"kubectl {arguments[0]}: {reason}")
    return done.stdout


def check_cluster() -> None:
    """Raise InputError where no cluster answers."""
    try:
        kubectl("get", "--raw", "/readyz", "--request-timeout=10s")
    except DitError as error:
        raise InputError(f"no cluster answers ({error}); set KUBECONFIG to one that does") from None

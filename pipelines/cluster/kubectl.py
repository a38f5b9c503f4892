"""Runs kubectl, and turns its failures into one line."""

from __future__ import annotations

import subprocess

from dit.errors import DitError, InputError, one_line


def kubectl(*arguments: str, stdin: str | None = None) -> str:
    """The output of kubectl.

    Raises DitError with the reason when it fails, InputError when it is not installed.
    """
    try:
        done = subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError("kubectl is not on PATH; install it") from None
    if done.returncode:
        reason = one_line(done.stderr) or f"exit code {done.returncode}"
        raise DitError(f"kubectl {arguments[0]}: {reason}")
    return done.stdout


def check_cluster() -> None:
    """Raises InputError when no cluster answers."""
    try:
        kubectl("get", "--raw", "/readyz", "--request-timeout=10s")
    except DitError as error:
        raise InputError(f"no cluster answers ({error}); set KUBECONFIG to a running cluster") from None

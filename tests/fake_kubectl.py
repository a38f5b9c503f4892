"""A kubectl that renders as the real one, and keeps a cluster in a file of JSON: what deploying asks of it, no more."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    import pytest  # this program starts often, and has to start fast

Object = dict[str, Any]


def install(folder: Path, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put it on PATH, with its cluster in the file `state`; while there is no such file, no cluster answers."""
    folder.mkdir()
    program = folder / "kubectl"
    real = shutil.which("kubectl")
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{state}" "{real}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def kind(item: Object) -> str:
    """As kubectl tells kinds apart."""
    group, _, version = item["apiVersion"].rpartition("/")
    return ".".join([item["kind"].lower(), *([version, group] if group else [])])


def place(item: Object) -> list[str]:
    return [kind(item), item["metadata"].get("namespace", ""), item["metadata"]["name"]]


class Kubectl:
    """One call."""

    def __init__(self, state: Path, arguments: list[str]) -> None:
        if not state.exists():
            sys.exit("The connection to the server was refused")
        self._state, self._arguments = state, arguments
        self._cluster: list[Object] = json.loads(state.read_text())
        self._scope = arguments[arguments.index("-n") + 1] if "-n" in arguments else ""
        selector = arguments[arguments.index("-l") + 1].split(",") if "-l" in arguments else []
        self._labels = dict(part.split("=") for part in selector)

    def run(self) -> None:
        verb = self._arguments[0]
        calls = {"apply": self._apply, "create": self._apply, "rollout": self._rollout, "delete": self._delete}
        {**calls, "get": self._get}[verb]()
        self._state.write_text(json.dumps(self._cluster))

    def _selected(self, *kinds: str) -> list[Object]:
        return [
            item
            for item in self._cluster
            if kind(item) in kinds
            and item["metadata"].get("namespace", "") == self._scope
            and self._labels.items() <= item["metadata"].get("labels", {}).items()
        ]

    def _apply(self) -> None:
        for item in filter(None, yaml.safe_load_all(sys.stdin)):
            if "stringData" in item:
                item["data"] = item.pop("stringData")
            before = [other for other in self._cluster if place(other) == place(item)]
            if before and before[0]["metadata"].get("edited") and "--force-conflicts" not in self._arguments:
                sys.exit(
                    'error: Apply failed with 1 conflict: conflict with "somebody" using v1: .data.K\n'
                    "Please review the fields above--they currently have other managers. Here\nare the ways ..."
                )
            status = {"status": before[0]["status"]} if before and "status" in before[0] else {}
            self._cluster = [other for other in self._cluster if place(other) != place(item)] + [{**item, **status}]

    def _rollout(self) -> None:
        name = self._arguments[2].removeprefix("deployment/")
        pods = [pod for pod in self._selected("pod") if pod["metadata"]["labels"]["app.kubernetes.io/name"] == name]
        if pods or "status" in self._deployment(name):
            sys.exit("error: timed out waiting for the condition")

    def _deployment(self, name: str) -> Object:
        return next(item for item in self._selected("deployment.v1.apps") if item["metadata"]["name"] == name)

    def _get(self) -> None:
        what = self._arguments[1]
        if what == "--raw":
            return
        if what == "trainjobs.trainer.kubeflow.org":
            sys.exit("error: the server doesn't have a resource type 'trainjobs'")
        if "/" in what:
            self._get_named([argument for argument in self._arguments if "/" in argument])
        elif what == "pytorchjobs.kubeflow.org":
            self._print({"items": self._selected("pytorchjob.v1.kubeflow.org")})
        elif what == "pods":
            self._print({"items": self._selected("pod")})
        elif what == "deployment":
            self._print(self._deployment(self._arguments[2]))
        else:
            for item in self._cluster:
                if place(item) == [what, self._scope, self._arguments[2]]:
                    sys.stdout.write(yaml.safe_dump(item))

    def _get_named(self, names: list[str]) -> None:
        wanted = [[*name.split("/")] for name in names]
        items = [item for item in self._selected(*(one for one, _ in wanted)) if place(item)[::2] in wanted]
        if len(items) < len(wanted):
            sys.exit("Error from server (NotFound): not found")
        self._print({"items": items})

    def _print(self, answer: Object) -> None:
        sys.stdout.write(json.dumps(answer))

    def _delete(self) -> None:
        going = self._selected(*self._arguments[1].split(","))
        if held := [item for item in going if "finalizers" in item["metadata"]]:
            item = held[0]
            sys.exit(f"error: timed out waiting for the condition on {kind(item)}/{item['metadata']['name']}")
        self._cluster = [item for item in self._cluster if item not in going]


if __name__ == "__main__":
    file, kubectl, *given = sys.argv[1:]
    if given[0] == "kustomize":
        os.execv(kubectl, ["kubectl", *given])
    Kubectl(Path(file), given).run()

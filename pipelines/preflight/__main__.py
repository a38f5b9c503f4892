"""Whether a study can run on a cluster: `make preflight`.

python -m pipelines.preflight configs/imagenet256.yaml --root s3://bucket/dit
"""

from __future__ import annotations

import argparse
import os
import sys

from dit.console import program
from dit.errors import InputError
from dit.study import study_file
from pipelines.jobs.names import KFP_ENDPOINT, RUNS_NAMESPACE
from pipelines.preflight.check import preflight
from pipelines.runs.api import endpoint_of


def main(arguments: list[str] | None = None) -> int:
    """Exit code of `python -m pipelines.preflight`."""
    parser = program.parser("pipelines.preflight", __doc__)
    program.add_study(parser)
    program.add_root(parser)
    parser.add_argument(
        "--endpoint", help=f"server of Kubeflow Pipelines (default: {KFP_ENDPOINT}; without, jobs alone)"
    )
    parser.add_argument("--runs-namespace", default=RUNS_NAMESPACE, help="where steps run (default: %(default)s)")
    options = parser.parse_args(arguments)
    return program.exit_code(lambda: _check(options))


def _check(options: argparse.Namespace) -> None:
    config = study_file.load(options.study, options.overrides)
    if not options.root.startswith("s3://"):
        raise InputError(f"root {options.root}: pods reach no folder of this machine; give s3://bucket/prefix")
    given = options.endpoint or os.environ.get(KFP_ENDPOINT)
    preflight(config, options.root, endpoint_of(given) if given else None, options.runs_namespace)


if __name__ == "__main__":
    sys.exit(main())

"""Whether a study can run on a cluster: `make preflight`.

python -m pipelines.preflight configs/imagenet256.yaml --root s3://bucket/dit
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from dit import study_file
from dit.errors import DitError, InputError
from pipelines.jobs.names import RUNS_NAMESPACE
from pipelines.preflight.check import preflight
from pipelines.server import ENDPOINT, endpoint_of


def main(arguments: list[str] | None = None) -> int:
    """Exit code of `python -m pipelines.preflight`."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.preflight", description=(__doc__ or "").splitlines()[0].split(":")[0]
    )
    parser.add_argument("study", type=Path, help="study file, such as configs/digits.yaml")
    parser.add_argument("--root", required=True, help="store of all results: s3://bucket/prefix")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[])
    parser.add_argument("--endpoint", help=f"server of Kubeflow Pipelines (default: {ENDPOINT}; without, jobs alone)")
    parser.add_argument("--runs-namespace", default=RUNS_NAMESPACE, help="where steps run (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        config = study_file.load(options.study, options.overrides)
        if not options.root.startswith("s3://"):
            raise InputError(f"root {options.root}: pods reach no folder of this machine; give s3://bucket/prefix")
        given = options.endpoint or os.environ.get(ENDPOINT)
        preflight(config, options.root, endpoint_of(given) if given else None, options.runs_namespace)
    except DitError as error:
        sys.stderr.write(f"dit: {' '.join(str(error).split())}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

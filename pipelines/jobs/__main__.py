"""A job by hand: print what would be submitted, or submit it and wait.

python -m pipelines.jobs render configs/imagenet256.yaml --variant DiT-XL/2 --root s3://bucket/dit --image IMAGE
python -m pipelines.jobs launch configs/imagenet256.yaml --variant DiT-XL/2 --root s3://bucket/dit --image IMAGE
"""

from __future__ import annotations

import argparse
import sys

import yaml

from dit.console import program, say
from dit.storage import open_store
from dit.study import study_file
from pipelines.cluster.client import Cluster
from pipelines.jobs.launch import launch
from pipelines.jobs.registry import render_job
from pipelines.jobs.spec import job_spec


def main(arguments: list[str] | None = None) -> int:
    """Exit code of `python -m pipelines.jobs`."""
    options = _parser().parse_args(arguments)
    return program.exit_code(lambda: _run(options), "interrupted; the job goes on, and the same command adopts it")


def _run(options: argparse.Namespace) -> None:
    config = study_file.load(options.study, options.overrides)
    spec = job_spec(config, options.variant, options.stage, options.root, options.image)
    if options.command == "render":
        rendered = render_job(spec)
        documents = [*(manifest for _, manifest in rendered.companions), rendered.job]
        say(yaml.safe_dump_all(documents, sort_keys=False).rstrip())
        return
    launch(config, open_store(options.root), spec, Cluster.connect())


def _parser() -> argparse.ArgumentParser:
    parser = program.parser("pipelines.jobs", __doc__)
    parser.add_argument("command", choices=("render", "launch"))
    program.add_study(parser)
    program.add_root(parser)
    parser.add_argument("--stage", choices=("train", "sample"), default="train")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--image", required=True, help="the study's image, by digest")
    return parser


if __name__ == "__main__":
    sys.exit(main())

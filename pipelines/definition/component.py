"""A function of components.py as a component of kfp, and the program that runs it in a step's process.

kfp puts a function's source into the command of a step. Here the command names this module, and the source comes from
the image, which keeps a run's workflow small.

python -m pipelines.definition.component kfp.dsl.executor_main --function_to_execute NAME --executor_input JSON
"""

import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

IMAGE = "dit-scaling"
"""Stands for the image that `pipelines.definition.pipeline` sets on every step."""

# SubprocessRunner runs nothing in whose command it does not find the name of kfp's executor.
_COMMAND = ["python3", "-m", "pipelines.definition.component", "kfp.dsl.executor_main"]


def component(function: Callable[..., Any]) -> Any:
    """The component of kfp that runs a function of components.py."""
    from kfp import dsl  # all of kfp, which a step's process does not load

    made = dsl.component(function, base_image=IMAGE, install_kfp_package=False)
    made.component_spec.implementation.container.command = _COMMAND
    return made


def main(module: str, arguments: list[str]) -> None:
    """Run kfp's executor on components.py."""
    os.environ["_KFP_RUNTIME"] = "true"  # its own commands set it: kfp then loads its compiler no more
    sys.argv = [module, "--component_module_path", str(Path(__file__).with_name("components.py")), *arguments]
    runpy.run_module(module, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

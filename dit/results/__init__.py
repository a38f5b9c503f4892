"""What is complete in a store, answered once for every reader. Torch-free.

stages.py     the table of stages: what each leaves, and what its records must agree with
state.py      reads the table against a store: complete, missing, or made with another configuration
progress.py   how far each stage is, for `dit status`
"""

from dit.results.stages import EVALUATE, PREPARE, REPORT, SAMPLE, STAGES, TRAIN, Output, Stage, Work
from dit.results.state import (
    StageState,
    is_complete,
    look,
    read_output,
    require,
    require_stage,
    stage_state,
    unfinished,
)

__all__ = [
    "EVALUATE",
    "PREPARE",
    "REPORT",
    "SAMPLE",
    "STAGES",
    "TRAIN",
    "Output",
    "Stage",
    "StageState",
    "Work",
    "is_complete",
    "look",
    "read_output",
    "require",
    "require_stage",
    "stage_state",
    "unfinished",
]

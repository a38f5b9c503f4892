"""How long a study still takes, from the work of its steps and from the pace of those that ran. Uses no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dit.planning import stages
from dit.planning.cost import FLOPS_PER_MAC, sampling_macs, training_macs
from dit.results.stages import PREPARE, REPORT, SAMPLE, TRAIN, Stage, Work, milestones, run_of_step, variant_steps
from dit.results.state import is_complete
from dit.study.config import StudyConfig
from dit.study.runs import Run

START_SECONDS = 4.0
"""Time of a step that computes nothing: a process starts and imports its libraries."""
TRUST_SECONDS = 30.0
"""Seconds of expected work that count like measured ones, so that one short slow step does not decide the pace."""
_CPU_FLOPS, _GPU_FLOPS = 3e10, 6e13
"""Assumed rates. They decide only how much the starts of processes weigh: `StudyClock` measures the pace."""


def expected_seconds(work: Work, runs: Sequence[Run], starts: int, on_gpu: bool) -> dict[str, float]:
    """Step -> seconds that it is expected to take; so many of the runs also wait for the start of a process."""
    config, rate = work.config, _GPU_FLOPS if on_gpu else _CPU_FLOPS
    encoding = FLOPS_PER_MAC * stages.encoding_macs(config, stages.image_count(config) or 0) / rate
    expected = {PREPARE.name: START_SECONDS + (0.0 if is_complete(PREPARE, work) else encoding)}
    for number, run in enumerate(runs):
        start, before = START_SECONDS if number < starts else 0.0, 0
        for stage, step in variant_steps(config):
            macs, more = _work(config, run, stage, step - before)
            left = 0.0 if is_complete(stage, work, run, step) else FLOPS_PER_MAC * macs / rate + more
            expected[stage.step_name(run, step)] = start + left
            start, before = 0.0, step
    return expected | {REPORT.name: START_SECONDS}


def _work(config: StudyConfig, run: Run, stage: Stage, steps: int) -> tuple[float, float]:
    """Multiply-accumulates of a stage for one checkpoint, `steps` after the one before, and its other seconds."""
    sampling, gflops = config.sampling, run.spec.gflops(config.dataset.inputs)
    if stage is TRAIN:
        return training_macs(gflops, config.train.global_batch, steps), 0.0
    if stage is SAMPLE:
        drawn = sampling_macs(gflops, sampling.num_samples, sampling.steps, sampling.cfg_scale)
        return drawn + stages.decoding_macs(config), 0.0
    return stages.feature_macs(config, sampling.num_samples), stages.interval_seconds(config)


def steps_before(config: StudyConfig) -> dict[str, float]:
    """Training step of the pipeline -> share of its bar, which counts from step 0, that earlier ones do."""
    steps = milestones(config)
    pairs = list(zip((0, *steps), steps, strict=False))
    return {TRAIN.step_name(run, step): before / step for run in config.runs for before, step in pairs}


@dataclass
class _Running:
    began: float
    first_share: float | None = None
    """Share that was done when the step's bar opened: an earlier run's work."""
    share: float = 0.0


class StudyClock:
    """Estimates the time left from the `expected` seconds per step and the number of steps that run side by side.

    `before` is the share of a step's bar that is not the step's own work; see `steps_before`.
    """

    def __init__(self, expected: Mapping[str, float], workers: int, before: Mapping[str, float] | None = None) -> None:
        self._left, self._before = dict(expected), dict(before or {})
        self._workers = workers
        self._running: dict[str, _Running] = {}
        self._spent = self._covered = 0.0

    def begin(self, step: str, now: float) -> None:
        """A step has started."""
        self._running[step] = _Running(now)

    def advance(self, step: str, share: float) -> None:
        """This share of a running step is done, by this run or by earlier ones."""
        running = self._running.get(step)
        if running is not None:
            before = self._before.get(step, 0.0)
            share = max(0.0, (share - before) / (1 - before))
            running.first_share = share if running.first_share is None else running.first_share
            running.share = share

    def end(self, step: str, now: float) -> None:
        """A step is done."""
        running = self._running.pop(step, None)
        expected = self._left.pop(step, 0.0)
        if running is not None:
            self._spent += now - running.began
            self._covered += expected * (1 - (running.first_share or 0.0))

    def drop(self, run: str) -> None:
        """The steps of a run that ended early are not done."""
        for step in [step for step in self._left if run_of_step(step) == run]:
            self._left.pop(step)
            self._running.pop(step, None)

    def left(self, now: float) -> float | None:
        """Seconds until the study's end; None before there is any pace to go by."""
        spent, covered, rest = self._spent, self._covered, 0.0
        for step, running in self._running.items():
            done = running.share - (running.first_share or 0.0)
            if done > 0:
                spent += now - running.began
                covered += done * self._left.get(step, 0.0)
        if covered <= 0:
            return None
        pace = (spent + TRUST_SECONDS) / (covered + TRUST_SECONDS)
        longest = 0.0
        for step, seconds in self._left.items():
            expected = pace * seconds
            if (state := self._running.get(step)) is not None:
                # Without a bar, the time that it has taken is the only sign of progress.
                expected = expected * (1 - state.share) if state.share else expected - (now - state.began)
            rest += max(expected, 0.0)
            longest = max(longest, expected)
        return max(rest / self._workers, longest)

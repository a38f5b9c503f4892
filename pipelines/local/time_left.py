"""How long a study still takes, from the work of its steps and from the pace of those that ran. Uses no clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dit.planning import stages
from dit.planning.cost import FLOPS_PER_MAC, sampling_macs, training_macs
from dit.results.stages import EVALUATE, PREPARE, REPORT, SAMPLE, TRAIN, Stage, Work
from dit.results.state import is_complete
from dit.study.variants import ModelSpec

START_SECONDS = 4.0
"""Time of a step that computes nothing: a process starts and imports its libraries."""
TRUST_SECONDS = 30.0
"""Seconds of expected work that count like measured ones, so that one short slow step does not decide the pace."""
_CPU_FLOPS, _GPU_FLOPS = 3e10, 6e13
"""Assumed rates. They decide only how much the starts of processes weigh: `StudyClock` measures the pace."""


def expected_seconds(work: Work, variants: Sequence[ModelSpec], on_gpu: bool) -> dict[str, float]:
    """Step -> seconds that it is expected to take, for the steps that a run of these variants has."""
    config, rate = work.config, _GPU_FLOPS if on_gpu else _CPU_FLOPS
    train, sampling, sets = config.train, config.sampling, len(config.evaluation.at_steps)
    encoding = stages.encoding_macs(config, stages.image_count(config) or 0)
    expected: dict[str, float] = {}

    def add(stage: Stage, spec: ModelSpec | None, macs: float, other_seconds: float = 0.0) -> None:
        left = 0.0 if is_complete(stage, work, spec) else FLOPS_PER_MAC * macs / rate + other_seconds
        expected[stage.step_name(spec)] = START_SECONDS + left

    add(PREPARE, None, encoding)
    for spec in variants:
        gflops = spec.gflops(config.dataset.inputs)
        sampled = sampling_macs(gflops, sampling.num_samples, sampling.steps, sampling.cfg_scale)
        features = stages.feature_macs(config, sampling.num_samples)
        add(TRAIN, spec, training_macs(gflops, train.global_batch, train.steps))
        add(SAMPLE, spec, sets * (sampled + stages.decoding_macs(config)))
        add(EVALUATE, spec, sets * features, sets * stages.interval_seconds(config))
    add(REPORT, None, 0.0)
    return expected


@dataclass
class _Running:
    began: float
    first_share: float | None = None
    """Share that was done when the step's bar opened: an earlier run's work."""
    share: float = 0.0


class StudyClock:
    """Estimates the time left from the `expected` seconds per step and the number of steps that run side by side."""

    def __init__(self, expected: Mapping[str, float], workers: int) -> None:
        self._left = dict(expected)
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
            running.first_share = share if running.first_share is None else running.first_share
            running.share = share

    def end(self, step: str, now: float) -> None:
        """A step is done."""
        running = self._running.pop(step, None)
        expected = self._left.pop(step, 0.0)
        if running is not None:
            self._spent += now - running.began
            self._covered += expected * (1 - (running.first_share or 0.0))

    def drop(self, variant: str) -> None:
        """The steps of a variant that ended early are not run."""
        for step in [step for step in self._left if variant in step.split()]:
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

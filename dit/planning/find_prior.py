"""Where a plan's expected values come from: an earlier study, else the paper. Torch-free."""

from __future__ import annotations

from dataclasses import replace

from dit.errors import MissingError
from dit.planning.earlier import earlier
from dit.planning.prior import Prior, Spread
from dit.planning.published import published
from dit.storage import Store
from dit.study.config import StudyConfig

_EXACTLY = 1_000_000
"""Degrees of freedom of a spread that counts as known exactly."""


def find_prior(config: StudyConfig, before: StudyConfig, store: Store, *, is_named: bool) -> Prior | str:
    """What is known about the study `config`: from the records of the study `before`, else from the paper.

    A spread between seeds that the study file gives replaces the known one. If nothing is known, a sentence with the
    reason.

    Raises MissingError when there are no records of a study that the user named.
    """
    prior: Prior | str | None = earlier(before, store)
    if prior is None:
        prior = _from_paper(config, before, store, is_named=is_named)
    spread = config.evaluation.seed_spread
    if isinstance(prior, str) or spread is None:
        return prior
    degrees = config.evaluation.seed_spread_degrees_of_freedom or _EXACTLY
    return replace(prior, seeds=Spread(spread, degrees, None, "evaluation.seed_spread"))


def _from_paper(config: StudyConfig, before: StudyConfig, store: Store, *, is_named: bool) -> Prior | str:
    none = f"there are no results of study {before.study} below {store.place()}"
    if is_named:
        raise MissingError(f"{none}; give its --root, or plan without --like")
    prior = published(config)
    return f"{none}. {prior}" if isinstance(prior, str) else prior

"""Where a plan's expected values come from: an earlier study, else the paper. Torch-free."""

from __future__ import annotations

from dit.errors import MissingError
from dit.planning.earlier import earlier
from dit.planning.prior import Prior
from dit.planning.published import published
from dit.storage import Store
from dit.study.config import StudyConfig


def find_prior(config: StudyConfig, before: StudyConfig, store: Store, *, is_named: bool) -> Prior | str:
    """What is known about the study `config`: from the records of the study `before`, else from the paper.

    If nothing is known, a sentence with the reason.

    Raises MissingError when there are no records of a study that the user named.
    """
    prior = earlier(before, store)
    if prior is not None:
        return prior
    none = f"there are no results of study {before.study} below {store.place()}"
    if is_named:
        raise MissingError(f"{none}; give its --root, or plan without --like")
    from_paper = published(config)
    return f"{none}. {from_paper}" if isinstance(from_paper, str) else from_paper

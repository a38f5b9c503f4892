"""What the health check `yardstick` sees of an evaluation: real images, measured as samples are."""

from __future__ import annotations

from itertools import islice

import numpy as np
import torch

from dit.data.sources import iter_source_images
from dit.errors import InputError
from dit.health.watch import Watch
from dit.health.yardstick import IMAGES, YardstickView
from dit.metrics.setup import EvaluationSetup
from dit.results.stages import Work
from dit.runtime.distributed import Ranks
from dit.study.runs import Run
from dit.tracking import Tracker


def look_at_yardstick(work: Work, run: Run, setup: EvaluationSetup, step: int, ranks: Ranks, tracker: Tracker) -> None:
    """Check extractor and reference with the dataset's images, where they are at hand.

    Raises UnhealthyError on all ranks when a check says stop.
    """
    watch = Watch(work.config, run, work.store, ranks, tracker if ranks.is_main else None)
    view = _measure(work, setup) if ranks.is_main and watch.is_on("evaluation") else None
    # Rank 0 alone works on the images, perhaps for longer than the timeout of a collective.
    ranks.barrier()
    watch.look("evaluation", step, lambda: view)
    watch.flush()


def _measure(work: Work, setup: EvaluationSetup) -> YardstickView | None:
    try:
        images = [image for _, image, _ in islice(iter_source_images(work.config), IMAGES)]
    except InputError:
        # The source may be gone once it is prepared, and another reference does not need it.
        return None
    if len(images) < 2:
        return None
    batch = work.config.fit.feature_batch
    features = torch.cat(
        [setup.extractor(np.stack(images[start : start + batch])).features for start in range(0, len(images), batch)]
    )
    return YardstickView(
        metric=work.config.evaluation.metric,
        real=setup.sample_metrics.distance(features),
        expected=setup.sample_metrics.expected_distance(len(features)),
        noise_floor=setup.noise_floor,
    )

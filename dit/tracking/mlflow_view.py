"""The saved view of a study in MLflow's pages: its variants' distance against Gflops, its curves, its sample grids.

MLflow stores a view as a tag of the experiment and opens it by the tag's name. The tag's value is JSON with the page's
compressed state, whose keys are those of MLflow's own "Save as new view". This module does not import mlflow.
"""

from __future__ import annotations

import base64
import colorsys
import json
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from dit.errors import ConfigError
from dit.study import json_values
from dit.study.variants import resolve

STUDY_TAG = "dit.study"
VARIANT_TAG = "dit.variant"
COLOUR_TAG = "mlflow.runColor"
GFLOPS, PARAMETERS, LOSS, GRID = "gflops", "parameters_m", "loss", "samples"
"""Metrics and the image that every variant's run has."""

_TAG_PREFIX = "mlflow.sharedViewState."
_DEFLATED = "deflate;"
_AS_CHARTS = "&compareRunsMode=CHART&workflowType=machine_learning"
_COMPUTE, _STEPS, _SAMPLES = "dit-compute", "dit-steps", "dit-samples"
State = dict[str, Any]
# Hues in degrees, one per patch size from the finest on. Larger models have darker colours of the hue.
_HUES = (210, 26, 134, 290, 345)
_LIGHTEST, _DARKEST, _SATURATION = 0.7, 0.25, 0.7


def view_tag(study: str) -> str:
    """Name of the experiment's tag that holds a study's view."""
    return _TAG_PREFIX + study


def experiment_page(experiment_id: str) -> str:
    """Path of an experiment's page, below a server's address."""
    return f"/#/experiments/{experiment_id}/runs"


def view_page(experiment_id: str, study: str) -> str:
    """Path of a study's view, below a server's address; it shows runs as charts."""
    return f"{experiment_page(experiment_id)}?viewStateShareKey={quote(study)}{_AS_CHARTS}"


def view_value(study: str, metric: str, step: int, created_ms: int) -> str:
    """The tag's value: `metric` is the study's primary metric, `step` its last evaluated step.

    The same arguments give the same text.
    """
    packed = zlib.compress(json.dumps(_state(study, metric, step)).encode(), 9)
    state = _DEFLATED + base64.b64encode(packed).decode()
    return json.dumps({"name": f"Scaling: {study}", "createdAt": created_ms, "updatedAt": created_ms, "state": state})


def colour(variant: str) -> str:
    """The colour of a variant's run in every chart; empty for a variant that this version does not know."""
    try:
        spec = resolve(variant)
    except ConfigError:
        return ""
    lightness = _LIGHTEST + (_DARKEST - _LIGHTEST) * spec.size_share
    rgb = colorsys.hls_to_rgb(_HUES[spec.patch_index % len(_HUES)] / 360, lightness, _SATURATION)
    return "#" + "".join(f"{round(255 * part):02x}" for part in rgb)


def is_ours(value: str) -> bool:
    """Whether a view is unchanged since `view_value`: overwriting it in MLflow's pages sets a later `updatedAt`."""
    try:
        envelope = json_values.parse(value)
    except ValueError:
        return False
    return isinstance(envelope, Mapping) and envelope.get("updatedAt") == envelope.get("createdAt")


def _state(study: str, metric: str, step: int) -> State:
    name = metric.rpartition("/")[2]
    return {
        # Without the parent run of the study, which has no point in any chart.
        "searchFilter": f"tags.`{STUDY_TAG}` = '{study}' AND tags.`{VARIANT_TAG}` != ''",
        "orderByKey": f"metrics.`{GFLOPS}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": [f"metrics.`{shown}`" for shown in (metric, GFLOPS, PARAMETERS, LOSS)],
        # MLflow's default shows ten runs; the paper has twelve models.
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [
            _section(_COMPUTE, f"{name} against size", columns=2, height=400),
            _section(_STEPS, "Over steps", columns=2, height=400),
            _section(_SAMPLES, "Samples by step", columns=1, height=560),
        ],
        # Keeps these sections above those that MLflow adds for all other metrics.
        "isAccordionReordered": True,
        "compareRunCharts": [
            _scatter(GFLOPS, metric),
            _scatter(PARAMETERS, metric),
            _curve(metric),
            _curve(LOSS),
            _grid(step),
        ],
    }


def _section(uuid: str, name: str, *, columns: int, height: int) -> State:
    shown = {"display": True, "isReordered": True, "deleted": False, "isGenerated": False}
    return {"uuid": uuid, "name": name, **shown, "columns": columns, "cardHeight": height}


def _chart(kind: str, section: str, name: str) -> State:
    own = {"deleted": False, "isGenerated": False, "runsCountToCompare": 100}
    return {"uuid": f"{section}-{name}", "type": kind, "metricSectionId": section, **own}


def _scatter(x: str, y: str) -> State:
    # The title consists of both keys, and the full key of a distance contains its protocol.
    vertical = {"key": y.rpartition("/")[2], "dataAccessKey": y, "type": "METRIC"}
    return {**_chart("SCATTER", _COMPUTE, x), "xaxis": {"key": x, "type": "METRIC"}, "yaxis": vertical}


def _curve(metric: str) -> State:
    axes = {"xAxisKey": "step", "xAxisScaleType": "linear", "scaleType": "linear", "range": {}, "yAxisKey": "metric"}
    # A distance is measured at few steps, which a line without points would hide.
    look = {"displayPoints": True, "lineSmoothness": 0, "useGlobalLineSmoothing": False, "useGlobalXaxisKey": False}
    rest = {"selectedXAxisMetricKey": "", "yAxisExpressions": [], "ignoreOutliers": False}
    return {**_chart("LINE", _STEPS, metric), "metricKey": metric, **axes, **look, **rest}


def _grid(step: int) -> State:
    return {**_chart("IMAGE", _SAMPLES, GRID), "imageKeys": [GRID], "step": step, "showRunParams": False}

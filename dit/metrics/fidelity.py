"""torch-fidelity, as far as it is used; the only place that imports it, because torchvision must be mended first.

Its import takes seconds: only what measures with InceptionV3 imports this module.
"""

from dit.torchvision_shim import ensure_torchvision

ensure_torchvision()

from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric  # noqa: E402
from torch_fidelity.utils import create_feature_extractor  # noqa: E402

__all__ = [
    "KEY_METRIC_ISC_MEAN",
    "create_feature_extractor",
    "isc_features_to_metric",
]

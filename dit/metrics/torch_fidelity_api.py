"""The parts of torch-fidelity in use. Only this module imports it, because torchvision must be patched before."""

from dit.runtime.torchvision_shim import ensure_torchvision

ensure_torchvision()

from torch_fidelity import FeatureExtractorBase, register_feature_extractor  # noqa: E402
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import calc_cdist_part  # noqa: E402
from torch_fidelity.utils import create_feature_extractor  # noqa: E402

__all__ = [
    "KEY_METRIC_ISC_MEAN",
    "FeatureExtractorBase",
    "calc_cdist_part",
    "create_feature_extractor",
    "isc_features_to_metric",
    "register_feature_extractor",
]

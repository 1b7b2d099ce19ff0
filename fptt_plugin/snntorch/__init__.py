"""Liquid time-constant neurons for snnTorch, the readout ``LTCIntegrator``, and normalization per time step."""

from ..neurons import check_version as _check_version

try:
    import snntorch as _snntorch  # noqa: F401
except ImportError as error:
    raise ImportError("fptt_plugin.snntorch needs snnTorch: pip install 'snntorch>=0.9.1'") from error
else:
    _check_version("snntorch", "0.9.1")

from . import state  # noqa: F401  (registers the state handler)
from .neurons import LTCIntegrator, LTCLeaky, RLTCLeaky
from .normalization import PerStepBatchNorm1d, PerStepBatchNorm2d

__all__ = ["LTCIntegrator", "LTCLeaky", "PerStepBatchNorm1d", "PerStepBatchNorm2d", "RLTCLeaky"]

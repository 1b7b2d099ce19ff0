"""Liquid time-constant neurons for snnTorch, the readout ``LTCIntegrator``, and normalisation per time step."""

try:
    import snntorch as _snntorch  # noqa: F401
except ImportError as error:
    raise ImportError("fptt_plugin.snntorch needs snnTorch: pip install 'fptt_plugin[snntorch]'") from error

from . import state  # noqa: F401  (registers the state handler)
from .neurons import LTCIntegrator, LTCLeaky, RLTCLeaky
from .normalization import PerStepBatchNorm1d, PerStepBatchNorm2d

__all__ = ["LTCIntegrator", "LTCLeaky", "PerStepBatchNorm1d", "PerStepBatchNorm2d", "RLTCLeaky"]

"""Liquid time-constant neurons for SpikingJelly, the readout ``LTCIntegrator``, and normalization per time step."""

from ..neurons import check_version as _check_version

try:
    import spikingjelly as _spikingjelly  # noqa: F401
except ImportError as error:
    raise ImportError("fptt_plugin.spikingjelly needs SpikingJelly: pip install 'spikingjelly>=0.0.0.0.14'") from error
else:
    _check_version("spikingjelly", "0.0.0.0.14")

from . import state  # noqa: F401  (registers the state handler)
from .neurons import LTCIntegrator, LTCLeaky
from .normalization import PerStepBatchNorm1d, PerStepBatchNorm2d

__all__ = ["LTCIntegrator", "LTCLeaky", "PerStepBatchNorm1d", "PerStepBatchNorm2d"]

"""Liquid time-constant neurons for SpikingJelly, the readout ``LTCIntegrator``, and normalisation per time step."""

from importlib import metadata

try:
    from spikingjelly.activation_based import neuron as _neuron
except ImportError as error:
    raise ImportError("fptt_plugin.spikingjelly needs SpikingJelly: pip install 'fptt_plugin[spikingjelly]'") from error

if not hasattr(_neuron, "KLIFNode"):
    raise ImportError(
        f"fptt_plugin.spikingjelly needs SpikingJelly 0.0.0.0.14 or later, found {metadata.version('spikingjelly')}: "
        "pip install 'fptt_plugin[spikingjelly]'"
    )

from . import state  # noqa: F401  (registers the state handler)
from .neurons import LTCIntegrator, LTCLeaky
from .normalization import PerStepBatchNorm1d, PerStepBatchNorm2d

__all__ = ["LTCIntegrator", "LTCLeaky", "PerStepBatchNorm1d", "PerStepBatchNorm2d"]

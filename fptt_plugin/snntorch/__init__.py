"""Liquid time-constant neurons for snnTorch: ``LTCLeaky``, ``RLTCLeaky`` and the readout ``LTCIntegrator``."""

try:
    import snntorch as _snntorch  # noqa: F401
except ImportError as error:
    raise ImportError("fptt_plugin.snntorch needs snnTorch: pip install 'fptt_plugin[snntorch]'") from error

from . import state  # noqa: F401  (registers the state handler)
from .neurons import LTCIntegrator, LTCLeaky, RLTCLeaky

__all__ = ["LTCIntegrator", "LTCLeaky", "RLTCLeaky"]

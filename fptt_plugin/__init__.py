"""Online training of spiking networks (FPTT) and liquid time-constant neurons, for snnTorch and SpikingJelly.

The neurons live beside their library: ``from fptt_plugin.snntorch import LTCLeaky`` or
``from fptt_plugin.spikingjelly import LTCLeaky``.
"""

from .baselines import BPTT, TruncatedBPTT
from .monitor import FiringRates, SavedForBackward
from .regularizer import DynamicRegularizer
from .trainer import FPTTTrainer

__version__ = "0.2.0.dev0"

__all__ = [
    "BPTT",
    "DynamicRegularizer",
    "FPTTTrainer",
    "FiringRates",
    "SavedForBackward",
    "TruncatedBPTT",
    "__version__",
]

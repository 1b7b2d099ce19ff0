"""Pure functions on tensors: the neuron, its surrogate, the FPTT update and the loss terms. Needs torch alone."""

from .fptt import add_regularizer_gradient_, update_averages_
from .losses import ClassDistribution, constant_ramp, divergence, linear_ramp
from .ltc import LTCState, ltc_step, membrane_step
from .surrogate import MultiGaussian, heaviside, multi_gaussian

__all__ = [
    "ClassDistribution",
    "LTCState",
    "MultiGaussian",
    "add_regularizer_gradient_",
    "constant_ramp",
    "divergence",
    "heaviside",
    "linear_ramp",
    "ltc_step",
    "membrane_step",
    "multi_gaussian",
    "update_averages_",
]

"""Modules that belong to neither library: the neurons' learned gates, normalization per time step, option checks."""

from .checks import check_number, check_version
from .gates import (
    GATES,
    ConvGate,
    DenseGate,
    ElementwiseGate,
    Gate,
    GateOptions,
    KernelSize,
    LazyGate,
    infer_kind,
    make_gate,
)
from .normalization import NormState, PerStepNorm, normalizes_itself, register_normalizing
from .time_constants import Decay, TimeConstants, initial_bias

__all__ = [
    "GATES",
    "ConvGate",
    "Decay",
    "DenseGate",
    "ElementwiseGate",
    "Gate",
    "GateOptions",
    "KernelSize",
    "LazyGate",
    "NormState",
    "PerStepNorm",
    "TimeConstants",
    "check_number",
    "check_version",
    "infer_kind",
    "initial_bias",
    "make_gate",
    "normalizes_itself",
    "register_normalizing",
]

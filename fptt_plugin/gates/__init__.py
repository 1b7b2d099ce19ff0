"""Learned gates of the liquid time constants: logit = G(x, state), for flat, map-shaped and any other input.

A gate sees the input current and one state variable of the same shape and returns a logit of that shape;
its sigmoid is the inverse membrane time constant, or the adaptation decay (paper Eq. 8-9).
"""

from ._concrete import GATES, ConvGate, DenseGate, ElementwiseGate, Gate, KernelSize
from ._lazy import LazyGate, infer_kind
from ._make import check_choice, make_gate, make_gates

__all__ = [
    "GATES",
    "ConvGate",
    "DenseGate",
    "ElementwiseGate",
    "Gate",
    "KernelSize",
    "LazyGate",
    "check_choice",
    "infer_kind",
    "make_gate",
    "make_gates",
]

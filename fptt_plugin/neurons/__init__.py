"""Parts of the liquid neurons that belong to neither library: the learned gates and checks of their options."""

from .checks import check_number
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

__all__ = [
    "GATES",
    "ConvGate",
    "DenseGate",
    "ElementwiseGate",
    "Gate",
    "GateOptions",
    "KernelSize",
    "LazyGate",
    "check_number",
    "infer_kind",
    "make_gate",
]

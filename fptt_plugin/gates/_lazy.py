"""A gate that takes its size, and its form, from the first input."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from ._concrete import GATES, DenseGate, Gate, KernelSize


class _UnsizedParameter(UninitializedParameter):
    # torch lets an uninitialised parameter change its precision by any of its methods but this one.
    _allowed_methods = (*UninitializedParameter._allowed_methods, torch.Tensor.bfloat16)  # type: ignore[attr-defined]


class LazyGate(LazyModuleMixin, Gate):
    """Takes its size, and with ``kind="auto"`` its form, from the first input, the way ``nn.LazyLinear`` does.

    ``"auto"`` becomes a :class:`DenseGate` for ``[N]`` or ``[B, N]`` and a :class:`ConvGate` for ``[B, C, H, W]``.
    The parameters exist, uninitialised, from the start, so that an optimizer may be built before the first batch.

    Args:
        kind: ``"auto"``, ``"dense"``, ``"conv"`` or ``"elementwise"``. Default ``"auto"``.
        kernel_size: Of a convolutional gate. Default 3.
        bias: Initial bias, see :class:`Gate`.

    Example:
        >>> gate = LazyGate()
        >>> _ = gate(torch.zeros(2, 4), torch.zeros(2, 4))
        >>> gate
        DenseGate(features=4)
    """

    def __init__(self, kind: str = "auto", kernel_size: KernelSize = 3, bias: Tensor | float = 0.0) -> None:
        super().__init__(0, kernel_size, bias)
        self.kind = kind
        self.weight = _UnsizedParameter()
        self.bias = _UnsizedParameter()

    @staticmethod
    def weight_shape(features: int, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        return (features,)

    def reset_parameters(self) -> None:
        """Nothing to draw before the first input."""

    def initialize_parameters(self, x: Tensor, state: Tensor) -> None:
        """Becomes the concrete gate for ``x``; torch calls this before the first forward."""
        concrete = GATES[infer_kind(x) if self.kind == "auto" else self.kind]
        self.cls_to_become = concrete
        # A checkpoint may have been loaded before the first batch; then the parameters have their shape and values.
        if isinstance(self.weight, UninitializedParameter) and isinstance(self.bias, UninitializedParameter):
            features = x.shape[-1] if concrete is DenseGate else x.shape[min(x.dim() - 1, 1)]
            self._start_bias(features)  # its error comes before anything is changed
            self.weight.materialize(concrete.weight_shape(features, self.kernel_size))
            self.bias.materialize((features,))
            concrete.reset_parameters(self)

    def _reset_weight(self) -> None:
        assert self.cls_to_become is not None
        self.cls_to_become._reset_weight(self)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Returns the logit, shape of ``x``."""
        # torch looks this method up before initialize_parameters runs: by now self is the concrete gate.
        return type(self).forward(self, x, state)

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


def infer_kind(x: Tensor) -> str:
    """Default kind of gate for an input of that rank: ``"dense"`` for 1-D and 2-D, ``"conv"`` for 4-D.

    Raises:
        ValueError: For any other rank.

    Example:
        >>> infer_kind(torch.zeros(8, 100))
        'dense'
    """
    if x.dim() in (1, 2):
        return "dense"
    if x.dim() == 4:
        return "conv"
    raise ValueError(
        f"no default gate for an input of shape {tuple(x.shape)}: pass gate='dense' (acts on the last dimension) or "
        f"gate='elementwise' (one weight per entry of dimension 1)"
    )

"""Learned gates of the liquid time constants: logit = G(x, state), for flat, map-shaped and any other input.

A gate sees the input current and one state variable of the same shape and returns a logit of that shape;
its sigmoid is the inverse membrane time constant, or the adaptation decay (paper Eq. 8-9).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

KernelSize = int | tuple[int, int]


class Gate(nn.Module):
    """What the gates share: a weight, a bias and the initial value of the bias. Use a subclass, or :func:`make_gate`.

    Args:
        features: Number of neurons or channels ``N``.
        kernel_size: Of a convolutional gate; the others ignore it.
        bias: Initial bias, a number or a tensor that broadcasts to ``[N]``.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, features: int, kernel_size: KernelSize = 3, bias: Tensor | float = 0.0) -> None:
        super().__init__()
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.initial_bias = bias
        self.weight = nn.Parameter(torch.empty(self.weight_shape(features, self.kernel_size)))
        self.bias = nn.Parameter(torch.empty(features))
        self.reset_parameters()

    @staticmethod
    def weight_shape(features: int, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the weight for that many neurons or channels."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draws the weight anew and sets the bias back to its initial value."""
        self._reset_weight()
        self.bias.copy_(self._start_bias(len(self.bias)))

    def _start_bias(self, features: int) -> Tensor:
        bias = torch.as_tensor(self.initial_bias).reshape(-1)
        if len(bias) not in (1, features):
            raise ValueError(f"the initial bias (beta) has {len(bias)} entries for a gate of {features} neurons")
        return bias.expand(features)

    def _reset_weight(self) -> None:
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"features={len(self.bias)}"


class DenseGate(Gate):
    """Linear gate on the concatenation ``[x, state]``, the paper's form for flat layers.

    Weight ``[N, 2N]``, drawn Xavier-normal as in the authors' code. Acts on the last dimension of ``x``.

    Example:
        >>> DenseGate(4)(torch.zeros(2, 4), torch.zeros(2, 4)).shape
        torch.Size([2, 4])
    """

    @staticmethod
    def weight_shape(features: int, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        return features, 2 * features

    def _reset_weight(self) -> None:
        nn.init.xavier_normal_(self.weight)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Returns the logit, shape of ``x``."""
        return F.linear(torch.cat([x, state], dim=-1), self.weight, self.bias)


class ConvGate(Gate):
    """Same-padded convolution on ``x + state``, the paper's form for feature maps ``[B, C, H, W]``.

    Weight ``[C, C, kH, kW]``, drawn Xavier-uniform as in the authors' code.

    Example:
        >>> ConvGate(2)(torch.zeros(1, 2, 5, 5), torch.zeros(1, 2, 5, 5)).shape
        torch.Size([1, 2, 5, 5])
    """

    @staticmethod
    def weight_shape(features: int, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        return features, features, *kernel_size

    def _reset_weight(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Returns the logit, shape of ``x``."""
        height, width = self.kernel_size
        return F.conv2d(x + state, self.weight, self.bias, padding=(height // 2, width // 2))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, kernel_size={self.kernel_size}"


class ElementwiseGate(Gate):
    """One weight per neuron (or channel) for ``x`` and one for the state: cheap, not in the paper.

    Weight ``[2, N]``, drawn uniform in ``[-1/sqrt(2), 1/sqrt(2)]`` (PyTorch's rule for a fan-in of two); ``N`` is
    dimension 1 of ``x`` ``[B, N, ...]``, or its only one.

    Example:
        >>> ElementwiseGate(3)(torch.zeros(2, 3, 7), torch.zeros(2, 3, 7)).shape
        torch.Size([2, 3, 7])
    """

    @staticmethod
    def weight_shape(features: int, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        return 2, features

    def _reset_weight(self) -> None:
        nn.init.uniform_(self.weight, -math.sqrt(0.5), math.sqrt(0.5))

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Returns the logit, shape of ``x``."""
        shape = (-1,) + (1,) * max(x.dim() - 2, 0)
        weight_x, weight_state = self.weight.unbind()
        return weight_x.view(shape) * x + weight_state.view(shape) * state + self.bias.view(shape)


GATES: dict[str, type[Gate]] = {"dense": DenseGate, "conv": ConvGate, "elementwise": ElementwiseGate}


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


def make_gate(kind: str, features: int | None, kernel_size: KernelSize = 3, bias: Tensor | float = 0.0) -> Gate:
    """Builds the gate of that kind, or a :class:`LazyGate` where ``features`` is ``None``.

    Args:
        kind: ``"dense"``, ``"conv"``, ``"elementwise"``, or ``"auto"`` without ``features``.
        features: Neurons of a flat layer or channels of a map; ``None`` infers them from the first input.
        kernel_size: Of a convolutional gate, odd. Default 3.
        bias: Initial bias, a number or a tensor that broadcasts to ``[features]``.

    Returns:
        The gate.

    Raises:
        ValueError: If ``kind`` is unknown or ``kernel_size`` is even.

    Example:
        >>> make_gate("elementwise", 3).weight.shape
        torch.Size([2, 3])
    """
    allowed = [*GATES] if features is not None else ["auto", *GATES]
    if kind not in allowed:
        raise ValueError(f"gate={kind!r} is unknown here; choose one of {', '.join(map(repr, allowed))}")
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if any(size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size={kernel_size} must be odd, so that the gate keeps the shape of its input")
    if features is None:
        return LazyGate(kind, kernel_size, bias)
    return GATES[kind](features, kernel_size, bias)


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


def make_gates(
    count: int,
    beta: Tensor | float,
    gate: str,
    linear_features: int | None,
    conv2d_channels: int | None,
    kernel_size: KernelSize | None,
    learn: bool = True,
) -> list[Gate]:
    """The gates of one neuron, from the options that the neurons of both libraries share.

    Args:
        count: 1 for the membrane's gate alone, 2 with the adaptation's.
        beta: Membrane decay per step at the start, in (0, 1): sets the membrane gate's bias to ``logit(1 - beta)``.
        gate: ``"auto"``, ``"dense"``, ``"conv"`` or ``"elementwise"``.
        linear_features: Neurons of a flat layer.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of a convolutional gate, odd; ``None`` means 3.
        learn: ``False`` freezes the gates.

    Returns:
        The gates, the membrane's first.

    Raises:
        TypeError: If both sizes are given.
        ValueError: If an option has an impossible value.

    Example:
        >>> make_gates(1, 0.9, "dense", 2, None, None)[0].bias.detach()
        tensor([-2.1972, -2.1972])
    """
    if linear_features and conv2d_channels:
        raise TypeError("pass linear_features (flat layer) or conv2d_channels (feature map), not both")
    kept = 1 - torch.as_tensor(beta, dtype=torch.float64).detach()
    if not bool(((kept > 0) & (kept < 1)).all()):
        raise ValueError(f"beta must lie strictly between 0 and 1, got {beta}; use 0.99 or 0.01 for the extremes")
    if gate == "auto" and (linear_features or conv2d_channels):
        gate = "dense" if linear_features else "conv"
    biases = [torch.logit(kept).float(), torch.zeros(())]
    gates = [make_gate(gate, linear_features or conv2d_channels, kernel_size or 3, bias) for bias in biases[:count]]
    for parameter in (parameter for made in gates for parameter in made.parameters()):
        parameter.requires_grad = learn  # the method of that name refuses lazy parameters
    return gates


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises a ``ValueError`` that lists the allowed values of an option."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, allowed))}")

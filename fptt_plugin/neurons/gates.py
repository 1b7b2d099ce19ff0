"""Learned gates of the liquid time constants: logit = G(x, state), for flat, map-shaped and any other input.

A gate sees the input current and one state variable of the same shape and returns a logit of that shape. Its sigmoid is
the inverse membrane time constant, or the adaptation decay (paper Eq. 8-9).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.parameter import UninitializedParameter

from ..errors import ConfigurationError, ConfigurationTypeError, check_choice, integer
from ..torch_internals import with_signature
from .time_constants import Decay, InitialBias, TimeConstants, initial_bias

KernelSize = int | tuple[int, int]


class Gate(nn.Module):
    """Base class of the gates: a weight, a bias and the bias's initial value. Use a subclass, or :func:`make_gate`.

    Args:
        features: Number of neurons or channels ``N``.
        kernel_size: Of a convolutional gate; the others ignore it.
        bias: Initial bias: a number, a tensor that broadcasts to ``[N]``, or :class:`TimeConstants` to draw it from.
    """

    weight: Tensor
    bias: Tensor
    norm: nn.BatchNorm2d | None

    def __init__(self, features: int, kernel_size: KernelSize = 3, bias: InitialBias = 0.0) -> None:
        super().__init__()
        self.kernel_size = _pair(kernel_size)
        self.initial_bias = bias
        self.norm = None
        self.weight = nn.Parameter(torch.empty(self.weight_shape(features, self.kernel_size)))
        self.bias = nn.Parameter(torch.empty(features))
        self.reset_parameters()

    @staticmethod
    def weight_shape(features: int, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the weight for ``features`` neurons or channels."""
        raise NotImplementedError

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw a new weight and set the bias to its initial value."""
        self._reset_weight()
        self.bias.copy_(self._start_bias(len(self.bias)))

    def _start_bias(self, features: int) -> Tensor:
        if isinstance(self.initial_bias, TimeConstants):
            return self.initial_bias.draw(features)
        bias = torch.as_tensor(self.initial_bias).reshape(-1)
        if len(bias) not in (1, features):
            raise ConfigurationError(
                f"the initial bias (beta) has {len(bias)} entries for a gate of {features} neurons",
                "pass one number, one entry per neuron or channel, or a tuple (low, high) to spread time constants",
            )
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
        """Return the logit, shape of ``x``."""
        logit: Tensor = _LinearOfPair.apply(x, state, self.weight, self.bias)
        return logit


class _LinearOfPair(torch.autograd.Function):
    """``linear(cat([x, state]))`` whose backward pass computes only the half that is needed.

    Online the state is detached and only ``x`` needs a gradient. Autograd would compute both halves from the whole
    weight and drop one, a sixth of a recurrent layer's matrix products.
    """

    generate_vmap_rule = True  # torch.vmap and torch.func ask for it

    @staticmethod
    @with_signature
    def forward(x: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.linear(torch.cat([x, state], dim=-1), weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, state, weight = ctx.saved_tensors
        needs_x, needs_state, needs_weight, needs_bias = ctx.needs_input_grad
        features = x.shape[-1]
        flat = grad.reshape(-1, grad.shape[-1])
        pair = torch.cat([x, state], dim=-1).reshape(len(flat), -1)
        used = weight.to(grad.dtype)  # under autocast the product was computed in a narrower type
        return (
            (grad @ used[:, :features]).to(x.dtype) if needs_x else None,
            (grad @ used[:, features:]).to(state.dtype) if needs_state else None,
            (flat.t() @ pair.to(grad.dtype)).to(weight.dtype) if needs_weight else None,
            flat.sum(dim=0).to(weight.dtype) if needs_bias else None,
        )


class ConvGate(Gate):
    """Same-padded convolution on ``x + state``, the paper's form for feature maps ``[B, C, H, W]``.

    Weight ``[C, C, kH, kW]``, drawn Xavier-uniform as in the authors' code. With :meth:`normalize` the convolution's
    result is batch-normalized before the bias is added.

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
        """Return the logit, shape of ``x``."""
        height, width = self.kernel_size
        padding = (height // 2, width // 2)
        if self.norm is None:
            return F.conv2d(x + state, self.weight, self.bias, padding=padding)
        logit: Tensor = self.norm(F.conv2d(x + state, self.weight, padding=padding))
        return logit + self.bias.view(-1, 1, 1)

    def normalize(self) -> None:
        """Add batch normalization, as in the authors' convolutional networks (not in the paper's equations).

        It learns a scale but no shift, which would duplicate the gate's bias. Its running statistics move once per
        training step.
        """
        self.norm = nn.BatchNorm2d(len(self.bias))
        self.norm.register_parameter("bias", None)

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
        """Return the logit, shape of ``x``."""
        shape = (-1,) + (1,) * max(x.dim() - 2, 0)
        weight_x, weight_state = self.weight.unbind()
        return weight_x.view(shape) * x + weight_state.view(shape) * state + self.bias.view(shape)


GATES: dict[str, type[Gate]] = {"dense": DenseGate, "conv": ConvGate, "elementwise": ElementwiseGate}


class _UnsizedParameter(UninitializedParameter):
    # torch lets an uninitialized parameter change its precision by any of its methods but this one.
    _allowed_methods = (*UninitializedParameter._allowed_methods, torch.Tensor.bfloat16)  # type: ignore[attr-defined]


class LazyGate(LazyModuleMixin, Gate):
    """Gate that takes its size, and with ``kind="auto"`` its form, from the first input, as ``nn.LazyLinear`` does.

    ``"auto"`` becomes a :class:`DenseGate` for ``[N]`` or ``[B, N]`` and a :class:`ConvGate` for ``[B, C, H, W]``.
    The parameters exist, uninitialized, from the start, so that an optimizer may be built before the first batch.

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

    def __init__(self, kind: str = "auto", kernel_size: KernelSize = 3, bias: InitialBias = 0.0) -> None:
        super().__init__(0, kernel_size, bias)
        self.kind = kind
        self.weight = _UnsizedParameter()
        self.bias = _UnsizedParameter()

    @staticmethod
    def weight_shape(features: int, kernel_size: tuple[int, ...]) -> tuple[int, ...]:
        return (features,)

    def reset_parameters(self) -> None:
        """Do nothing: there is nothing to draw before the first input."""

    def initialize_parameters(self, x: Tensor, state: Tensor) -> None:
        """Become the concrete gate for ``x``; torch calls this before the first forward."""
        concrete = GATES[infer_kind(x) if self.kind == "auto" else self.kind]
        self.cls_to_become = concrete
        # A checkpoint may have been loaded before the first batch; then the parameters have their shape and values.
        if isinstance(self.weight, UninitializedParameter) and isinstance(self.bias, UninitializedParameter):
            features = x.shape[-1] if concrete is DenseGate else x.shape[min(x.dim() - 1, 1)]
            self._start_bias(features)  # raises before anything is changed
            self.weight.materialize(concrete.weight_shape(features, self.kernel_size))
            self.bias.materialize((features,))
            concrete.reset_parameters(self)

    def _reset_weight(self) -> None:
        assert self.cls_to_become is not None
        self.cls_to_become._reset_weight(self)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the logit, shape of ``x``."""
        # torch looks this method up before initialize_parameters runs. By now self is the concrete gate, but
        # type(self) would be LazyGate still for torch.compile, which takes an object's class once per trace.
        assert self.cls_to_become is not None
        logit: Tensor = self.cls_to_become.forward(self, x, state)
        return logit

    def extra_repr(self) -> str:
        return f"kind={self.kind!r}"


def infer_kind(x: Tensor) -> str:
    """Return the default kind of gate for an input: ``"dense"`` for 1-D and 2-D, ``"conv"`` for 4-D.

    Raises:
        ConfigurationError: For any other rank.

    Example:
        >>> infer_kind(torch.zeros(8, 100))
        'dense'
    """
    if x.dim() in (1, 2):
        return "dense"
    if x.dim() == 4:
        return "conv"
    raise ConfigurationError(
        f"no default gate for an input of shape {tuple(x.shape)}",
        "pass gate='dense' (acts on the last dimension) or gate='elementwise' (one weight per entry of dimension 1)",
    )


def _pair(kernel_size: KernelSize) -> tuple[int, ...]:
    size = integer(kernel_size)
    return tuple(kernel_size) if size is None else (size, size)  # type: ignore[arg-type]  # a tuple then


def make_gate(kind: str, features: int | None, kernel_size: KernelSize = 3, bias: InitialBias = 0.0) -> Gate:
    """Build a gate, or a :class:`LazyGate` if ``features`` is ``None``.

    Args:
        kind: ``"dense"``, ``"conv"``, ``"elementwise"``, or ``"auto"`` without ``features``.
        features: Neurons of a flat layer or channels of a map; ``None`` infers them from the first input.
        kernel_size: Of a convolutional gate, odd. Default 3.
        bias: Initial bias, see :class:`Gate`.

    Returns:
        The gate.

    Raises:
        ConfigurationError: If ``kind`` is unknown or ``kernel_size`` is even.

    Example:
        >>> make_gate("elementwise", 3).weight.shape
        torch.Size([2, 3])
    """
    check_choice("gate", kind, GATES if features is not None else ["auto", *GATES])
    if any(size % 2 == 0 for size in _pair(kernel_size)):
        raise ConfigurationError(f"kernel_size={kernel_size} must be odd, so that the gate keeps its input's shape")
    if features is None:
        return LazyGate(kind, kernel_size, bias)
    return GATES[kind](features, kernel_size, bias)


@dataclass(frozen=True)
class GateOptions:
    """Options of the gates of one neuron, the same for both libraries.

    Attributes:
        beta: Membrane decay per step at the start, in (0, 1): sets the membrane gate's bias to ``logit(1 - beta)``. A
            number, a tensor, or the ends of a range, see :func:`initial_bias`.
        adaptation_beta: Decay of the adaptation per step at the start, likewise: its gate's bias is ``logit`` of it.
        gate: ``"auto"``, ``"dense"``, ``"conv"`` or ``"elementwise"``.
        linear_features: Neurons of a flat layer.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of a convolutional gate, odd; ``None`` means 3.
        learn: ``False`` freezes the gates.
        norm: Batch-normalize convolutional gates, which must have an explicit size.

    Example:
        >>> membrane, adaptation = GateOptions(beta=0.9, linear_features=2).build(2)
        >>> membrane.bias.detach(), adaptation.bias.detach()
        (tensor([-2.1972, -2.1972]), tensor([0., 0.]))
    """

    beta: Decay = 0.5
    gate: str = "auto"
    linear_features: int | None = None
    conv2d_channels: int | None = None
    kernel_size: KernelSize | None = None
    learn: bool = True
    norm: bool = False
    adaptation_beta: Decay = 0.5

    def build(self, count: int) -> list[Gate]:
        """Return the gates: the membrane's, and with ``count=2`` the adaptation's.

        Raises:
            ConfigurationTypeError: If both sizes are given, or ``norm`` without the size of a map.
            ConfigurationError: If an option has an impossible value.
        """
        if self.linear_features and self.conv2d_channels:
            raise ConfigurationTypeError("pass linear_features (flat layer) or conv2d_channels (feature map), not both")
        biases = [
            initial_bias("beta", self.beta, decays=False),
            initial_bias("adaptation_beta", self.adaptation_beta, decays=True),
        ]
        kind, features = self.gate, self.linear_features or self.conv2d_channels
        if kind == "auto" and features:
            kind = "dense" if self.linear_features else "conv"
        gates = [make_gate(kind, features, self.kernel_size or 3, bias) for bias in biases[:count]]
        if self.norm:
            if kind != "conv" or not self.conv2d_channels:
                raise ConfigurationTypeError(
                    "gate_norm=True normalizes the gates of a feature map", "pass conv2d_channels, too"
                )
            for gate in gates:
                assert isinstance(gate, ConvGate)
                gate.normalize()
        for parameter in (parameter for gate in gates for parameter in gate.parameters()):
            parameter.requires_grad = self.learn  # the method of that name refuses lazy parameters
        return gates

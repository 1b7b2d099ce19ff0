"""The gates themselves: dense, convolutional and elementwise."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    norm: nn.BatchNorm2d | None

    def __init__(self, features: int, kernel_size: KernelSize = 3, bias: Tensor | float = 0.0) -> None:
        super().__init__()
        self.kernel_size = (kernel_size, kernel_size) if isinstance(kernel_size, int) else tuple(kernel_size)
        self.initial_bias = bias
        self.norm = None
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
        logit: Tensor = _LinearOfPair.apply(x, state, self.weight, self.bias)
        return logit


class _LinearOfPair(torch.autograd.Function):
    """``linear(cat([x, state]))`` whose backward pass leaves out the half that nobody asks for.

    Online, the state is detached and only ``x`` needs its gradient; autograd would compute both from the whole weight
    and drop one: a sixth of a recurrent layer's matrix products.
    """

    @staticmethod
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
        used = weight.to(grad.dtype)  # under autocast the product was one of a narrower type
        return (
            (grad @ used[:, :features]).to(x.dtype) if needs_x else None,
            (grad @ used[:, features:]).to(state.dtype) if needs_state else None,
            (flat.t() @ pair.to(grad.dtype)).to(weight.dtype) if needs_weight else None,
            flat.sum(dim=0).to(weight.dtype) if needs_bias else None,
        )


class ConvGate(Gate):
    """Same-padded convolution on ``x + state``, the paper's form for feature maps ``[B, C, H, W]``.

    Weight ``[C, C, kH, kW]``, drawn Xavier-uniform as in the authors' code. With :meth:`normalize` the convolution's
    result is batch-normalised before the bias is added.

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
        padding = (height // 2, width // 2)
        if self.norm is None:
            return F.conv2d(x + state, self.weight, self.bias, padding=padding)
        logit: Tensor = self.norm(F.conv2d(x + state, self.weight, padding=padding))
        return logit + self.bias.view(-1, 1, 1)

    def normalize(self) -> None:
        """Adds batch normalisation, as the authors' convolutional networks have it (the paper's equations do not).

        It learns a scale; its shift would be the gate's own bias again. Its running statistics move once per training
        step.
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
        """Returns the logit, shape of ``x``."""
        shape = (-1,) + (1,) * max(x.dim() - 2, 0)
        weight_x, weight_state = self.weight.unbind()
        return weight_x.view(shape) * x + weight_state.view(shape) * state + self.bias.view(shape)


GATES: dict[str, type[Gate]] = {"dense": DenseGate, "conv": ConvGate, "elementwise": ElementwiseGate}

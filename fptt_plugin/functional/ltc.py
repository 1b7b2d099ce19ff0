"""The liquid time-constant spiking neuron, one time step, as a pure function (paper Eq. 8-9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import check_choice
from .surrogate import MultiGaussian

RESET_MECHANISMS = ("zero", "subtract", "none")
INIT_STATES = ("zeros", "random")


class LTCState(NamedTuple):
    """Recurrent state of a layer of liquid time-constant neurons; every field has the shape of the input.

    Attributes:
        u: Membrane potential.
        s: Spikes of the last step, 0 or 1.
        b: Adaptation: low-pass filtered spikes, raises the threshold.
    """

    u: Tensor
    s: Tensor
    b: Tensor


def initial_state(zeros: Tensor, kind: str = "zeros") -> LTCState:
    """Return the state before the first step.

    Args:
        zeros: Zeros of the state's shape, dtype and device.
        kind: ``"zeros"``, or ``"random"``: membrane uniform in [0, 1) and ``b = 0.1``, as the authors' code.

    Returns:
        The state.

    Example:
        >>> initial_state(torch.zeros(2), "random").b
        tensor([0.1000, 0.1000])
    """
    # Three tensors, not one: callers may write into the membrane that a neuron hands out.
    u, s, b = zeros, torch.zeros_like(zeros), torch.zeros_like(zeros)
    if kind == "random":
        return LTCState(torch.rand_like(u), s, torch.full_like(b, 0.1))
    return LTCState(u, s, b)


def membrane_step(x: Tensor, u: Tensor, mem_gate: Tensor) -> Tensor:
    """Leaky integration with a gated time constant, ``u + sigmoid(mem_gate) * (x - u)`` (Eq. 8 of the paper).

    Args:
        x: Input current, shape ``[B, ...]``.
        u: Membrane, shape of ``x``.
        mem_gate: Logit of the inverse membrane time constant, shape of ``x``.

    Returns:
        The new membrane before any reset, shape of ``x``.

    Example:
        >>> membrane_step(torch.ones(2), torch.zeros(2), torch.zeros(2))
        tensor([0.5000, 0.5000])
    """
    return u + torch.sigmoid(mem_gate) * (x - u)


def ltc_step(
    x: Tensor,
    state: LTCState,
    mem_gate: Tensor,
    adp_gate: Tensor,
    *,
    threshold: Tensor | float = 0.1,
    adaptation: float = 1.8,
    u_rest: float = 0.0,
    spike_fn: Callable[[Tensor], Tensor] | None = None,
    reset: str = "zero",
    reset_delay: bool = False,
    detach_reset: bool = False,
    quantize: Callable[[Tensor], Tensor] | None = None,
    inhibition: bool = False,
) -> tuple[Tensor, LTCState]:
    """One time step of a layer of liquid time-constant spiking neurons (Eq. 8-9 of the paper).

    The gates' logits are computed by the caller from ``x`` and the *old* state (``u`` for ``mem_gate``, ``b`` for
    ``adp_gate``), so this function holds the dynamics alone.

    Args:
        x: Input current, shape ``[B, ...]``.
        state: State after the previous step; fields of ``x``'s shape.
        mem_gate: Logit of the inverse membrane time constant ``kappa``, shape of ``x``.
        adp_gate: Logit of the adaptation decay ``rho``, shape of ``x``.
        threshold: Resting threshold, a number or a tensor that broadcasts against ``x``.
        adaptation: Rise of the threshold per unit of ``b``; 0 gives a fixed threshold.
        u_rest: Membrane after a reset to rest.
        spike_fn: Maps ``u - theta`` to spikes, with a surrogate gradient. Default :class:`MultiGaussian`.
        reset: ``"zero"`` (to ``u_rest``, the paper), ``"subtract"`` (the threshold that was crossed) or ``"none"``.
        reset_delay: ``False`` resets in the step of the spike, as the paper; ``True`` at the start of the next
            step and detached from the graph, as ``snntorch.Leaky`` does by default.
        detach_reset: Block the gradient through the reset's spike (SpikingJelly's option of that name).
        quantize: Applied to the membrane before the spike (``state_quant`` of snnTorch).
        inhibition: Only the neuron farthest above its threshold along dimension 1 may fire.

    Returns:
        ``(spikes, new_state)``; spikes are 0 or 1, of ``x``'s shape and in the state's dtype.

    Raises:
        ConfigurationError: If ``reset`` is unknown.

    Example:
        >>> zeros = torch.zeros(1, 2)
        >>> spikes, state = ltc_step(torch.tensor([[0.1, 1.0]]), LTCState(zeros, zeros, zeros), zeros, zeros)
        >>> spikes, state.u
        (tensor([[0., 1.]]), tensor([[0.0500, 0.0000]]))
    """
    if reset not in RESET_MECHANISMS:
        check_choice("reset", reset, RESET_MECHANISMS)  # raises
    spike_fn = spike_fn or MultiGaussian()
    u, s, b = state

    if reset_delay:
        u = _reset(u, s.detach(), threshold + adaptation * b, reset, u_rest)
    rho = torch.sigmoid(adp_gate)
    b = rho * b + (1 - rho) * s
    theta = threshold + adaptation * b
    u = membrane_step(x, u, mem_gate)
    if quantize is not None:
        u = quantize(u)
    # Surrogates of the libraries may return float32 for inputs of another type.
    s = spike_fn(u - theta).to(u.dtype)
    if inhibition:
        s = s * _winner(u - theta)
    if not reset_delay:
        u = _reset(u, s.detach() if detach_reset else s, theta, reset, u_rest)
    return s, LTCState(u, s, b)


def _reset(u: Tensor, s: Tensor, theta: Tensor, reset: str, u_rest: float) -> Tensor:
    if reset == "zero":
        return (1 - s) * u + u_rest * s
    if reset == "subtract":
        return u - theta * s
    return u


def _winner(v: Tensor) -> Tensor:
    """One-hot over dimension 1: the largest entry of each row."""
    return torch.zeros_like(v).scatter(1, v.argmax(dim=1, keepdim=True), 1.0)

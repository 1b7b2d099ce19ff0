"""``LTCLeaky``: a liquid time-constant spiking neuron in place of a SpikingJelly node."""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from ..functional.ltc import INIT_STATES, LTCState, initial_state, ltc_step
from ..functional.surrogate import MultiGaussian
from ..gates import Gate, KernelSize, check_choice, make_gates
from ._liquid import LiquidNode, States, materialize


class LTCLeaky(LiquidNode, neuron.BaseNode):
    """Liquid time-constant spiking neuron in place of ``neuron.LIFNode`` (paper Eq. 8-9).

    ``kappa = sigmoid(mem_gate([x, v]))``, ``rho = sigmoid(adp_gate([x, b]))``, then
    ``b = rho b + (1 - rho) s``, ``theta = v_threshold + adaptation b``, ``v = v + kappa (x - v)``,
    ``s = H(v - theta)`` and a reset, see :func:`fptt_plugin.functional.ltc_step`. Memories: ``v``, ``b`` and ``spike``
    (the last spikes).

    What differs from ``neuron.LIFNode``:

    ====================== ============================== ==========================================
    option                 ``LIFNode``                    ``LTCLeaky``
    ====================== ============================== ==========================================
    ``tau``                time constant, default 2       not accepted; ``beta = 1 - 1 / tau`` is the
                                                          decay at the start, then learned and gated
                                                          by input and state; default 0.5
    ``decay_input``        default True                   not accepted: the input always is averaged,
                                                          ``kappa * x``
    ``v_threshold``        default 1.0, constant          default 0.1, plus ``adaptation * b``
    ``v_reset``            default 0.0; ``None``          the same; ``None`` subtracts the threshold
                           subtracts the threshold        that was crossed
    ``surrogate_function`` default ``Sigmoid()``          default :class:`MultiGaussian`
    fires at               ``v >= v_threshold``           ``v > theta`` with the default surrogate
    state under autocast   the input's dtype              the parameters' dtype, and so the spikes
    ====================== ============================== ==========================================

    Args:
        v_threshold: Resting threshold.
        v_reset: Membrane after a spike and before the first input; ``None`` subtracts the threshold and starts at 0.
        surrogate_function: Spike function of ``v - theta``. Default :class:`MultiGaussian`.
        detach_reset: Block the gradient through the reset.
        step_mode: ``"s"`` for input ``[B, ...]``, ``"m"`` for ``[T, B, ...]``; the state carries over between calls.
        store_v_seq: Record the membrane of every step in ``v_seq``; in single-step mode it grows until the reset.
        beta: Membrane decay per step at the start, in (0, 1): the membrane gate's bias is ``logit(1 - beta)``. A
            number, or a tensor with one entry per neuron or channel.
        adaptation: Rise of the threshold per unit of ``b``; 0 switches the adaptation off.
        gate: ``"auto"`` (dense on flat input, conv on maps), ``"dense"``, ``"conv"`` or ``"elementwise"``.
        gate_norm: Batch-normalise convolutional gates (needs ``conv2d_channels``), as the authors' code.
        linear_features: Neurons of a flat layer; with ``gate="elementwise"``, neurons or channels.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of the convolutional gates, odd. Default 3.
        init_state: ``"zeros"``, or ``"random"``: membrane uniform in [0, 1), ``b = 0.1`` (the authors' code).
        learn_beta: Train the gates.

    Shape:
        One time step is ``[B, N]`` or ``[B, C, H, W]`` (any shape with an explicit ``gate``); spikes likewise.

    Raises:
        ValueError: If an option has an impossible value.
        TypeError: If an option has another type, or sizes contradict each other.

    Example:
        >>> lif = LTCLeaky(beta=0.9, step_mode="m")
        >>> spikes = lif(torch.ones(5, 2, 3))             # [T, B, N]; sizes come from here
        >>> spikes.shape, lif.v.shape
        (torch.Size([5, 2, 3]), torch.Size([2, 3]))
    """

    adp_gate: Gate

    def __init__(
        self,
        v_threshold: float = 0.1,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        *,
        beta: Tensor | float = 0.5,
        adaptation: float = 1.8,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
        init_state: str = "zeros",
        learn_beta: bool = True,
    ) -> None:
        # BaseNode asserts; an int is as good a threshold as a float.
        v_threshold = _number("v_threshold", v_threshold)
        v_reset = None if v_reset is None else _number("v_reset", v_reset)
        surrogate_function = MultiGaussian() if surrogate_function is None else surrogate_function
        if isinstance(surrogate_function, type) or not callable(surrogate_function):
            raise TypeError(
                f"surrogate_function must be callable, such as surrogate.ATan(), got {surrogate_function!r}"
            )
        for name, flag in (("detach_reset", detach_reset), ("store_v_seq", store_v_seq)):
            if not isinstance(flag, bool):
                raise TypeError(f"{name} must be True or False, got {flag!r}")
        check_choice("step_mode", step_mode, ("s", "m"))
        check_choice("init_state", init_state, INIT_STATES)
        adaptation = _number("adaptation", adaptation)
        gates = make_gates(2, beta, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm)

        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset, step_mode, store_v_seq)
        self.register_memory("b", 0.0)
        self.register_memory("spike", 0.0)
        self.mem_gate, self.adp_gate = gates
        self.adaptation = adaptation
        self.init_state = init_state

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        """Turns the memories' initial numbers into tensors; ``states`` stays as it was."""
        like = self._state_like(inputs, step_mode)
        v, b, spike = states
        if self.init_state == "random" and not (isinstance(v, Tensor) and v.shape == like.shape):
            v, spike, b = initial_state(torch.zeros_like(like), self.init_state)
        (v,) = super().materialize_states((like,), (v,), "s")
        return v, materialize(b, 0.0, like), materialize(spike, 0.0, like)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], States]:
        """One time step as a pure function: ``((spikes,), (v, b, spike))`` from input and ``(v, b, spike)``."""
        (x,) = inputs
        v, b, spike = states
        spikes, state = ltc_step(
            x,
            LTCState(v, spike, b),
            self.mem_gate(x, v),
            self.adp_gate(x, b),
            threshold=self.v_threshold,
            adaptation=self.adaptation,
            u_rest=self.v_reset or 0.0,
            spike_fn=self.surrogate_function,
            reset="subtract" if self.v_reset is None else "zero",
            detach_reset=self.detach_reset,
        )
        return (spikes,), (state.u, state.b, state.s)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, adaptation={self.adaptation}, init_state={self.init_state!r}"


def _number(name: str, value: Any) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)

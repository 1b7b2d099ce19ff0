"""``LTCIntegrator``: the liquid leaky-integrator readout."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import Tensor

from ..functional.ltc import LTCState, membrane_step
from ..functional.surrogate import heaviside
from ..gates import KernelSize, make_gates
from ._liquid import LiquidNeuron


class LTCIntegrator(LiquidNeuron, snn.Leaky):
    """Liquid leaky-integrator readout: the membrane of :class:`LTCLeaky` without spike and reset.

    ``u = u + sigmoid(mem_gate([x, u])) (x - u)``. Returns the membrane alone, the class scores of the paper's networks.

    Args:
        beta: See :class:`LTCLeaky`.
        init_hidden: Keep the state inside.
        learn_beta: Train the gate.
        state_quant: Quantiser for the membrane.
        gate: See :class:`LTCLeaky`, likewise ``gate_norm`` and the sizes.

    Raises:
        ValueError: If an option has an impossible value.
        TypeError: If sizes contradict each other, or ``mem`` is passed with ``init_hidden=True``.

    Example:
        >>> import torch
        >>> readout = LTCIntegrator(beta=0.9, init_hidden=True, linear_features=3)
        >>> readout(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        beta: Tensor | float = 0.5,
        init_hidden: bool = False,
        learn_beta: bool = True,
        state_quant: Any = False,
        *,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
    ) -> None:
        gates = make_gates(1, beta, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm)
        # It never fires; the base class would keep its default surrogate, a closure that does not pickle.
        snn.Leaky.__init__(
            self, beta, spike_grad=heaviside, init_hidden=init_hidden, state_quant=state_quant, reset_mechanism="none"
        )
        self._init_liquid(gates, adaptation=0.0, init_state="zeros")

    def reset_mem(self) -> Tensor:
        """Puts the membrane to zero, of the current shape, and returns it."""
        self._restart()
        return self.mem

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor:
        """One time step: returns the new membrane, shape of ``input_``."""
        self._reject_state(mem)
        u, s, b = self._incoming_state(input_, mem, None, None)
        u = membrane_step(input_, u, self.mem_gate(input_, u))
        self._store(LTCState(self.state_quant(u) if self.state_quant else u, s, b))
        return self.mem

"""``LTCIntegrator``: the liquid leaky-integrator readout."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..functional.ltc import membrane_step
from ..gates import KernelSize, check_choice, make_gates
from ._liquid import LiquidNode, States, materialize


# Not a BaseNode: SpikingJelly's firing-rate monitors and operation counters look for that class and take what it
# returns for spikes. All that keeps and resets state asks for MemoryModule only.
class LTCIntegrator(LiquidNode):
    """Liquid leaky-integrator readout: the membrane of :class:`LTCLeaky` without spike and reset.

    ``v = v + sigmoid(mem_gate([x, v])) (x - v)``. Returns the membrane, the class scores of the paper's networks.
    Memory: ``v``. Not a ``BaseNode``; monitor it with ``instance=LTCIntegrator``.

    Args:
        step_mode: ``"s"`` for input ``[B, ...]``, ``"m"`` for ``[T, B, ...]``; the state carries over between calls.
        beta: See :class:`LTCLeaky`, likewise ``gate``, ``gate_norm`` and the sizes.
        learn_beta: Train the gate.

    Raises:
        ValueError: If an option has an impossible value.
        TypeError: If sizes contradict each other.

    Example:
        >>> import torch
        >>> readout = LTCIntegrator(beta=0.9, step_mode="m")
        >>> readout(torch.ones(5, 2, 3)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        step_mode: str = "s",
        *,
        beta: Tensor | float = 0.5,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
        learn_beta: bool = True,
    ) -> None:
        check_choice("step_mode", step_mode, ("s", "m"))
        gates = make_gates(1, beta, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm)
        super().__init__()
        self.step_mode = step_mode
        self.register_memory("v", 0.0)
        self.mem_gate = gates[0]

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        """Turns the memory's initial number into a tensor; ``states`` stays as it was."""
        return (materialize(states[0], 0.0, self._state_like(inputs, step_mode)),)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], States]:
        """One time step as a pure function: ``((v,), (v,))`` from input and ``(v,)``."""
        (x,), (v,) = inputs, states
        v = membrane_step(x, v, self.mem_gate(x, v))
        return (v,), (v,)

"""``RLTCLeaky``: the recurrent liquid neuron, in place of ``snn.RLeaky``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import snntorch as snn
from torch import Tensor, nn

from ..functional.ltc import INIT_STATES, RESET_MECHANISMS
from ..functional.surrogate import MultiGaussian
from ..gates import KernelSize, check_choice, make_gates
from ._liquid import LiquidNeuron, SpikeFunction, as_float


class RLTCLeaky(LiquidNeuron, snn.RLeaky):
    """Recurrent :class:`LTCLeaky`, in place of ``snn.RLeaky``: the last spikes feed back into the input current.

    The drive of membrane and gates is ``x + recurrent(spk)``. Options are those of ``snn.RLeaky`` and of
    :class:`LTCLeaky`, with the defaults of the latter; graded spikes are not available, as in ``snn.RLeaky``.

    Args:
        beta: See :class:`LTCLeaky`.
        V: Weight of the one-to-one recurrence, used with ``all_to_all=False``.
        all_to_all: Full recurrent matrix (or convolution) instead of one weight per neuron.
        linear_features: Neurons of a flat layer; required with ``all_to_all`` unless it is a map.
        conv2d_channels: Channels of a map; needs ``kernel_size``.
        kernel_size: Of the recurrent convolution and of the gates, odd.
        threshold: See :class:`LTCLeaky`, likewise every option not named here.
        learn_recurrent: Train the recurrent weights.

    Raises:
        TypeError: If the sizes are missing or contradict each other, or a state is passed with ``init_hidden=True``.
        ValueError: If an option has an impossible value.

    Example:
        >>> import torch
        >>> lif = RLTCLeaky(linear_features=3)
        >>> spk, mem = lif.reset_mem()
        >>> spk, mem = lif(torch.ones(2, 3), spk, mem)
        >>> spk.shape
        torch.Size([2, 3])
    """

    recurrent: nn.Module

    def __init__(
        self,
        beta: Tensor | float = 0.5,
        V: Tensor | float = 1.0,
        all_to_all: bool = True,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
        threshold: Tensor | float = 0.1,
        spike_grad: SpikeFunction | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = True,
        learn_threshold: bool = False,
        learn_recurrent: bool = True,
        reset_mechanism: str = "zero",
        state_quant: Any = False,
        output: bool = False,
        reset_delay: bool = False,
        *,
        adaptation: float = 1.8,
        gate: str = "auto",
        gate_norm: bool = False,
        init_state: str = "zeros",
    ) -> None:
        sizes: dict[str, Any] = {
            "linear_features": linear_features,
            "conv2d_channels": conv2d_channels,
            "kernel_size": kernel_size,
        }
        snn.RLeaky._rleaky_init_cases(SimpleNamespace(all_to_all=all_to_all, **sizes))
        gates = make_gates(2, beta, gate, **sizes, learn=learn_beta, norm=gate_norm)
        check_choice("reset_mechanism", reset_mechanism, RESET_MECHANISMS)
        check_choice("init_state", init_state, INIT_STATES)
        adaptation = float(adaptation)
        snn.RLeaky.__init__(
            self,
            beta,
            as_float(V),
            all_to_all,
            threshold=as_float(threshold),
            spike_grad=spike_grad or MultiGaussian(),
            surrogate_disable=surrogate_disable,
            init_hidden=init_hidden,
            inhibition=inhibition,
            learn_threshold=learn_threshold,
            learn_recurrent=learn_recurrent,
            reset_mechanism=reset_mechanism,
            state_quant=state_quant,
            output=output,
            reset_delay=reset_delay,
            **sizes,
        )
        self._init_liquid(gates, adaptation, init_state)

    def reset_mem(self) -> tuple[Tensor, Tensor]:
        """Puts the whole state to its initial value, of the current shape; returns ``(spk, mem)``."""
        self._restart()
        return self.spk, self.mem

    def forward(
        self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None, *, b: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One time step; arguments and result as :meth:`LTCLeaky.forward`, in ``snn.RLeaky``'s order."""
        self._reject_state(mem, spk, b)
        state = self._incoming_state(input_, mem, spk, b)
        spikes = self._fire(input_ + self.recurrent(state.s), state)
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)

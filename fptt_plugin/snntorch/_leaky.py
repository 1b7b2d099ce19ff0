"""``LTCLeaky``: a liquid time-constant spiking neuron in place of ``snn.Leaky``."""

from __future__ import annotations

from typing import Any

import snntorch as snn
from torch import Tensor

from ..functional.ltc import INIT_STATES, RESET_MECHANISMS
from ..functional.surrogate import MultiGaussian
from ..gates import KernelSize, check_choice, make_gates
from ._liquid import LiquidNeuron, SpikeFunction, as_float


class LTCLeaky(LiquidNeuron, snn.Leaky):
    """Liquid time-constant spiking neuron in place of ``snn.Leaky`` (paper Eq. 8-9).

    ``kappa = sigmoid(mem_gate([x, u]))``, ``rho = sigmoid(adp_gate([x, b]))``, then
    ``b = rho b + (1 - rho) s``, ``theta = threshold + adaptation b``, ``u = u + kappa (x - u)``,
    ``s = H(u - theta)`` and a reset, see :func:`fptt_plugin.functional.ltc_step`.

    What differs from ``snn.Leaky``:

    ====================== ============================== ==========================================
    option                 ``snn.Leaky``                  ``LTCLeaky``
    ====================== ============================== ==========================================
    ``beta``               constant decay, required       decay at the start, then learned and gated
                                                          by input and state; default 0.5
    ``learn_beta``         default False                  default True; False freezes the gates
    ``threshold``          default 1.0, constant          default 0.1, plus ``adaptation * b``
    ``reset_mechanism``    default "subtract"; its        default "zero"; the setter changes the
                           setter changes nothing         dynamics
    ``reset_delay``        default True                   default False: reset in the spike's step
    ``spike_grad``         default ``atan``               default :class:`MultiGaussian`
    input scale            added to ``beta * mem``        leaky average: ``kappa * x``
    spikes                 float32                        the membrane's dtype
    ====================== ============================== ==========================================

    Args:
        beta: Membrane decay per step at the start, in (0, 1): the membrane gate's bias is ``logit(1 - beta)``. A
            number, or a tensor with one entry per neuron or channel.
        threshold: Resting threshold; a number, or a tensor that broadcasts against the input.
        spike_grad: Surrogate spike function of ``mem - theta``. Default :class:`MultiGaussian`.
        surrogate_disable: Spikes without any gradient.
        init_hidden: Keep the state inside and return ``spk`` alone.
        inhibition: Only the most excited neuron of each row fires.
        learn_beta: Train the gates.
        learn_threshold: Train the threshold.
        reset_mechanism: ``"zero"``, ``"subtract"`` or ``"none"``.
        state_quant: Quantiser for the membrane (``snntorch.functional.quant.state_quant``).
        output: With ``init_hidden``, return ``(spk, mem)``.
        graded_spikes_factor: Factor on the returned spikes.
        learn_graded_spikes_factor: Train that factor.
        reset_delay: Reset at the start of the next step, detached, as ``snn.Leaky``.
        adaptation: Rise of the threshold per unit of ``b``; 0 switches the adaptation off.
        gate: ``"auto"`` (dense on flat input, conv on maps), ``"dense"``, ``"conv"`` or ``"elementwise"``.
        gate_norm: Batch-normalise convolutional gates (needs ``conv2d_channels``), as the authors' code.
        linear_features: Neurons of a flat layer; with ``gate="elementwise"``, neurons or channels.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of the convolutional gates, odd. Default 3.
        init_state: ``"zeros"``, or ``"random"``: membrane uniform in [0, 1), ``b = 0.1`` (the authors' code).

    Shape:
        Input ``[B, N]`` or ``[B, C, H, W]`` (any shape with an explicit ``gate``); spikes and membrane likewise.

    Raises:
        ValueError: If an option has an impossible value.
        TypeError: If sizes contradict each other, or a state is passed with ``init_hidden=True``.

    Example:
        >>> import torch
        >>> lif = LTCLeaky(beta=0.9, linear_features=3)
        >>> spk, mem = lif(torch.ones(2, 3))              # first step, state from zeros
        >>> spk, mem = lif(torch.ones(2, 3), mem)
        >>> spk.shape, mem.shape
        (torch.Size([2, 3]), torch.Size([2, 3]))
    """

    def __init__(
        self,
        beta: Tensor | float = 0.5,
        threshold: Tensor | float = 0.1,
        spike_grad: SpikeFunction | None = None,
        surrogate_disable: bool = False,
        init_hidden: bool = False,
        inhibition: bool = False,
        learn_beta: bool = True,
        learn_threshold: bool = False,
        reset_mechanism: str = "zero",
        state_quant: Any = False,
        output: bool = False,
        graded_spikes_factor: Tensor | float = 1.0,
        learn_graded_spikes_factor: bool = False,
        reset_delay: bool = False,
        *,
        adaptation: float = 1.8,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
        init_state: str = "zeros",
    ) -> None:
        # Everything is checked before the base class puts this neuron into snnTorch's global list.
        gates = make_gates(2, beta, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm)
        check_choice("reset_mechanism", reset_mechanism, RESET_MECHANISMS)
        check_choice("init_state", init_state, INIT_STATES)
        adaptation = float(adaptation)
        snn.Leaky.__init__(
            self,
            beta,
            as_float(threshold),
            spike_grad or MultiGaussian(),
            surrogate_disable,
            init_hidden,
            inhibition,
            learn_beta,
            learn_threshold,
            reset_mechanism,
            state_quant,
            output,
            as_float(graded_spikes_factor),
            learn_graded_spikes_factor,
            reset_delay,
        )
        self._init_liquid(gates, adaptation, init_state)

    def reset_mem(self) -> Tensor:
        """Puts the whole state to its initial value, of the current shape; returns the membrane."""
        self._restart()
        return self.mem

    def forward(
        self, input_: Tensor, mem: Tensor | None = None, *, spk: Tensor | None = None, b: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """One time step.

        Args:
            input_: Input current.
            mem: Membrane after the previous step, shape of ``input_``; default the stored one. A fresh tensor of
                zeros does not restart ``spk`` and ``b``: call :meth:`reset_mem` for that.
            spk: Spikes of the previous step; default the stored ones.
            b: Adaptation after the previous step; default the stored one.

        Returns:
            ``spk`` if ``init_hidden`` without ``output``, else ``(spk, mem)``.
        """
        self._reject_state(mem, spk, b)
        spikes = self._fire(input_, self._incoming_state(input_, mem, spk, b))
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)

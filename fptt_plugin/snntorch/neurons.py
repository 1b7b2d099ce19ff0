"""Liquid time-constant neurons for snnTorch: ``LTCLeaky``, ``RLTCLeaky`` and the readout ``LTCIntegrator``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

# By name, not as snn.Leaky: a code base may be swapped as a whole by ``snn.Leaky = LTCLeaky``.
from snntorch import Leaky, RLeaky, SpikingNeuron
from torch import Tensor, nn

from ..errors import ConfigurationTypeError, check_choice
from ..functional.ltc import INIT_STATES, RESET_MECHANISMS, LTCState, initial_state, ltc_step, membrane_step
from ..functional.surrogate import MultiGaussian, heaviside
from ..neurons import Decay, Gate, GateOptions, KernelSize, check_number
from .normalization import BufferedNorm

SpikeFunction = Callable[[Tensor], Tensor]


class LiquidNeuron(nn.Module):
    """What the liquid neurons share; comes before the snnTorch class that it replaces.

    The state is kept in non-persistent buffers, as in snnTorch's neurons: ``mem``, and in spiking neurons ``spk`` (last
    spikes) and ``b`` (adaptation). Each may be read and assigned alone.
    """

    states: tuple[str, ...] = ("mem", "spk", "b")

    mem: Tensor
    threshold: Tensor
    init_hidden: bool
    state_quant: Any
    mem_gate: Gate

    def _init_mem(self) -> None:  # called by the snnTorch constructors
        for name in self.states:
            self.register_buffer(name, torch.zeros(0), persistent=False)

    def _beta_buffer(self, beta: Any, learn_beta: bool) -> None:  # called by them, too; the gate's bias stands for beta
        pass

    @property
    def beta(self) -> Tensor:
        raise NotImplementedError(
            f"{type(self).__name__} has no constant beta: its decay depends on input and membrane, see .mem_gate. Code "
            "that reads beta, such as the export to NIR, would describe another neuron; export a network of snn.Leaky"
        )

    def _zeros_like(self, x: Tensor) -> Tensor:
        # In the module's own precision: under autocast x is bfloat16, too coarse to integrate slowly in.
        return torch.zeros_like(x, dtype=torch.promote_types(x.dtype, self.threshold.dtype))

    def _refuse_state(self) -> None:
        raise ConfigurationTypeError(
            "this neuron keeps its own state (init_hidden=True)",
            "call it with the input alone, or build it with init_hidden=False to pass the state",
        )


class LiquidSpikingNeuron(LiquidNeuron):
    """State and dynamics of the spiking liquid neurons."""

    spk: Tensor
    b: Tensor
    graded_spikes_factor: Tensor
    spike_grad: SpikeFunction
    reset_mechanism: str
    reset_delay: bool
    inhibition: bool
    adp_gate: Gate

    def _init_liquid(self, gates: list[Gate], adaptation: float, init_state: str) -> None:
        self.mem_gate, self.adp_gate = gates
        self.adaptation = adaptation
        self.init_state = init_state
        SpikingNeuron.instances.extend(other_states(self))

    def _restart(self) -> None:
        """Bring every state to its initial value, of the current shape."""
        self.mem, self.spk, self.b = initial_state(self._zeros_like(self.mem.detach()), self.init_state)

    def _state(self, x: Tensor, mem: Tensor | None, spk: Tensor | None, b: Tensor | None) -> LTCState:
        """Return the state that a step starts from: what was passed, else what is stored.

        A state of another shape than ``x`` is replaced by the initial one, as in snnTorch.
        """
        u = self.mem if mem is None else mem
        s = self.spk if spk is None else spk
        a = self.b if b is None else b
        if u.shape == s.shape == a.shape == x.shape:
            return LTCState(u, s, a)
        initial = initial_state(self._zeros_like(x), self.init_state)
        return LTCState(*(old if old.shape == x.shape else new for old, new in zip((u, s, a), initial, strict=True)))

    def _step(self, x: Tensor, state: LTCState) -> Tensor | tuple[Tensor, Tensor]:
        """Advance the stored state by one step; return what snnTorch's neurons return."""
        spk, (self.mem, self.spk, self.b) = ltc_step(
            x,
            state,
            self.mem_gate(x, state.u),
            self.adp_gate(x, state.b),
            threshold=self.threshold,
            adaptation=self.adaptation,
            spike_fn=self.spike_grad,
            reset=self.reset_mechanism,
            reset_delay=self.reset_delay,
            quantize=self.state_quant or None,
            inhibition=self.inhibition,
        )
        spikes = spk * self.graded_spikes_factor
        return spikes if self.init_hidden and not self.output else (spikes, self.mem)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        number = state_dict.get(f"{prefix}reset_mechanism_val")
        if number is not None:  # the dynamics follow the name, the checkpoint has the number
            self._reset_mechanism = {v: name for name, v in SpikingNeuron.reset_dict.items()}[int(number)]


class _OtherState:
    """Entry of ``SpikingNeuron.instances`` through which snnTorch reaches one more state of a neuron.

    ``Leaky.detach_hidden()``, ``Leaky.reset_hidden()`` and so ``utils.reset(net)`` walk that list. They call
    ``entry.mem.detach_()`` and assign zeros to ``entry.mem``; of a recurrent neuron they do the same to ``spk``. The
    neuron's own entry therefore covers these names alone. Here they stand for the state of another name, and an
    assignment, which can only be a reset, restarts the neuron. Everything else is the neuron's.
    """

    def __init__(self, neuron: Any, state: str) -> None:
        self._neuron = neuron
        self._state = state

    @property  # type: ignore[misc]
    def __class__(self) -> Any:  # the library asks isinstance()
        return type(self._neuron)

    @property
    def mem(self) -> Tensor:
        state: Tensor = getattr(self._neuron, self._state)
        return state

    @mem.setter
    def mem(self, zeros: Tensor) -> None:
        self._neuron.reset_mem()

    spk = mem

    def __getattr__(self, name: str) -> Any:
        return getattr(self._neuron, name)


def other_states(neuron: nn.Module) -> list[Any]:
    """Return the further entries that a neuron has in ``SpikingNeuron.instances``; empty for snnTorch's own."""
    if not isinstance(neuron, LiquidSpikingNeuron):
        return []
    known = ("mem", "spk") if isinstance(neuron, RLeaky) else ("mem",)
    return [_OtherState(neuron, name) for name in neuron.states if name not in known]


def as_float(value: Tensor | float) -> Tensor:
    # The precision that new weights get: a numpy float64 would make the state too wide for the gates.
    return torch.as_tensor(value).to(torch.get_default_dtype())


class LTCLeaky(LiquidSpikingNeuron, Leaky):
    """Liquid time-constant spiking neuron in place of ``snn.Leaky`` (Eq. 8-9 of Yin, Corradi, Bohté 2023).

    One step, with input ``x``, membrane ``u``, adaptation ``b`` and spikes ``s``, followed by a reset
    (:func:`fptt_plugin.functional.ltc_step`):

    .. code-block:: text

        kappa = sigmoid(mem_gate([x, u]))
        rho   = sigmoid(adp_gate([x, b]))
        b     = rho b + (1 - rho) s
        theta = threshold + adaptation b
        u     = u + kappa (x - u)
        s     = H(u - theta)

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
    ``spike_grad``         default ``atan``               default ``MultiGaussian``
    input scale            added to ``beta * mem``        leaky average: ``kappa * x``
    spikes                 float32                        the membrane's dtype
    ====================== ============================== ==========================================

    Positional arguments have the same order, so ``snn.Leaky = LTCLeaky`` swaps a whole code base. ``utils.reset`` then
    finds a network by its ``LTCLeaky`` layers, and passes over one whose top level has :class:`LTCIntegrator` alone.

    The state is ``mem``, ``spk`` (last spikes) and ``b`` (adaptation). Assigning one leaves the others alone.
    ``reset_mem()``, ``utils.reset``, ``Leaky.reset_hidden`` and ``Leaky.detach_hidden`` act on all three; a copy or an
    unpickled neuron is not in snnTorch's list of neurons, which the last three walk, as with ``snn.Leaky``.

    Args:
        beta: Membrane decay per step at the start, in (0, 1): the membrane gate's bias is ``logit(1 - beta)``. A
            number, a tensor with one entry per neuron or channel, or ``(low, high)``: time constants
            ``1 / (1 - beta)`` drawn log-uniformly between those of the ends. Start with the default, and keep the
            sum of ``1 / (1 - beta)`` over the layers, readout included, within half the time steps of a sequence: each
            layer averages its input, and slower ones fire late or never.
        threshold: Resting threshold; a number, or a tensor that broadcasts against the input.
        spike_grad: Surrogate spike function of ``mem - theta``. Default :class:`~fptt_plugin.functional.MultiGaussian`.
        surrogate_disable: Spikes without any gradient.
        init_hidden: Keep the state inside and return ``spk`` alone.
        inhibition: Only the most excited neuron of each sample fires.
        learn_beta: Train the gates.
        learn_threshold: Train the threshold.
        reset_mechanism: ``"zero"``, ``"subtract"`` or ``"none"``.
        state_quant: Quantizer for the membrane (``snntorch.functional.quant.state_quant``).
        output: With ``init_hidden``, return ``(spk, mem)``.
        graded_spikes_factor: Factor on the returned spikes.
        learn_graded_spikes_factor: Train that factor.
        reset_delay: Reset at the start of the next step, detached, as ``snn.Leaky``.
        adaptation: Rise of the threshold per unit of ``b``; 0 switches the adaptation off.
        adaptation_beta: Decay of ``b`` per step at the start, given as ``beta`` is. Default 0.5, a bias of 0.
        gate: ``"auto"`` (dense on flat input, conv on maps), ``"dense"``, ``"conv"`` or ``"elementwise"``.
        gate_norm: Batch-normalize convolutional gates (needs ``conv2d_channels``), as the authors' code.
        linear_features: Neurons of a flat layer; with ``gate="elementwise"``, neurons or channels.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Kernel size of the convolutional gates; must be odd. Default 3.
        init_state: ``"zeros"``, or ``"random"``: membrane uniform in [0, 1), ``b = 0.1`` (the authors' code).

    Shape:
        Input ``[B, N]`` or ``[B, C, H, W]`` (any shape with an explicit ``gate``); so are spikes and membrane.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If sizes contradict each other, or a state is passed with ``init_hidden=True``.

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
        beta: Decay = 0.5,
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
        adaptation_beta: Decay = 0.5,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
        init_state: str = "zeros",
    ) -> None:
        # Everything is checked before the base class puts this neuron into snnTorch's global list.
        options = GateOptions(
            beta, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm, adaptation_beta
        )
        gates = options.build(2)
        check_choice("reset_mechanism", reset_mechanism, RESET_MECHANISMS)
        check_choice("init_state", init_state, INIT_STATES)
        adaptation = check_number("adaptation", adaptation)
        super().__init__(
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
        """Reset the whole state to its initial value, keeping its shape.

        Returns:
            The membrane.
        """
        self._restart()
        return self.mem

    def forward(
        self, input_: Tensor, mem: Tensor | None = None, *, spk: Tensor | None = None, b: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Advance by one time step.

        Args:
            input_: Input current.
            mem: Membrane after the previous step, shape of ``input_``. Default: the stored one. Zeros do not restart
                ``spk`` and ``b``, and a detached membrane does not detach them: call :meth:`reset_mem` before a
                sequence and ``detach_hidden()`` where the gradient should stop, or pass all three states.
            spk: Spikes of the previous step. Default: the stored ones.
            b: Adaptation after the previous step. Default: the stored one.

        Returns:
            ``spk`` if ``init_hidden`` without ``output``, else ``(spk, mem)``.
        """
        if self.init_hidden and not (mem is None and spk is None and b is None):
            self._refuse_state()
        return self._step(input_, self._state(input_, mem, spk, b))


class RLTCLeaky(LiquidSpikingNeuron, RLeaky):
    """Recurrent :class:`LTCLeaky`, in place of ``snn.RLeaky``: the last spikes feed back into the input current.

    The drive of membrane and gates is ``x + recurrent_norm(recurrent(spk))``. Options are those of ``snn.RLeaky`` and
    of :class:`LTCLeaky`, with the defaults of the latter; graded spikes are not available, as in ``snn.RLeaky``.

    Args:
        beta: See :class:`LTCLeaky`.
        V: Weight of the one-to-one recurrence, used with ``all_to_all=False``.
        all_to_all: Full recurrent matrix (or convolution) instead of one weight per neuron.
        linear_features: Neurons of a flat layer; required with ``all_to_all`` unless it is a map.
        conv2d_channels: Channels of a map; needs ``kernel_size``.
        kernel_size: Of the recurrent convolution and of the gates, odd.
        threshold: Resting threshold; a number, or a tensor that broadcasts against the input.
        spike_grad: Surrogate spike function of ``mem - theta``. Default :class:`~fptt_plugin.functional.MultiGaussian`.
        surrogate_disable: Spikes without any gradient.
        init_hidden: Keep the state inside and return ``spk`` alone.
        inhibition: Only the most excited neuron of each row fires.
        learn_beta: Train the gates.
        learn_threshold: Train the threshold.
        learn_recurrent: Train the recurrent weights.
        reset_mechanism: ``"zero"``, ``"subtract"`` or ``"none"``.
        state_quant: Quantizer for the membrane (``snntorch.functional.quant.state_quant``).
        output: With ``init_hidden``, return ``(spk, mem)``.
        reset_delay: Reset at the start of the next step, detached, as ``snn.RLeaky``.
        adaptation: Rise of the threshold per unit of ``b``; 0 switches the adaptation off.
        adaptation_beta: Decay of ``b`` per step at the start, given as ``beta`` is. Default 0.5, a bias of 0.
        gate: ``"auto"`` (dense on flat input, conv on maps), ``"dense"``, ``"conv"`` or ``"elementwise"``.
        gate_norm: Batch-normalize convolutional gates (needs ``conv2d_channels``), as the authors' code.
        init_state: ``"zeros"``, or ``"random"``: membrane uniform in [0, 1), ``b = 0.1`` (the authors' code).
        recurrent_norm: Module that normalizes ``recurrent(spk)``, such as
            :class:`~fptt_plugin.snntorch.PerStepBatchNorm1d`; :meth:`reset_mem` resets its count of steps. To
            normalize the input drive, put one in front of the neuron.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If the sizes are missing or contradict each other, or a state is passed with
            ``init_hidden=True``.

    Example:
        >>> import torch
        >>> lif = RLTCLeaky(linear_features=3)
        >>> spk, mem = lif.reset_mem()
        >>> spk, mem = lif(torch.ones(2, 3), spk, mem)
        >>> spk.shape
        torch.Size([2, 3])
    """

    recurrent: nn.Module
    recurrent_norm: nn.Module | None

    def __init__(
        self,
        beta: Decay = 0.5,
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
        adaptation_beta: Decay = 0.5,
        gate: str = "auto",
        gate_norm: bool = False,
        init_state: str = "zeros",
        recurrent_norm: nn.Module | None = None,
    ) -> None:
        _check_recurrence(all_to_all, linear_features, conv2d_channels, kernel_size)
        options = GateOptions(
            beta, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm, adaptation_beta
        )
        gates = options.build(2)
        check_choice("reset_mechanism", reset_mechanism, RESET_MECHANISMS)
        check_choice("init_state", init_state, INIT_STATES)
        adaptation = check_number("adaptation", adaptation)
        super().__init__(
            beta,
            as_float(V),
            all_to_all,
            linear_features,
            conv2d_channels,
            kernel_size,
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
        )
        self._init_liquid(gates, adaptation, init_state)
        self.recurrent_norm = recurrent_norm

    def reset_mem(self) -> tuple[Tensor, Tensor]:
        """Bring the whole state to its initial value, of the current shape.

        Returns:
            ``(spk, mem)``.
        """
        self._restart()
        for module in () if self.recurrent_norm is None else self.recurrent_norm.modules():
            if isinstance(module, BufferedNorm):
                module.reset()
        return self.spk, self.mem

    def forward(
        self, input_: Tensor, spk: Tensor | None = None, mem: Tensor | None = None, *, b: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Advance by one time step.

        Args:
            input_: Input current, without the recurrent part.
            spk: Spikes of the previous step. Default: the stored ones.
            mem: Membrane after the previous step, see :meth:`LTCLeaky.forward`. Default: the stored one.
            b: Adaptation after the previous step. Default: the stored one.

        Returns:
            ``spk`` if ``init_hidden`` without ``output``, else ``(spk, mem)``.
        """
        if self.init_hidden and not (mem is None and spk is None and b is None):
            self._refuse_state()
        state = self._state(input_, mem, spk, b)
        drive = self.recurrent(state.s)
        if self.recurrent_norm is not None:
            drive = self.recurrent_norm(drive)
        return self._step(input_ + drive, state)


def _check_recurrence(
    all_to_all: bool,
    linear_features: int | None,
    conv2d_channels: int | None,
    kernel_size: KernelSize | None,
) -> None:
    flat, maps = bool(linear_features), bool(conv2d_channels)
    if not all_to_all and (flat or maps or kernel_size):
        raise ConfigurationTypeError(
            "all_to_all=False feeds each neuron's spike back to itself, with weight V and without a size",
            "leave out linear_features, conv2d_channels and kernel_size",
        )
    if all_to_all and not flat and not (maps and kernel_size):
        raise ConfigurationTypeError(
            "all_to_all=True needs the size of the recurrence",
            "pass linear_features (flat layer), or conv2d_channels and kernel_size (feature map)",
        )
    if flat and (maps or kernel_size):
        raise ConfigurationTypeError(
            "linear_features is the size of a flat layer, conv2d_channels and kernel_size that of a feature map",
            "pass one of the two",
        )


class LTCIntegrator(LiquidNeuron, Leaky):
    """Liquid leaky-integrator readout: the membrane of :class:`LTCLeaky` without spike and reset.

    ``u = u + sigmoid(mem_gate([x, u])) (x - u)``. Returns the membrane alone, the class scores of the paper's networks.
    Its options are keyword-only, since ``snn.Leaky``'s order has a threshold in second place.

    Args:
        beta: See :class:`LTCLeaky`.
        init_hidden: Keep the state inside.
        learn_beta: Train the gate.
        state_quant: Quantizer for the membrane.
        gate: ``"auto"`` (dense on flat input, conv on maps), ``"dense"``, ``"conv"`` or ``"elementwise"``.
        gate_norm: Batch-normalize the convolutional gate (needs ``conv2d_channels``), as the authors' code.
        linear_features: Neurons of a flat layer; with ``gate="elementwise"``, neurons or channels.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of the convolutional gate, odd. Default 3.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If sizes contradict each other, or ``mem`` is passed with ``init_hidden=True``.

    Example:
        >>> import torch
        >>> readout = LTCIntegrator(beta=0.9, init_hidden=True, linear_features=3)
        >>> readout(torch.ones(2, 3)).shape
        torch.Size([2, 3])
    """

    states = ("mem",)

    def __init__(
        self,
        beta: Decay = 0.5,
        *,
        init_hidden: bool = False,
        learn_beta: bool = True,
        state_quant: Any = False,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
    ) -> None:
        options = GateOptions(beta, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm)
        (gate_,) = options.build(1)
        # It never fires; the base class would keep its default surrogate, a closure that does not pickle.
        super().__init__(
            beta, spike_grad=heaviside, init_hidden=init_hidden, state_quant=state_quant, reset_mechanism="none"
        )
        self.mem_gate = gate_

    def reset_mem(self) -> Tensor:
        """Set the membrane to zero, of the current shape.

        Returns:
            The membrane.
        """
        self.mem = self._zeros_like(self.mem.detach())
        return self.mem

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> Tensor:
        """Advance by one time step.

        Args:
            input_: Input current.
            mem: Membrane after the previous step, shape of ``input_``. Default: the stored one.

        Returns:
            The new membrane, shape of ``input_``.
        """
        if self.init_hidden and mem is not None:
            self._refuse_state()
        u = self.mem if mem is None else mem
        if u.shape != input_.shape:
            u = self._zeros_like(input_)
        u = membrane_step(input_, u, self.mem_gate(input_, u))
        self.mem = self.state_quant(u) if self.state_quant else u
        return self.mem

"""Liquid time-constant neurons for SpikingJelly: ``LTCLeaky`` and the readout ``LTCIntegrator``."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from spikingjelly.activation_based import neuron
from torch import Tensor

from ..errors import ConfigurationError, ConfigurationTypeError, check_choice
from ..functional.ltc import INIT_STATES, LTCState, initial_state, ltc_step, membrane_step
from ..functional.surrogate import MultiGaussian
from ..neurons import Decay, Gate, GateOptions, KernelSize, check_number
from .versions import FunctionalMemory

States = tuple[Any, ...]


class LiquidNode(FunctionalMemory):
    """What the liquid nodes share; comes before the SpikingJelly class that it extends.

    Memories are numbers before the first input.
    """

    mem_gate: Gate
    v: Tensor | float
    precision: Tensor

    def _init_precision(self) -> None:
        # Follows module.to(dtype). The gates' parameters would tell, too, but may not have a size yet, and
        # torch.compile cannot read an attribute of an uninitialized parameter.
        self.register_buffer("precision", torch.zeros(0), persistent=False)

    def _state_like(self, inputs: tuple[Tensor, ...], step_mode: str) -> Tensor:
        """Return one time step of the input, in the state's dtype."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        # In the module's own precision: under autocast x is bfloat16, too coarse to integrate slowly in.
        return x.to(torch.promote_types(x.dtype, self.precision.dtype))

    def detach(self) -> None:
        """Cut the memories from the graph, out of place."""
        # MemoryModule.detach works in place. In single-step mode the returned tensor also is a memory, so that would
        # cut the output too, and a later backward find no graph; and torch refuses it on views.
        for name, value in self._memories.items():
            if isinstance(value, Tensor):
                self._memories[name] = value.detach()
        super().detach()


def _materialize(states: States, initial: tuple[float, ...], like: Tensor) -> States:
    """Return memories as tensors like ``like``, by the rules of SpikingJelly's ``BaseNode`` for ``v``.

    A number fills the shape, a tensor of another shape (the batch size changed) is replaced by its initial value, and
    any other tensor follows dtype and device.
    """
    tensors = []
    for value, start in zip(states, initial, strict=True):
        if isinstance(value, Tensor) and value.shape == like.shape:
            tensors.append(value.to(like))
        else:
            tensors.append(torch.full_like(like, value if isinstance(value, (int, float)) else start))
    return tuple(tensors)


def _refuse_positional(values: tuple[Any, ...]) -> None:
    # The first is v_threshold in most other nodes, so that a position alone may be misread.
    named = dict(zip(signature(neuron.LIFNode).parameters, values, strict=False))
    named.pop("backend", None)  # of SpikingJelly 0.0.0.0.14
    _check_decay_input(named.pop("decay_input", True))
    line = ", ".join(f"{name}={value!r}" for name, value in named.items())
    raise ConfigurationTypeError(
        "LTCLeaky takes keyword arguments only", f"pass {line} if these were arguments of neuron.LIFNode"
    )


def _check_decay_input(decay_input: bool) -> None:
    if not decay_input:
        raise ConfigurationError(
            "decay_input=False adds the input to the membrane, but a liquid neuron averages it (kappa * x)",
            "leave decay_input out; the layer in front learns the scale",
        )


def _start_decay(beta: Decay | None, tau: Decay | None, decay_input: bool) -> Decay:
    """Return ``beta`` from SpikingJelly's options, where they mean the same."""
    _check_decay_input(decay_input)
    if tau is None:
        return 0.5 if beta is None else beta
    if beta is not None:
        raise ConfigurationTypeError("tau and beta are the same decay, beta = 1 - 1 / tau", "pass one of them")
    if isinstance(tau, tuple):
        ends: Any = tuple(1 - 1 / _check_tau(end) for end in tau)  # how many there are is checked with beta
        decay: Decay = ends
    else:
        decay = 1 - 1 / _check_tau(tau)
    return decay


def _check_tau(tau: Any) -> Any:
    tau = tau if isinstance(tau, Tensor) else check_number("tau", tau)
    if not torch.as_tensor(tau > 1).all():
        raise ConfigurationError(f"tau={tau} must be greater than 1, as for neuron.LIFNode")
    return tau


class LTCLeaky(LiquidNode, neuron.BaseNode):
    """Liquid time-constant spiking neuron in place of ``neuron.LIFNode`` (Eq. 8-9 of Yin, Corradi, Bohté 2023).

    One step, with input ``x``, membrane ``v``, adaptation ``b`` and spikes ``s``, followed by a reset
    (:func:`fptt_plugin.functional.ltc_step`):

    .. code-block:: text

        kappa = sigmoid(mem_gate([x, v]))
        rho   = sigmoid(adp_gate([x, b]))
        b     = rho b + (1 - rho) s
        theta = v_threshold + adaptation b
        v     = v + kappa (x - v)
        s     = H(v - theta)

    Memories: ``v``, ``b`` and ``spike`` (the last spikes).

    What differs from ``neuron.LIFNode``:

    ====================== ============================== ==========================================
    option                 ``LIFNode``                    ``LTCLeaky``
    ====================== ============================== ==========================================
    arguments              positional or keyword          keyword-only: ``LTCLeaky(2.0)`` is refused
    ``tau``                time constant, default 2       sets ``beta = 1 - 1 / tau``, the decay at the
                                                          start, then learned and gated by input and
                                                          state; the default is the same decay, 0.5
    ``decay_input``        default True                   True only: the input always is averaged,
                                                          ``kappa * x``
    ``v_threshold``        default 1.0, constant          default 0.1, plus ``adaptation * b``
    ``v_reset``            default 0.0; ``None``          the same; ``None`` subtracts the threshold
                           subtracts the threshold        that was crossed
    ``surrogate_function`` default ``Sigmoid()``          default ``MultiGaussian``
    fires at               ``v >= v_threshold``           ``v > theta`` with the default surrogate
    state under autocast   the input's dtype              the parameters' dtype, and so the spikes
    ====================== ============================== ==========================================

    Args:
        *positional: Not accepted: the error names the keyword. The first argument of SpikingJelly's nodes is ``tau``.
        v_threshold: Resting threshold.
        v_reset: Membrane after a spike and before the first input; ``None`` subtracts the threshold and starts at 0.
        surrogate_function: Spike function of ``v - theta``. Default :class:`~fptt_plugin.functional.MultiGaussian`.
        detach_reset: Block the gradient through the reset.
        step_mode: ``"s"`` for input ``[B, ...]``, ``"m"`` for ``[T, B, ...]``; the state carries over between calls.
        store_v_seq: Record the membrane of every step in ``v_seq``; in single-step mode it grows until the reset.
        beta: Membrane decay per step at the start, in (0, 1): the membrane gate's bias is ``logit(1 - beta)``. A
            number, a tensor with one entry per neuron or channel, or ``(low, high)``: time constants
            ``tau = 1 / (1 - beta)`` drawn log-uniformly between those of the ends. Default 0.5. Start with it, and
            keep the sum of ``tau`` over the layers, readout included, within half the time steps of a sequence:
            each layer averages its input, and slower ones fire late or never.
        tau: The same in SpikingJelly's terms, ``beta = 1 - 1 / tau``, greater than 1: number, tensor or pair.
        decay_input: Accepted so that calls of ``neuron.LIFNode`` keep working; must be True.
        adaptation: Rise of the threshold per unit of ``b``; 0 switches the adaptation off.
        adaptation_beta: Decay of ``b`` per step at the start, given as ``beta`` is. Default 0.5, a bias of 0.
        gate: ``"auto"`` (dense on flat input, conv on maps), ``"dense"``, ``"conv"`` or ``"elementwise"``.
        gate_norm: Batch-normalize convolutional gates (needs ``conv2d_channels``), as the authors' code.
        linear_features: Neurons of a flat layer; with ``gate="elementwise"``, neurons or channels.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of the convolutional gates, odd. Default 3.
        init_state: ``"zeros"``, or ``"random"``: membrane uniform in [0, 1), ``b = 0.1`` (the authors' code).
        learn_beta: Train the gates.

    Shape:
        One time step is ``[B, N]`` or ``[B, C, H, W]`` (any shape with an explicit ``gate``); so are the spikes.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If an option has another type, arguments are positional, or sizes contradict each other.

    Example:
        >>> lif = LTCLeaky(beta=0.9, step_mode="m")
        >>> spikes = lif(torch.ones(5, 2, 3))             # [T, B, N]; sizes come from here
        >>> spikes.shape, lif.v.shape
        (torch.Size([5, 2, 3]), torch.Size([2, 3]))
    """

    adp_gate: Gate

    def __init__(
        self,
        *positional: Any,
        v_threshold: float = 0.1,
        v_reset: float | None = 0.0,
        surrogate_function: Callable[[Tensor], Tensor] | None = None,
        detach_reset: bool = False,
        step_mode: str = "s",
        store_v_seq: bool = False,
        beta: Decay | None = None,
        tau: Decay | None = None,
        decay_input: bool = True,
        adaptation: float = 1.8,
        adaptation_beta: Decay = 0.5,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
        init_state: str = "zeros",
        learn_beta: bool = True,
    ) -> None:
        if positional:
            _refuse_positional(positional)
        # BaseNode asserts; an int is as good a threshold as a float.
        v_threshold = check_number("v_threshold", v_threshold)
        v_reset = None if v_reset is None else check_number("v_reset", v_reset)
        surrogate_function = MultiGaussian() if surrogate_function is None else surrogate_function
        if isinstance(surrogate_function, type) or not callable(surrogate_function):
            raise ConfigurationTypeError(
                f"surrogate_function must be callable, such as surrogate.ATan(), got {surrogate_function!r}"
            )
        for name, flag in (("detach_reset", detach_reset), ("store_v_seq", store_v_seq)):
            if not isinstance(flag, bool):
                raise ConfigurationTypeError(f"{name} must be True or False, got {flag!r}")
        check_choice("step_mode", step_mode, ("s", "m"))
        check_choice("init_state", init_state, INIT_STATES)
        adaptation = check_number("adaptation", adaptation)
        decay = _start_decay(beta, tau, decay_input)
        options = GateOptions(
            decay, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm, adaptation_beta
        )
        gates = options.build(2)

        super().__init__(
            v_threshold, v_reset, surrogate_function, detach_reset, step_mode=step_mode, store_v_seq=store_v_seq
        )
        self._init_precision()
        self.register_memory("b", 0.0)
        self.register_memory("spike", 0.0)
        self.mem_gate, self.adp_gate = gates
        self.adaptation = adaptation
        self.init_state = init_state

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        """Turn the memories' initial numbers into tensors, out of place."""
        like = self._state_like(inputs, step_mode)
        v = states[0]
        if self.init_state == "random" and not (isinstance(v, Tensor) and v.shape == like.shape):
            initial = initial_state(torch.zeros_like(like), self.init_state)
            return initial.u, initial.b, initial.s
        return _materialize(states, (self.v_reset or 0.0, 0.0, 0.0), like)

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], States]:
        """Compute one time step as a pure function; SpikingJelly calls it in both step modes.

        Args:
            inputs: ``(x,)``, the input current of the step.
            states: ``(v, b, spike)`` after the previous step.
            **kwargs: Not used; SpikingJelly may pass some.

        Returns:
            ``((spikes,), (v, b, spike))``.
        """
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


# Not a BaseNode: SpikingJelly's firing-rate monitors and operation counters look for that class and take what it
# returns for spikes. All that keeps and resets state asks for MemoryModule only.
class LTCIntegrator(LiquidNode):
    """Liquid leaky-integrator readout: the membrane of :class:`LTCLeaky` without spike and reset.

    ``v = v + sigmoid(mem_gate([x, v])) (x - v)``. Returns the membrane, the class scores of the paper's networks.
    Memory: ``v``. Not a ``BaseNode``; monitor it with ``instance=LTCIntegrator``.

    Args:
        step_mode: ``"s"`` for input ``[B, ...]``, ``"m"`` for ``[T, B, ...]``; the state carries over between calls.
        beta: See :class:`LTCLeaky`.
        tau: The same in SpikingJelly's terms, ``beta = 1 - 1 / tau``; greater than 1.
        decay_input: Must be True, see :class:`LTCLeaky`.
        gate: ``"auto"`` (dense on flat input, conv on maps), ``"dense"``, ``"conv"`` or ``"elementwise"``.
        gate_norm: Batch-normalize the convolutional gate (needs ``conv2d_channels``), as the authors' code.
        linear_features: Neurons of a flat layer; with ``gate="elementwise"``, neurons or channels.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of the convolutional gate, odd. Default 3.
        learn_beta: Train the gate.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If sizes contradict each other.

    Example:
        >>> import torch
        >>> readout = LTCIntegrator(beta=0.9, step_mode="m")
        >>> readout(torch.ones(5, 2, 3)).shape
        torch.Size([5, 2, 3])
    """

    def __init__(
        self,
        *,
        step_mode: str = "s",
        beta: Decay | None = None,
        tau: Decay | None = None,
        decay_input: bool = True,
        gate: str = "auto",
        gate_norm: bool = False,
        linear_features: int | None = None,
        conv2d_channels: int | None = None,
        kernel_size: KernelSize | None = None,
        learn_beta: bool = True,
    ) -> None:
        check_choice("step_mode", step_mode, ("s", "m"))
        decay = _start_decay(beta, tau, decay_input)
        options = GateOptions(decay, gate, linear_features, conv2d_channels, kernel_size, learn_beta, gate_norm)
        (gate_,) = options.build(1)

        super().__init__()
        self._init_precision()
        self.step_mode = step_mode
        self.register_memory("v", 0.0)
        self.mem_gate = gate_

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        """Turn the memory's initial number into a tensor, out of place."""
        return _materialize(states, (0.0,), self._state_like(inputs, step_mode))

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], States]:
        """Compute one time step as a pure function; SpikingJelly calls it in both step modes.

        Args:
            inputs: ``(x,)``, the input current of the step.
            states: ``(v,)`` after the previous step.
            **kwargs: Not used; SpikingJelly may pass some.

        Returns:
            ``((v,), (v,))``.
        """
        (x,), (v,) = inputs, states
        v = membrane_step(x, v, self.mem_gate(x, v))
        return (v,), (v,)

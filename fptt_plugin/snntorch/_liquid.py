"""What the liquid neurons for snnTorch share: gates, recurrent state and its upkeep under snnTorch's own helpers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..functional.ltc import LTCState, initial_state, ltc_step
from ..gates import Gate

SpikeFunction = Callable[[Tensor], Tensor]

RESET_ORDER = ("subtract", "zero", "none")  # snnTorch's numbers for them


class LiquidNeuron(torch.nn.Module):
    """State, gates and their upkeep; goes in front of the snnTorch class that it replaces.

    State: non-persistent buffers ``mem``, ``spk`` (last spikes) and ``b`` (adaptation). snnTorch 1.0 resets and
    detaches ``mem`` alone, and from outside (``utils.reset``, ``Leaky.detach_hidden``): ``_seen`` remembers the ``mem``
    that this neuron wrote last, so that the other two can follow.
    """

    mem: Tensor
    spk: Tensor
    b: Tensor
    threshold: Tensor
    graded_spikes_factor: Tensor
    spike_grad: SpikeFunction
    reset_mechanism: str
    reset_delay: bool
    inhibition: bool
    state_quant: Any
    mem_gate: Gate
    adp_gate: Gate

    def _init_liquid(self, gates: list[Gate], adaptation: float, init_state: str) -> None:
        for name, gate in zip(("mem_gate", "adp_gate"), gates, strict=False):  # the integrator has the first alone
            setattr(self, name, gate)
        self.adaptation = adaptation
        self.init_state = init_state

    def _init_mem(self) -> None:  # called by the snnTorch constructors
        for name in ("mem", "spk", "b"):
            self.register_buffer(name, torch.zeros(0), persistent=False)
        self._seen = self.mem

    def _beta_buffer(self, beta: Any, learn_beta: bool) -> None:  # likewise; the gate's bias stands for beta
        pass

    @property
    def beta(self) -> Tensor:
        raise NotImplementedError(
            f"{type(self).__name__} has no constant beta: its decay depends on input and membrane, see .mem_gate. Code "
            "that reads beta, such as the export to NIR, would describe another neuron; export a network of snn.Leaky"
        )

    def _fresh_state(self, x: Tensor) -> LTCState:
        # In the module's own precision: under autocast x is bfloat16, too coarse to integrate slowly in.
        dtype = torch.promote_types(x.dtype, self.threshold.dtype)
        return initial_state(torch.zeros_like(x, dtype=dtype), self.init_state)

    def _follow(self) -> None:
        """Restarts ``spk`` and ``b`` if ``mem`` alone was replaced from outside (``utils.reset``)."""
        if self.mem is not self._seen:
            fresh = self._fresh_state(self.mem)
            self._store(fresh if self.init_state == "random" else fresh._replace(u=self.mem))

    def _incoming_state(self, x: Tensor, mem: Tensor | None, spk: Tensor | None, b: Tensor | None) -> LTCState:
        self._follow()
        u = self.mem if mem is None else mem
        s = self.spk if spk is None else spk
        a = self.b if b is None else b
        if u.shape != x.shape or s.shape != x.shape or a.shape != x.shape:
            fresh = self._fresh_state(x)
            u = u if u.shape == x.shape else fresh.u
            s = s if spk is not None and s.shape == x.shape else fresh.s
            a = a if b is not None and a.shape == x.shape else fresh.b
        elif u.grad_fn is None:
            # The membrane was detached from outside: so is what is stored beside it.
            s = s.detach() if spk is None else s
            a = a.detach() if b is None else a
        return LTCState(u, s, a)

    def _store(self, state: LTCState) -> None:
        self.mem, self.spk, self.b = state
        self._seen = self.mem

    def _clear(self) -> None:
        """Zero-sized state: the next input finds its own shape, dtype and device."""
        empty = self.mem.detach().new_zeros(0)
        self._store(LTCState(empty, empty, empty))

    def _restart(self) -> None:
        """Initial state of the current shape, as snnTorch's ``reset_mem`` does it."""
        self._store(self._fresh_state(self.mem.detach()))

    def _reject_state(self, *given: Tensor | None) -> None:
        if self.init_hidden and any(state is not None for state in given):
            raise TypeError(
                "this neuron keeps its own state (init_hidden=True): call it with the input alone, or build it with "
                "init_hidden=False to pass the state"
            )

    def _fire(self, x: Tensor, state: LTCState) -> Tensor:
        """One step of the dynamics; stores the new state and returns the spikes."""
        spk, state = ltc_step(
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
        self._store(state)
        return spk * self.graded_spikes_factor

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        mechanism = state_dict.get(f"{prefix}reset_mechanism_val")
        if mechanism is not None:  # the dynamics follow the name, the checkpoint has the number
            self._reset_mechanism = RESET_ORDER[int(mechanism)]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        coherent = self._seen is self.mem
        super()._apply(fn, recurse)
        if coherent:
            self._seen = self.mem
        return self


def as_float(value: Tensor | float) -> Tensor:
    # The precision that new weights get: a numpy float64 would make the state too wide for the gates.
    return torch.as_tensor(value).to(torch.get_default_dtype())

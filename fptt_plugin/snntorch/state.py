"""Where snnTorch's neurons, and ours, keep their recurrent state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import snntorch as snn
from torch import nn

from ..neurons import NormState
from ..state import AttributeHandler, BufferHandler, isolate_with, refuse_to_step, register_state_handler
from .neurons import LiquidNeuron, other_states
from .normalization import BufferedNorm, restart_entry

register_state_handler(snn.SpikingNeuron, BufferHandler("mem", "spk", "syn", "syn_exc", "syn_inh"))
register_state_handler(LiquidNeuron, BufferHandler(*LiquidNeuron.states))
if hasattr(snn, "DeltaLeaky"):  # not in every version; only None makes it take the shape of the next input
    register_state_handler(snn.DeltaLeaky, AttributeHandler(mem=None, mem_prev=None))
register_state_handler(BufferedNorm, BufferHandler(*NormState._fields))

for name, instead in {
    "StateLeaky": "snn.Leaky, or LTCLeaky,",
    "LinearLeaky": "nn.Linear and snn.Leaky, or LTCLeaky,",
    "AssociativeLeaky": "nn.Linear and snn.RLeaky, or LTCLeaky,",
    "LeakyParallel": "nn.Linear and snn.Leaky, or snn.RLeaky,",
}.items():
    if hasattr(snn, name):  # not in every version
        reason = "runs over all time steps at once and has no step to train in: "
        refuse_to_step(getattr(snn, name), f"{reason}use {instead} in a loop over time")

refuse_to_step(
    snn.SLSTM,
    "forgets its state at every step in snnTorch 1.0, because its input_size is not its hidden_size: put nn.Linear in "
    "front and give it equal sizes",
    when=lambda lstm: lstm.input_size != lstm.hidden_size,
)


_own: ContextVar[list[Any] | None] = ContextVar("own_neurons", default=None)


class Instances(list[Any]):
    """snnTorch's list of all neurons in the process, of which a thread sees those of one network while it isolates it.

    ``utils.reset()`` and the neurons' class methods walk this list by index. What is added goes to all.
    """

    def __len__(self) -> int:
        own = _own.get()
        return super().__len__() if own is None else len(own)

    def __getitem__(self, index: Any) -> Any:
        own = _own.get()
        return super().__getitem__(index) if own is None else own[index]

    def __iter__(self) -> Iterator[Any]:
        own = _own.get()
        return super().__iter__() if own is None else iter(own)

    def __contains__(self, neuron: object) -> bool:
        return any(entry is neuron for entry in self)


_install_lock = Lock()


def _install() -> None:
    """Put the view in the place of snnTorch's list: once, and again where ``SpikingNeuron.init()`` made another."""
    if type(snn.SpikingNeuron.instances) is Instances:
        return
    with _install_lock:
        plain = snn.SpikingNeuron.instances
        if type(plain) is not Instances:
            taken = len(plain)
            snn.SpikingNeuron.instances = Instances(plain)
            snn.SpikingNeuron.instances.extend(plain[taken:])  # added meanwhile by another thread


def _entries(module: nn.Module) -> list[Any]:
    if isinstance(module, BufferedNorm):
        return [restart_entry(module)]
    return [module, *other_states(module)] if isinstance(module, snn.SpikingNeuron) else []


@contextmanager
def _own_neurons_alone(net: nn.Module) -> Iterator[None]:
    # The list holds no copies, and another thread's list is none of ours: the class attribute stays as it is.
    _install()
    token = _own.set([entry for module in net.modules() for entry in _entries(module)])
    try:
        yield
    finally:
        _own.reset(token)


_install()
isolate_with(_own_neurons_alone)

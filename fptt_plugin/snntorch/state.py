"""Where snnTorch's neurons, and ours, keep their recurrent state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import snntorch as snn
from torch import nn

from ..state import BufferHandler, isolate_with, refuse_to_step, register_state_handler
from .neurons import other_states

register_state_handler(snn.SpikingNeuron, BufferHandler())

_PARALLEL = "runs over all time steps at once and has no step to train in: "
refuse_to_step(snn.StateLeaky, _PARALLEL + "use snn.Leaky, or LTCLeaky, in a loop over time")
refuse_to_step(snn.LinearLeaky, _PARALLEL + "use nn.Linear and snn.Leaky, or LTCLeaky, in a loop over time")
refuse_to_step(snn.AssociativeLeaky, _PARALLEL + "use nn.Linear and snn.RLeaky, or LTCLeaky, in a loop over time")
refuse_to_step(snn.LeakyParallel, _PARALLEL + "use nn.Linear and snn.Leaky, or snn.RLeaky, in a loop over time")

refuse_to_step(
    snn.SLSTM,
    "forgets its state at every step in snnTorch 1.0, because its input_size is not its hidden_size: put nn.Linear in "
    "front and give it equal sizes",
    when=lambda lstm: lstm.input_size != lstm.hidden_size,
)


@contextmanager
def _own_neurons_alone(net: nn.Module) -> Iterator[None]:
    # utils.reset() and the neurons' class methods walk a list of all neurons in the process, copies left out.
    kept = snn.SpikingNeuron.instances
    neurons = [module for module in net.modules() if isinstance(module, snn.SpikingNeuron)]
    snn.SpikingNeuron.instances = [entry for neuron in neurons for entry in (neuron, *other_states(neuron))]
    try:
        yield
    finally:
        snn.SpikingNeuron.instances = kept


isolate_with(_own_neurons_alone)

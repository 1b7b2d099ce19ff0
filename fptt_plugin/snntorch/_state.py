"""Where snnTorch's neurons, and ours, keep their recurrent state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import snntorch as snn
from torch import nn

from ..functional.ltc import LTCState
from ..state import StateDict, isolate_with, refuse_to_step, register_state_handler
from ._liquid import LiquidNeuron


class SnnTorchState:
    """State of any snnTorch neuron: its non-persistent buffers."""

    def get(self, module: Any) -> StateDict:
        return {name: getattr(module, name) for name in sorted(module._non_persistent_buffers_set)}

    def set(self, module: Any, state: StateDict) -> None:
        for name, value in state.items():
            setattr(module, name, value)

    def reset(self, module: Any) -> None:
        for name, value in self.get(module).items():
            # DeltaLeaky starts from None, the others from an empty tensor that the next input replaces.
            setattr(module, name, None if value is None else value.detach().new_zeros(0))


class LiquidState(SnnTorchState):
    def get(self, module: LiquidNeuron) -> StateDict:
        module._follow()
        return super().get(module)

    def set(self, module: LiquidNeuron, state: StateDict) -> None:
        module._store(LTCState(state["mem"], state["spk"], state["b"]))

    def reset(self, module: LiquidNeuron) -> None:
        module._clear()


register_state_handler(snn.SpikingNeuron, SnnTorchState())
register_state_handler(LiquidNeuron, LiquidState())

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
    snn.SpikingNeuron.instances = [module for module in net.modules() if isinstance(module, snn.SpikingNeuron)]
    try:
        yield
    finally:
        snn.SpikingNeuron.instances = kept


isolate_with(_own_neurons_alone)

"""Where snnTorch's neurons, and ours, keep their recurrent state."""

from __future__ import annotations

from typing import Any

import snntorch as snn

from ..functional.ltc import LTCState
from ..state import StateDict, register_state_handler
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

"""Where SpikingJelly's stateful modules, and ours, keep their recurrent state."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from spikingjelly.activation_based import base
from torch import Tensor

from ..neurons import register_normalizing
from ..state import StateDict, refuse_to_step, register_state_handler
from ..tree import copy_containers, map_tensors
from .versions import IS_FUNCTIONAL, known_types

# Option -> the attribute, not a memory, in which a node then records every step: it holds the graph, too.
_RECORDS = {"store_v_seq": "v_seq", "store_state_seqs": "state_seqs"}


class MemoryState:
    """State of any ``MemoryModule``: neurons, recurrent containers, synapse filters, delays, dropout masks."""

    replaces = True

    def get(self, module: Any) -> StateDict:
        records = {record: getattr(module, record) for option, record in _RECORDS.items() if getattr(module, option, 0)}
        state: StateDict = copy_containers({**module._memories, **records})
        return state

    def set(self, module: Any, state: StateDict) -> None:
        for name, value in copy_containers(state).items():
            setattr(module, name, value)  # MemoryModule sends the names of memories to _memories

    def reset(self, module: Any) -> None:
        # The library resets tensors in place where it can: give it new ones, so that a state saved before stays.
        module._memories.update(copy.deepcopy(module._memories_rv))
        module.reset()

    def detach(self, module: Any) -> None:
        memories = module._memories
        for name, value in memories.items():
            # Most memories are tensors or numbers; containers, such as a delay's queue, are rare.
            if isinstance(value, Tensor):
                if value.requires_grad:
                    memories[name] = value.detach()
            elif not isinstance(value, float):
                memories[name] = map_tensors(Tensor.detach, value)
        for option, record in _RECORDS.items():
            if getattr(module, option, False):
                setattr(module, record, map_tensors(Tensor.detach, getattr(module, record)))


register_state_handler(base.MemoryModule, MemoryState())
for node in known_types("MPBNBaseNode"):
    register_normalizing(node)


# ---------------------------------------------------------------------- what cannot be advanced step by step

_LIF = "use neuron.LIFNode or fptt_plugin.spikingjelly.LTCLeaky"
_TIME = "weighs the time steps of the whole sequence against each other, the future included: "


def _refuse(reason: str, *names: str, when: Callable[[Any], bool] = lambda module: True) -> None:
    for module_type in known_types(*names):
        refuse_to_step(module_type, reason, when)


_refuse(f"computes all time steps at once: {_LIF}, or neuron.SlidingPSN in 's' mode", "PSN")
_refuse(
    "sees several time steps at once unless in 's' mode with lambda_init=1: set both, or use neuron.SlidingPSN in 's' "
    "mode",
    "MaskedPSN",
    when=lambda node: node.step_mode == "m" or node.lambda_ < 1,
)
_refuse(
    "forgets its queue between two calls in 'm' mode: call functional.set_step_mode(net, 's')",
    *(("SlidingPSN",) if IS_FUNCTIONAL else ("Delay",)),
    when=lambda node: node.step_mode == "m",
)
_refuse(
    "takes the samples of a batch for the time steps of its pattern: leave it out and pass the pattern as the input, "
    "[T, B, ...], repeated as often as it is to be seen",
    "PeriodicEncoder",
)
_refuse(f"has parameters for a fixed number of time steps and no single-step mode: {_LIF}", "GatedLIFNode")
_refuse(
    "starts again at every call and returns a list or one value for all time steps: use "
    "fptt_plugin.spikingjelly.LTCIntegrator, which integrates without spikes and remembers",
    "NonSpikingBaseNode",
    "NoisyNonSpikingBaseNode",
)
_refuse(f"starts again at every call: {_LIF}", "DSRIFNode", "DSRLIFNode", "ILCBaseNode", "NoisyBaseNode")
_refuse(
    "scales each of a fixed number of time steps by itself: use layer.BatchNorm2d (1d, 3d), or "
    "layer.BatchNormThroughTime2d, which counts the steps",
    "TemporalEffectiveBatchNorm1d",
    "TemporalEffectiveBatchNorm2d",
    "TemporalEffectiveBatchNorm3d",
)
# Without its temporal part, too: its channel and spatial attention pool over time.
_refuse(f"{_TIME}leave it out", "TemporalWiseAttention", "MultiDimensionalAttention")
_refuse(
    "keeps its dropped weights for a whole sequence, out of reach of updates in between: pass invariant=False",
    "DropConnectLinear",
    when=lambda linear: linear.invariant,
)

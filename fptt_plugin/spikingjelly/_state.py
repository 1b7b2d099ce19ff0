"""Where SpikingJelly's stateful modules, and ours, keep their recurrent state."""

from __future__ import annotations

import copy
from typing import Any

from spikingjelly.activation_based import base

from ..state import StateDict, map_tensors, register_state_handler

# Option -> the attribute, not a memory, in which a node then records every step: it holds the graph, too.
_RECORDS = {"store_v_seq": "v_seq", "store_state_seqs": "state_seqs"}


class MemoryState:
    """State of any ``MemoryModule``: neurons, recurrent containers, synapse filters, delays, dropout masks."""

    def get(self, module: Any) -> StateDict:
        records = {record: getattr(module, record) for option, record in _RECORDS.items() if getattr(module, option, 0)}
        return _copy_lists({**module._memories, **records})

    def set(self, module: Any, state: StateDict) -> None:
        for name, value in _copy_lists(state).items():
            setattr(module, name, value)  # MemoryModule sends the names of memories to _memories

    def reset(self, module: Any) -> None:
        # The library resets tensors in place where it can: give it new ones, so that a state saved before stays.
        module._memories.update(copy.deepcopy(module._memories_rv))
        module.reset()


def _copy_lists(state: StateDict) -> StateDict:
    """A copy down to the tensors, which stay the same objects; ``layer.Delay`` changes its list in place."""
    return {name: map_tensors(lambda tensor: tensor, value) for name, value in state.items()}


register_state_handler(base.MemoryModule, MemoryState())

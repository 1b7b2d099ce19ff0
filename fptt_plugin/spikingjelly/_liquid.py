"""What the liquid neurons for SpikingJelly share: the state's precision and its detachment."""

from __future__ import annotations

from typing import Any

import torch
from spikingjelly.activation_based import base
from torch import Tensor

from ..gates import Gate

States = tuple[Any, ...]


class LiquidNode(base.MemoryModule):
    """Goes in front of the SpikingJelly class that it extends. Memories are floats before the first input."""

    mem_gate: Gate
    v: Tensor | float

    def _state_like(self, inputs: tuple[Tensor, ...], step_mode: str) -> Tensor:
        """One time step of the input, in the state's dtype."""
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        # In the module's own precision: under autocast x is bfloat16, too coarse to integrate slowly in.
        return x.to(torch.promote_types(x.dtype, self.mem_gate.bias.dtype))

    def detach(self) -> None:
        """Cuts the memories from the graph, out of place."""
        # MemoryModule.detach works in place. In single-step mode the returned tensor also is a memory, so that would
        # cut the output too, and a later backward find no graph; and torch refuses it on views.
        for name, value in self._memories.items():
            if isinstance(value, Tensor):
                self._memories[name] = value.detach()
        super().detach()


def materialize(value: Any, initial: float, like: Tensor) -> Any:
    """A memory as a tensor like that one, by the rules of SpikingJelly's ``BaseNode`` for ``v``.

    A number fills the shape, a tensor of another shape (the batch size changed) starts anew from ``initial``, and
    any other follows dtype and device.
    """
    if isinstance(value, float):
        return torch.full_like(like, value)
    if isinstance(value, Tensor):
        return value.to(like) if value.shape == like.shape else torch.full_like(like, initial)
    return value

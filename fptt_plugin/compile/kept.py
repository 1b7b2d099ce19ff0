"""What a forward pass may change besides the weights, to be put back where a compiled one came to nothing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..state import random_state, set_random_state
from ..training import RunState
from ..tree import tensors_in


class Kept:
    """Attributes, buffers and hooks' sums of a network's modules, the training's state and the random numbers.

    Args:
        net: The network.
        run_state: The training's state, whose recurrent tensors are replaced and never overwritten.
    """

    def __init__(self, net: nn.Module, run_state: RunState) -> None:
        self._run_state = run_state
        self._snapshot = run_state.snapshot()
        self._random = random_state()
        replaced = {id(tensor) for tensor in tensors_in(self._snapshot.recurrent)}
        self._modules: list[tuple[nn.Module, dict[str, Any]]] = []
        self._buffers: list[tuple[nn.Module, str, Tensor | None, Tensor | None]] = []
        self._sums: list[tuple[Any, dict[str, Any]]] = []
        for module in net.modules():
            self._modules.append((module, dict(vars(module))))
            for name, buffer in module._buffers.items():
                value = None if buffer is None or id(buffer) in replaced else buffer.clone()
                self._buffers.append((module, name, buffer, value))
            for hook in module._forward_hooks.values():
                if hasattr(hook, "rates"):
                    self._sums.append((hook.rates, dict(hook.rates.sums)))

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for module, attributes in self._modules:
            now = vars(module)
            for name in now.keys() - attributes.keys():
                del now[name]
            now.update(attributes)
        for module, name, buffer, value in self._buffers:
            module._buffers[name] = buffer
            if buffer is not None and value is not None:
                buffer.copy_(value)
        for rates, sums in self._sums:
            rates.sums = sums
        self._run_state.restore(self._snapshot)
        set_random_state(self._random)

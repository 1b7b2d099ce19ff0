"""What a forward pass may change besides the weights: kept, and restored where a compiled pass fails."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..state import random_state, set_random_state
from ..torch_internals import buffers_of, children_of, forward_hooks
from ..training import RunState, TrainingLoop
from ..tree import map_tensors, tensors_in
from .cuda_graph import copy_


def modules_of(net: nn.Module) -> list[nn.Module]:
    """Every module of a network, as ``net.modules()`` without its lists of names: this is asked at every window."""
    found, seen = [net], {net}
    for module in found:
        for child in children_of(module).values():
            if child is not None and child not in seen:
                seen.add(child)
                found.append(child)
    return found


class Kept:
    """Attributes, buffers and hooks' sums of a network's modules, the training's state and the random numbers.

    Args:
        net: The network.
        run_state: The training's state, whose recurrent tensors are replaced and never overwritten.
    """

    def __init__(self, net: nn.Module, run_state: RunState) -> None:
        self._run_state = run_state
        self._found = modules_of(net)
        hooks = [hook for module in self._found for hook in forward_hooks(module).values()]
        self._observers = [hook for hook in hooks if hasattr(hook, "rates")]
        recurrent = {id(tensor) for tensor in tensors_in(run_state.model.get())}
        self._places = [
            (module, name)
            for module in self._found
            for name, buffer in buffers_of(module).items()
            if id(buffer) not in recurrent
        ]
        self._copies: list[Tensor | None] = []
        self.renew()

    def renew(self) -> None:
        """Keep what is there now, in the same modules."""
        self._snapshot = self._run_state.snapshot()
        self._random = random_state()
        self._modules = [(module, vars(module).copy()) for module in self._found]
        # Copied each time: kernels that write to a buffer need not count that in its version.
        self._buffers = [(buffers_of(module), name, buffers_of(module)[name]) for module, name in self._places]
        self._copies = _copied([buffer for _, _, buffer in self._buffers], self._copies)
        self._sums = [(hook.rates, dict(hook.rates.sums)) for hook in self._observers]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for module, attributes in self._modules:
            now = vars(module)
            for name in now.keys() - attributes.keys():
                del now[name]
            now.update(attributes)
        for (buffers, name, buffer), value in zip(self._buffers, self._copies, strict=True):
            buffers[name] = buffer
            if buffer is not None and value is not None:
                buffer.copy_(value)
        for rates, sums in self._sums:
            rates.sums = sums
        self._run_state.restore(self._snapshot)
        set_random_state(self._random)


def _copied(tensors: list[Tensor | None], copies: list[Tensor | None]) -> list[Tensor | None]:
    """Copies of tensors: into those there are, with one kernel for each type of number, if their forms fit."""
    if list(map(_form, tensors)) != list(map(_form, copies)):
        return [None if tensor is None else tensor.clone() for tensor in tensors]
    copy_([copy for copy in copies if copy is not None], [tensor for tensor in tensors if tensor is not None])
    return copies


def _form(tensor: Tensor | None) -> object:
    return None if tensor is None else (tensor.shape, tensor.dtype, tensor.device)


class KeptBatch:
    """Everything that training on a batch changes, to be put back where an update of it turns out not to be finite.

    Args:
        loop: The training loop, before the batch.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self._forward = Kept(loop.net, loop.run_state)
        state, run_state = loop.updater.optimizer.state, loop.run_state
        self._entries = {weight: dict(entry) for weight, entry in state.items()}
        self._tensors = [*loop.updater.parameters, *tensors_in(list(self._entries.values()))]
        self._copies = [tensor.detach().clone() for tensor in self._tensors]
        self._distribution = run_state.distribution.state_dict()
        self._distribution = map_tensors(Tensor.clone, self._distribution)
        self._counts = run_state.updates, run_state.skipped, loop.updater.regularizer.updates

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        run_state, regularizer = self._loop.run_state, self._loop.updater.regularizer
        state = self._loop.updater.optimizer.state
        for weight in [*state]:
            if weight in self._entries:
                state[weight].clear()
                state[weight].update(self._entries[weight])
            else:
                del state[weight]
        for tensor, value in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(value)
        self._loop.updater.zero_grad()
        self._forward.restore()
        run_state.distribution.load_state_dict(map_tensors(Tensor.clone, self._distribution))
        run_state.updates, run_state.skipped, regularizer.updates = self._counts
        regularizer.note_updates(0)

"""What a network does while it trains: firing rates of its layers, and bytes that autograd keeps."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from .neurons import PerStepNorm
from .state import ModelState
from .torch_internals import is_fake
from .tree import precise


class FiringRates:
    """Context manager that measures the fraction of neurons that fire per time step, layer by layer.

    A layer is a stateful module whose outputs are all 0 or 1; integrators and filters are left out. Every neuron counts
    the same at every time step, for all sizes of batches and slices. Sums stay on the device until :meth:`rates`
    asks for them.

    Args:
        net: The network.

    Example:
        >>> import snntorch as snn
        >>> net = nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True))
        >>> with FiringRates(net) as firing:
        ...     _ = net(torch.tensor([[2.0, 0.0]]))
        >>> firing.rates()
        {'0': 0.5}
    """

    def __init__(self, net: nn.Module) -> None:
        layers = [(name, m) for name, m in ModelState(net).modules() if not isinstance(m, PerStepNorm)]
        # A container's output is that of the layer inside.
        self._layers = [
            (name, layer)
            for name, layer in layers
            if not any(inner is not layer and inner in layer.modules() for _, inner in layers)
        ]
        self._handles: list[Any] = []
        self.sums: dict[str, tuple[Tensor, Tensor, Tensor]] = {}  # spikes, largest s * s - s, neurons times steps

    def __enter__(self) -> FiringRates:
        for name, layer in self._layers:
            self._handles.append(layer.register_forward_hook(SpikeHook(self, name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which nothing is counted: what a callback runs is not part of the epoch.

        Returns:
            A context manager.
        """
        kept, self.sums = self.sums, {}
        try:
            yield
        finally:
            self.sums = kept

    def note(self, name: str, spikes: Tensor) -> None:
        """Count one call of a layer."""
        spikes = spikes.detach()
        zero = torch.zeros((), device=spikes.device, dtype=precise(spikes.device))
        total, largest, count = self.sums.get(name, (zero, zero, zero))
        # Zeros and ones alone have s * s == s everywhere.
        deviation = (spikes * spikes - spikes).abs().amax().to(zero.dtype)
        self.sums[name] = total + spikes.float().sum(), torch.maximum(largest, deviation), count + spikes.numel()

    def reset(self) -> None:
        """Reset the averages."""
        self.sums = {}

    def rates(self) -> dict[str, float]:
        """Return the mean firing rate per layer since the last :meth:`reset`.

        Returns:
            Spikes per neuron and time step, between 0 and 1, by the layer's name.
        """
        return {
            name: (total / count).item()
            for name, (total, deviation, count) in self.sums.items()
            if deviation.item() == 0
        }


class SpikeHook:
    """Forward hook of one layer that reports to a :class:`FiringRates`."""

    def __init__(self, rates: FiringRates, name: str) -> None:
        self.rates = rates
        self.name = name

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        spikes = output[0] if isinstance(output, (tuple, list)) and output else output  # OTTT: [spikes, trace]
        if isinstance(spikes, Tensor) and spikes.numel():
            self.rates.note(self.name, spikes)


class SavedForBackward:
    """Context manager that measures the most bytes that autograd held for a backward pass at any one time.

    This is the memory that grows with the length of the sequence in BPTT and not in FPTT. A tensor saved several times
    counts once, a slice of the input only with its own size, and the network's parameters not at all. Counts what
    PyTorch saves; temporary buffers within an operation are not seen, nor what a compiled window keeps
    within its graph.

    Args:
        net: Its parameters are left out.

    Attributes:
        peak: The most bytes so far.

    Example:
        >>> x = torch.ones(10, requires_grad=True)
        >>> with SavedForBackward(nn.Identity()) as saved:
        ...     y = (2 * x).exp().sum()
        >>> saved.peak
        40
    """

    def __init__(self, net: nn.Module) -> None:
        self.peak = 0
        self._parameters = {p.untyped_storage().data_ptr() for p in net.parameters()}
        self._holders: dict[tuple[int, int], int] = {}  # (address, bytes) -> number of times it is saved
        self._now = 0
        self._hooks = saved_tensors_hooks(self._pack, lambda box: box.tensor)

    def __enter__(self) -> SavedForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: Tensor) -> _Box:
        # Without its graph, which autograd keeps beside it: where a function saves its own output, node, box and tensor
        # would hold each other, and memory that is given back would count on.
        box = _Box(tensor.detach())
        if is_fake(tensor):  # without data: the step is traced to be compiled
            return box
        size = tensor.nbytes
        key = tensor.data_ptr(), size
        if tensor.untyped_storage().data_ptr() not in self._parameters:
            if key not in self._holders:
                self._now += size
                self.peak = max(self.peak, self._now)
            self._holders[key] = self._holders.get(key, 0) + 1
            weakref.finalize(box, self._drop, key, size)
        return box

    def _drop(self, key: tuple[int, int], size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            del self._holders[key]
            self._now -= size


class _Box:
    """Lives exactly as long as autograd keeps the tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

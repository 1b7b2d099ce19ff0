"""Firing rates of a network's spiking layers, measured without keeping any output."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .state import ModelState


class FiringRates:
    """Measures, within its context, the fraction of neurons that fire per time step, layer by layer.

    A layer is a stateful module whose outputs are all 0 or 1; integrators and filters are left out. Sums stay on the
    device until :meth:`rates` asks for them.

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
        layers = ModelState(net).modules()
        # A container's output is that of the layer inside.
        self._layers = [
            (name, layer)
            for name, layer in layers
            if not any(inner is not layer and inner in layer.modules() for _, inner in layers)
        ]
        self._handles: list[Any] = []
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    def __enter__(self) -> FiringRates:
        for name, layer in self._layers:
            self._handles.append(layer.register_forward_hook(self._hook(name)))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str) -> Any:
        def observe(module: nn.Module, args: Any, output: Any) -> None:
            spikes = output[0] if isinstance(output, tuple) else output
            if isinstance(spikes, Tensor) and spikes.numel():
                spikes = spikes.detach()
                mean, square, count = self._sums.get(name, (torch.zeros(()), torch.zeros(()), 0))
                # Zeros and ones alone have s * s == s everywhere.
                deviation = (spikes * spikes - spikes).abs().amax().float()
                self._sums[name] = (
                    mean.to(deviation) + spikes.float().mean(),
                    torch.maximum(square.to(deviation), deviation),
                    count + 1,
                )

        return observe

    def reset(self) -> None:
        """Starts the averages anew."""
        self._sums = {}

    def rates(self) -> dict[str, float]:
        """Mean firing rate per layer since the last :meth:`reset`, in spikes per neuron and time step."""
        return {
            name: (mean / count).item()
            for name, (mean, deviation, count) in self._sums.items()
            if deviation.item() == 0
        }

"""How a network is advanced in time: one call per step, or one call per slice of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from ._validation import Problems
from .state import ModelState, map_tensors

DRIVERS = ("auto", "step", "slice")

Select = Callable[[Any], Tensor]


class StepDriver:
    """For networks whose ``forward`` takes one time step ``[B, ...]`` and whose neurons keep their state.

    Args:
        net: The network.
        state: Its recurrent state.
        select: Picks the output from what the network returns.
    """

    name = "step"

    def __init__(self, net: nn.Module, state: ModelState, select: Select) -> None:
        self.net = net
        self.state = state
        self.select = select

    def advance(self, x: Tensor) -> list[Tensor]:
        """Runs the network over ``x`` ``[K, B, ...]``; returns the ``K`` outputs ``[B, ...]``."""
        return [self.select(self.net(x_t)) for x_t in x]

    def detach(self) -> None:
        """Cuts the graph behind the network's present state."""
        self.state.detach()

    def explain(self) -> str:
        """One line on how the network is called."""
        return "driver: step (net(x_t) once per time step)"


class SliceDriver(StepDriver):
    """For networks with a leading time axis whose neurons keep their state between calls: SpikingJelly in 'm' mode.

    Fed slices ``[K, B, ...]``; nothing about the network is switched. A network that averages over time at its end
    (``net(x).mean(0)``) yields one output for the slice.
    """

    name = "slice"

    def advance(self, x: Tensor) -> list[Tensor]:
        """Runs the network over the slice ``x`` ``[K, B, ...]``; returns ``K`` outputs, or one for the whole slice."""
        output = self.select(self.net(x))
        keeps_time = output.dim() >= 2 and output.shape[:2] == x.shape[:2]
        return list(output.unbind(0)) if keeps_time else [output]

    def explain(self) -> str:
        return "driver: slice (net(x[t:t+K]) once per window of K steps)"


def make_driver(name: str, net: nn.Module, state: ModelState, select: Select) -> StepDriver:
    """The driver of that name; ``"auto"`` takes slices where a module is in SpikingJelly's multi-step mode."""
    if name == "auto":
        multi_step = any(getattr(module, "step_mode", None) == "m" for module in net.modules())
        name = "slice" if multi_step else "step"
    return {"step": StepDriver, "slice": SliceDriver}[name](net, state, select)


def check_network(problems: Problems, net: nn.Module, state: ModelState, optimizer: Optimizer) -> None:
    """Notes a network without state, and an optimizer of another network."""
    problems.check(
        state.modules(),
        f"{type(net).__name__} has no stateful neuron that this package knows, so there is nothing to train through "
        "time: use snnTorch or SpikingJelly neurons, or name the state of your own neuron with "
        "fptt_plugin.state.register_state_handler",
    )
    if isinstance(optimizer, Optimizer):
        own = set(net.parameters())
        strangers = sum(p not in own for group in optimizer.param_groups for p in group["params"])
        problems.check(
            strangers == 0,
            f"the optimizer has {strangers} parameter(s) that are not the network's: build it from net.parameters(), "
            "after the last change to the network",
        )


class FrozenNormalization:
    """Within the context batch normalisation keeps its running statistics, whatever passes through it.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> with FrozenNormalization(norm):
        ...     _ = norm(torch.ones(3, 2))
        >>> norm.running_mean, norm.num_batches_tracked.item()
        (tensor([0., 0.]), 0)
    """

    def __init__(self, net: nn.Module) -> None:
        self._modules = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._NormBase)]
        self._kept: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        # Copies take the blows: a graph built here must still go backward when the statistics are back.
        self._kept = [dict(module._buffers) for module in self._modules]
        for module in self._modules:
            module._buffers.update(map_tensors(Tensor.clone, module._buffers))

    def __exit__(self, *error: object) -> None:
        for module, buffers in zip(self._modules, self._kept, strict=True):
            module._buffers.update(buffers)

"""How a network is advanced in time: one call per step, or one call per slice of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ._validation import Problems
from .state import AttributeHandler, ModelState, map_tensors, refusals

DRIVERS = ("auto", "step", "slice", "in-flight", "explicit")

Select = Callable[[Any], Tensor]
Take = Callable[[list[Tensor], Tensor], None]  # outputs [B, ...] of some steps, and the input [K, B, ...] of these

Shortcut = Callable[[Tensor], int]  # input [T', B, ...] that is left; returns how many steps of it are dealt with


class Driver(Protocol):
    """Advances one network through time and hands on what it puts out."""

    def steps_and_batch(self, x: Tensor) -> tuple[int, int] | None:
        """Steps and batch size of an input, where the driver and not its shape ``[T, B, ...]`` says them."""

    def run(self, x: Tensor, window: int | None, take: Take, shortcut: Shortcut = lambda rest: 0) -> None:
        """Runs the network over a whole sequence; ``take`` gets the outputs as they come.

        A driver that can call the network for some steps alone offers what is left to ``shortcut`` before each window.
        """

    def advance(self, x: Tensor) -> list[Tensor]:
        """Runs the network over some steps ``[K, B, ...]``; returns their outputs ``[B, ...]``."""

    def detach(self) -> None:
        """Cuts the graph behind the network's present state."""

    def explain(self) -> str:
        """One line on how the network is called."""


class StepDriver:
    """For networks whose ``forward`` takes one time step ``[B, ...]`` and whose neurons keep their state.

    Args:
        net: The network.
        state: Its recurrent state.
        select: Picks the output from what the network returns.
    """

    def __init__(self, net: nn.Module, state: ModelState, select: Select) -> None:
        self.net = net
        self.state = state
        self.select = select

    def steps_and_batch(self, x: Tensor) -> tuple[int, int] | None:
        return None

    def run(self, x: Tensor, window: int | None, take: Take, shortcut: Shortcut = lambda rest: 0) -> None:
        done = 0
        while done < len(x):  # slices one by one: views of all steps at once would be memory that grows with them
            steps = shortcut(x[done:])
            if not steps:
                x_window = x[done : done + (window or len(x))]
                self.run_window(x_window, take)
                steps = len(x_window)
            done += steps

    def run_window(self, x: Tensor, take: Take) -> None:
        """Runs the network over one window."""
        for t in range(len(x)):
            take(self.advance(x[t : t + 1]), x[t : t + 1])

    def advance(self, x: Tensor) -> list[Tensor]:
        return [self.select(self.net(x_t)) for x_t in x]

    def detach(self) -> None:
        self.state.detach()

    def explain(self) -> str:
        return "driver: step (net(x_t) once per time step)"


class SliceDriver(StepDriver):
    """For networks with a leading time axis whose neurons keep their state between calls: SpikingJelly in 'm' mode.

    Fed slices ``[K, B, ...]``; nothing about the network is switched. A network that averages over time at its end
    (``net(x).mean(0)``) yields one output for the slice.

    Attributes:
        keeps_time: Whether the output has a time axis; the first batch shows it.
    """

    keeps_time = True

    def run_window(self, x: Tensor, take: Take) -> None:
        take(self.advance(x), x)

    def advance(self, x: Tensor) -> list[Tensor]:
        output = self.select(self.net(x))
        return list(output.unbind(0)) if self.keeps_time else [output]

    def explain(self) -> str:
        return "driver: slice (net(x[t:t+K]) once per window of K steps)"


class ExplicitDriver(StepDriver):
    """For networks that take and return their state, ``net(x_t, state) -> (output, state)``, ``None`` at the start.

    The state may be any nesting of tensors. Neurons that keep a state of their own may be among the layers.
    """

    def __init__(self, net: nn.Module, state: ModelState, select: Select) -> None:
        super().__init__(net, state, select)
        self._carried = Carried()
        state.add("the state that forward() returns", self._carried, AttributeHandler(value=None))

    def advance(self, x: Tensor) -> list[Tensor]:
        return [self._step(x_t) for x_t in x]

    def _step(self, x_t: Tensor) -> Tensor:
        returned = self.net(x_t, self._carried.value)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise ValueError(
                "driver='explicit' calls net(x_t, state) and expects (output, state) back, got "
                f"{type(returned).__name__}: wrap the network in a module that does so"
            )
        output, self._carried.value = returned
        return self.select(output)

    def explain(self) -> str:
        return "driver: explicit (net(x_t, state) -> (output, state) once per time step)"


class Carried(nn.Module):
    """Holds the state that a network with explicit state returned last."""

    value: Any = None


def check_network(
    problems: Problems, net: nn.Module, state: ModelState, optimizer: Optimizer, *, explicit: bool
) -> None:
    """Notes a network without state, and an optimizer of another network."""
    for refusal in refusals(net):
        problems.check(False, refusal)
    problems.check(
        state.modules() or explicit,
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


def step_modes(net: nn.Module) -> dict[str, str]:
    """SpikingJelly's step mode, ``"s"`` or ``"m"``, of every module that has one and is not called by another such."""
    found: dict[str, str] = {}
    inside: set[nn.Module] = set()
    for name, module in net.named_modules():
        supported = getattr(module, "supported_step_mode", None)
        mode = "m" if callable(supported) and tuple(supported()) == ("m",) else getattr(module, "step_mode", None)
        if mode in ("s", "m") and module not in inside:
            found[name] = mode
            inside.update(module.modules())
    return found


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

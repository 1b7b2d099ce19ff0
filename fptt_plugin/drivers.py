"""How a network is advanced in time: one call per step, or one call per slice of steps."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Number
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from ._validation import Problems
from .state import AttributeHandler, ModelState, map_leaves, map_tensors, refusals

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

    Attributes:
        modes: SpikingJelly's step modes for which this driver was chosen.
    """

    def __init__(self, net: nn.Module, state: ModelState, select: Select) -> None:
        self.net = net
        self.state = state
        self.select = select
        self.modes = StepModes(net)

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
        keeps_time: Whether the output has a time axis; ``None`` until the first call shows it.
    """

    keeps_time: bool | None = None
    _loss_within = False  # whether a loss is due within a slice

    def run_window(self, x: Tensor, take: Take) -> None:
        take(self.advance(x), x)

    def advance(self, x: Tensor) -> list[Tensor]:
        output = self.select(self.net(x))
        if self.keeps_time is None:
            self.note_time_axis(output, *x.shape[:2])
            self._check_losses()
        return list(output.unbind(0)) if self.keeps_time else [output]

    def note_time_axis(self, output: Tensor, steps: int, samples: int) -> None:
        """Notes whether the output for so many steps and samples has a time axis.

        Raises:
            ValueError: If it has another shape.
        """
        if output.shape[:2] != (steps, samples) and output.shape[:1] != (samples,):
            raise ValueError(
                f"{type(self.net).__name__} returned an output of shape {tuple(output.shape)} for {steps} steps of "
                f"{samples} samples: expected [{steps}, {samples}, ...], or [{samples}, ...] from a network that "
                "averages over time; a still image must be repeated over time before: "
                "x.unsqueeze(0).expand(T, *x.shape)"
            )
        self.keeps_time = output.shape[:2] == (steps, samples)

    def note_strides(self, window: int | None, loss_every: int | None) -> None:
        """Notes steps per slice and per loss.

        Raises:
            ValueError: If a loss is due within a slice of which only the average over time is known.
        """
        self._loss_within = loss_every is not None and (window is None or loss_every % window != 0)
        self._check_losses()

    def _check_losses(self) -> None:
        if self._loss_within and self.keeps_time is False:
            raise ValueError(
                f"loss_every asks for a loss within a window, and {type(self.net).__name__} averages its output over "
                "the time steps of the window: leave loss_every out (one loss per window), make it a multiple of "
                "window, or let forward() return its output of every step, [T, B, ...]"
            )

    def explain(self) -> str:
        return "driver: slice (net(x[t:t+K]) once per window of K steps)"


class ExplicitDriver(StepDriver):
    """For networks that take and return their state, ``net(x_t, state) -> (output, state)``, ``None`` at the start.

    The state may be tensors, numbers and ``None``, nested in dicts, lists, tuples and dataclasses, and the network may
    change these containers in place. Neurons that keep a state of their own may be among the layers.
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
        output, state = returned
        self._carried.value = map_leaves(self._known, state)
        return self.select(output)

    def _known(self, leaf: Any) -> Any:
        if leaf is None or isinstance(leaf, (Tensor, Number, str)):
            return leaf
        raise ValueError(
            f"the state that {type(self.net).__name__} returns holds an object of type {type(leaf).__name__}, which "
            "cannot be detached from the graph or put back: let the state be tensors, numbers and None, nested in "
            "dicts, lists, tuples, named tuples and dataclasses"
        )

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


class StepModes:
    """The step mode of every module that has one, to see whether it is still the same.

    Args:
        net: The network. Its modules are looked up once, here.

    Example:
        >>> from spikingjelly.activation_based import functional, layer
        >>> net = nn.Sequential(layer.Linear(2, 3))
        >>> modes = StepModes(net)
        >>> functional.set_step_mode(net, "m"); modes.changed()
        True
    """

    def __init__(self, net: nn.Module) -> None:
        self._modules: list[Any] = [module for module in net.modules() if hasattr(module, "step_mode")]
        self._noted = self._now()

    def _now(self) -> list[str]:
        return [module.step_mode for module in self._modules]

    def changed(self) -> bool:
        """Whether a step mode is another one by now; cheap enough to ask at every step of a stream."""
        return self._now() != self._noted


def normalizations(net: nn.Module) -> dict[str, nn.Module]:
    """The batch normalisations of a network, by name.

    Example:
        >>> normalizations(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        {'1': BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)}
    """
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}


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
        self._modules = list(normalizations(net).values())
        self._kept: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        # Copies take the blows: a graph built here must still go backward when the statistics are back.
        self._kept = [dict(module._buffers) for module in self._modules]
        for module in self._modules:
            module._buffers.update(map_tensors(Tensor.clone, module._buffers))

    def __exit__(self, *error: object) -> None:
        for module, buffers in zip(self._modules, self._kept, strict=True):
            module._buffers.update(buffers)

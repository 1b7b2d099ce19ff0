"""Finds out how a network wants to be driven, from one dry run without gradients on a copy of it."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._inflight import InFlightDriver, Length
from .drivers import Driver, ExplicitDriver, Select, SliceDriver, StepDriver
from .state import ModelState


def find_driver(
    name: str,
    net: nn.Module,
    state: ModelState,
    select: Select,
    output_module: str | None,
    x: Tensor,
    batch_first: bool,
) -> Driver:
    """The driver for this network and input ``x`` (a batch of sequences, or whatever the network's forward takes).

    Args:
        name: ``"auto"``, or the driver that the user asked for.
        net: The network; not changed.
        state: Its recurrent state.
        select: Picks the output from what the network or its output module returns.
        output_module: The user's choice of the module that ends a time step.
        x: A batch as the user passes it.
        batch_first: Layout of ``x`` for step and slice drivers.

    Raises:
        ValueError: If the network cannot be stepped; says why, and what to do.
    """
    probe = Probe(net, state)
    failure: Exception | None = None
    if name == "auto":
        x_t = x[:, 0] if batch_first else x[0]
        try:
            calls = probe.calls(x_t.repeat(2, *[1] * (x_t.dim() - 1)) if len(x_t) == 1 else x_t[:2])
        except Exception as error:  # a network that loops over time fails on one step in any way it likes
            failure = error
        else:
            if len(calls.neurons) == len(set(calls.neurons)) > 0:
                probe.warn_if_it_forgets(x_t)
                return StepDriver(net, state, select)
    try:
        calls = probe.calls(x)
    except Exception as error:
        step = f" nor on one step of it ({failure!r})" if failure else ""
        raise ValueError(
            f"{type(net).__name__} does not run on an input of shape {tuple(x.shape)} ({error!r}){step}: call it on "
            "your data by hand to see why"
        ) from error
    period, steps = _period(calls.neurons)
    if steps == 1:
        if name == "auto" and len(set(calls.neurons)) == len(calls.neurons):
            return StepDriver(net, state, select)
        raise ValueError(_not_stepwise(net, calls.neurons))
    module = output_module or _end_of_step(calls.leaves, calls.neurons, period, steps)
    if calls.leaves.count(module) != steps:
        raise ValueError(
            f"output_module={module!r} is called {calls.leaves.count(module)} times in {steps} time steps; name a "
            "module that is called once at the end of each"
        )
    axes = [axis for axis in (0, 1) if x.dim() >= 3 and x.shape[axis] == steps]
    if len(axes) == 2:  # T = B: the usual layout of the library decides, and the loop's count is checked in every run
        axes = [1 if batch_first else 0]
    _check_eager(net)
    return InFlightDriver(net, state, select, module, Length(axes[0] if axes else None, steps))


def known_driver(name: str, net: nn.Module, state: ModelState, select: Select) -> Driver | None:
    """The driver, where the user's choice or the network's own marks settle it without a dry run."""
    if name == "auto" and any(getattr(module, "step_mode", None) == "m" for module in net.modules()):
        name = "slice"
    if name == "auto" and takes_state(net):
        name = "explicit"
    drivers: dict[str, type[StepDriver]] = {"step": StepDriver, "slice": SliceDriver, "explicit": ExplicitDriver}
    return drivers[name](net, state, select) if name in drivers else None


def takes_state(net: nn.Module) -> bool:
    """Whether ``forward`` names its second argument a state: ``net(x_t, state) -> (output, state)``."""
    names = list(inspect.signature(net.forward).parameters)
    return len(names) == 2 and names[1] in ("state", "states", "hidden", "h", "hx")


class Calls(NamedTuple):
    """Names of the leaf modules, and of the neurons among them, in the order of their calls."""

    leaves: list[str]
    neurons: list[str]


class Probe:
    """Runs a copy of a network and records which modules are called; the network itself stays as it is."""

    def __init__(self, net: nn.Module, state: ModelState) -> None:
        kept = state.get()
        state.reset()  # a state with a graph cannot be copied
        try:
            self.net = copy.deepcopy(net)
        finally:
            state.set(kept)
        for module in self.net.modules():
            module._forward_hooks.clear()  # monitors of the original have nothing to see here
        self.state = ModelState(self.net)

    def calls(self, x: Tensor) -> Calls:
        """Runs the copy on ``x`` from its initial state."""
        calls, neurons = Calls([], []), dict(self.state.modules())
        inside = {id(m) for neuron in neurons.values() for m in neuron.modules() if m is not neuron}
        inner = {name for name, neuron in neurons.items() if id(neuron) in inside}

        def note(name: str, neuron: bool) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                calls.leaves.append(name)
                if neuron:
                    calls.neurons.append(name)

            return hook

        handles = []
        for name, module in self.net.named_modules():
            neuron = name in neurons and name not in inner
            if neuron or (not any(module.children()) and id(module) not in inside):
                handles.append(module.register_forward_hook(note(name, neuron)))
        try:
            self.state.reset()
            self._run(x)
        finally:
            for handle in handles:
                handle.remove()
        return calls

    def _run(self, x: Tensor) -> None:
        with torch.no_grad(), torch.random.fork_rng():
            self.net(x)

    def warn_if_it_forgets(self, x_t: Tensor) -> None:
        """Warns of a network that resets its neurons at every call: step by step it would have no memory."""
        self.state.reset()
        self._run(x_t)
        before = self.state.get()
        forgetful: list[str] = []

        def watch(name: str) -> Callable[..., None]:
            def hook(*_: Any) -> None:
                now = self.state.get()[name]
                if any(isinstance(v, Tensor) and now.get(key) is not v for key, v in before[name].items()):
                    forgetful.append(name)

            return hook

        handles = [module.register_forward_pre_hook(watch(name)) for name, module in self.state.modules()]
        self._run(x_t)
        for handle in handles:
            handle.remove()
        if forgetful:
            warnings.warn(
                f"{type(self.net).__name__} resets {', '.join(map(repr, forgetful))} at every call of forward(), so it "
                "has no memory from one time step to the next: move the reset (init_leaky(), reset_mem(), "
                "utils.reset(), functional.reset_net()) out of forward(); the trainer resets before each sequence",
                UserWarning,
                stacklevel=2,
            )


def _period(neurons: list[str]) -> tuple[int, int]:
    """Length of the repeating pattern of neuron calls, and how often it repeats."""
    for period in range(1, len(neurons) // 2 + 1):
        if len(neurons) % period == 0 and neurons == neurons[:period] * (len(neurons) // period):
            return period, len(neurons) // period
    return len(neurons), 1


def _end_of_step(leaves: list[str], neurons: list[str], period: int, steps: int) -> str:
    """The last module called in every time step: a readout layer behind the last neuron, or that neuron."""
    last = neurons[period - 1]
    ends = [index for index, name in enumerate(leaves) if name == last]
    per_step = len(ends) // steps
    ends = ends[per_step - 1 :: per_step]
    tail = leaves[ends[-1] + 1 :]
    gaps = [leaves[begin + 1 : end] for begin, end in pairwise(ends)]
    # What follows the last neuron of the last step follows it in every step, unless it comes after the loop.
    shared = [name for name in tail if all(name in gap for gap in gaps)]
    return shared[-1] if shared else last


def _not_stepwise(net: nn.Module, neurons: list[str]) -> str:
    runs = [name for index, name in enumerate(neurons) if index == 0 or neurons[index - 1] != name]
    order = ", ".join(map(repr, runs[:6])) + (", ..." if len(runs) > 6 else "")
    return (
        f"{type(net).__name__} does not go through its neurons time step by time step (it calls {order}), for instance "
        "because it runs one layer over the whole sequence before the next: call all layers within one loop over time, "
        "or let forward() take one step"
    )


def _check_eager(net: nn.Module) -> None:
    if isinstance(net, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "the network loops over time inside forward(), and DistributedDataParallel allows one backward per "
            "forward: let forward() take one time step, or train in one process"
        )
    if hasattr(net, "_orig_mod"):
        raise ValueError(
            "the network loops over time inside forward() and is compiled, which leaves no place to train in between: "
            "pass the network itself instead of torch.compile(net)"
        )

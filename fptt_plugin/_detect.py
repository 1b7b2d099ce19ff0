"""Finds out how a network wants to be driven, from dry runs on a copy of it."""

from __future__ import annotations

import inspect
import warnings
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ._inflight import InFlightDriver, Length, check_eager, unwrapped
from ._probe import Calls, Probe, is_record
from ._validation import Problems
from .drivers import Driver, ExplicitDriver, Select, SliceDriver, StepDriver, step_modes
from .state import ModelState, tensors_in

_STEPS, _SAMPLES = 6, 3  # of the look at what forward() returns, which holds the graph of all its steps


def find_driver(
    name: str,
    net: nn.Module,
    state: ModelState,
    select: Select,
    output_module: str | None,
    x: Tensor,
    batch_first: bool,
    window: int | None,
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
        window: Steps per window, ``None`` for the whole sequence.

    Raises:
        ValueError: If the network cannot be stepped; says why, and what to do.
    """
    if 0 in x.shape[:2]:
        raise ValueError(f"x of shape {tuple(x.shape)} is empty: leave it out, or check how the data were cut")
    probe = Probe(unwrapped(net))
    what = type(probe.net).__name__
    failure: Exception | None = None
    if name == "auto":
        x_t = x[:, 0] if batch_first else x[0]
        for rows in (x_t.repeat(2, *[1] * (x_t.dim() - 1)) if len(x_t) == 1 else x_t[:2], x_t):
            try:
                calls = probe.calls(rows)
            except Exception as error:  # a network that loops over time fails on one step in any way it likes
                failure = failure or error
                continue
            if calls.unique:
                _warn_of_resets(probe, rows)
                return StepDriver(net, state, select)
            break
    try:
        calls = probe.calls(x)
    except Exception as error:
        raise ValueError(_does_not_run(probe.net, x, error, failure)) from error
    steps = _steps(calls, output_module)
    length = _length(probe, calls, x, steps, batch_first)
    if steps == 1 and length.axis is not None:  # one step looks like any other network; two show the loop
        calls = probe.calls(torch.cat([x, x], length.axis))
        steps = _steps(calls, output_module)
    if steps == 1:
        raise ValueError(_not_stepwise(what, calls) if calls.neurons else f"{what} calls none of its neurons")
    module = output_module or _end_of_step(calls, steps)
    every = calls.modules.count(module) // steps
    late = [m for m in _after(calls, module) if m and calls.modules.count(m) < steps and probe.trainable(m)]
    if late:
        raise ValueError(
            f"{what} calls {', '.join(map(repr, late))} after its loop over time, where no time step could train it: "
            "move it to the end of the loop's body, or freeze it with requires_grad_(False)"
        )
    check_eager(net)
    copied = InFlightDriver(probe.net, probe.state, select, module, length, every)
    if window is not None:
        early = calls.modules[: calls.modules.index(calls.neurons[0])]
        hoisted = [m for m in early if calls.modules.count(m) < steps and probe.trainable(m)]
        _rehearse(copied, x, probe, hoisted)
    _warn_of_unseen(copied, x, probe, chosen=output_module is not None)
    return InFlightDriver(net, state, select, module, length, every)


def known_driver(name: str, net: nn.Module, state: ModelState, select: Select) -> Driver | None:
    """The driver, where the user's choice or the network's own marks settle it without a dry run."""
    if name == "auto" and "m" in step_modes(net).values():
        name = "slice"
    if name == "auto" and takes_state(net):
        name = "explicit"
    drivers: dict[str, type[StepDriver]] = {"step": StepDriver, "slice": SliceDriver, "explicit": ExplicitDriver}
    return drivers[name](net, state, select) if name in drivers else None


def takes_state(net: nn.Module) -> bool:
    """Whether ``forward`` names its second argument a state: ``net(x_t, state) -> (output, state)``."""
    names = list(inspect.signature(net.forward).parameters)
    return len(names) == 2 and names[1] in ("state", "states", "hidden", "h", "hx")


def check_output_module(problems: Problems, net: nn.Module, name: str | None, driver: str) -> None:
    """Notes an output module that the network does not have, or the driver no use for."""
    if name is None:
        return
    names = [known for known, _ in net.named_modules() if known]
    problems.check(name in names, f"output_module={name!r} is no module of the network; it has {', '.join(names)}")
    problems.check(
        driver in ("auto", "in-flight"),
        f"output_module={name!r} is for networks that loop over time in forward(), driver='in-flight', not {driver!r}",
    )


def _length(probe: Probe, calls: Calls, x: Tensor, steps: int, batch_first: bool) -> Length:
    """Where the loop gets its number of steps from: a cut along the time axis changes it, one along others does not."""
    for axis in (1, 0) if batch_first else (0, 1):
        size = x.shape[axis] if x.dim() >= 3 else 0
        if size == 0 or steps % size or (size == 1 and steps > 1):
            continue
        other = torch.cat([x, x], axis) if size == 1 else x.narrow(axis, 0, min(2, size - 1))
        try:
            changed = len(probe.calls(other).neurons) != len(calls.neurons)
        except Exception:
            if size == steps > 1:  # it looked for the steps that were cut off
                return Length(axis, steps, fixed=True)
            continue
        if changed and size == steps:
            return Length(axis, steps)
        if changed:
            names = ", ".join(map(repr, dict.fromkeys(calls.neurons)))
            raise ValueError(
                f"{type(probe.net).__name__} calls {names} {steps} times on an input of {size} time steps: name the "
                "module whose call ends a time step with output_module, if need be an nn.Identity that the output "
                "passes through"
            )
    return Length(None, steps)


def _steps(calls: Calls, output_module: str | None) -> int:
    """Time steps in a run: so many as the pattern of calls repeats, unless the user's output module is called less."""
    steps = calls.steps()
    if output_module is None:
        return steps
    count = calls.modules.count(output_module)
    if count == 0:
        raise ValueError(f"output_module={output_module!r} is not called by forward(): name one that is")
    return count if count % steps or steps == 1 else steps


def _end_of_step(calls: Calls, steps: int) -> str:
    """The last module called in every time step: a readout layer behind the last neuron, or that neuron."""
    last = calls.neurons[-1]
    ends = [index for index, name in enumerate(calls.modules) if name == last]
    per_step = len(ends) // steps
    ends = ends[per_step - 1 :: per_step]
    gaps = [calls.modules[begin + 1 : end] for begin, end in pairwise(ends)]
    # What follows the last neuron of the last step follows it in every step, unless it comes after the loop.
    tail = [name for name in calls.modules[ends[-1] + 1 :] if all(name in gap for gap in gaps)]
    return tail[-1] if tail else last


def _after(calls: Calls, module: str) -> list[str]:
    """What is called when ``module`` has been called for the last time."""
    return calls.modules[len(calls.modules) - calls.modules[::-1].index(module) :]


class _Enough(Exception):  # noqa: N818 - no error
    pass


def _rehearse(driver: InFlightDriver, x: Tensor, probe: Probe, hoisted: list[str]) -> None:
    """Goes backward after each of the first steps of a copy, to see whether something outlives the step."""
    count = 0

    def take(outputs: list[Tensor], _: Any) -> None:
        nonlocal count
        if outputs[0].requires_grad:
            outputs[0].sum().backward()
        driver.detach()
        count += 1
        if count == 3:
            raise _Enough

    probe.state.reset()
    driver.hoisted = hoisted
    try:
        with torch.enable_grad(), torch.random.fork_rng():
            driver.run(x, 1, take)
    except _Enough:
        pass
    except RuntimeError as error:  # the network would be in the middle of its training
        raise ValueError(str(error)) from error


def _warn_of_unseen(driver: InFlightDriver, x: Tensor, probe: Probe, chosen: bool) -> None:
    """Warns where ``forward`` returns something else than the driver takes; a module that the user chose may differ."""
    look = _look(driver, x, probe)
    if look is None:
        return
    x, taken, returned = look
    what, module = type(probe.net).__name__, repr(driver.output_module)
    facts = [f"{what} is trained on what module {module} returns in each time step, and on nothing else"]
    remedy = "pass what the loss is to see through an nn.Identity() at the end of the loop's body"
    if not chosen:
        remedy += ", or name the module that returns it with output_module"
    if not chosen and not _is_known(returned, taken):
        facts.append(
            f"of an input {tuple(x.shape)} {module} returns {_shapes(taken[0][0])} at each step, and forward() "
            f"{_shapes(returned)}, which is not that stacked over time, nor its last value, sum, mean or maximum"
        )
    trained = probe.parameters_behind(taken)
    untrained = [name for name in probe.parameters_behind(returned) if name not in trained]
    if untrained:
        facts.append(
            f"{', '.join(map(repr, untrained))}, which forward() uses for what it returns, would never be trained"
        )
        remedy += ", or freeze what is not to be trained with requires_grad_(False)"
    if len(facts) > 1:
        warnings.warn(f"{'; '.join(facts)}: {remedy}", UserWarning, stacklevel=3)


def _look(driver: InFlightDriver, x: Tensor, probe: Probe) -> tuple[Tensor, list[Any], Any] | None:
    """A part of the input, what the driver takes at each step of it, as it is and selected, and what comes back."""
    for part in _excerpts(x, driver.length):
        try:
            outputs, returned = probe.outputs(part, driver.output_module)
            steps = driver.length(part)
            taken = [(output, driver.selected(output)) for output in outputs[driver.every - 1 :: driver.every][:steps]]
        except Exception:  # it may need all samples; if it needs more, it goes without this look
            continue
        if len(taken) == steps:
            return part, taken, returned
    return None


def _is_known(returned: Any, taken: list[Any]) -> bool:
    """Whether ``forward`` returns something that the driver takes, or nothing to compare with."""
    series = [entry for entry in zip(*map(tensors_in, taken), strict=False) if len({t.shape for t in entry}) == 1]
    found = tensors_in(returned)
    return not (found and series) or any(is_record(tensor, entry) for tensor in found for entry in series)


def _excerpts(x: Tensor, length: Length) -> list[Tensor]:
    """A few samples of an input; where its length is free, a few steps (two at least) of these, then of all samples."""
    batch = 1 if length.axis == 0 else 0
    few = x.narrow(batch, 0, min(_SAMPLES, x.shape[batch]))
    if length.axis is None or length.fixed:
        return [few]  # all samples at all steps may be more than fits
    size = x.shape[length.axis]
    steps = torch.arange(min(max(size, 2), _STEPS), device=x.device) % size
    return [part.index_select(length.axis, steps) for part in (few, x)]


def _shapes(value: Any) -> str:
    return ", ".join(dict.fromkeys(str(tuple(tensor.shape)) for tensor in tensors_in(value)))


def _warn_of_resets(probe: Probe, rows: Tensor) -> None:
    forgotten = probe.forgotten(rows)
    if forgotten:
        warnings.warn(
            f"{type(probe.net).__name__} resets {', '.join(map(repr, forgotten))} at every call of forward(), so it "
            "has no memory from one time step to the next: move the reset (init_leaky(), reset_mem(), utils.reset(), "
            "functional.reset_net()) out of forward() and call the neuron without its state; the trainer resets "
            "before each sequence",
            UserWarning,
            stacklevel=2,
        )


def _does_not_run(net: nn.Module, x: Tensor, error: Exception, failure: Exception | None) -> str:
    step = f" nor on one step of it ({failure!r})" if failure and repr(failure) != repr(error) else ""
    required = [p.name for p in inspect.signature(net.forward).parameters.values() if p.default is p.empty]
    remedy = "call it on your data by hand to see why"
    if len(required) > 1 and "args" not in required:
        remedy = (
            f"its forward() takes {', '.join(required)}; wrap it in a module whose forward(x_t, state) returns "
            "(output, state), where state is a tuple of the states, and None at the start of a sequence"
        )
    tuples = [name for name, module in net.named_modules() if getattr(module, "init_hidden", True) is False]
    if tuples and "not tuple" in str(error):
        names = ", ".join(map(repr, tuples))
        remedy = f"{names} return (spk, mem), which the next layer cannot take: build them with init_hidden=True"
    return f"{type(net).__name__} does not run on an input of shape {tuple(x.shape)} ({error!r}){step}: {remedy}"


def _not_stepwise(what: str, calls: Calls) -> str:
    if calls.unique:
        return (
            f"{what} calls each of its neurons once on an input of this shape, so there is no time in it: pass "
            "sequences, [T, B, ...]; for a still image, x.unsqueeze(0).expand(T, *x.shape)"
        )
    neurons = calls.neurons
    runs = [name for index, name in enumerate(neurons) if index == 0 or neurons[index - 1] != name]
    order = ", ".join(map(repr, runs[:6])) + (", ..." if len(runs) > 6 else "")
    return (
        f"{what} does not go through its neurons time step by time step (it calls {order}), for instance because it "
        "runs one layer over the whole sequence before the next: call all layers within one loop over time, or let "
        "forward() take one step; if it does and calls one neuron several times in it, pass driver='step'; if it loops "
        "and does so, name the module whose call ends a time step with output_module"
    )

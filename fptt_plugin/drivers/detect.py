"""Finds out how a network wants to be driven, from dry runs on a copy of it."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Container
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import (
    BatchError,
    CannotRunError,
    CannotStepError,
    ConfigurationError,
    ErrorList,
    FPTTError,
    FPTTWarning,
)
from ..state import ModelState, unsupported_layers
from ..tree import tensors_in
from .base import Driver, Select, cannot_step, driver_named, driver_names, step_modes
from .explicit import ExplicitDriver
from .failures import does_not_run, neurons_rest
from .in_flight import InFlightDriver, TimeAxis, check_eager
from .inputs import further_arguments, input_hook, takes_membrane, takes_state
from .returned import Returned, StepOutput, differ, identify, lively_inputs, told_apart
from .step import StepDriver
from .trial import Calls, TrialCopy

_SAMPLES = 3  # of the look at what forward() returns
_LONGER = 16  # steps at most, of the second look


def known_driver(choice: str | Driver, net: nn.Module, state: ModelState, select: Select) -> Driver | None:
    """The driver, where the user's choice or the network's own marks settle it without a dry run."""
    if isinstance(choice, Driver):
        return choice.bind(net, state, select)
    if choice == "auto" and "m" in step_modes(net).values():
        choice = "slice"
    if choice == "auto" and takes_state(net):
        choice = "explicit"
    return None if choice in ("auto", "in-flight") else driver_named(choice).bind(net, state, select)


def find_driver(
    choice: str,
    net: nn.Module,
    state: ModelState,
    select: Select,
    x: Tensor,
    *,
    output_module: str | None,
    output_chosen: bool,
    batch_first: bool,
    window: int | None,
    training: bool,
) -> Driver:
    """Find the driver for a network by dry runs of a copy on the first batch.

    Args:
        choice: ``"auto"``, or ``"in-flight"`` if the user asked for it.
        net: The network; not changed.
        state: Its recurrent state.
        select: Picks the output from what the network returns.
        x: A batch as the user passes it.
        output_module: The user's choice of the module that ends a time step.
        output_chosen: Whether ``select`` follows a choice of the user.
        batch_first: Layout of ``x`` for step and slice drivers.
        window: Steps per window, ``None`` for the whole sequence.
        training: Whether the copy is in training mode.

    Raises:
        CannotStepError: If the network cannot be stepped; says why, and what to do.
        BatchError: If the batch is empty.
        ConfigurationError: If ``batch_first`` contradicts the loop in ``forward``.
    """
    if 0 in x.shape[:2]:
        raise BatchError(f"x of shape {tuple(x.shape)} is empty", "leave it out, or check how the data were cut")
    copy = TrialCopy(net, training=training)
    failure = None
    if choice == "auto":
        x_t = x[:, 0] if batch_first else x[0]
        runs, failure = _runs_on_one_step(copy, x_t)
        if runs:
            return _driver_of_steps(copy, x_t).bind(net, state, select)
    try:
        calls = copy.calls(x)
    except Exception as error:
        raise does_not_run(net, copy, x, error, on_step=failure) from error
    if isinstance(failure, FPTTError) and calls.unique:
        raise does_not_run(net, copy, x_t, failure, given=x, what="one step")
    steps, time, calls = _time_axis(copy, calls, x, output_module, batch_first)
    if batch_first and time.axis == 0:
        raise ConfigurationError(
            f"batch_first=True says that the input is [B, T, ...], and {type(net).__name__} loops over its first axis",
            "let forward() loop over the second, for x_t in x.transpose(0, 1), or pass [T, B, ...] and leave out "
            "batch_first=True",
        )
    module = output_module or _end_of_step(calls, steps)
    _check_end(copy, calls, steps, module)
    check_eager(net)
    returned = None
    if output_module is None:
        returned = _what_it_returns(copy, x, time, select, chosen=output_chosen)
        if returned is None and output_chosen:
            warnings.warn(
                "output does not pick a stack, last value, mean, sum or maximum over time from what "
                f"{type(copy.net).__name__} returns, so it picks from what its module {module!r} returns at each step: "
                "predict(x) is not what forward(x) returns. If this is meant to be so, pass "
                f"output_module={module!r}, too",
                FPTTWarning,
                stacklevel=4,
            )
    every = calls.modules.count(module) // steps
    if window is not None:
        early = calls.modules[: calls.modules.index(calls.neurons[0])]
        hoisted = [m for m in early if calls.modules.count(m) < steps and copy.trainable(m)]
        _rehearse(InFlightDriver(module, time, every, returned).bind(copy.net, copy.state, select), x, copy, hoisted)
    driver = InFlightDriver(module, time, every, returned).bind(net, state, select)
    if returned is not None:
        driver.readout_in_evaluation = _readout_in_evaluation(copy, x, time, select, chosen=output_chosen)
    return driver


def _runs_on_one_step(copy: TrialCopy, x_t: Tensor) -> tuple[bool, Exception | None]:
    """Whether ``forward`` takes one time step and calls each neuron once, and the error if it does not run."""
    failure: Exception | None = None
    for rows in (x_t.repeat(2, *[1] * (x_t.dim() - 1)) if len(x_t) == 1 else x_t[:2], x_t):
        try:
            calls = copy.calls(rows)
        except Exception as error:  # a network that loops over time fails on one step in any way it likes
            failure = failure or error
            continue
        if calls.unique:
            _warn_of_resets(copy, rows)
        return calls.unique, failure
    return False, failure


def _driver_of_steps(copy: TrialCopy, x_t: Tensor) -> Driver:
    """The driver of a network that takes one time step."""
    if not _takes_its_state(copy, x_t):
        return StepDriver()
    driver = ExplicitDriver()
    driver.sees_state = True
    return driver


def _takes_its_state(copy: TrialCopy, x_t: Tensor) -> bool:
    """Whether the explicit driver is to call ``forward``; warns of what may be a state and is not named like one."""
    names = further_arguments(copy.net)
    if not names or input_hook(copy.net) is not None:
        return False
    if not any(copy.passes_on(candidate, names) for candidate in itertools.islice(lively_inputs(x_t), 3)):
        return False
    if takes_membrane(copy.net):
        return True
    kind, listed = type(copy.net).__name__, ", ".join(names)
    remedy = "let forward(x_t, state) take it, None at first, and return (output, state), and pass driver='explicit'"
    if len(names) > 1:
        remedy = "let forward(x_t, state) take and return them as one tuple, state=None at first"
    warnings.warn(
        f"{kind} is called without {listed} at every step, and its result depends on what the step before returned for "
        f"{'it' if len(names) == 1 else 'them'}. If this is its state, {remedy}",
        FPTTWarning,
        stacklevel=4,
    )
    return False


def check_driver(problems: ErrorList, net: nn.Module, driver: str | Driver, output_module: str | None) -> None:
    """Record an unknown driver, and an output module that the network does not have or the driver does not use."""
    if isinstance(driver, type):
        problems.check(False, f"driver={driver.__name__} is a class", f"pass an instance, {driver.__name__}(...)")
    elif not isinstance(driver, Driver):
        problems.check_choice("driver", driver, driver_names())
    if output_module is None:
        return
    names = [known for known, _ in net.named_modules() if known]
    problems.check(
        output_module in names,
        f"output_module={output_module!r} is not a module of the network; it has {', '.join(names)}",
    )
    problems.check(
        driver in ("auto", "in-flight"),
        f"output_module={output_module!r} is for networks that loop over time in forward(), driver='in-flight', not "
        f"{driver!r}",
    )


def check_network(
    problems: ErrorList, net: nn.Module, state: ModelState, optimizer: Optimizer, driver: str | Driver
) -> None:
    """Record layers that cannot be stepped, a network without state, and an optimizer of another network."""
    for error in unsupported_layers(net):
        problems.add(error)
    carries_state = driver == "explicit" or isinstance(driver, Driver) or takes_state(net)
    if not state.modules() and not carries_state:
        problems.add(_without_state(net))
    if isinstance(optimizer, Optimizer):
        own = set(net.parameters())
        foreign = sum(p not in own for group in optimizer.param_groups for p in group["params"])
        problems.check(
            foreign == 0,
            f"the optimizer has {foreign} parameter(s) that are not the network's",
            "build it from net.parameters(), after the last change to the network; parameters of a loss function join "
            "the network with net.register_parameter(name, parameter)",
        )


def _without_state(net: nn.Module) -> CannotStepError:
    names = further_arguments(net)
    loops = [(name, module) for name, module in net.named_modules() if name and takes_state(module)]
    if loops and not takes_membrane(net):
        name, layer = loops[0]
        call, out = f"y, state = self.{name}(x_t.unsqueeze(0), state)", "y[0]"
        if isinstance(layer, nn.RNNCellBase):
            call, out = f"state = self.{name}(x_t, state)", "state[0]" if isinstance(layer, nn.LSTMCell) else "state"
        return cannot_step(
            net,
            f"has no stateful neuron, and {name!r} ({type(layer).__name__}) forgets its state unless it is passed on "
            "from step to step",
            f"let forward take a step and the state: def forward(self, x_t, state), in it {call}, then the layers "
            f"behind it on {out}, and return both, output and state",
        )
    if len(names) == 1:
        return cannot_step(
            net,
            "has no stateful neuron that this package knows",
            f"if {names[0]!r} is its state, pass driver='explicit', which calls net(x_t, state) and expects (output, "
            "state) back",
        )
    return cannot_step(
        net,
        "has no stateful neuron that this package knows, so there is nothing to train through time",
        "use snnTorch or SpikingJelly neurons, or name the state of your own neuron with "
        "fptt_plugin.state.register_state_handler",
    )


# ---------------------------------------------------------------------- where the time axis is


def _time_axis(
    copy: TrialCopy, calls: Calls, x: Tensor, output_module: str | None, batch_first: bool
) -> tuple[int, TimeAxis, Calls]:
    """Time steps of the loop in ``forward``, where it gets their number from, and the calls that show it."""
    fixed = None
    first = (1, 0) if batch_first else (0, 1)
    for axis in (*first, *range(2, x.dim())):  # time may also come last, [B, C, T]
        size = x.shape[axis] if x.dim() >= 3 - (not x.is_floating_point()) else 0  # tokens have no features
        if size == 0:
            continue
        # A cut along the time axis changes the number of calls, one along others does not.
        other = torch.cat([x, x], axis) if size == 1 else x.narrow(axis, 0, min(2, size - 1))
        try:
            others = copy.calls(other)
        except Exception:
            if 1 < size == _steps(calls, output_module):  # the loop asked for the steps that were cut off
                fixed = fixed or TimeAxis(axis, size, fixed=True)
            continue
        if len(others.neurons) == len(calls.neurons):
            continue
        if size == 1:  # one step looks like any other network; two show the loop
            return 2, TimeAxis(axis, 2), _interleaved(copy, others, 2, output_module)
        return size, TimeAxis(axis, size), _interleaved(copy, calls, size, output_module)
    if fixed:
        return fixed.steps, fixed, calls
    steps = _steps(calls, output_module)
    if steps == 1:
        raise _not_stepwise(copy.net, calls)
    return steps, TimeAxis(None, steps), calls


def _interleaved(copy: TrialCopy, calls: Calls, steps: int, output_module: str | None) -> Calls:
    """The calls, if they go through the time steps one by one.

    Raises:
        CannotStepError: If they do not, or if nothing is called in every time step.
    """
    if output_module is not None:
        count = calls.modules.count(output_module)
        if count == 0 or count % steps:
            raise cannot_step(
                copy.net,
                f"calls output_module={output_module!r} {count} times on an input of {steps} time steps",
                "name a module that is called in every time step",
            )
        return calls
    if calls.interleave(steps):
        return calls
    counts = {name: calls.neurons.count(name) for name in dict.fromkeys(calls.neurons)}
    if all(count % steps for count in counts.values()):
        names = ", ".join(f"{name!r} {count} times" for name, count in counts.items())
        raise cannot_step(
            copy.net,
            f"calls {names} on an input of {steps} time steps",
            "name a module that is called in every time step with output_module, if need be an nn.Identity that the "
            "output passes through",
        )
    raise _not_stepwise(copy.net, calls)


def _steps(calls: Calls, output_module: str | None) -> int:
    """Time steps of a loop whose length the input does not show: how often the pattern of calls repeats.

    Layers that differ from step to step break the pattern; then the neurons alone must fall into equal steps.
    """
    if output_module is not None:
        count = calls.modules.count(output_module)
        if count == 0:
            raise CannotStepError(
                f"output_module={output_module!r} is not called by forward()", "name a module that is called"
            )
        steps = calls.steps()
        return count if count % steps or steps == 1 else steps
    steps = calls.steps()
    counts = [calls.neurons.count(name) for name in set(calls.neurons)]
    common = math.gcd(*counts) if len(counts) > 1 else 1
    return common if steps == 1 and common > 1 and calls.interleave(common) else steps


def _end_of_step(calls: Calls, steps: int) -> str:
    """The last module called in every time step: a readout layer behind the last neuron, or that neuron."""
    last = next(name for name in reversed(calls.neurons) if calls.neurons.count(name) % steps == 0)
    ends = [index for index, name in enumerate(calls.modules) if name == last]
    per_step = len(ends) // steps
    ends = ends[per_step - 1 :: per_step]
    gaps = [calls.modules[begin + 1 : end] for begin, end in itertools.pairwise(ends)]
    # What follows the last neuron of the last step follows it in every step, unless it comes after the loop.
    tail = [name for name in calls.modules[ends[-1] + 1 :] if all(name in gap for gap in gaps)]
    return tail[-1] if tail else last


def _check_end(copy: TrialCopy, calls: Calls, steps: int, module: str) -> None:
    """Check that no layer that is to be trained is called behind the end of a time step."""
    counts = {name: calls.modules.count(name) for name in _after(calls, module) if name and copy.trainable(name)}
    late = [name for name, number in counts.items() if number < steps]
    names = ", ".join(map(repr, late))
    if any(counts[name] > 1 for name in late):
        raise cannot_step(
            copy.net,
            f"calls {names} in some time steps only, and behind {module!r}, the last that it calls in every step",
            "pass the output through an nn.Identity() at the end of the loop's body",
        )
    if late:
        raise cannot_step(
            copy.net,
            f"calls {names} after its loop over time, where no time step could train it",
            "move it to the end of the loop's body",
        )


def _after(calls: Calls, module: str) -> list[str]:
    """What is called when ``module`` has been called for the last time."""
    return calls.modules[len(calls.modules) - calls.modules[::-1].index(module) :]


# ---------------------------------------------------------------------- what forward returns


def _what_it_returns(copy: TrialCopy, x: Tensor, time: TimeAxis, select: Select, *, chosen: bool) -> StepOutput | None:
    """What ``forward`` would return for a single time step.

    ``None`` if it returns no tensor, or if that is not known and the user chose an output: then it is picked from what
    the output module returns.

    Raises:
        CannotStepError: If the output is something that none of its modules returned.
        OutputError: If ``forward`` returns several things, and none was chosen.
    """
    batch = 1 if time.axis == 0 else 0
    few = x.narrow(batch, 0, min(_SAMPLES, x.shape[batch]))
    if time.axis is not None and x.shape[time.axis] == 1:  # the stack, sum and mean of one step are all the same
        few = torch.cat([few, few], time.axis)
    with torch.random.fork_rng():
        for part in lively_inputs(few):
            try:
                returned, records, made, fits = _fits(copy, part, time, select)
            except Exception:  # it may need all samples
                rows = torch.arange(x.shape[batch], device=x.device) % part.shape[batch]
                part = part.index_select(batch, rows)
                returned, records, made, fits = _fits(copy, part, time, select)
            if all(len(found) < 2 for found in fits):
                break
        fits = _confirmed(fits, copy, few, time, select)
    tensors = tensors_in(returned)
    if not tensors:
        return None
    sources = [found[0] if found else None for found in fits]
    place = len(tensors) if made and sources[-1] else _selected(select, returned, tensors)
    if place is None:
        return _computed(select, returned, sources[: len(tensors)], records, chosen=chosen)
    source = sources[place]
    if source is None:
        if chosen:
            return None
        raise cannot_step(
            copy.net,
            f"returns {tuple(tensors[place].shape)} for an input {tuple(part.shape)}, which is not the stack, last "
            "value, mean, sum or maximum over time of what one of its modules returns, so no single step can be "
            "trained on it",
            "pass what the loss is to see through an nn.Identity() at the end of the loop's body and return that, or "
            "name the module with output_module",
        )
    return StepOutput(returned, sources, source, guessed=differ(fits[place]))


def _readout_in_evaluation(copy: TrialCopy, x: Tensor, time: TimeAxis, select: Select, *, chosen: bool) -> str | None:
    """How the network combines its time steps in evaluation mode; ``None`` if that is not known."""
    try:
        returned = _what_it_returns(copy.fresh(training=False), x, time, select, chosen=chosen)
    except Exception:
        return None
    return None if returned is None or returned.guessed else returned.chosen.readout


class _Fits(NamedTuple):
    """What ``forward`` returns, and what is known of it.

    Attributes:
        returned: What it returns.
        records: What its modules return in each step.
        made: See :func:`_made`.
        fits: What fits each tensor that it returns, and those in ``made``.
    """

    returned: Any
    records: dict[str, list[list[Tensor | None]]]
    made: list[Tensor]
    fits: list[list[Returned]]


def _fits(copy: TrialCopy, x: Tensor, time: TimeAxis, select: Select) -> _Fits:
    def run(noise: Container[str] = ()) -> _Fits:
        returned, records = copy.records(x, time(x), noise)
        returned = _with_lists_stacked(returned, time(x), select)
        tensors = tensors_in(returned)
        made = _made(select, returned, tensors)
        return _Fits(returned, records, made, [identify(tensor, records) for tensor in [*tensors, *made]])

    found = run()
    return found._replace(fits=told_apart(found.fits, lambda alike: run(alike).fits))


def _confirmed(
    fits: list[list[Returned]], copy: TrialCopy, x: Tensor, time: TimeAxis, select: Select
) -> list[list[Returned]]:
    """What still fits on a strong, longer input with larger weights: there bounds and divisors show.

    Args:
        fits: What fits each tensor that ``forward`` returns on inputs like ``x``.
        copy: The copy.
        x: A few samples.
        time: Where the time axis is.
        select: Picks the output.
    """
    steps = time(x)
    if time.axis is not None and not time.fixed:
        x = torch.cat([x, x.narrow(time.axis, 0, min(_LONGER, steps))], time.axis)
    for part in [scale * torch.randn_like(x) for scale in (100.0, 10.0)] if x.is_floating_point() else [x.flip(0)]:
        try:
            with copy.larger_weights():
                returned, records = copy.records(part, time(part))
        except Exception:  # another length, or values, for which it is not made
            continue
        returned = _with_lists_stacked(returned, time(part), select)
        tensors = tensors_in(returned)
        tensors += _made(select, returned, tensors)
        if len(tensors) == len(fits) and all(bool(tensor.isfinite().all()) for tensor in tensors):
            pairs = zip(fits, tensors, strict=True)
            return [[now for fit in found if (now := fit.on(tensor, records, steps))] for found, tensor in pairs]
    return fits


def _with_lists_stacked(returned: Any, steps: int, select: Select) -> Any:
    """What ``forward`` returned, lists of the outputs of all steps as their stack, unless ``select`` takes lists."""

    def stacked(value: Any) -> Any:
        if isinstance(value, list) and len(value) == steps and all(isinstance(entry, Tensor) for entry in value):
            return torch.stack(value) if len({entry.shape for entry in value}) == 1 else value
        if type(value) in (list, tuple):
            return type(value)(map(stacked, value))
        return value

    records = stacked(returned)
    try:
        select(records)
    except Exception:
        return returned
    return records


def _selected(select: Select, returned: Any, tensors: list[Tensor]) -> int | None:
    """Which of the tensors that ``forward`` returned is the output; ``None`` if it is computed, or not found."""
    try:
        result = select(returned)
    except Exception:
        return None
    return next((place for place, tensor in enumerate(tensors) if tensor is result), None)


def _made(select: Select, returned: Any, tensors: list[Tensor]) -> list[Tensor]:
    """The output in a list, where ``select`` makes it of what ``forward`` returned, as of a record its sum over time.

    Empty where it is one of the tensors, or packed from a container with one of them.
    """
    try:
        result = select(returned)
    except Exception:
        return []
    own = any(tensor is result or (*tensor.shape, 1) == result.shape for tensor in tensors)
    return [] if own else [result]


def _computed(
    select: Select,
    returned: Any,
    sources: list[Returned | None],
    records: dict[str, list[list[Tensor | None]]],
    *,
    chosen: bool,
) -> StepOutput | None:
    """An output that is computed from several tensors of a step, as ``torch.cat`` does with two heads."""
    known = [source for source in sources if source is not None]
    if not chosen or len({(source.readout, source.factor) for source in known}) != 1:
        if not chosen:
            select(returned)  # says what is missing
        return None
    last = {(name, place): t for name, steps in records.items() for place, t in enumerate(steps[-1]) if t is not None}
    step = StepOutput(returned, sources, known[0], computed=True)
    try:
        step.output(last, select)
    except Exception:
        return None
    return step


# ---------------------------------------------------------------------- what would go wrong


class _Enough(Exception):  # noqa: N818 - not an error
    pass


def _rehearse(driver: InFlightDriver, x: Tensor, copy: TrialCopy, hoisted: list[str]) -> None:
    """Go backward after each of the first steps of a copy, to see whether something outlives the step."""
    count = 0

    def take(output: Tensor) -> bool:
        nonlocal count
        if output.requires_grad:
            with neurons_rest(copy.state):
                output.sum().backward()
        copy.state.detach()
        count += 1
        if count == 3:
            raise _Enough
        return True

    copy.state.reset()
    driver.hoisted = hoisted
    try:
        with torch.enable_grad(), torch.random.fork_rng():
            driver.run(x, take)
    except _Enough:
        pass
    except CannotStepError:
        raise
    except RuntimeError as error:  # in training, it would come in the middle of a sequence
        raise CannotStepError(str(error)) from error


def _warn_of_resets(copy: TrialCopy, rows: Tensor) -> None:
    forgotten = copy.forgotten(rows)
    if forgotten:
        warnings.warn(
            f"{type(copy.net).__name__} resets {', '.join(map(repr, forgotten))} at every call of forward(), so it "
            "has no memory from one time step to the next: move the reset (init_leaky(), reset_mem(), utils.reset(), "
            "functional.reset_net()) out of forward() and call the neuron without its state; the trainer resets "
            "before each sequence",
            FPTTWarning,
            stacklevel=2,
        )


def _not_stepwise(net: nn.Module, calls: Calls) -> CannotStepError:
    neurons = calls.neurons
    if not neurons:
        return cannot_step(
            net,
            "calls none of its neurons",
            "check forward() on your data by hand; if it takes one time step and reaches them in another way, as "
            "SpikingJelly's memopt does, pass driver='step'",
        )
    if calls.unique:
        return cannot_step(
            net,
            "calls each of its neurons once on an input of this shape, so there is no time in it",
            "pass sequences, [T, B, ...]; for a still image, x.unsqueeze(0).expand(T, *x.shape)",
            CannotRunError,
        )
    runs = [name for index, name in enumerate(neurons) if index == 0 or neurons[index - 1] != name]
    order = ", ".join(map(repr, runs[:6])) + (", ..." if len(runs) > 6 else "")
    return cannot_step(
        net,
        f"does not go through its neurons time step by time step (it calls {order}), for instance because it runs one "
        "layer over the whole sequence before the next",
        "call all layers within one loop over time, or let forward() take one step; if it does and calls one neuron "
        "several times in it, pass driver='step'; if it loops and does so, name the module whose call ends a time "
        "step with output_module",
    )

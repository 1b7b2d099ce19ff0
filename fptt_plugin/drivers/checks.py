"""The preflight: does the network, called as its driver calls it, keep sequences, time steps and samples apart?"""

from __future__ import annotations

import math
import random
import warnings
from collections import Counter
from collections.abc import Container, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count, zip_longest
from numbers import Number
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..errors import CannotRunError, CannotStepError, FPTTError, FPTTWarning
from ..state import handler_for
from ..tree import leaves_in, tensors_in
from .base import Driver, cannot_step, step_modes, unwrapped
from .failures import does_not_run, handler_code
from .hooks import held_by_hooks
from .returned import Returned, differ, identify, lively_inputs, told_apart
from .slice import SliceDriver
from .step import StepDriver
from .trial import ABSENT, Call, TrialCopy

STEPS = 5  # of the trial
_TOLERANCE = 0.1  # of the norm: rounding may flip a spike, and forgetting changes most of them
_ROUNDING = 1e-4  # of the norm: of one and the same computation, done twice
_KEEP_IT = "let the neurons keep their state themselves (init_hidden=True in snnTorch)"
_RECURRENT = (
    "of one time step it takes the samples for its time steps: call it on x_t.unsqueeze(0) and go on with output[0]; "
    "what it is to remember from step to step, forward(x_t, state) takes and returns, with driver='explicit'"
)
_REMEDIES: dict[type, str] = {
    **dict.fromkeys((nn.RNN, nn.GRU, nn.LSTM), _RECURRENT),
    nn.MultiheadAttention: "of one time step it takes the samples for tokens: give it the tokens of each sample, [B, "
    "tokens, features], with batch_first=True",
}
_FUNCTIONS = (type, FunctionType, MethodType, BuiltinFunctionType, partial)  # without a state, as far as can be seen
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)  # never begin again


def preflight(driver: Driver, x: Tensor, window: int | None, *, thorough: bool = True) -> None:
    """Check a driver on a few steps and samples of the first batch, in evaluation mode, on a copy of the network.

    Tells a slice driver what its output is. Of a network with a loop of its own only sequences are compared: it keeps
    time steps and samples apart itself.

    Args:
        driver: How the network will be called.
        x: Input, with time and batch in the driver's ``axes``.
        window: Steps per slice, ``None`` for the whole sequence.
        thorough: ``False`` finds out what the output of a slice is, and checks nothing else.

    Raises:
        CannotStepError: If a sequence depends on the one before, if slice by slice is not the whole sequence, or if
            samples mix.
    """
    inputs = _Inputs(x, *driver.axes)
    with _skippable():
        is_random = thorough and _check_reset(driver, inputs, window)
    if driver.pushes:
        return
    if isinstance(driver, SliceDriver):
        _check_slices(driver, inputs, window, is_random, thorough)
    if thorough and driver.checks_samples:
        with _skippable():
            _check_samples(driver, inputs, is_random)
        _warn_of_records(driver.net)


@contextmanager
def _skippable() -> Iterator[None]:
    """Context of what ``preflight=False`` leaves out: its refusals say so. A network that does not run stays one."""
    try:
        yield
    except CannotRunError:
        raise
    except CannotStepError as error:
        error.remedy += ". (If this is meant to be so, preflight=False skips this check)"
        raise


class _Inputs:
    """The inputs of the trials, made of the first batch.

    Args:
        x: Input of the first batch.
        time: Axis of its time steps; ``None`` if their number must stay as it is.
        batch: Axis of its samples.
    """

    def __init__(self, x: Tensor, time: int | None, batch: int) -> None:
        self.x = x
        self.samples = x.shape[batch]
        self._time, self._batch = time, batch
        self._lively: dict[tuple[int, int], list[Tensor]] = {}

    def excerpt(self, steps: int, samples: int) -> Tensor:
        """Some steps and samples, repeated if too few; from all over the sequence, as its beginning may be empty."""
        x = self.x
        if self._time is not None:
            x = x.index_select(self._time, torch.arange(steps, device=x.device) * x.shape[self._time] // steps)
        return x.index_select(self._batch, torch.arange(samples, device=x.device) % self.samples)

    def lively(self, copy: TrialCopy, steps: int, samples: int) -> list[Tensor]:
        """What :meth:`TrialCopy.lively` finds for some steps and samples of the batch, found once."""
        if (steps, samples) not in self._lively:
            self._lively[steps, samples] = copy.lively(self.excerpt(steps, samples))
        return self._lively[steps, samples]


def _check_reset(driver: Driver, inputs: _Inputs, window: int | None) -> bool:
    """Run a few steps from reset, as a first sequence and after others; returns whether the network is random."""
    try:
        copy = TrialCopy(driver.net, driver)
    except CannotStepError:  # it cannot be copied
        return False
    if not (driver.pushes or isinstance(driver, SliceDriver)):
        _check_first_step(driver, copy.fresh(), inputs.x)
    steps = _steps_of_slices(inputs, window) if isinstance(driver, SliceDriver) else STEPS
    few = min(_samples(copy.net, steps), inputs.samples)
    runs = copy.fresh().trial(inputs.excerpt(steps, few))
    for candidate in inputs.lively(copy, steps, few if runs else inputs.samples):  # it may need all samples
        first = copy.fresh().trial(candidate)
        copy.trial(candidate.flip(0))
        if not first or _alike(first, copy.trial(candidate), _ROUNDING):
            continue
        kept, changed = _kept(copy, candidate, copy.fresh().attributes(), first)
        if kept:
            raise _not_reset(driver, kept, changed)
        _warn_of_hidden_state(unwrapped(driver.net))
        if not driver.pushes:
            _check_first_step(driver, copy.fresh(), inputs.x)  # as a state of the shape of these samples may be left
        return True
    return copy.drew


def _warn_of_hidden_state(net: nn.Module) -> None:
    """Warn of a network that gives something else each time, unless it has a generator of random numbers."""
    held = [value for module in net.modules() for value in leaves_in(vars(module))]
    held += leaves_in(held_by_hooks(net))
    inner = [entry for value in held for entry in getattr(value, "__dict__", {}).values()]
    if not any(isinstance(value, _GENERATORS) for value in (*held, *inner)):
        warnings.warn(
            f"{type(net).__name__} gives something else for the same sequence each time, and no attribute of its "
            "modules explains it. If these are random numbers that are not torch's, all is well. If it keeps a state "
            "in a closure or a global variable, no reset reaches it: keep it in an attribute of the module",
            FPTTWarning,
            stacklevel=4,
        )


def _check_first_step(driver: Driver, copy: TrialCopy, x: Tensor) -> None:
    """Check that the first step of the sequence runs, as training will run it."""
    try:
        copy.advance(x[:1])
    except FPTTError:
        raise
    except Exception as error:
        if "grad" not in str(error):  # hooks on tensors of the graph, say, which a dry run does not have
            remedy = driver.sequence_remedy
            raise does_not_run(driver.net, copy, x[:1], error, given=x, what="one step", otherwise=remedy) from error


def _kept(copy: TrialCopy, x: Tensor, before: dict[str, Any], first: list[Tensor]) -> tuple[list[str], list[str]]:
    """Attributes by which the next sequence differs from the first, and all that a reset does not bring back.

    Args:
        copy: A copy that has seen other sequences.
        x: The next sequence.
        before: Attributes of a copy that has seen none.
        first: What the sequence gives as the first.
    """
    copy.state.reset()
    after = copy.attributes()
    clean = {name: before.get(name, ABSENT) for name in after if not _equal(after[name], before.get(name, ABSENT))}

    def repeats(attributes: dict[str, Any]) -> bool:
        copy.put_back(attributes)
        return _alike(first, copy.trial(x), _ROUNDING)

    if not clean or not repeats(clean):
        return [], []
    kept = [name for name in clean if not repeats({**clean, name: after[name]})] or list(clean)
    return kept, [name for name in clean if name in kept or _is_plain(after[name])]


def _not_reset(driver: Driver, kept: list[str], changed: list[str]) -> CannotStepError:
    owner = kept[0].rpartition(".")[0]
    module = unwrapped(driver.net).get_submodule(owner)
    own = [name for name in changed if name.rpartition(".")[0] == owner]
    if handler_for(module) is not None:  # a subclass: what its base computes anew at each step is no state
        own = [name for name in own if name in kept or hasattr(module, name.rpartition(".")[2])]
    own = [name.rpartition(".")[2] for name in own]
    opaque = [name for name in own if not _is_plain(getattr(module, name, None))]
    missing = [name for name in own if not hasattr(module, name)]
    absent = f" (assign it to self.{', self.'.join(missing)} in __init__())" if missing else ""
    places = ", ".join(map(repr, kept))
    without_a_handler = f"set {places} in forward(), before its loop" if driver.pushes else _KEEP_IT
    remedy = (
        f"{without_a_handler}, or name such attributes, each with its value before the first input{absent}, before you "
        f"build the trainer: {handler_code(module, own)}"
    )
    if opaque:
        kind = type(module).__name__
        remedy = (
            f"keep what {', '.join(map(repr, opaque))} of {kind} holds in attributes of the module, tensors or "
            "numbers, and name these, each with its value before the first input, in "
            f"fptt_plugin.state.register_state_handler({kind}, AttributeHandler(...)) before you build the trainer"
        )
    reason = f"begins a sequence with what the one before left in {places}, which reset() does not reach"
    return cannot_step(driver.net, reason, remedy)


def _steps_of_slices(inputs: _Inputs, window: int | None) -> int:
    """Steps of the trial; not more than the data have, as there are layers made for a number of steps."""
    given = len(inputs.x)
    return given if window is None or 1 < given < STEPS else STEPS


def _check_slices(driver: SliceDriver, inputs: _Inputs, window: int | None, is_random: bool, thorough: bool) -> None:
    steps = _steps_of_slices(inputs, window)
    copy = TrialCopy(driver.net, driver)
    copy.tell_normalizations_apart()
    samples = _samples(copy.net, steps)
    for candidate in inputs.lively(copy, steps, samples):
        _check_slice(driver, copy, candidate, inputs.x)
        if window is None:
            return
        if not is_random:
            _compare_slices(driver, copy, candidate, thorough)
    if not driver.keeps_time:
        x = inputs.excerpt(steps, samples)
        driver.readout = _how_it_combines(driver, copy, x, is_random)  # a constant factor is in each window's output


def _check_slice(driver: SliceDriver, copy: TrialCopy, x: Tensor, given: Tensor) -> None:
    """Check that the network runs on several time steps at once, and find out what its output is."""
    steps, samples = x.shape[:2]
    copy.state.reset()
    try:
        output = driver.select(copy.run(x))
    except FPTTError:
        raise
    except Exception as error:
        raise does_not_run(
            driver.net,
            copy,
            x,
            error,
            given=given,
            what=f"{steps} steps of {samples} samples, an input",
            otherwise="forward() must take a leading time axis, [T, B, ...]; where it repeats a still image over time, "
            "take that out of forward() and pass x.unsqueeze(0).expand(T, *x.shape), made in the loader's collate_fn",
        ) from error
    try:
        driver.note_time_axis(output, steps, samples)
    except FPTTError as error:
        raise _permutes(copy.net) if _puts_time_first(copy, x) else error from None
    _check_modes(driver, copy, x)
    if output.shape[:2] == (samples, steps) and steps > 1:
        copy.state.reset()
        fewer = driver.select(copy.run(x[1:]))
        if fewer.shape[:2] == (samples, steps - 1) and not _puts_time_first(copy, x):
            raise cannot_step(
                copy.net,
                "returns [B, T, ...], where the trainer expects the time axis of its output first, [T, B, ...]",
                "take the transpose or permute out of the end of forward()",
            )


def _check_modes(driver: SliceDriver, copy: TrialCopy, x: Tensor) -> None:
    """Check that the output has a time axis in training mode, too, if it has one in evaluation mode, or in neither."""
    copy.net.train()
    copy.state.reset()
    try:
        shape = driver.select(copy.run(x)).shape[:2]
    except Exception:  # training, or the check before, says what is wrong
        return
    finally:
        copy.net.eval()
    if (shape == x.shape[:2]) != driver.keeps_time:
        trained, evaluated = ("one output for all steps", "the output of every step")[:: 1 if driver.keeps_time else -1]
        raise cannot_step(
            copy.net,
            f"returns {trained} in training mode, and {evaluated} in evaluation mode",
            "return the output of every step, [T, B, ...], in both; with readout='mean' the trainer averages it",
        )


def _compare_slices(
    driver: SliceDriver, copy: TrialCopy, x: Tensor, thorough: bool, tolerance: float = _TOLERANCE
) -> None:
    """Check that slice by slice the network computes what it computes on several time steps at once."""
    copy.state.reset()
    output = driver.select(copy.run(x))
    after = copy.carried()
    copy.state.reset()
    try:
        slices = [driver.select(copy.run(x_t)) for x_t in x.split(1)]
    except FPTTError:
        raise
    except Exception as error:
        raise cannot_step(
            copy.net,
            f"runs on {len(x)} time steps at once and not on one ({error!r}), so it cannot be trained online",
            "replace the layer that needs the whole sequence, or train with BPTT",
        ) from error
    state = copy.carried()
    if not thorough:
        return

    def forgetful(tolerance: float) -> list[str]:
        pairs = ((name, tensors_in(value), tensors_in(state[name])) for name, value in after.items())
        return [name for name, one, other in pairs if not _alike(one, other, tolerance)]

    def whole(tolerance: float) -> bool:
        if driver.keeps_time:
            return _alike([output], [torch.cat(slices)], tolerance)
        return all(s.shape == output.shape for s in slices)

    if not whole(tolerance) or forgetful(tolerance) or not tensors_in(after):
        with _skippable():
            raise _permutes(copy.net) if _puts_time_first(copy, x) else _slices_differ(copy.net, forgetful(tolerance))
    if tolerance > _ROUNDING and (forgetful(_ROUNDING) or not whole(_ROUNDING)):
        _compare_precisely(driver, x)


def _compare_precisely(driver: SliceDriver, x: Tensor) -> None:
    """Compare again in double precision, if the network runs in it."""
    copy = TrialCopy(driver.net, driver, precise=True)
    x = x.double() if x.is_floating_point() else x
    if copy.trial(x):
        _compare_slices(driver, copy, x, True, _ROUNDING)


def _how_it_combines(driver: SliceDriver, copy: TrialCopy, x: Tensor, is_random: bool) -> str:
    """How a network that returns one output for several steps combines them.

    Raises:
        CannotStepError: If it is none of the last step, mean, sum and maximum.
    """
    with torch.random.fork_rng():
        for part in lively_inputs(x):
            found = _forms(driver, copy, part, is_random)
            if len(found) < 2:
                break
        if x.is_floating_point():  # a bound may not show on a weak or a short input
            found = _confirmed(found, driver, copy, 100.0 * torch.randn_like(torch.cat([x, x, x])), is_random)
    if not found and is_random:
        driver.guesses = True
        return "mean"  # the usual one
    if not found:
        raise cannot_step(
            copy.net,
            "returns one output for several time steps which is not the last, mean, sum or maximum of those of the "
            "single steps, so no window can be trained on it",
            "let forward() return its output of every step, [T, B, ...], or their mean, and do what follows in the "
            "loss function",
        )
    driver.guesses = differ(found)
    return found[0].readout


def _forms(driver: SliceDriver, copy: TrialCopy, x: Tensor, is_random: bool) -> list[Returned]:
    """Every way to combine the steps that fits an input."""
    found = _within_one_run(driver, copy, x)
    if not _agree_on_form(found, _within_one_run(driver, copy, x[:2])):
        found = []  # a divisor that is, or is not, the number of steps shows at another number
    if not found and not is_random:
        copy.state.reset()
        output = driver.select(copy.run(x))
        copy.state.reset()
        slices: list[list[Tensor | None]] = [[driver.select(copy.run(x_t))] for x_t in x.split(1)]
        found = [fit for fit in identify(output, {"net": slices}) if fit.factor == 1.0]
    return found


def _confirmed(
    found: list[Returned], driver: SliceDriver, copy: TrialCopy, x: Tensor, is_random: bool
) -> list[Returned]:
    """What fits on a strong, longer input with larger weights, too, if the network is made for it."""
    try:
        with copy.larger_weights():
            if not all(bool(tensor.isfinite().all()) for tensor in tensors_in(copy.run(x))):
                return found
            now = _forms(driver, copy, x, is_random)
    except Exception:
        return found
    readouts = {fit.readout for fit in now}  # a constant factor is in each window's output
    return [fit for fit in found if fit.readout in readouts]


def _within_one_run(driver: SliceDriver, copy: TrialCopy, x: Tensor) -> list[Returned]:
    """How the output follows from what a module returns at each step, if it does; random numbers do not disturb it."""
    copy.state.reset()
    size = driver.select(copy.run(x)).numel()

    def run(noise: Container[str] = ()) -> list[list[Returned]]:
        returned, records = copy.series(x, size, noise)
        return [identify(driver.select(returned), records)]

    return told_apart(run(), run)[0]


def _agree_on_form(ones: list[Returned], others: list[Returned]) -> bool:
    """Whether the first that fits each of two runs combines the steps in the same way."""
    if not ones or not others:
        return False
    return ones[0].readout == others[0].readout and math.isclose(ones[0].factor, others[0].factor, rel_tol=1e-4)


def _puts_time_first(copy: TrialCopy, x: Tensor) -> bool:
    """Whether the network takes ``[B, T, ...]`` and puts time first itself: so it does compute slice by slice."""
    x, ends = x.transpose(0, 1), []
    for pieces in ([x], x.split(1, dim=1)):
        copy.state.reset()
        try:
            for piece in pieces:
                copy.run(piece)
        except Exception:
            return False
        ends.append(tensors_in(copy.carried()))
    return bool(ends[0]) and _alike(ends[0], ends[1])


def _permutes(net: nn.Module) -> CannotStepError:
    return cannot_step(
        net,
        "takes [B, T, ...] and puts time first in forward(), where the trainer passes slices [K, B, ...]",
        "take the transpose or permute out of forward(); for a loader that gives [B, T, ...], build the trainer with "
        "batch_first=True",
    )


def _slices_differ(net: nn.Module, forgetful: list[str]) -> CannotStepError:
    reason = "does not compute slice by slice what it computes on the whole sequence: "
    single = [name for name, mode in step_modes(net).items() if mode == "s" and name in forgetful]
    if single:
        return cannot_step(
            net,
            f"{reason}{', '.join(map(repr, single))} in 's' mode take time steps for samples",
            "set the whole network to one mode, "
            + " or ".join(f"functional.set_step_mode(net, {mode!r})" for mode in _common_modes(net)),
        )
    where = f" ({', '.join(map(repr, forgetful))} end in another state)" if forgetful else ""
    return cannot_step(
        net,
        f"{reason}it forgets between calls or looks at several time steps at once{where}",
        "move a reset (functional.reset_net) out of forward(), the trainer resets before each sequence; a layer that "
        "needs the whole sequence cannot be trained online: replace it, or pass window=None, one window per sequence",
    )


def _common_modes(net: nn.Module) -> list[str]:
    """The step modes of a network of both modes that all of its modules have: containers such as SeqToANN have one."""
    modules: list[Any] = [module for module in net.modules() if hasattr(module, "supported_step_mode")]
    return [mode for mode in ("m", "s") if all(mode in module.supported_step_mode() for module in modules)] or ["m"]


def _check_samples(driver: Driver, inputs: _Inputs, is_random: bool, *, precise: bool = False) -> None:
    """Check that outputs and states of a sample are those of this sample alone; ``precise``: in double precision."""
    copy = TrialCopy(driver.net, driver, precise=precise)
    samples = _samples(copy.net, STEPS)
    for candidate in inputs.lively(copy, STEPS, samples):
        if precise and candidate.is_floating_point():
            candidate = candidate.double()
        try:
            outputs, calls = copy.followed(candidate)
        except Exception:  # says in training what is wrong
            return
        after = tensors_in(copy.carried())
        output = torch.stack(outputs)
        if output.shape[1:2] != (samples,):
            reason = f"returned shape {tuple(output.shape[1:])} for {samples} samples"
            raise cannot_step(driver.net, reason, _mixing_remedy(driver))
        if is_random:
            return
        fresh = copy.fresh()  # without what a reset of the other does not reach
        alone, calls_alone = fresh.followed(candidate[:, -1:])
        ones, others = _last_sample(after, tensors_in(fresh.carried()))
        both = [output[:, -1:], *ones], [torch.stack(alone), *others]
        mix = not _alike(*both, _ROUNDING if precise else _TOLERANCE)
        # In plain torch a network of one step may call a layer of sequences for each sample by itself.
        may_loop = type(driver) is StepDriver and not step_modes(driver.net)
        if mix or (not may_loop and _loops_over_samples(calls, calls_alone, samples)):
            calls, calls_alone = (
                one.followed(part, tensors=True)[1] for one, part in ((copy, candidate), (fresh, candidate[:, -1:]))
            )
            raise _samples_mix(driver, calls, calls_alone, _ROUNDING if precise else _TOLERANCE)
        if not precise and not _alike(*both, _ROUNDING):
            _check_samples(driver, inputs, is_random, precise=True)


def _loops_over_samples(calls: list[Call], alone: list[Call], samples: int) -> bool:
    """Whether a module is called once per sample, as a recurrent layer of whole sequences does with its cell."""
    counts, single = (Counter(call.module for call in found) for found in (calls, alone))
    return any(counts[name] == samples * single[name] for name in single)


def _samples_mix(driver: Driver, calls: list[Call], alone: list[Call], tolerance: float) -> CannotStepError:
    """The error that names the first module whose output for a sample depends on the other samples."""
    comparable = [call.module for call in calls] == [call.module for call in alone]  # else it loops over samples
    for together, single in zip(calls, alone, strict=True) if comparable else ():
        if _agree(together.outputs, single.outputs, tolerance):
            continue
        name = together.module
        module = unwrapped(driver.net).get_submodule(name)
        # Not where the network's own code or the driver mixes them, or where it is a matter of the step mode.
        if not name or hasattr(module, "step_mode") or not _agree(together.inputs, single.inputs, tolerance):
            break
        return CannotStepError(
            "returns for one sample what depends on the others in the batch, so that they mix",
            _REMEDIES.get(type(module), "replace it by a layer that treats every sample by itself"),
            layer=name,
            layer_type=type(module).__name__,
        )
    reason = "takes the samples of a batch for time steps, so that they mix"
    return cannot_step(driver.net, reason, _mixing_remedy(driver))


def _agree(together: list[Tensor], alone: list[Tensor], tolerance: float) -> bool:
    """Whether the last of several samples has what it has alone."""
    ones, others = _last_sample(together, alone)
    return len(ones) == len(together) and _alike(ones, others, tolerance)


def _mixing_remedy(driver: Driver) -> str:
    modes = step_modes(driver.net).values()
    if not modes:
        return "let forward() treat every sample by itself" if type(driver) is StepDriver else driver.sequence_remedy
    return ("it is in 'm' mode" if "m" in modes else "in 's' mode there is no time axis") + driver.mixing_remedy


def _warn_of_records(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if getattr(module, "store_v_seq", False) and getattr(module, "step_mode", "s") == "s":
            warnings.warn(
                f"{name!r} has store_v_seq=True: in 's' mode it keeps every step until the reset, so memory grows with "
                "the length of the sequence; switch it off, or watch 'v' with a monitor",
                FPTTWarning,
                stacklevel=2,
            )


def _samples(net: nn.Module, steps: int) -> int:
    """Samples of the trial: as many as there are neither steps nor features, so that no axis is taken for another."""
    sizes = {steps, *(size for p in net.parameters() if not is_lazy(p) for size in p.shape)}
    return next(samples for samples in count(3) if samples not in sizes)


def _last_sample(ones: list[Tensor], others: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The state of the last of several samples, beside that of this sample alone; wherever the batch axis is."""
    pairs = []
    for one, other in zip(ones, others, strict=False):
        axes = [axis for axis in range(min(one.dim(), other.dim())) if one.shape[axis] != other.shape[axis]]
        one = one.narrow(axes[0], one.shape[axes[0]] - 1, 1) if axes else one
        if one.shape == other.shape:  # a queue of flattened samples has no batch axis
            pairs.append((one, other))
    return [one for one, _ in pairs], [other for _, other in pairs]


def _alike(ones: list[Tensor], others: list[Tensor], tolerance: float = _TOLERANCE) -> bool:
    for one, other in zip_longest(ones, others):
        if one is None or other is None or one.shape != other.shape:
            return False
        one, other = one.float(), other.float()
        if (one - other).norm() > tolerance * torch.maximum(one.norm(), other.norm()):
            return False
    return True


def _equal(one: Any, other: Any, depth: int = 3) -> bool:
    """Whether two attributes hold the same, as far as that can be seen, generators of random numbers apart."""
    if type(one) is not type(other) or not _alike(tensors_in(one), tensors_in(other), 0.0):
        return False
    pairs = zip_longest(leaves_in(one), leaves_in(other), fillvalue=ABSENT)
    return all(isinstance(a, Tensor) or _same_value(a, b, depth) for a, b in pairs)


def _same_value(one: Any, other: Any, depth: int) -> bool:
    if isinstance(one, (nn.Module, *_FUNCTIONS, *_GENERATORS)):
        return True
    try:
        if bool(one == other):
            return True
    except Exception:  # arrays have no single answer
        return False
    return depth > 0 and bool(getattr(one, "__dict__", None)) and _equal(vars(one), vars(other), depth - 1)


def _is_plain(value: Any) -> bool:
    """Whether an attribute holds tensors, numbers, text or nothing, alone or in containers: a handler can set it."""
    return all(leaf is None or isinstance(leaf, (Tensor, Number, str)) for leaf in leaves_in(value))

"""A look at the first batch: whether the network, called as its driver calls it, keeps time and samples apart."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._inflight import unwrapped
from ._position import random_state
from ._probe import Probe
from .drivers import Driver, ExplicitDriver, SliceDriver, StepDriver, step_modes
from .state import isolated, map_tensors, tensors_in

STEPS, SAMPLES = 5, 3  # of the probe; different, so that a time axis is told from a batch axis
_RECORDS = ("store_v_seq", "store_state_seqs")  # SpikingJelly's options to keep every step
_TOLERANCE = 0.1  # of the norm: rounding may flip a spike, and forgetting changes most of them
_ROUNDING = 1e-4  # of the norm: of one and the same computation, done twice
_MACHINERY = vars(nn.Module()).keys()  # attributes of any module
_ABSENT = object()
_UNMIXED = {
    StepDriver: ": take .mean(0) over time out of forward() and call functional.set_step_mode(net, 's'), or leave "
    "forward() as it is, call functional.set_step_mode(net, 'm') and leave driver='auto'",
    SliceDriver: ": if forward() loops over time, call functional.set_step_mode(net, 's') and leave driver='auto'",
    ExplicitDriver: "; driver='explicit' gives forward() one time step [B, ...]: if it takes sequences (nn.LSTM, "
    "SpikingLSTM), wrap it in a module that calls it on x_t.unsqueeze(0) and returns output[0] and the state",
}


def preflight(driver: Driver, x: Tensor, window: int | None) -> None:
    """Checks a driver on a few steps and samples of the first batch, in evaluation mode, on a copy of the network.

    An in-flight driver leaves both to the network. Notes on a slice driver whether the output has a time axis.

    Args:
        driver: How the network will be called.
        x: Input ``[T, B, ...]``.
        window: Steps per slice, ``None`` for the whole sequence.

    Raises:
        ValueError: If a sequence depends on the one before, slice by slice is not the whole sequence, or samples mix;
            names what is wrong and the remedy.
    """
    if not isinstance(driver, StepDriver):
        return
    try:
        is_random = _check_reset(driver, x, window)
        if isinstance(driver, SliceDriver):
            _check_slices(driver, x, window, is_random)
        if type(driver) is not StepDriver or step_modes(driver.net):
            _check_samples(driver, x, is_random)
            _warn_of_records(driver.net)
    except ValueError as error:
        raise ValueError(f"{error}. (If this is meant to be so, preflight=False skips this check)") from error


def _check_reset(driver: StepDriver, x: Tensor, window: int | None) -> bool:
    """Runs a few steps of all samples from reset, twice; whether the network is random, with nothing to compare."""
    try:
        run = _Run(driver)
    except ValueError:  # it cannot be copied
        return False
    x = _excerpt(x, len(x) if isinstance(driver, SliceDriver) and window is None else STEPS, x.shape[1])
    before = run.attributes()
    first = run.trial(x)
    if not first or _alike(first, run.trial(x), _ROUNDING):
        return run.drew
    run.reset()
    after = run.attributes()
    clean = {name: before.get(name, _ABSENT) for name in after if not _equal(after[name], before.get(name, _ABSENT))}

    def repeats(attributes: dict[str, Any]) -> bool:
        run.put_back(attributes)
        return _alike(first, run.trial(x), _ROUNDING)

    if clean and repeats(clean):  # else it draws random numbers that are not torch's
        kept = [name for name in clean if not repeats({**clean, name: after[name]})]
        raise ValueError(_not_reset(run.net, kept or list(clean)))
    return True


def _not_reset(net: nn.Module, kept: list[str]) -> str:
    owner = kept[0].rpartition(".")[0]
    initial = ", ".join(f"{name.rpartition('.')[2]}=None" for name in kept if name.rpartition(".")[0] == owner)
    handler = f"register_state_handler({type(net.get_submodule(owner)).__name__}, AttributeHandler({initial}))"
    return (
        f"{type(net).__name__} begins a sequence with what the one before left in {', '.join(map(repr, kept))}, which "
        "reset() does not reach: let the neurons keep their state themselves (init_hidden=True in snnTorch), or name "
        "such attributes, each with its value before the first input, before you build the trainer: "
        f"fptt_plugin.state.{handler}"
    )


def _check_slices(driver: SliceDriver, x: Tensor, window: int | None, is_random: bool) -> None:
    net, name = unwrapped(driver.net), type(unwrapped(driver.net)).__name__
    steps = STEPS if window else len(x)
    samples = SAMPLES if steps != SAMPLES else SAMPLES + 1
    x = _excerpt(x, steps, samples)
    probe = _Run(driver)
    try:
        returned = probe(x)
    except Exception as error:
        raise ValueError(
            f"{name} does not run on {steps} steps of {samples} samples, an input of shape {tuple(x.shape)} "
            f"({error!r}): forward() must take a leading time axis, [T, B, ...]; a network that repeats a still image "
            "over time takes the image repeated before: x.unsqueeze(0).expand(T, *x.shape)"
        ) from error
    output, after = driver.select(returned), probe.state()
    driver.note_time_axis(output, steps, samples)
    if window is None or is_random:
        return
    probe.reset()
    try:
        slices = [driver.select(probe(x_t)) for x_t in x.split(1)]
    except Exception as error:
        raise ValueError(
            f"{name} runs on {steps} time steps at once and not on one ({error!r}), so it cannot be trained online: "
            "replace the layer that needs the whole sequence, or train with BPTT"
        ) from error
    state = probe.state()
    forgetful = [key for key, value in after.items() if not _alike(tensors_in(value), tensors_in(state[key]))]
    whole = _alike([output], [torch.cat(slices)]) if driver.keeps_time else all(s.shape == output.shape for s in slices)
    if not whole or forgetful or not tensors_in(after):
        raise ValueError(_slices_differ(net, forgetful))


def _slices_differ(net: nn.Module, forgetful: list[str]) -> str:
    text = f"{type(net).__name__} does not compute slice by slice what it computes on the whole sequence: "
    single = [name for name, mode in step_modes(net).items() if mode == "s" and name in forgetful]
    if single:
        return (
            f"{text}{', '.join(map(repr, single))} in 's' mode take time steps for samples; set the whole network to "
            "one mode, functional.set_step_mode(net, 'm') or functional.set_step_mode(net, 's')"
        )
    where = f" ({', '.join(map(repr, forgetful))} end in another state)" if forgetful else ""
    return (
        f"{text}it forgets between calls or looks at several time steps at once{where}. Move a reset "
        "(functional.reset_net) out of forward(), the trainer resets before each sequence; a layer that needs the "
        "whole sequence cannot be trained online: replace it, or train with BPTT"
    )


def _check_samples(driver: StepDriver, x: Tensor, is_random: bool) -> None:
    name = type(unwrapped(driver.net)).__name__
    x = _excerpt(x, STEPS, SAMPLES)
    probe = _Run(driver)
    try:
        output = torch.stack(probe.advance(x))
    except Exception:  # says in training what is wrong
        return
    after = probe.state()
    remedy = "in 's' mode there is no time axis" if "m" not in step_modes(driver.net).values() else "it is in 'm' mode"
    remedy += _UNMIXED[type(driver)]
    if output.shape[1:2] != (SAMPLES,):
        raise ValueError(f"{name} returned shape {tuple(output.shape[1:])} for {SAMPLES} samples; {remedy}")
    if is_random:
        return
    probe.reset()
    alone = torch.stack(probe.advance(x[:, -1:]))
    ones, others = _last_sample(tensors_in(after), tensors_in(probe.state()))
    if not _alike([output[:, -1:], *ones], [alone, *others]):
        raise ValueError(f"{name} takes the samples of a batch for time steps, so that they mix; {remedy}")


def _warn_of_records(net: nn.Module) -> None:
    for name, module in net.named_modules():
        if getattr(module, "store_v_seq", False) and getattr(module, "step_mode", "s") == "s":
            warnings.warn(
                f"{name!r} has store_v_seq=True: in 's' mode it keeps every step until the reset, so memory grows with "
                "the length of the sequence; switch it off, or watch 'v' with a monitor",
                UserWarning,
                stacklevel=2,
            )


def warn_of_spikes(output: Tensor, loss_fn: Any, readout: str) -> bool:
    """Warns of spikes that serve as logits of a cross-entropy, step by step.

    Returns:
        Whether the output could tell: one without a single spike cannot.
    """
    logits = isinstance(loss_fn, (nn.CrossEntropyLoss, nn.BCEWithLogitsLoss)) or loss_fn in (
        F.cross_entropy,
        F.binary_cross_entropy_with_logits,
    )
    if readout != "step" or not logits:
        return True
    if not output.any():
        return False
    if ((output == 0) | (output == 1)).all():
        warnings.warn(
            "the loss sees spikes, all 0 or 1, as logits, so no step can be sure of its class: pass readout='mean' for "
            "firing rates, or end the network in an integrator, LTCIntegrator(), without spikes",
            UserWarning,
            stacklevel=4,
        )
    return True


class _Run:
    """Calls a copy of a driver's network without gradients, in evaluation mode, from its initial state.

    Attributes:
        drew: Whether the last call drew random numbers.
    """

    drew = False

    def __init__(self, driver: StepDriver) -> None:
        self._probe = Probe(unwrapped(driver.net))
        self.net = self._probe.net.eval()
        for module in self.net.modules():
            for option in _RECORDS:
                if getattr(module, option, False):
                    setattr(module, option, False)
        self._driver = type(driver)(self.net, self._probe.state, driver.select)
        self.reset()

    def reset(self) -> None:
        self._probe.state.reset()

    def state(self) -> dict[str, Any]:
        return self._probe.state.get()

    def __call__(self, x: Tensor) -> Any:
        with self._apart():
            return self.net(x)

    def advance(self, x: Tensor) -> list[Tensor]:
        with self._apart():
            return self._driver.advance(x)

    @contextmanager
    def _apart(self) -> Iterator[None]:
        """The same random numbers for each call, and no other network is touched."""
        with torch.no_grad(), torch.random.fork_rng(), isolated(self.net):
            before = random_state()
            yield
            self.drew = not all(map(torch.equal, before, random_state()))

    def trial(self, x: Tensor) -> list[Tensor]:
        """Outputs and states after some steps from reset; empty if the network does not run."""
        self.reset()
        try:
            return [tensor.clone() for tensor in (*self.advance(x), *tensors_in(self.state()))]
        except Exception:  # training, or a later check, says what is wrong
            return []

    def attributes(self) -> dict[str, Any]:
        """Copies of what the modules hold, by name; without parameters."""
        return {
            f"{prefix}.{name}" if prefix else name: map_tensors(Tensor.clone, value)
            for prefix, module in self.net.named_modules()
            for name, value in (vars(module) | module._buffers).items()
            if name not in _MACHINERY and not is_lazy(value)
        }

    def put_back(self, attributes: dict[str, Any]) -> None:
        """Sets what :meth:`attributes` returned, or removes what was not there."""
        for name, value in attributes.items():
            owner, _, attribute = name.rpartition(".")
            module = self.net.get_submodule(owner)
            if value is _ABSENT:
                vars(module).pop(attribute, None)
            else:
                setattr(module, attribute, map_tensors(Tensor.clone, value))


def _excerpt(x: Tensor, steps: int, samples: int) -> Tensor:
    """Some steps from all over the sequence, as its beginning may be empty, and some samples; repeated if too few."""
    times = torch.arange(steps, device=x.device) * len(x) // steps
    return x[times][:, torch.arange(samples, device=x.device) % x.shape[1]]


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


def _equal(one: Any, other: Any) -> bool:
    """Whether two attributes hold the same tensors, or are the same number; other things are not told apart."""
    same = type(one) is type(other) and _alike(tensors_in(one), tensors_in(other), 0.0)
    return same and (not isinstance(one, Number) or one == other)

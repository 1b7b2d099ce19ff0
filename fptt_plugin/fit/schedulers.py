"""Learning-rate schedulers: which of them ``fit`` can step and when, and their state in a checkpoint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR, ReduceLROnPlateau

from ..errors import ConfigurationError, check_choice
from ..tree import map_tensors
from .screen import length_of
from .watch import Watch

# What torch's schedulers write to the optimizer's groups; all else is the user's, who may have changed it meanwhile.
_WRITTEN = frozenset(("lr", "initial_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum"))
_MOMENTUM = frozenset(("momentum", "betas"))  # with cycle_momentum=True


def check_scheduler(scheduler: Any, interval: str | None, optimizer: Optimizer, watch: Watch) -> str:
    """Check a scheduler; returns the interval at which it steps."""
    check_choice("scheduler_interval", interval, (None, "epoch", "batch"))
    if scheduler is None:
        if interval is not None:
            raise ConfigurationError(
                f"scheduler_interval={interval!r}, and there is no scheduler", "pass scheduler=..."
            )
        return "epoch"
    methods = ("step", "state_dict", "load_state_dict")
    if isinstance(scheduler, type) or not all(callable(getattr(scheduler, method, None)) for method in methods):
        raise ConfigurationError(
            f"scheduler must be one of torch.optim.lr_scheduler, or have its step(), state_dict() and "
            f"load_state_dict(), got {scheduler!r}",
            "build it; what else sets learning rates can do so in a callback",
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ConfigurationError("the scheduler is of another optimizer", "build it with trainer.optimizer")
    mode = "max" if watch.higher_is_better else "min"
    if isinstance(scheduler, ReduceLROnPlateau):
        if interval == "batch":
            raise ConfigurationError("ReduceLROnPlateau needs a figure per epoch", "leave out scheduler_interval")
        if scheduler.mode != mode:
            raise ConfigurationError(
                f"ReduceLROnPlateau has mode={scheduler.mode!r}, and what it gets, the {watch.kind}, is better when "
                f"{'higher' if watch.higher_is_better else 'lower'}",
                f"build the scheduler with mode={mode!r}, pass higher_is_better={not watch.higher_is_better} with a "
                "metric of your own, or monitor='loss'",
            )
        return "epoch"
    needed = [p.name for p in inspect.signature(scheduler.step).parameters.values() if p.default is p.empty]
    if [name for name in needed if name not in ("args", "kwargs")]:
        raise ConfigurationError(
            f"step() of a {type(scheduler).__name__} needs {', '.join(needed)}, and fit() calls it without",
            "call it in a callback",
        )
    return interval or ("batch" if _has_cycle(scheduler) else "epoch")


def _has_cycle(scheduler: Any) -> bool:
    """Whether it is a schedule that steps per batch, or chains one of these."""
    return any(isinstance(one, (OneCycleLR, CyclicLR)) for one in _parts(scheduler))


def _parts(scheduler: Any) -> Iterator[Any]:
    """A scheduler, and those that it chains."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _parts(inner)


def check_schedule(state: Mapping[str, Any], interval: str, loader: Any, count: int, *, loaded: bool) -> None:
    """Check that a schedule with an end is long enough: its scheduler would raise in the middle of training.

    Args:
        state: With which the scheduler will begin.
        interval: At which it steps.
        loader: Gives an epoch's batches.
        count: Number of epochs.
        loaded: Whether the state is that of a checkpoint.
    """
    total, batches = state.get("total_steps"), length_of(loader) if interval == "batch" else 1
    if total is None or batches is None:  # only OneCycleLR has an end
        return
    left, needed = total - state["last_epoch"], count * batches
    if needed > left:
        asked = f"{count} epoch(s) of {batches} batches" if interval == "batch" else f"{count} epoch(s)"
        remedy = (
            "build it with total_steps=epochs * len(loader); with scheduler_interval='epoch' it steps once per epoch"
        )
        if loaded:
            remedy = f"it is the checkpoint's: pass epochs={left // batches}, and another scheduler in the next call"
        raise ConfigurationError(
            f"OneCycleLR has {left} steps left of total_steps={total}, and {asked} take {needed}", remedy
        )


def scheduler_state(scheduler: Any) -> dict[str, Any]:
    return {"kind": type(scheduler).__name__, "state": copy.deepcopy(scheduler.state_dict())}


def optimizer_options(optimizer: Optimizer) -> list[dict[str, Any]]:
    """The options of every group of parameters: what schedulers write to is among them."""
    return [
        {key: map_tensors(Tensor.clone, value) for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]


def restore(scheduler: Any, optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Put a scheduler back, and undo what it, or building a new one, did to the optimizer since.

    Groups of parameters that the optimizer has got since stay as they are.
    """
    state = _with_new_groups(saved["state"], scheduler.state_dict(), len(saved["groups"]), len(optimizer.param_groups))
    scheduler.load_state_dict(copy.deepcopy(state))
    for group, options in zip(optimizer.param_groups, saved["groups"], strict=False):
        for key in _written(scheduler, options):
            value = options[key]
            if isinstance(group.get(key), Tensor) and isinstance(value, Tensor):
                group[key].copy_(value)  # a CUDA graph reads this tensor
            else:
                group[key] = value


def _written(scheduler: Any, options: Mapping[str, Any]) -> list[str]:
    """The options of a group that a scheduler writes to; all of them if it is not torch's."""
    parts = list(_parts(scheduler))
    if not all(type(one).__module__.startswith("torch.optim.") for one in parts):
        return list(options)
    has_momentum = any(getattr(one, "cycle_momentum", False) for one in parts)
    return [key for key in options if key in _WRITTEN or (has_momentum and key in _MOMENTUM)]


def _with_new_groups(saved: Any, own: Any, before: int, now: int) -> Any:
    """A scheduler's saved state, with its own entries for the groups of parameters that there were not before.

    Args:
        saved: The state, or a part of it.
        own: The same of the scheduler that gets it.
        before: Number of groups when the state was saved.
        now: Number of groups.

    Example:
        >>> _with_new_groups({"base_lrs": [0.1]}, {"base_lrs": [0.3, 0.2]}, 1, 2)
        {'base_lrs': [0.1, 0.2]}
    """
    if before == now:
        return saved
    if type(saved) is type(own) is dict:
        return {key: _with_new_groups(value, own.get(key), before, now) for key, value in saved.items()}
    if isinstance(saved, list) and isinstance(own, list):
        if len(saved) == before < now == len(own):
            return [*saved, *own[before:]]
        if len(saved) == len(own):  # states of chained schedulers
            return [_with_new_groups(one, other, before, now) for one, other in zip(saved, own, strict=True)]
    return saved

"""Samples of a batch that begin a new sequence while the others go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..drivers import unobserved
from ..errors import CannotStepError
from ..functional.ltc import initial_state
from ..state import ModelState, StateDict
from ..tree import copy_containers, map_tensors, tensors_in
from .statistics import normalizations, normalizing_by

State = dict[str, StateDict]

_WHY = "(or one before it) does not start from zero, mixes samples, or its first dimension is not the batch"


def restarted(state: ModelState, rows: Tensor) -> State:
    """Return the present state with some rows as before their first input, out of place; the network is unchanged.

    Rows start from the value that the module's reset gives: its number or tensor, zero where reset leaves nothing.

    Args:
        state: State of the network.
        rows: Boolean ``[B]``: which rows restart.

    Raises:
        CannotStepError: If a state has no batch dimension; names it.
    """
    now = state.get()
    state.reset()
    try:
        initial = state.get()
    finally:
        state.set(now)
    for name, module in state.modules():
        b = now[name].get("b")
        if getattr(module, "init_state", None) == "random" and isinstance(b, Tensor) and b.numel():
            fresh = initial_state(torch.zeros_like(b), "random")
            initial[name] = {**initial[name], "b": fresh.b, "mem" if "mem" in now[name] else "v": fresh.u}
    return {name: _merge(name, now[name], initial[name], rows) for name in now}


def _merge(name: str, now: Any, initial: Any, rows: Tensor) -> Any:
    if isinstance(now, dict):
        merged = copy_containers(now)
        for key, entry in now.items():
            start = initial.get(key) if isinstance(initial, dict) else None
            merged[key] = _merge(f"{name}.{key}", entry, start, rows)
        return merged
    if is_dataclass(now):
        merged = copy_containers(now)
        for field in (field.name for field in fields(now)):
            start = getattr(initial, field, None)
            object.__setattr__(merged, field, _merge(f"{name}.{field}", getattr(now, field), start, rows))
        return merged
    if isinstance(now, (list, tuple)):
        fits = isinstance(initial, (list, tuple)) and len(initial) == len(now)
        entries = [_merge(name, *pair, rows) for pair in zip(now, initial if fits else [None] * len(now), strict=True)]
        return type(now)(*entries) if hasattr(now, "_fields") else type(now)(entries)
    if isinstance(now, Tensor) and now.numel():
        if now.dim() == 0 or len(now) != len(rows):
            raise _cannot_restart(name, f"has shape {tuple(now.shape)}, not [B, ...] with B={len(rows)}")
        if initial is None or (isinstance(initial, Tensor) and initial.numel() == 0):
            initial = 0.0
        start = torch.as_tensor(initial, dtype=now.dtype, device=now.device)
        return torch.where(rows.to(now.device).view(-1, *[1] * (now.dim() - 1)), start, now)
    if not isinstance(now, Tensor) and isinstance(now, (int, float)) and now != initial:
        raise _cannot_restart(name, f"is one number, {now}, for all samples")
    return now


def _cannot_restart(name: str, why: str) -> CannotStepError:
    layer = "" if name.startswith("the ") else name
    reason = f"cannot begin a new sequence in single samples (new_sequence): its state {why}"
    return CannotStepError(
        reason if layer else f"{name} {reason}",
        "call reset() when all samples of a batch end together, or use one trainer step with B=1 per stream",
        layer=layer,
    )


@torch.no_grad()
def check_rows(net: nn.Module, state: ModelState, rows: Tensor, advance: Callable[[], Any]) -> None:
    """Check on the present input that restarted rows behave like a network after reset, and that the others go on.

    Catches states that do not start from zero (the mask of a dropout), and those with the batch in another dimension.
    The network is as before afterward; monitors see nothing of it.

    Args:
        net: The network.
        state: Its recurrent state.
        rows: Boolean ``[B]``: which rows restart.
        advance: Advances the network by the next step, and returns what it gives.

    Raises:
        CannotStepError: If rows cannot be restarted; names the first state that shows it.
    """
    now = state.snapshot()
    norms = [norm for norm in normalizations(net).values() if norm.training]  # they mix the rows
    random = [module for module in net.modules() if getattr(module, "init_state", None) == "random"]
    for module in random:
        module.init_state = "zeros"  # type: ignore[assignment]
    try:
        with unobserved(net), normalizing_by(net, norms, batch=False):

            def after(begin: Callable[[], None]) -> State:
                begin()
                with torch.random.fork_rng():
                    outputs: State = {"the network's output": {"": advance()}}
                return {**map_tensors(Tensor.clone, state.get()), **outputs}

            merged = restarted(state, rows)
            tried, fresh, old = after(lambda: state.set(merged)), after(state.reset), after(lambda: state.restore(now))
            for name in tried:
                found, new, gone_on = _leaves(tried[name]), _leaves(fresh[name]), _leaves(old[name])
                if not len(found) == len(new) == len(gone_on):
                    continue  # a queue that has not filled up: what comes out of it counts
                if not all(_agree(*trio, rows) for trio in zip(found, new, gone_on, strict=True)):
                    raise _cannot_restart(name, _WHY)
    finally:
        for module in random:
            module.init_state = "random"  # type: ignore[assignment]
        state.restore(now)


def _agree(found: Tensor, fresh: Tensor, old: Tensor, rows: Tensor) -> bool:
    rows = rows.to(found.device)
    pairs = ((found[rows], fresh[rows]), (found[~rows], old[~rows]))
    return all(torch.allclose(*pair, rtol=1e-4, atol=1e-6, equal_nan=True) for pair in pairs)


def _leaves(value: Any) -> list[Tensor]:
    return [tensor for tensor in tensors_in(value) if tensor.dim()]

"""What to do about an input that the network cannot take: another order of axes, another type, a missing axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from ..errors import CannotStepError
from .base import step_modes
from .trial import TrialCopy

Layout = Callable[[Tensor], Tensor]

_SWAPPED = "x.transpose(0, 1)"
_STEPS = 8  # that a still image is repeated for the trial


def layout_remedy(net: nn.Module, x: Tensor, target: tuple[int, ...], batch_first: bool) -> str:
    """Return what to do so that the network runs on an input, or an empty string where nothing helps.

    Every change that is suggested has been tried on a copy of the network.

    Args:
        net: The network.
        x: Input as the user passed it.
        target: Shape of the targets; empty without any.
        batch_first: The trainer's option.
    """
    try:
        copy = TrialCopy(net)
    except CannotStepError:
        return ""
    try:
        if target[:1] == x.shape[1:2] and _loops_over_second_axis(copy, x):
            return f"the input looks like [T, B, ...], and forward() loops over the second axis: pass {_SWAPPED}"
    except Exception:  # it does not run on this input
        pass
    for remedy, layout in _candidates(net, x, batch_first):
        try:
            changed = layout(x)
            steps, samples = changed.shape[:2]
            fits = target[:1] in ((), (samples,)) or target[:2] == (steps, samples)
            if not fits or steps == 1 or not _runs(copy, changed):  # an axis of one is no time
                continue
            if "batch_first=True" in remedy and _loops(copy, changed):  # it gets the input as it is passed
                also = remedy.partition("batch_first=True")[2]
                return (
                    f"the input looks like [B, T, ...], and forward() loops over the first axis: pass {_SWAPPED}{also}"
                )
            return remedy
        except Exception:  # a layout that does not work is not suggested
            continue
    return ""


def takes_integers(net: nn.Module, x: Tensor) -> bool:
    """Whether a network takes integers: it embeds them, or turns them into something else in ``forward``.

    Args:
        net: The network.
        x: Integers ``[T, B, ...]``.
    """
    if any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in net.modules()):
        return True
    try:
        return _runs(TrialCopy(net), x)
    except Exception:
        return False


def _candidates(net: nn.Module, x: Tensor, batch_first: bool) -> Iterator[tuple[str, Layout]]:
    """Remedies, the most usual mistakes first, and what they do to reach ``[T, B, ...]`` in the network's type."""
    weights = next((p for p in net.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if weights is None else weights.dtype
    also, own = "", dtype if x.is_floating_point() else x.dtype
    if x.dtype != own:
        convert = f"convert the input with x.to({own})"
        also = f", and {convert}"
        yield convert, lambda x: (x.transpose(0, 1) if batch_first else x).to(own)
    if x.dim() >= 3 and batch_first:
        yield f"the input looks like [T, B, ...]: build the trainer without batch_first{also}", lambda x: x.to(own)
    if x.dim() >= 3 and not batch_first:
        remedy = f"the input looks like [B, T, ...]: build the trainer with batch_first=True{also}"
        yield remedy, lambda x: x.transpose(0, 1).to(own)
    for axis in range(x.dim() - 1, 1, -1):
        code = f"x.movedim({axis}, {1 if batch_first else 0})"
        yield f"time looks like axis {axis} of the input: pass {code}{also}", partial(_time_from, axis, own)
    if x.dim() == 2:
        code = f"x.unsqueeze({0 if batch_first else 1})"
        yield f"for one sample without a batch axis, pass {code}{also}", lambda x: x.unsqueeze(1).to(own)
    code = "x.unsqueeze(1).expand(-1, T, *x.shape[1:])" if batch_first else "x.unsqueeze(0).expand(T, *x.shape)"
    remedy = f"for a still input, [B, ...], repeat it over T time steps: {code}{also}"
    yield remedy, lambda x: x.unsqueeze(0).expand(_STEPS, *x.shape).to(own)


def _time_from(axis: int, dtype: torch.dtype, x: Tensor) -> Tensor:
    return x.movedim(axis, 0).to(dtype)


def _loops(copy: TrialCopy, x: Tensor) -> bool:
    """Whether the network, which runs on an input ``[T, B, ...]``, loops over time itself."""
    if "m" in step_modes(copy.net).values():
        return False
    try:
        return not copy.calls(x[0]).unique
    except Exception:
        return True


def _loops_over_second_axis(copy: TrialCopy, x: Tensor) -> bool:
    """Whether the network makes as many steps as the second axis of its input is long, and not the first."""
    steps, samples = x.shape[:2]
    if steps == samples or "m" in step_modes(copy.net).values():
        return False
    as_passed, swapped = copy.calls(x).steps(), copy.calls(x.transpose(0, 1)).steps()
    return as_passed % samples == 0 and swapped % steps == 0 and as_passed != swapped


def _runs(copy: TrialCopy, x: Tensor) -> bool:
    """Whether the network takes time steps of an input ``[T, B, ...]``, in one of the ways that it can be driven."""
    if "m" in step_modes(copy.net).values():
        copy.state.reset()
        copy.run(x[:2])
        return True
    try:
        if copy.calls(x[0]).unique:
            return True
    except Exception:  # it may loop over time itself
        pass
    calls = copy.calls(x)
    return calls.steps() % len(x) == 0 and not calls.unique

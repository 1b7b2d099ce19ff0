"""What a network that loops over time returns: which module's outputs, and how they are combined over time.

The loss at step ``t`` sees what the network would return if the sequence ended there. So the result of ``forward`` must
be known as a function of what some module returns in each step: their stack, the last, their mean, sum or maximum.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_SCALES = (1.0, 10.0, 100.0)


class Returned(NamedTuple):
    """Where the output of a time step comes from.

    Attributes:
        module: Name of the module that returns it.
        place: Its position among the tensors that the module returns.
        readout: ``"step"``, ``"mean"``, ``"sum"`` or ``"max"``: how ``forward`` combines the steps.
    """

    module: str
    place: int
    readout: str


def identify(result: Tensor, records: dict[str, list[list[Tensor | None]]]) -> Returned | None:
    """Find the module whose outputs ``forward`` returned, and how it combined them.

    Args:
        result: What ``forward`` returned.
        records: By module, in the order of the calls within a step: the tensors that it returned at each step.

    Returns:
        The last module that fits; ``None`` if there is none.

    Example:
        >>> spikes = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])]
        >>> identify(sum(spikes) / 2, {"lif": [[spk] for spk in spikes]})
        Returned(module='lif', place=0, readout='mean')
    """
    for name, steps in reversed(records.items()):
        for place in reversed(range(min(map(len, steps)))):
            found = (tensors[place] for tensors in steps)
            series = [tensor for tensor in found if tensor is not None]
            if len(series) == len(steps) and len({tensor.shape for tensor in series}) == 1:
                readout = _readout(result, torch.stack(series))
                if readout is not None:
                    return Returned(name, place, readout)
    return None


def lively_inputs(x: Tensor) -> Iterator[Tensor]:
    """The input, then larger and other ones: a network that is silent on all of its input shows nothing."""
    for scale in _SCALES:
        yield scale * x
    noise = torch.rand_like(x)
    for scale in _SCALES:
        yield scale * noise


def _readout(result: Tensor, series: Tensor) -> str | None:
    """How a result follows from a series ``[T, B, ...]``; ``None`` if it does not."""
    if not (result.is_floating_point() and series.is_floating_point()):
        return None
    tolerance = max(1e-5, 4 * torch.finfo(result.dtype).eps, 4 * torch.finfo(series.dtype).eps)
    result, series = result.detach().double(), series.detach().double()
    sums = series.cumsum(0)
    counts = torch.arange(1, len(series) + 1, device=series.device, dtype=series.dtype)
    means = sums / counts.view(-1, *[1] * (series.dim() - 1))
    forms = {"step": series, "mean": means, "sum": sums, "max": series.cummax(0).values}
    for readout, record in forms.items():
        candidates = [record[-1], *(record.movedim(0, axis) for axis in range(record.dim()))]
        if any(_same(result, candidate, tolerance) for candidate in candidates):
            return readout
    return None


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Equal values in equal order, up to rounding of a sum: axes of size 1, or merged axes, make no difference."""
    if one.numel() != other.numel():
        return False
    scale = other.abs().amax().item() if other.numel() else 0.0
    return torch.allclose(one.flatten(), other.flatten(), rtol=0.0, atol=tolerance * scale, equal_nan=True)

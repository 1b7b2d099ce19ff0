"""What a network that loops over time returns: which module's outputs, and how they are combined over time.

The loss at step ``t`` sees what the network would return if the sequence ended there. So the result of ``forward`` must
be known as a function of what some module returns in each step: their stack, the last, their mean, sum or maximum.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import FPTTWarning
from ..tree import map_tensors

_SCALES = (1.0, 3.0, 10.0, 30.0, 100.0)


class Returned(NamedTuple):
    """Where one tensor that ``forward`` returns comes from.

    Attributes:
        module: Name of the module that returns it step by step.
        place: Its position among the tensors that the module returns.
        readout: ``"step"``, ``"mean"``, ``"sum"`` or ``"max"``: how ``forward`` combines the steps.
        factor: Constant that ``forward`` multiplies a sum with, as ``count / num_steps`` does.
    """

    module: str
    place: int
    readout: str
    factor: float = 1.0

    def on(self, result: Tensor, records: dict[str, list[list[Tensor | None]]], steps: int) -> Returned | None:
        """This source on another run, if it is one there.

        Args:
            result: What ``forward`` returned there.
            records: What the modules returned there, see :func:`identify`.
            steps: Time steps of the run on which this source was found.
        """
        series = records.get(self.module, [])
        for fit in identify(result, {self.module: series}) if series else []:
            if fit.place != self.place:
                continue
            if fit.readout == self.readout and math.isclose(fit.factor, self.factor, rel_tol=1e-4):
                return self
            # A sum divided by a number is a mean where that number is the number of steps, on one of the two runs.
            divided = {self.readout: self.factor, fit.readout: fit.factor}
            of_mean = 1 / (steps if self.readout == "mean" else len(series))
            if divided.keys() == {"mean", "sum"} and math.isclose(divided["sum"], of_mean, rel_tol=1e-4):
                return self if self.readout == "sum" else fit
        return None


class StepOutput:
    """What ``forward`` would return for a single time step: its result, with the tensors of that step in it.

    Args:
        returned: What ``forward`` returned.
        sources: Where each of its tensors comes from, in the order of :func:`~fptt_plugin.tree.tensors_in`; ``None``
            for those of which nothing is known.
        chosen: The source of the output that the loss sees, or one of several that it is computed from.
        computed: Whether the output is computed from several.
        guessed: Whether the chosen source is but one of several that combine the steps in different ways.
    """

    def __init__(
        self,
        returned: Any,
        sources: list[Returned | None],
        chosen: Returned,
        *,
        computed: bool = False,
        guessed: bool = False,
    ) -> None:
        self._template = map_tensors(lambda tensor: tensor.new_empty(0), returned)
        self.sources = sources if computed else [chosen]
        self.chosen = chosen
        self.guessed = guessed
        self._computed = computed

    def output(self, latest: Mapping[tuple[str, int], Tensor], select: Callable[[Any], Tensor]) -> Tensor:
        """The output of one step.

        Args:
            latest: The tensors of the step, by module and place.
            select: Picks the output from what ``forward`` returns; tensors of unknown source are ``None`` there.
        """
        if not self._computed:
            return latest[self.chosen.module, self.chosen.place]
        tensors = (None if source is None else latest[source.module, source.place] for source in self.sources)
        return select(map_tensors(lambda tensor: next(tensors), self._template))


def identify(result: Tensor, records: dict[str, list[list[Tensor | None]]]) -> list[Returned]:
    """Find the module whose outputs ``forward`` returned, and how it combined them.

    Args:
        result: What ``forward`` returned.
        records: By module, in the order of the calls within a step: the tensors that it returned at each step.

    Returns:
        Everything that fits of the last module of which something does; empty if there is none. Several fit where the
        values do not tell them apart, as of a silent network; the most usual comes first.

    Example:
        >>> spikes = [torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1.0]])]
        >>> identify(sum(spikes) / 2, {"lif": [[spk] for spk in spikes]})
        [Returned(module='lif', place=0, readout='mean', factor=1.0)]
    """
    for name, steps in reversed(records.items()):
        fits = []
        for place in reversed(range(min(map(len, steps)))):
            found = (tensors[place] for tensors in steps)
            series = [tensor for tensor in found if tensor is not None]
            if len(series) == len(steps) and len({tensor.shape for tensor in series}) == 1:
                fits += [Returned(name, place, *form) for form in _forms(result, torch.stack(series))]
        if fits:
            return fits
    return []


def differ(fits: list[Returned]) -> bool:
    """Whether several fit that combine the steps in different ways, so that the first of them is a guess."""
    return len({fit.readout for fit in fits}) > 1


def told_apart(fits: list[list[Returned]], noisy: Callable[[set[str]], list[list[Returned]]]) -> list[list[Returned]]:
    """The fits, those that differ replaced by what fits with random numbers in place of what is the same at every step.

    Args:
        fits: What fits each of some tensors.
        noisy: Called with the names of the modules whose output is to be random; returns what then fits the same.
    """
    alike = {found[0].module for found in fits if differ(found)}
    return [other or found for other, found in zip(noisy(alike), fits, strict=True)] if alike else fits


def warn_of_guess(net: nn.Module, readout: str) -> None:
    """Warn that the values of a network did not tell how it combines its time steps."""
    warnings.warn(
        f"{type(net).__name__} does not show how it combines its time steps, because its output is random, or much the "
        f"same at every step, whatever the input: readout={readout!r} is assumed. Pass readout to the trainer",
        FPTTWarning,
        stacklevel=4,
    )


def warn_of_modes(net: nn.Module, readout: str, evaluated: str) -> None:
    """Warn that a network combines its time steps in another way in evaluation mode."""
    warnings.warn(
        f"{type(net).__name__} combines its time steps in another way in evaluation mode: readout={evaluated!r} there, "
        f"{readout!r} in training mode. The trainer uses {readout!r} in both, so predict(x) is not what net.eval()(x) "
        f"returns. Pass readout={evaluated!r} to use that in both",
        FPTTWarning,
        stacklevel=4,
    )


def lively_inputs(x: Tensor) -> Iterator[Tensor]:
    """The input, then other ones: a network that never fires, or always does, does not show what it computes."""
    if not x.is_floating_point():  # tokens: others might be out of range
        yield from (x, x.flip(0), x.roll(1, 0))
        return
    for base in (x, torch.rand_like(x), torch.randn_like(x)):
        yield from (scale * base for scale in _SCALES)


def _forms(result: Tensor, series: Tensor) -> Iterator[tuple[str, float]]:
    """Every readout, with the factor of a sum, by which a result follows from a series ``[T, B, ...]``."""
    if not (result.is_floating_point() and series.is_floating_point()):
        return
    tolerance = max(1e-5, 4 * torch.finfo(result.dtype).eps, 4 * torch.finfo(series.dtype).eps)
    result, series = result.detach().double(), series.detach().double()
    sums = series.cumsum(0)
    counts = torch.arange(1, len(series) + 1, device=series.device, dtype=series.dtype)
    means = sums / counts.view(-1, *[1] * (series.dim() - 1))
    records = {"step": series, "mean": means, "sum": sums, "max": series.cummax(0).values}
    if len(series) > 1 and result.numel() == series[0].numel():  # of one step's size: where values do not tell, a mean
        records = {"mean": records.pop("mean"), **records}
    for readout, record in records.items():
        candidates = [record[-1], *(record.movedim(0, axis) for axis in range(record.dim()))]
        if any(_same(result, candidate, tolerance) for candidate in candidates):
            yield readout, 1.0
    # A multiple of the sum competes with the others: where outputs are all alike, it may look like their maximum.
    if result.numel() == sums[-1].numel() and sums[-1].any():
        total = sums[-1].flatten()
        factor = (result.flatten() @ total / (total @ total)).item()
        known = any(math.isclose(factor, other, rel_tol=tolerance) for other in (0.0, 1.0, 1 / len(series)))
        if not known and _same(result, factor * sums[-1], tolerance):
            yield "sum", factor


def _same(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Equal values in equal order, up to rounding of a sum: axes of size 1, or merged axes, make no difference."""
    if one.numel() != other.numel():
        return False
    scale = other.nan_to_num().abs().amax().item() if other.numel() else 0.0  # nan: the mean over no step
    return torch.allclose(one.flatten(), other.flatten(), rtol=0.0, atol=tolerance * scale, equal_nan=True)

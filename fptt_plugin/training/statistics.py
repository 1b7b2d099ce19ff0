"""Running statistics of batch normalization: found, frozen, kept, restored and recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..neurons import PerStepNorm, normalizes_itself
from ..torch_internals import NORMALIZATIONS, buffers_of, transient_buffers
from ..tree import map_tensors


def normalizations(net: nn.Module) -> dict[str, nn.Module]:
    """Return the batch normalizations of a network, by name.

    Example:
        >>> normalizations(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        {'1': BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)}
    """
    kinds = (NORMALIZATIONS, PerStepNorm)
    return {name: m for name, m in net.named_modules() if isinstance(m, kinds)}


INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


@contextmanager
def normalizing_by(net: nn.Module, norms: list[nn.Module], *, batch: bool) -> Iterator[None]:
    """Context in which normalizations use the statistics of the batch (training mode), or the running ones.

    Args:
        net: The network.
        norms: Some of its normalizations. Neurons that do the work of theirs as their own mode says change it, too.
        batch: Whether they use those of the batch.
    """
    theirs = {id(norm) for norm in norms}
    owners = [m for m in net.modules() if normalizes_itself(m) and any(id(norm) in theirs for norm in m.children())]
    kept = [(module, module.training) for module in [*norms, *owners]]
    try:
        for module, _ in kept:
            module.training = batch
        yield
    finally:
        for module, training in kept:
            module.training = training


def _statistics(module: nn.Module) -> dict[str, Tensor]:
    """The running statistics of a normalization; its recurrent state, if it has one, is another matter."""
    state = transient_buffers(module)
    return {name: b for name, b in buffers_of(module).items() if b is not None and name not in state}


class FrozenNormalization:
    """Context in which batch normalization computes as always but keeps its running statistics.

    Example:
        >>> import torch
        >>> norm = nn.BatchNorm1d(2)
        >>> with FrozenNormalization(norm):
        ...     _ = norm(torch.ones(3, 2))
        >>> norm.running_mean, norm.num_batches_tracked.item()
        (tensor([0., 0.]), 0)
    """

    def __init__(self, net: nn.Module) -> None:
        self._modules = list(normalizations(net).values())
        self._kept: list[dict[str, Tensor]] = []

    def __enter__(self) -> None:
        # Copies are written to, so that a graph built here still goes backward when the statistics are back.
        self._kept = [_statistics(module) for module in self._modules]
        for module, statistics in zip(self._modules, self._kept, strict=True):
            buffers_of(module).update(map_tensors(Tensor.clone, statistics))

    def __exit__(self, *error: object) -> None:
        for module, buffers in zip(self._modules, self._kept, strict=True):
            buffers_of(module).update(buffers)


class RunningStatistics:
    """Keeps the running statistics of a network as they were at the last update, since every forward pass moves them.

    Args:
        net: The network.

    Attributes:
        modules: The normalizations, as they were last looked up.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net
        self.modules = list(normalizations(net).values())
        self._kept: list[tuple[Tensor, Tensor]] = []

    def look_up(self) -> None:
        """Look the normalizations up again; the statistics of new ones are remembered as they are."""
        self.modules = list(normalizations(self._net).values())
        kept = {id(buffer) for buffer, _ in self._kept}
        self._kept += [pair for pair in self._copies() if id(pair[0]) not in kept]

    def keep(self) -> None:
        """Remember the present statistics."""
        self._kept = self._copies()

    def _copies(self) -> list[tuple[Tensor, Tensor]]:
        buffers = (b for module in self.modules for b in _statistics(module).values() if not is_lazy(b))
        return [(buffer, buffer.clone()) for buffer in buffers]

    def restore(self) -> None:
        """Restore the statistics that :meth:`keep` remembered."""
        self._write(self._kept)

    @staticmethod
    def _write(copies: list[tuple[Tensor, Tensor]]) -> None:
        for buffer, value in copies:
            buffer.copy_(value)

    @contextmanager
    def restored_on_error(self, updates: Callable[[], int]) -> Iterator[None]:
        """Context that restores the statistics when an error leaves it: as before it, or as at an update within.

        Args:
            updates: Tells the number of updates so far.
        """
        kept, before, begun = self._kept, self._copies(), updates()
        try:
            yield
        except BaseException:
            if updates() > begun:
                self.restore()
            else:
                self._write(before)
                self._kept = kept
            raise

    def tensors(self) -> list[Tensor]:
        """The present statistics."""
        return [buffer for buffer, _ in self._kept]


@contextmanager
def recalibrating(net: nn.Module, norms: dict[str, nn.Module]) -> Iterator[Callable[[], list[str]]]:
    """Context in which normalizations forget their running statistics and take plain means over what passes.

    Statistics that nothing reaches, such as those of later time steps, are the old ones afterward. An error puts all
    of them back.

    Args:
        net: The network.
        norms: Its normalizations whose statistics are to be taken anew, by name.

    Yields:
        A function that returns the names of those which nothing has reached so far.
    """
    layers: list[Any] = list(norms.values())  # Any: what they share has no public class
    old = [{name: b.clone() for name, b in _statistics(norm).items() if not is_lazy(b)} for norm in layers]
    momenta = [norm.momentum for norm in layers]

    def unreached() -> list[str]:
        return [name for name, norm in zip(norms, layers, strict=True) if not norm.num_batches_tracked.any()]

    def put_back(everything: bool) -> None:
        for norm, statistics in zip(layers, old, strict=True):
            rows = everything | (norm.num_batches_tracked == 0)  # one for the layer, or one for each time step
            rows = rows.unsqueeze(1) if rows.dim() else rows
            for name, value in statistics.items():
                buffer = getattr(norm, name)
                buffer.copy_(torch.where(rows, value, buffer))

    with ExitStack() as stack, normalizing_by(net, layers, batch=True):
        try:
            for norm in layers:
                if isinstance(norm, INSTANCE_NORMS):
                    stack.callback(norm.register_forward_pre_hook(_plain_mean).remove)
                norm.reset_running_stats()
                norm.momentum = None  # plain means, as torch's batch normalization understands it
            yield unreached
            put_back(everything=False)
        except BaseException:
            put_back(everything=True)
            raise
        finally:
            for norm, momentum in zip(layers, momenta, strict=True):
                norm.momentum = momentum


def _plain_mean(norm: Any, inputs: tuple[Any, ...]) -> None:
    """Count the calls of instance normalization, for which a momentum of ``None`` is 0."""
    norm.num_batches_tracked += 1
    norm.momentum = 1 / norm.num_batches_tracked.item()

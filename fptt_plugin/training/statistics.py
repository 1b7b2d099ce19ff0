"""Running statistics of batch normalization: found, frozen, kept, restored and recomputed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..neurons import PerStepNorm
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
def recalibrating(modules: list[nn.Module]) -> Iterator[Callable[[], None]]:
    """Context in which normalizations forget their running statistics and take plain means over what passes.

    They are in training mode within; an error puts the old statistics back.

    Args:
        modules: The normalizations.

    Yields:
        A function to call before each batch.
    """
    norms: list[Any] = modules
    old = RunningStatistics(nn.ModuleList(modules))
    old.keep()
    kept = [(norm.momentum, norm.training) for norm in norms]
    count = 0

    def begin_batch() -> None:
        nonlocal count
        count += 1
        for norm in norms:
            # torch's layers count their calls, of which a batch has one for every time step; None is their plain mean.
            norm.momentum = 1 / count if isinstance(norm, PerStepNorm) else None

    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.training = True
        yield begin_batch
    except BaseException:
        old.restore()
        raise
    finally:
        for norm, (momentum, training) in zip(norms, kept, strict=True):
            norm.momentum, norm.training = momentum, training

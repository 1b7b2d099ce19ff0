"""Running statistics of batch normalisation: found, frozen, kept and restored."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..tree import map_tensors


def normalizations(net: nn.Module) -> dict[str, nn.Module]:
    """Return the batch normalisations of a network, by name.

    Example:
        >>> normalizations(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        {'1': BatchNorm1d(2, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)}
    """
    return {name: m for name, m in net.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase)}


class FrozenNormalization:
    """Context in which batch normalisation computes as always but keeps its running statistics.

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
        self._kept: list[dict[str, Tensor | None]] = []

    def __enter__(self) -> None:
        # Copies are written to, so that a graph built here still goes backward when the statistics are back.
        self._kept = [dict(module._buffers) for module in self._modules]
        for module in self._modules:
            module._buffers.update(map_tensors(Tensor.clone, module._buffers))

    def __exit__(self, *error: object) -> None:
        for module, buffers in zip(self._modules, self._kept, strict=True):
            module._buffers.update(buffers)


class RunningStatistics:
    """Keeps the running statistics of a network as they were at the last update, since every forward pass moves them.

    Args:
        net: The network. Its normalisations are looked up once, here.

    Attributes:
        modules: The normalisations.
    """

    def __init__(self, net: nn.Module) -> None:
        self.modules = list(normalizations(net).values())
        self._kept: list[tuple[Tensor, Tensor]] = []

    def keep(self) -> None:
        """Remember the present statistics."""
        buffers = (b for module in self.modules for b in module._buffers.values() if b is not None)
        self._kept = [(buffer, buffer.clone()) for buffer in buffers if not is_lazy(buffer)]

    def restore(self) -> None:
        """Restore the statistics that :meth:`keep` remembered."""
        for buffer, kept in self._kept:
            buffer.copy_(kept)

    def tensors(self) -> list[Tensor]:
        """The present statistics."""
        return [buffer for buffer, _ in self._kept]

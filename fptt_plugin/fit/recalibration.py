"""Running statistics of batch normalization, recomputed at weights that do not move."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import BatchError, ConfigurationError
from ..training import normalizations, recalibrating
from .batches import Batching, checked, interruptible, parts_of


def recalibrate(trainer: Any, loader: Iterable[Any], *, batch: Batching = None, averaged: bool | None = None) -> int:
    """Implement :meth:`~fptt_plugin.FPTTTrainer.recalibrate`."""
    net, batching = trainer.net, checked(batch)
    norms = [norm for norm in normalizations(net).values() if getattr(norm, "running_mean", None) is not None]
    if net.training:  # a layer that the user put into evaluation mode keeps its statistics
        norms = [norm for norm in norms if norm.training]
    if not norms:
        raise ConfigurationError(
            "the network has no batch normalization whose running statistics move", "leave recalibrate() out"
        )
    count = 0
    with trainer.evaluation(averaged), recalibrating(norms) as begin_batch:
        for given in interruptible(loader):
            prepared = trainer.prepare(*parts_of(given, batching))
            begin_batch()
            trainer.visit(prepared)
            count += 1
        if count == 0:
            raise BatchError("the loader gave no batch to take statistics from")
    return count

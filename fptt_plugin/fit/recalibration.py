"""Running statistics of batch normalization, recomputed at weights that do not move."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from ..errors import BatchError, ConfigurationError, FPTTWarning
from ..training import normalizations, recalibrating
from .batches import Batching, checked, interruptible, parts_of


def recalibrate(trainer: Any, loader: Iterable[Any], *, batch: Batching = None, averaged: bool | None = None) -> int:
    """Implement :meth:`~fptt_plugin.FPTTTrainer.recalibrate`."""
    net, batching = trainer.net, checked(batch)
    norms = {name: m for name, m in normalizations(net).items() if getattr(m, "running_mean", None) is not None}
    if net.training:  # a layer that the user put into evaluation mode keeps its statistics
        norms = {name: norm for name, norm in norms.items() if norm.training}
    if not norms:
        raise ConfigurationError(
            "the network has no batch normalization whose running statistics move", "leave recalibrate() out"
        )
    count = 0
    with trainer.evaluation(averaged), recalibrating(net, norms) as unreached:
        for given in interruptible(loader):
            prepared = trainer.prepare(*parts_of(given, batching))
            trainer.visit(prepared)
            count += 1
        if count == 0:
            raise BatchError("the loader gave no batch to take statistics from")
        left = unreached()
        if len(left) == len(norms):
            raise ConfigurationError(
                f"the running statistics of {', '.join(left)} do not move where the network is evaluated: these layers "
                "are not called there, or not in their own mode",
                "leave recalibrate() out",
            )
    if left:
        warnings.warn(
            f"the running statistics of {', '.join(left)} are the old ones, because nothing moved them. If these "
            "layers are called in evaluation, pass a loader whose sequences reach them",
            FPTTWarning,
            stacklevel=3,
        )
    return count

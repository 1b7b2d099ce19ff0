"""What the trainer returns: small named tuples of detached tensors and numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import Tensor

_NOTHING: Mapping[str, float] = MappingProxyType({})


class StepResult(NamedTuple):
    """Result of one step of a stream; tensors are detached.

    Attributes:
        output: What the loss saw, ``[B, ...]``; several tensors where ``output`` picked several.
        loss: Loss of this step, a 0-d tensor; ``None`` if the step carried none.
        updated: Whether the weights moved.
    """

    output: Any
    loss: Tensor | None
    updated: bool


class SequenceResult(NamedTuple):
    """Result of training on one batch of sequences; tensors are detached.

    Attributes:
        output: The decision ``[B, ...]``: what the loss saw at the last step of each sequence; several tensors where
            ``output`` picked several.
        loss: Mean loss of the windows that had one, a 0-d tensor.
        updates: Number of weight updates.
    """

    output: Any
    loss: Tensor
    updates: int


class BatchRecord(NamedTuple):
    """What a callback of :meth:`~fptt_plugin.FPTTTrainer.fit` gets after each batch.

    Tensors are detached and stay on their device.

    Attributes:
        epoch: From 1.
        batch: Number of the batch in its epoch, from 1.
        size: Number of its samples.
        loss: Its mean training loss, a 0-d tensor.
        output: The decisions ``[B, ...]``.
        grad_norm: Norm of the regularized gradient before clipping, of the batch's last update, a 0-d tensor; ``None``
            with ``max_grad_norm=None``.
        lr: Learning rate of the optimizer's first parameter group in this batch.
        updates: Weight updates so far.

    Example:
        >>> import torch
        >>> loss, norm, output = torch.tensor(0.5), torch.tensor(0.9), torch.rand(8, 2)
        >>> record = BatchRecord(1, 3, 8, loss, output, norm, lr=0.01, updates=60)
        >>> f"batch {record.batch}: loss {record.loss.item()}"
        'batch 3: loss 0.5'
    """

    epoch: int
    batch: int
    size: int
    loss: Tensor
    output: Any
    grad_norm: Tensor | None
    lr: float
    updates: int


class EpochRecord(NamedTuple):
    """Figures of one epoch. Means are over samples that count; with a target per step, over samples and steps.

    Attributes:
        epoch: From 1.
        loss: Mean training loss: what the weights follow, with its ramp and its auxiliary term, at every step with a
            loss.
        train_score: The first metric, of the decisions made while training; nan without a metric.
        val_score: The same on the validation data; ``None`` without any.
        firing_rates: Spikes per neuron and step of each spiking layer while training.
        updates: Weight updates so far.
        seconds: Wall time of the epoch's training, validation apart.
        decision_loss: ``loss_fn(decision, target)`` while training, without ramp and auxiliary term. Class weights,
            ``ignore_index`` and ``reduction="sum"`` of torch's losses mean what they mean for all samples at once.
        val_loss: The same on the validation data; ``None`` without any.
        train_scores: Every metric by name, of the decisions made while training.
        val_scores: Every metric by name, on the validation data.
        lr: Learning rate of the optimizer's first parameter group in the last batch.
        grad_norm: Norm of the regularized gradient before clipping, at the last update of each batch; mean over the
            batches. ``None`` with ``max_grad_norm=None``; ``float("inf")`` measures it and does not clip.

    Example:
        >>> rates, scores = {"1": 0.1}, {"f1": 0.5}
        >>> record = EpochRecord(1, 1.2, 0.5, None, rates, 10, 3.0, decision_loss=0.7, train_scores=scores)
        >>> record.scalars()["train/decision_loss"], record.scalars()["train/f1"]
        (0.7, 0.5)
    """

    epoch: int
    loss: float
    train_score: float
    val_score: float | None
    firing_rates: dict[str, float]
    updates: int
    seconds: float
    decision_loss: float = math.nan
    val_loss: float | None = None
    train_scores: Mapping[str, float] = _NOTHING
    val_scores: Mapping[str, float] = _NOTHING
    lr: float = math.nan
    grad_norm: float | None = None

    def scalars(self) -> dict[str, float]:
        """Every figure by a name such as ``"val/accuracy"``, for a logger; missing values are omitted.

        A metric that has the name of a loss of the record is ``"train/metric/loss"`` and ``"val/metric/loss"``.

        Returns:
            Numbers by name.
        """
        figures: dict[str, float | None] = {
            "train/loss": self.loss,
            "train/decision_loss": self.decision_loss,
            **{_key("train", name): score for name, score in self.train_scores.items()},
            "val/loss": self.val_loss,
            **{_key("val", name): score for name, score in self.val_scores.items()},
            **{f"firing_rate/{name}": rate for name, rate in self.firing_rates.items()},
            "grad_norm": self.grad_norm,
            "lr": self.lr,
            "updates": self.updates,
            "seconds": self.seconds,
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


def _key(part: str, metric: str) -> str:
    """What :meth:`EpochRecord.scalars` calls a metric."""
    return f"{part}/metric/{metric}" if metric in ("loss", "decision_loss") else f"{part}/{metric}"

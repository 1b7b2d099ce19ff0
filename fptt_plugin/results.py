"""What the trainer returns: small named tuples of detached tensors and numbers."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class StepResult(NamedTuple):
    """Result of one step of a stream; tensors are detached.

    Attributes:
        output: What the loss saw, ``[B, ...]``.
        loss: Loss of this step, a 0-d tensor; ``None`` if the step carried none.
        updated: Whether the weights moved.
    """

    output: Tensor
    loss: Tensor | None
    updated: bool


class SequenceResult(NamedTuple):
    """Result of training on one batch of sequences; tensors are detached.

    Attributes:
        output: The decision ``[B, ...]``: what the loss saw at the last step of each sequence.
        loss: Mean loss of the windows that had one, a 0-d tensor.
        updates: Number of weight updates.
    """

    output: Tensor
    loss: Tensor
    updates: int


class EpochRecord(NamedTuple):
    """Figures of one epoch.

    Attributes:
        epoch: From 1.
        loss: Mean training loss.
        train_score: Mean metric of the decisions made while training.
        val_score: Metric on the validation data; ``None`` without.
        firing_rates: Spikes per neuron and step of each spiking layer while training.
        updates: Weight updates so far.
        seconds: Wall time of the epoch's training, validation apart.
    """

    epoch: int
    loss: float
    train_score: float
    val_score: float | None
    firing_rates: dict[str, float]
    updates: int
    seconds: float

"""Checks of the data that a user hands to the trainer, before anything is changed."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

TARGETS = ("auto", "sequence", "step")


class Sequence(NamedTuple):
    """A checked batch of sequences, time first.

    Attributes:
        x: Input ``[T, B, ...]``.
        y: Target ``[B, ...]`` (per sequence) or ``[T, B, ...]`` (per step).
        per_sequence: Whether one target serves all steps.
        steps: Length ``T``.
        batch: Batch size ``B``.
    """

    x: Tensor
    y: Tensor
    per_sequence: bool
    steps: int
    batch: int

    def target(self, t: int) -> Tensor:
        """The target of step ``t``."""
        return self.y if self.per_sequence else self.y[t]


def check_sequence(
    x: Tensor, y: Tensor, *, batch_first: bool, targets: str, size: tuple[int, int] | None = None
) -> Sequence:
    """Checks a batch of sequences and puts time first.

    Args:
        x: ``[T, B, ...]``, or ``[B, T, ...]`` with ``batch_first``.
        y: ``[B, ...]``, or per step as ``x``.
        batch_first: Layout of ``x`` and of a target per step.
        targets: ``"sequence"``, ``"step"``, or ``"auto"`` to tell by the shape.
        size: Steps and batch size, where the shape of ``x`` does not say them; ``x`` then stays as it is.

    Returns:
        The batch, time first.

    Raises:
        ValueError: If ranks, lengths or values do not fit.
        TypeError: If ``x`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> check_sequence(torch.zeros(5, 2, 3), torch.zeros(2), batch_first=False, targets="auto").per_sequence
        True
    """
    if size is None:
        x = time_first(x, batch_first=batch_first)
    steps, batch = size or tuple(x.shape[:2])
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor, got {type(y).__name__}")
    if y.is_floating_point() and not y.isfinite().all():
        raise ValueError("y has non-finite values")
    stepwise = y.transpose(0, 1) if batch_first and y.dim() >= 2 else y
    fits_step = stepwise.dim() >= 2 and tuple(stepwise.shape[:2]) == (steps, batch)
    fits_sequence = y.dim() >= 1 and len(y) == batch
    if targets == "auto" and fits_step and fits_sequence:
        raise ValueError(
            f"y of shape {tuple(y.shape)} can be a target per sequence or per step with T={steps} and B={batch}: pass "
            "targets='sequence' or targets='step' to the trainer"
        )
    if fits_step and targets != "sequence":
        return Sequence(x, stepwise, False, steps, batch)
    if fits_sequence and targets != "step":
        return Sequence(x, y, True, steps, batch)
    asked = "" if targets == "auto" else f"; the trainer has targets={targets!r}"
    raise ValueError(
        f"y of shape {tuple(y.shape)} does not fit x with T={steps} steps and B={batch} samples: pass [B, ...] (one "
        f"target per sequence) or {_layout(batch_first)} (one per step){asked}"
    )


def time_first(x: Tensor, *, batch_first: bool) -> Tensor:
    """Checks the input of a batch of sequences and returns it as ``[T, B, ...]``.

    Raises:
        ValueError: If rank, length or values are wrong.
        TypeError: If ``x`` is not a floating-point tensor.
    """
    what = f"x must be {_layout(batch_first)} with at least 3 dimensions; for scalar features use x.unsqueeze(-1)"
    check_input(x, rank=3, what=what)
    if batch_first:
        x = x.transpose(0, 1)
    steps, batch = x.shape[:2]
    if steps == 0 or batch == 0:
        raise ValueError(f"x is an empty sequence: T={steps}, B={batch}; leave it out, or check how the data were cut")
    return x


def _layout(batch_first: bool) -> str:
    return "[B, T, ...]" if batch_first else "[T, B, ...]"


def check_step(x: Tensor, y: Tensor | None) -> None:
    """Checks one step of a stream: ``x`` ``[B, ...]`` and its target, or ``None``.

    Raises:
        ValueError: If ranks, lengths or values do not fit.
        TypeError: If ``x`` is not a floating-point tensor.
    """
    check_input(x, rank=2, what="x_t must be [B, ...] with at least 2 dimensions; for one sample use x_t.unsqueeze(0)")
    if x.shape[0] == 0:
        raise ValueError("x_t is an empty batch: leave the step out")
    if y is not None:
        if not isinstance(y, Tensor):
            raise TypeError(f"y_t must be a tensor or None, got {type(y).__name__}")
        if y.dim() == 0 or len(y) != len(x):
            raise ValueError(f"y_t of shape {tuple(y.shape)} does not fit a batch of {len(x)} samples")
        if y.is_floating_point() and not y.isfinite().all():
            raise ValueError("y_t has non-finite values; pass None for a step without a target")


def check_input(x: Tensor, rank: int, what: str) -> None:
    """Checks type, rank and values of an input.

    Raises:
        ValueError: If rank or values are wrong.
        TypeError: If ``x`` is not a floating-point tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"the input must be a floating-point tensor, got {kind}: convert it, e.g. with x.float()")
    if x.dim() < rank:
        raise ValueError(f"{what}; got shape {tuple(x.shape)}")
    if not x.isfinite().all():
        raise ValueError("the input has non-finite values (nan or inf): clean the data, e.g. with torch.nan_to_num")

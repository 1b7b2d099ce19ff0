"""Checks of the data that a user hands to the trainer, before anything is changed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._finite import all_finite

TARGETS = ("auto", "sequence", "step")


class Sequence(NamedTuple):
    """A checked batch of sequences, time first.

    Attributes:
        x: Input ``[T, B, ...]``.
        y: Target ``[B, ...]`` (per sequence) or ``[T, B, ...]`` (per step).
        per_sequence: Whether one target serves all steps.
        steps: Length ``T``.
        batch: Batch size ``B``.
        mask: Which samples are labelled, boolean ``[B]`` or ``[T, B]``; ``None``: all.
    """

    x: Tensor
    y: Tensor
    per_sequence: bool
    steps: int
    batch: int
    mask: Tensor | None = None

    def labelled(self, t: int) -> Tensor | None:
        """Which samples are labelled at step ``t``; ``None``: all."""
        return self.mask[t] if self.mask is not None and self.mask.dim() == 2 else self.mask

    def target(self, t: int) -> Tensor:
        """The target of step ``t``."""
        return self.y if self.per_sequence else self.y[t]


def check_sequence(
    x: Tensor,
    y: Tensor,
    mask: Tensor | None = None,
    *,
    batch_first: bool,
    targets: str,
    ignore_index: int | None = None,
    size: tuple[int, int] | None = None,
) -> Sequence:
    """Checks a batch of sequences and puts time first.

    Args:
        x: ``[T, B, ...]``, or ``[B, T, ...]`` with ``batch_first``.
        y: ``[B, ...]``, or per step as ``x``.
        mask: Which targets count, boolean ``[B]``, or per step as ``x``; ``None``: all.
        batch_first: Layout of ``x`` and of a target per step.
        targets: ``"sequence"``, ``"step"``, or ``"auto"`` to tell by the shape.
        ignore_index: Class index that stands for no label.
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
    if mask is not None:
        mask = _check_mask(mask, steps, batch, batch_first)
    stepwise = y.transpose(0, 1) if batch_first and y.dim() >= 2 else y
    fits_step = stepwise.dim() >= 2 and tuple(stepwise.shape[:2]) == (steps, batch)
    fits_sequence = y.dim() >= 1 and len(y) == batch
    if targets == "auto" and fits_step and fits_sequence:
        raise ValueError(
            f"y of shape {tuple(y.shape)} can be a target per sequence or per step with T={steps} and B={batch}: pass "
            "targets='sequence' or targets='step' to the trainer"
        )
    if fits_step and targets != "sequence":
        mask = without_ignored(stepwise, mask, ignore_index, rank=2)
        _check_labelled(stepwise, mask if mask is None or mask.dim() == 2 else mask.expand(steps, batch))
        return Sequence(x, stepwise, False, steps, batch, mask)
    if fits_sequence and targets != "step":
        mask = without_ignored(y, mask, ignore_index, rank=1)
        _check_labelled(y, mask if mask is None or mask.dim() == 1 else mask.any(dim=0))
        return Sequence(x, y, True, steps, batch, mask)
    asked = "" if targets == "auto" else f"; the trainer has targets={targets!r}"
    raise ValueError(
        f"y of shape {tuple(y.shape)} does not fit x with T={steps} steps and B={batch} samples: pass [B, ...] (one "
        f"target per sequence) or {_layout(batch_first)} (one per step){asked}"
    )


def without_ignored(y: Tensor, mask: Tensor | None, ignore_index: int | None, *, rank: int) -> Tensor | None:
    """The mask without samples whose label stands for none; the same mask where there are none of these.

    Args:
        y: Labels ``[B]`` or ``[T, B]``.
        mask: Boolean ``[B]`` or ``[T, B]``, or ``None``.
        ignore_index: The label.
        rank: Dimensions of one label per sample; targets of more, as of each pixel, are left to the loss function.
    """
    if ignore_index is None or y.is_floating_point() or y.dim() != rank:
        return mask
    labelled = y != ignore_index
    if labelled.all():
        return mask
    return labelled if mask is None else labelled & mask


def _check_mask(mask: Tensor, steps: int, batch: int, batch_first: bool) -> Tensor:
    _check_boolean("mask", mask)
    stepwise = mask.transpose(0, 1) if batch_first and mask.dim() == 2 else mask
    if stepwise.shape not in ((batch,), (steps, batch)):
        layout = _layout(batch_first).replace(", ...", "")
        raise ValueError(
            f"mask of shape {tuple(mask.shape)} does not fit T={steps} steps and B={batch} samples: pass [B] or "
            f"{layout}"
        )
    return stepwise


def _check_boolean(name: str, rows: Tensor) -> None:
    if not isinstance(rows, Tensor) or rows.dtype != torch.bool:
        kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
        raise TypeError(f"{name} must be a boolean tensor, got {kind}: convert it, e.g. with {name}.bool()")


def _check_labelled(y: Tensor, mask: Tensor | None) -> None:
    if not finite_targets(y, mask):
        raise ValueError("y has non-finite values; a mask says which samples have no target")


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


def check_step(
    x: Tensor, y: Tensor | None, mask: Tensor | None = None, new_sequence: Tensor | None = None, *, finite: bool = True
) -> None:
    """Checks one step of a stream.

    Args:
        x: Input ``[B, ...]``.
        y: Target ``[B, ...]``, or ``None``.
        mask: Boolean ``[B]``, which samples have a target, or ``None``.
        new_sequence: Boolean ``[B]``, which samples begin a new sequence, or ``None``.
        finite: Whether to refuse values that are not finite.

    Raises:
        ValueError: If ranks, lengths or values do not fit.
        TypeError: If ``x`` is not a floating-point tensor, or a mask not a boolean one.
    """
    what = "x_t must be [B, ...] with at least 2 dimensions; for one sample use x_t.unsqueeze(0)"
    check_input(x, rank=2, what=what, finite=finite)
    if x.shape[0] == 0:
        raise ValueError("x_t is an empty batch: leave the step out")
    for name, rows in (("mask", mask), ("new_sequence", new_sequence)):
        if rows is not None:
            _check_boolean(name, rows)
            if rows.shape != (len(x),):
                raise ValueError(f"{name} of shape {tuple(rows.shape)} does not fit a batch of {len(x)}: pass [B]")
    if y is not None:
        if not isinstance(y, Tensor):
            raise TypeError(f"y_t must be a tensor or None, got {type(y).__name__}")
        if y.dim() == 0 or len(y) != len(x):
            raise ValueError(f"y_t of shape {tuple(y.shape)} does not fit a batch of {len(x)} samples")
        if finite and not finite_targets(y, mask):
            raise ValueError(
                "y_t has non-finite values; pass None for a step without a target, or mask=y_t.isfinite() for samples "
                "without"
            )


def finite_targets(y: Tensor, mask: Tensor | None) -> bool:
    """Whether the targets that count are finite."""
    labelled = y if mask is None else y[mask]
    return not labelled.is_floating_point() or all_finite([labelled])


def check_input(x: Tensor, rank: int, what: str, *, finite: bool = True) -> None:
    """Checks type, rank and values of an input.

    Raises:
        ValueError: If rank or values are wrong.
        TypeError: If ``x`` is not a floating-point tensor.
    """
    if not isinstance(x, Tensor) or not x.is_floating_point():
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(
            f"the input must be a floating-point tensor, got {kind}: convert it, e.g. with x.float(); for integer "
            "frames such as tonic's, add lambda frames: frames.astype('float32') to the transform"
        )
    if x.dim() < rank:
        raise ValueError(f"{what}; got shape {tuple(x.shape)}")
    if finite and not all_finite([x]):
        raise ValueError("the input has non-finite values (nan or inf): clean the data, e.g. with torch.nan_to_num")

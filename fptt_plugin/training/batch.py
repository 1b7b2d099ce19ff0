"""One checked batch of sequences, or one step of a stream, and the windows that training cuts from it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import BatchError, BatchShapeError, BatchTypeError
from ..tree import Packing, map_tensors
from .finite import all_finite
from .schedule import Schedule

TARGETS = ("auto", "sequence", "step")


class Batch(NamedTuple):
    """A checked batch of sequences with time first, or one step of a stream.

    Attributes:
        x: Input ``[T, B, ...]``.
        y: Target ``[B, ...]`` (per sequence, or of the stream's step) or ``[T, B, ...]`` (per step); ``None`` without.
        per_sequence: Whether one target serves all steps.
        steps: Length ``T``; ``None`` for a stream.
        size: Batch size ``B``.
        mask: Which samples are labeled, boolean ``[B]`` or ``[T, B]``; ``None``: all.
        ends: Last step of every sample, where one target per sequence comes with sequences of different lengths: -1
            for a sample without any step. ``None``: all samples have ``T`` steps.
        new_rows: Which samples of a stream begin a new sequence with this step, boolean ``[B]``.
        packing: How ``y`` is packed, where a sample has several targets; ``None``: a single one.
    """

    x: Tensor
    y: Tensor | None
    per_sequence: bool
    steps: int | None
    size: int
    mask: Tensor | None = None
    ends: tuple[int, ...] | None = None
    new_rows: Tensor | None = None
    packing: Packing | None = None

    @classmethod
    def of_sequences(
        cls,
        x: Tensor,
        y: Any,
        mask: Tensor | None = None,
        *,
        batch_first: bool = False,
        targets: str = "auto",
        ignore_index: int | None = None,
        size: tuple[int, int] | None = None,
    ) -> Batch:
        """Check a batch of sequences and put time first.

        Args:
            x: ``[T, B, ...]``, or ``[B, T, ...]`` with ``batch_first``.
            y: ``[B, ...]``, or per step in the layout of ``x``; or several such tensors in a container.
            mask: Which targets count: boolean ``[B]``, boolean per step in the layout of ``x``, or integer lengths
                ``[B]``; ``None``: all.
            batch_first: Layout of ``x``, ``mask`` and of a target per step.
            targets: ``"sequence"``, ``"step"``, or ``"auto"`` to decide by the shape of ``y``.
            ignore_index: Class index that stands for no label.
            size: Steps and batch size, where the shape of ``x`` does not say them; ``x`` then stays as it is.

        Raises:
            BatchError: If ranks, lengths or values do not fit.
            BatchTypeError: If ``y`` or ``mask`` has the wrong type.

        Example:
            >>> Batch.of_sequences(torch.zeros(5, 2, 3), torch.zeros(2)).per_sequence
            True
        """
        if size is None:
            x = time_first(x, batch_first=batch_first)
        steps, samples = size or tuple(x.shape[:2])
        y, packing = _packed(y)
        if mask is not None:
            mask = _time_first_mask(mask, steps, samples, batch_first)
        y, per_sequence = _time_first_target(y, steps, samples, batch_first, targets)
        mask = _without_ignored(y, mask, ignore_index, rank=1 if per_sequence else 2)
        labeled, ends = mask, None
        if mask is not None and per_sequence and mask.dim() == 2:
            # One label and a mask over time: every sample ends at its own last step.
            labeled, ends = mask.any(dim=0), _last_steps(mask)
        elif mask is not None and not per_sequence:
            labeled = mask.expand(steps, samples)
        if not finite_targets(y, labeled):
            raise BatchError("y has non-finite values", "pass a mask that says which samples have a target")
        if ends is not None and mask is not None and mask.all():
            mask = ends = None
        return cls(x, y, per_sequence, steps, samples, mask, ends, packing=packing)

    @classmethod
    def without_target(
        cls, x: Tensor, mask: Tensor | None, *, batch_first: bool, size: tuple[int, int] | None = None
    ) -> Batch:
        """Sequences to predict on: ``x`` with time first, and a mask or lengths as :meth:`of_sequences` takes them."""
        steps, samples = size or tuple(x.shape[:2])
        mask = None if mask is None else _time_first_mask(mask, steps, samples, batch_first)
        ends = _last_steps(mask) if mask is not None and mask.dim() == 2 else None
        return cls(x, None, True, steps, samples, mask, ends)

    @classmethod
    def of_step(
        cls,
        x: Tensor,
        y: Tensor | None,
        mask: Tensor | None = None,
        new_sequence: Tensor | None = None,
        *,
        ignore_index: int | None = None,
        finite: bool = True,
        integers: bool = False,
    ) -> Batch:
        """Check one step of a stream.

        Args:
            x: Input ``[B, ...]``.
            y: Target ``[B, ...]``, or ``None``.
            mask: Boolean ``[B]``, which samples have a target, or ``None``.
            new_sequence: Boolean ``[B]``, which samples begin a new sequence, or ``None``.
            ignore_index: Class index that stands for no label.
            finite: Whether to reject values that are not finite; if not, such a target is left out.
            integers: Whether the network takes integers.

        Raises:
            BatchError: If ranks, lengths or values do not fit.
            BatchTypeError: If ``x`` is not a floating-point tensor, or a mask not a boolean one.
        """
        what = "x_t must be [B, ...] with at least 2 dimensions; for one sample use x_t.unsqueeze(0)"
        check_input(x, rank=2, what=what, finite=finite, integers=integers)
        if x.shape[0] == 0:
            raise BatchError("x_t is an empty batch", "leave the step out")
        for name, rows in (("mask", mask), ("new_sequence", new_sequence)):
            if rows is not None:
                _check_boolean(name, rows)
                if rows.shape != (len(x),):
                    raise BatchError(
                        f"{name} of shape {tuple(rows.shape)} does not fit a batch of {len(x)}", "pass [B]"
                    )
        packing = None
        if y is not None:
            y, packing = _packed(y)
            if y.dim() == 0 or len(y) != len(x):
                raise BatchError(f"y_t of shape {tuple(y.shape)} does not fit a batch of {len(x)} samples")
            mask = _without_ignored(y, mask, ignore_index, rank=1)
            if not finite_targets(y, mask):
                if finite:
                    raise BatchError(
                        "y_t has non-finite values",
                        "pass None for a step without a target, or mask=y_t.isfinite() for samples without",
                    )
                y = None
        if new_sequence is not None and not new_sequence.any():
            new_sequence = None
        return cls(x.unsqueeze(0), y, False, None, len(x), mask, None, new_sequence, packing)

    def window(self, t: int, schedule: Schedule, *, count: int | None = None, x: Tensor | None = None) -> Window:
        """The window that begins at step ``t``.

        Args:
            t: First step.
            schedule: Its length, unless ``count`` is given.
            count: Number of steps.
            x: Input of these steps; cut from the batch if ``None``.
        """
        if self.steps is None:
            return Window(self, self.x, t, 1, False)
        if count is None:
            count = min(schedule.window or self.steps, self.steps - t)
        return Window(self, self.x[t : t + count] if x is None else x, t, count, t + count == self.steps)

    def carries_loss(self, t: int, due: range) -> bool:
        """Whether a loss is due at step ``t``: by the schedule, or because a sample ends there."""
        return t in due or t + 1 == self.steps or (self.ends is not None and t in self.ends)

    def target(self, t: int) -> Tensor | None:
        """The target of step ``t``."""
        return self.y if self.per_sequence or self.steps is None or self.y is None else self.y[t]

    def labeled(self, t: int) -> Tensor | None:
        """Which samples are labeled at step ``t``, boolean ``[B]``; ``None``: all."""
        return self.mask[t] if self.mask is not None and self.mask.dim() == 2 else self.mask

    def groups(self, t: int, due: range) -> Iterator[tuple[Tensor, int | None]]:
        """Labeled samples with a loss at step ``t``, in groups of equal length: rows, boolean ``[B]``, and length."""
        rows = self.labeled(t)
        assert rows is not None
        if self.ends is None:
            if rows.any():
                yield rows, self.steps
            return
        scheduled = t in due or t + 1 == self.steps
        ends = torch.tensor(self.ends, device=rows.device)
        for end in sorted(set(self.ends)):
            if t == end or (scheduled and t < end):
                group = rows & (ends == end)
                if group.any():
                    yield group, end + 1

    def merge(self, decision: Tensor | None, output: Tensor, t: int) -> Tensor:
        """The decision so far ``[B, ...]``: the output at each sample's own last step, or at ``t`` before it."""
        if self.ends is None or decision is None:
            return output
        over = torch.tensor([0 <= end < t for end in self.ends], device=output.device)
        return torch.where(over.view(-1, *[1] * (output.dim() - 1)), decision, output)

    def scored(self, decision: Any) -> tuple[Any, Any]:
        """Leave out the samples that do not count.

        Args:
            decision: Decisions at the end of the sequences, ``[B, ...]``.

        Returns:
            Decisions and targets of the samples that count.
        """
        assert self.steps is not None
        if self.ends is None:
            return self.scored_at(self.steps - 1, decision)
        assert self.y is not None
        return self._rows(decision, self.y, torch.tensor([end >= 0 for end in self.ends], device=self.y.device))

    def scored_at(self, t: int, output: Any) -> tuple[Any, Any]:
        """Leave out the samples that do not count at a step.

        Args:
            t: The step, from 0.
            output: Its outputs ``[B, ...]``.

        Returns:
            Outputs and targets of the samples that count there.
        """
        target, rows = self.target(t), self.labeled(t)
        assert target is not None
        return self._rows(output, target, rows)

    def _rows(self, output: Any, target: Tensor, rows: Tensor | None) -> tuple[Any, Any]:
        if rows is not None:
            output, target = map_tensors(lambda tensor: tensor[rows], output), target[rows]
        return output, target if self.packing is None else self.packing.unpack(target)


class Window(NamedTuple):
    """Consecutive steps that training takes at once.

    Attributes:
        batch: Where they come from.
        x: Input ``[K, B, ...]``.
        t: First step, counted from the last reset.
        length: Number of steps.
        last: Whether the sequence ends with this window.
        random: State of the random generators before these steps, where the window is run a second time.
    """

    batch: Batch
    x: Tensor
    t: int
    length: int
    last: bool
    random: tuple[Tensor, ...] = ()

    def due(self, schedule: Schedule) -> list[int]:
        """The steps of the window that carry a loss."""
        steps, due = range(self.t, self.t + self.length), schedule.due()
        return [t for t in steps if self.batch.carries_loss(t, due)]


def _packed(y: Any) -> tuple[Tensor, Packing | None]:
    """The target as one tensor, and how several are packed.

    Raises:
        BatchTypeError: If there is something else than tensors in it.
    """
    if isinstance(y, Tensor):
        return y, None
    packing = Packing(y)
    return packing.pack(y), packing


def time_first(x: Tensor, *, batch_first: bool) -> Tensor:
    """Return the input of a batch of sequences as ``[T, B, ...]``.

    Raises:
        BatchError: If it is empty or has fewer than three dimensions.
    """
    layout = _layout(batch_first)
    rank = 3 if x.is_floating_point() else 2  # tokens have no features
    check_rank(x, rank, f"x must be {layout} with at least 3 dimensions; for scalar features use x.unsqueeze(-1)")
    if batch_first:
        x = x.transpose(0, 1)
    steps, samples = x.shape[:2]
    if steps == 0 or samples == 0:
        raise BatchError(
            f"x is an empty sequence: T={steps}, B={samples}", "leave it out, or check how the data were cut"
        )
    return x


def check_input(x: Tensor, rank: int, what: str, *, finite: bool = True, integers: bool = False) -> None:
    """Check type, rank and values of an input.

    Args:
        x: The input.
        rank: Least number of dimensions; one less for integers, such as tokens ``[T, B]``.
        what: What the input must be, for the message.
        finite: Whether to reject values that are not finite.
        integers: Whether the network takes integers, as one with an ``nn.Embedding`` does.

    Raises:
        BatchError: If rank or values are wrong.
        BatchTypeError: If ``x`` is not a dense floating-point tensor.
    """
    if not isinstance(x, Tensor):
        raise BatchTypeError(f"the input must be a tensor, got {type(x).__name__}", "pass torch.as_tensor(x)")
    if x.is_nested:
        raise BatchTypeError(
            "the input must be a dense tensor, got a nested one",
            "pass x.to_padded_tensor(0.0), and the lengths as mask",
        )
    if x.layout != torch.strided:
        raise BatchTypeError(f"the input must be a dense tensor, got {x.layout}", "pass x.to_dense()")
    if x.is_complex():
        raise BatchTypeError(
            f"the input must be a floating-point tensor, got {x.dtype}",
            "pass real and imaginary part as features, torch.cat([x.real, x.imag], -1), or on an axis of their own, "
            "torch.view_as_real(x), to a network of that input size",
        )
    if not x.is_floating_point() and not integers:
        raise BatchTypeError(
            f"the input must be a floating-point tensor, got {x.dtype}",
            "convert it, e.g. with x.float(); for integer frames such as tonic's, add "
            "lambda frames: frames.astype('float32') to the transform",
        )
    check_rank(x, rank if x.is_floating_point() else rank - 1, what)
    if finite and not all_finite([x]):
        raise BatchError("the input has non-finite values (nan or inf)", "clean the data, e.g. with torch.nan_to_num")


def check_rank(x: Tensor, rank: int, what: str) -> None:
    """Check the number of dimensions of an input.

    Raises:
        BatchShapeError: If there are fewer than ``rank``.
    """
    if x.dim() < rank:
        raise BatchShapeError(f"{what}; got shape {tuple(x.shape)}")


def finite_targets(y: Tensor, mask: Tensor | None) -> bool:
    """Return whether the targets that count are finite."""
    labeled = y if mask is None else y[mask]
    return not labeled.is_floating_point() or all_finite([labeled])


def _time_first_target(y: Tensor, steps: int, samples: int, batch_first: bool, targets: str) -> tuple[Tensor, bool]:
    """The target with time first, and whether it is one per sequence."""
    if y.dim() == 0:
        raise BatchTypeError(f"y is a single number, and x has B={samples} samples", "pass y.unsqueeze(0)")
    stepwise = y.transpose(0, 1) if batch_first and y.dim() >= 2 else y
    fits_step = stepwise.dim() >= 2 and tuple(stepwise.shape[:2]) == (steps, samples)
    fits_sequence = y.dim() >= 1 and len(y) == samples
    if targets == "auto" and fits_step and fits_sequence:
        raise BatchError(
            f"y of shape {tuple(y.shape)} can be a target per sequence or per step with T={steps} and B={samples}",
            "pass targets='sequence' or targets='step' to the trainer",
        )
    if fits_step and targets != "sequence":
        return stepwise, False
    if fits_sequence and targets != "step":
        return y, True
    asked = "" if targets == "auto" else f"; the trainer has targets={targets!r}"
    kind = BatchShapeError if targets == "auto" else BatchError
    raise kind(
        f"y of shape {tuple(y.shape)} does not fit x with T={steps} steps and B={samples} samples",
        f"pass [B, ...] (one target per sequence) or {_layout(batch_first)} (one per step){asked}",
    )


def _time_first_mask(mask: Tensor, steps: int, samples: int, batch_first: bool) -> Tensor:
    """The mask as boolean ``[B]`` or ``[T, B]``; integer lengths ``[B]`` become the latter."""
    are_numbers = isinstance(mask, Tensor) and mask.dtype != torch.bool and not mask.is_complex()
    if are_numbers and mask.shape == (samples,):
        return _mask_of_lengths(mask, steps, batch_first)
    _check_boolean("mask", mask)
    stepwise = mask.transpose(0, 1) if batch_first and mask.dim() == 2 else mask
    if stepwise.shape not in ((samples,), (steps, samples)):
        layout = _layout(batch_first).replace(", ...", "")
        raise BatchError(
            f"mask of shape {tuple(mask.shape)} does not fit T={steps} steps and B={samples} samples",
            f"pass [B] or {layout}, or the integer lengths [B]",
        )
    return stepwise


def _mask_of_lengths(lengths: Tensor, steps: int, batch_first: bool) -> Tensor:
    """Boolean mask ``[T, B]`` of sequences of those lengths ``[B]``."""
    are_lengths = bool(((lengths >= 1) & (lengths <= steps) & (lengths % 1 == 0)).all())
    are_integers, are_flags = not lengths.is_floating_point(), _are_flags(lengths)
    # Ones alone are lengths, or say that every sample counts in full.
    if are_integers and are_lengths and (steps == 1 or not are_flags):
        return torch.arange(steps, device=lengths.device).unsqueeze(1) < lengths
    device = "" if lengths.device.type == "cpu" else ", device=mask.device"
    as_mask = f"torch.arange({steps}{device})" + (" < mask.unsqueeze(1)" if batch_first else ".unsqueeze(1) < mask")
    remedies = ["if it says which samples count, pass mask.bool()"] if are_flags else []
    if are_integers:
        remedies.append(f"if it holds lengths, pass the boolean mask {as_mask}")
        remedies.append("if it is neither, leave it out, as batch=(0, 1) does in fit() and evaluate()")
        raise BatchError(
            f"an integer mask [B] holds the lengths of the sequences, 1 to T={steps}, got {lengths.tolist()}",
            "; ".join(remedies),
        )
    if are_lengths:
        remedies.append(f"if it holds lengths, pass {as_mask if are_flags else 'mask.long()'}")
    raise _not_boolean("mask", lengths, [*remedies, _WEIGHTS])


def _last_steps(mask: Tensor) -> tuple[int, ...]:
    """Last labeled step of every sample of a mask ``[T, B]``, -1 without any."""
    steps = torch.arange(1, len(mask) + 1, device=mask.device).unsqueeze(1)
    return tuple((steps * mask).amax(dim=0).sub(1).tolist())


def _without_ignored(y: Tensor, mask: Tensor | None, ignore_index: int | None, *, rank: int) -> Tensor | None:
    """The mask without samples whose label stands for none; the same mask where there are none of these.

    Args:
        y: Labels ``[B]`` or ``[T, B]``.
        mask: Boolean ``[B]`` or ``[T, B]``, or ``None``.
        ignore_index: The label.
        rank: Dimensions of one label per sample; targets of more, as of each pixel, are left to the loss function.
    """
    if ignore_index is None or y.is_floating_point() or y.dim() != rank:
        return mask
    labeled = y.long() != ignore_index  # 8-bit labels would wrap the index to a class
    if labeled.all():
        return mask
    return labeled if mask is None else labeled & mask


_WEIGHTS = "if it holds weights, pass them with the targets, (y, weights), which loss_fn then gets as its target"


def _check_boolean(name: str, rows: Tensor) -> None:
    if isinstance(rows, Tensor) and rows.dtype == torch.bool:
        return
    if isinstance(rows, Tensor) and not _are_flags(rows):
        remedies = [f"pass the condition that is meant, e.g. {name} > 0", *([_WEIGHTS] if name == "mask" else [])]
    else:
        remedies = [f"convert it, e.g. with {name}.bool()"]
    raise _not_boolean(name, rows, remedies)


def _not_boolean(name: str, rows: Any, remedies: list[str]) -> BatchTypeError:
    kind = rows.dtype if isinstance(rows, Tensor) else type(rows).__name__
    return BatchTypeError(f"{name} must be a boolean tensor, got {kind}", "; ".join(remedies))


def _are_flags(values: Tensor) -> bool:
    """Whether they are zeros and ones, of which ``bool()`` loses nothing."""
    return bool(((values == 0) | (values == 1)).all())


def _layout(batch_first: bool) -> str:
    return "[B, T, ...]" if batch_first else "[T, B, ...]"

"""What the loss of one time step is: which output it sees, how it is weighted, and the auxiliary term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._validation import Problems
from .functional.losses import ClassDistribution, constant_ramp, linear_ramp

LossFunction = Callable[[Tensor, Tensor], Tensor]
Ramp = Callable[[int, int | None], float]
Output = int | str | Callable[[Any], Tensor] | None

# snntorch.functional losses of a whole record [T, B, C] that equal the mean over time of the loss of each step.
_DECOMPOSABLE = ("ce_rate_loss", "mse_membrane_loss")
_RAMPS: dict[str, Ramp] = {"linear": linear_ramp, "constant": constant_ramp}


class Objective:
    """The loss of one time step, ``r_t * loss_fn(out_t, y_t) + (1 - r_t) * divergence(out_t, Q[y, t])``.

    Args:
        loss_fn: ``loss_fn(output, target) -> scalar`` for one time step, or a snnTorch ``SF`` loss that decomposes.
        output: Picks the output from what the network returns: an index, a key or attribute name, or a callable.
            ``None``: a tensor as it is; of snnTorch's ``(spk, ..., mem)`` the membrane, for spike losses the spikes.
        ramp: ``"linear"`` (``r_t = (t + 1) / T``), ``"constant"`` (1), a callable ``(t, T) -> float``, or ``None``:
            linear for one class label per sequence, constant otherwise.
        auxiliary: Use the divergence term: ``True``, ``False``, a :class:`ClassDistribution` of your own, or
            ``None``: for one class label per sequence under a cross-entropy loss. It has no weight where the ramp is 1.

    Raises:
        ValueError: If an option is unknown, or ``loss_fn`` needs the whole sequence.
    """

    def __init__(
        self,
        loss_fn: LossFunction,
        output: Output = None,
        ramp: str | Ramp | None = None,
        auxiliary: bool | ClassDistribution | None = None,
    ) -> None:
        problems = Problems("the loss")
        check_objective(problems, loss_fn, output, ramp, auxiliary)
        problems.raise_any()
        self.loss_fn = loss_fn
        self.output = output
        self.ramp = ramp
        self.auxiliary = auxiliary
        self.distribution = auxiliary if isinstance(auxiliary, ClassDistribution) else ClassDistribution()
        self._record_loss = _snntorch_name(loss_fn) is not None

    # ------------------------------------------------------------------ which output

    def select(self, returned: Any) -> Tensor:
        """The output that loss and decision see, from what the network returned.

        Raises:
            ValueError: If there is no such output, or several and none was chosen.
        """
        if callable(self.output):
            picked = self.output(returned)
            if not isinstance(picked, Tensor):
                raise ValueError(f"output={self.output!r} must pick one tensor, it returned {_describe(picked)}")
            return picked
        if isinstance(self.output, int):
            return self._index(returned, self.output)
        if isinstance(self.output, str):
            found = returned.get(self.output) if isinstance(returned, Mapping) else None
            found = getattr(returned, self.output, None) if found is None else found
            if not isinstance(found, Tensor):
                raise ValueError(f"output={self.output!r}: there is no such entry in {_describe(returned)}")
            return found
        if isinstance(returned, Tensor):
            return returned
        entries = list(returned) if isinstance(returned, (tuple, list)) else []
        tensors = [entry for entry in entries if isinstance(entry, Tensor)]
        if tensors and len(tensors) == len(entries) and len({tensor.shape for tensor in tensors}) == 1:
            return tensors[self.default_index]
        raise ValueError(
            f"there is no single output in {_describe(returned)}; say which one the loss sees, e.g. output=0, "
            "output='name' or output=lambda returned: returned[0]"
        )

    @property
    def ignore_index(self) -> int | None:
        """The class index that stands for no label, if ``loss_fn`` has one."""
        found = -100 if self.loss_fn is F.cross_entropy else getattr(self.loss_fn, "ignore_index", None)
        return found if isinstance(found, int) else None

    @property
    def default_index(self) -> int:
        """Of ``(spk, ..., mem)``: the spikes for snnTorch's spike losses, the membrane for every other loss."""
        return 0 if _snntorch_name(self.loss_fn) == "ce_rate_loss" else -1

    @staticmethod
    def _index(returned: Any, index: int) -> Tensor:
        try:
            found = returned[index] if isinstance(returned, (tuple, list)) else None
        except IndexError:
            found = None
        if not isinstance(found, Tensor):
            raise ValueError(f"output={index}: there is no such tensor in {_describe(returned)}")
        return found

    # ------------------------------------------------------------------ which loss

    def loss(
        self,
        output: Tensor,
        target: Tensor,
        t: int,
        steps: int | None,
        per_sequence: bool,
        *,
        update: bool = True,
    ) -> Tensor:
        """Loss of step ``t`` of a sequence of ``steps`` (``None`` for a stream), a scalar tensor.

        ``update=False`` leaves the class distribution as it is.

        Raises:
            ValueError: If ``loss_fn`` does not return a scalar.
        """
        weight = self.weight(target, t, steps, per_sequence)
        if weight == 1.0:
            return self.plain_loss(output, target)
        row = self.distribution.row(t, output) if self.is_mixed(target, per_sequence) else None
        return self.weighted_loss(output, target, weight, row, update=update)

    def weight(self, target: Tensor, t: int, steps: int | None, per_sequence: bool) -> float:
        """Weight ``r_t`` of the loss at step ``t``; 1 everywhere with a constant ramp."""
        return self._ramp_for(_are_labels(target, per_sequence))(t, steps)

    def is_constant(self, target: Tensor, per_sequence: bool) -> bool:
        """Whether every step's loss has weight 1."""
        return self._ramp_for(_are_labels(target, per_sequence)) is constant_ramp

    def is_mixed(self, target: Tensor, per_sequence: bool) -> bool:
        """Whether the divergence from the class distribution takes up what the ramp leaves."""
        return _are_labels(target, per_sequence) and self._uses_distribution()

    def weighted_loss(
        self, output: Tensor, target: Tensor, weight: float | Tensor, row: Tensor | None, *, update: bool = True
    ) -> Tensor:
        """Loss of one step of that weight; with a row of the class distribution, mixed with the divergence from it."""
        value = weight * self.plain_loss(output, target)
        if row is None:
            return value
        return value + (1 - weight) * self.distribution.loss_of_row(row, output, target, update=update)

    def plain_loss(self, output: Tensor, target: Tensor) -> Tensor:
        """``loss_fn`` of one step alone, without ramp and auxiliary term."""
        value = self.loss_fn(output.unsqueeze(0) if self._record_loss else output, target)
        if not isinstance(value, Tensor) or value.numel() != 1:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"loss_fn must return a scalar tensor, got {shape}: average it, e.g. with reduction='mean' or .mean()"
            )
        return value.reshape(())

    def _ramp_for(self, labels: bool) -> Ramp:
        if callable(self.ramp):
            return self.ramp
        return _RAMPS[self.ramp or ("linear" if labels else "constant")]

    def _uses_distribution(self) -> bool:
        if self.auxiliary is None:
            return isinstance(self.loss_fn, nn.CrossEntropyLoss) or self.loss_fn is F.cross_entropy
        return self.auxiliary is not False

    def explain(self) -> str:
        """One line on output, ramp and auxiliary term."""
        if self.output is not None:
            output = f"output={self.output!r}"
        else:
            output = "spikes" if self.default_index == 0 else "the only tensor, or the membrane of (spk, mem)"
        ramp = getattr(self.ramp, "__name__", self.ramp) or "linear for one label per sequence, else constant"
        auxiliary = "class distribution with one label per sequence" if self._uses_distribution() else "none"
        name = getattr(self.loss_fn, "__name__", type(self.loss_fn).__name__)
        return f"loss: {name} on {output}; ramp: {ramp}; auxiliary term: {auxiliary}"


def check_objective(
    problems: Problems,
    loss_fn: LossFunction,
    output: Output,
    ramp: str | Ramp | None,
    auxiliary: bool | ClassDistribution | None,
) -> None:
    """Notes unusable options."""
    problems.check(callable(loss_fn), f"loss_fn must be callable as loss_fn(output, target), got {loss_fn!r}")
    problems.check(
        output is None or isinstance(output, (int, str)) or callable(output),
        f"output={output!r} must be an index, a name, a callable or None",
    )
    if ramp is not None and not callable(ramp):
        problems.check_choice("loss_ramp", ramp, tuple(_RAMPS))
    problems.check(
        auxiliary is None or isinstance(auxiliary, (bool, ClassDistribution)),
        f"auxiliary={auxiliary!r} must be True, False, a ClassDistribution or None",
    )
    name = _snntorch_name(loss_fn)
    if getattr(loss_fn, "time_var_targets", False):
        problems.check(
            False,
            f"snnTorch's {name} with time_var_targets=True needs the targets of the whole sequence: leave it out and "
            "pass one target per step, [T, B, ...]",
        )
    elif name is not None:
        decomposes = name in _DECOMPOSABLE and not getattr(loss_fn, "population_code", False)
        problems.check(
            decomposes,
            f"snnTorch's {name} needs the record of the whole sequence and is no mean over time steps, so it cannot be "
            f"trained online; use {' or '.join('SF.' + entry for entry in _DECOMPOSABLE)}, or nn.CrossEntropyLoss with "
            "readout='mean'",
        )


def _are_labels(target: Tensor, per_sequence: bool) -> bool:
    """One class index for a whole sequence."""
    return per_sequence and not target.is_floating_point() and target.dim() == 1


def _snntorch_name(loss_fn: object) -> str | None:
    """Name of a snnTorch record loss, ``None`` for any other callable."""
    module = type(loss_fn).__module__ or ""
    return getattr(loss_fn, "__name__", None) if module.startswith("snntorch.functional") else None


def _describe(returned: object) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a mapping with keys {list(returned)}"
    if isinstance(returned, (tuple, list)):
        return f"{type(returned).__name__}({', '.join(_describe(entry) for entry in returned)})"
    return f"a {type(returned).__name__}"


class Readout:
    """Turns the outputs of the steps into what loss and decision see: each by itself, or their mean so far.

    Args:
        mode: ``"step"`` or ``"mean"``.

    Example:
        >>> import torch
        >>> readout = Readout("mean")
        >>> [readout(torch.tensor(value)).item() for value in (1.0, 3.0)]
        [1.0, 2.0]
    """

    def __init__(self, mode: str) -> None:
        self.mode = mode
        self.total: Tensor | None = None
        self.count: int | Tensor = 0  # a number, or one per sample

    def __call__(self, output: Tensor) -> Tensor:
        if self.mode == "step":
            return output
        self.total = output if self.total is None else self.total + output
        self.count = self.count + 1
        return self.total / self.count

    def restart(self, rows: Tensor) -> None:
        """The mean of some rows of the batch begins anew; boolean ``[B]``."""
        if self.total is not None:
            rows = rows.to(self.total.device).view(-1, *[1] * (self.total.dim() - 1))
            self.total = self.total.masked_fill(rows, 0.0)
            self.count = torch.where(rows, 0, self.count)

    def detach(self) -> None:
        """The past of the mean carries no gradient from here on."""
        if self.total is not None:
            self.total = self.total.detach()

    def get(self) -> tuple[Tensor | None, int | Tensor]:
        """The state, for a checkpoint."""
        return self.total, self.count

    def set(self, state: tuple[Tensor | None, int | Tensor]) -> None:
        """Restores what :meth:`get` returned."""
        self.total, self.count = state

"""Loss terms of one time step: the time ramp and the class-distribution divergence (Kag & Saligrama 2021)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_ramp(t: int, steps: int | None) -> float:
    """Weight ``(t + 1) / T`` of the classification loss at step ``t`` (counted from 0).

    Args:
        t: Index of the step.
        steps: Length ``T`` of the sequence; ``None`` for a stream.

    Returns:
        The weight, 1 for a stream.

    Example:
        >>> [linear_ramp(t, 4) for t in range(4)], linear_ramp(7, None)
        ([0.25, 0.5, 0.75, 1.0], 1.0)
    """
    return 1.0 if steps is None else (t + 1) / steps


def constant_ramp(t: int, steps: int | None) -> float:
    """Weight 1 at every step: streams, regression, labels per step.

    Args:
        t: Index of the step.
        steps: Length ``T`` of the sequence; ``None`` for a stream.

    Returns:
        The weight, always 1.

    Example:
        >>> constant_ramp(0, 100)
        1.0
    """
    return 1.0


def divergence(logits: Tensor, target: Tensor, *, mean_over_classes: bool = False) -> Tensor:
    """Cross-entropy ``-sum_c target_c log softmax(logits)_c``, averaged over the batch.

    Args:
        logits: Class scores, shape ``[B, C]``.
        target: Class distributions, shape ``[B, C]``, rows summing to 1.
        mean_over_classes: Divide by ``C`` as well, as the authors' script does; the paper sums.

    Returns:
        A scalar.

    Example:
        >>> round(divergence(torch.zeros(1, 2), torch.tensor([[0.5, 0.5]])).item(), 4)
        0.6931
    """
    per_class = -target * F.log_softmax(logits, dim=1)
    return per_class.mean() if mean_over_classes else per_class.sum(dim=1).mean()


class ClassDistribution:
    """Running estimate ``Q[y, t]`` of what the network answers at step ``t`` for a sample of class ``y``.

    The auxiliary term of FPTT's classification loss, ``(1 - r_t) * divergence(out_t, Q[y, t])``, keeps early
    steps close to this estimate instead of forcing them to the final label. Rows start uniform. At each step and for
    each class, the first *misclassified* sample of the batch overwrites the row with its softmax, as in the
    authors' code; here for all classes at once, on the device, without a host synchronization.

    Args:
        mean_over_classes: See :func:`divergence`. Default False, the paper's sum.

    Attributes:
        table: Tensor ``[T, C, C]`` indexed ``[step, class, probability]``; empty before the first call, and
            grows when a longer sequence arrives.

    Example:
        >>> q = ClassDistribution()
        >>> logits, label = torch.tensor([[2.0, 0.0]]), torch.tensor([1])
        >>> round(q.loss(0, logits, label).item(), 4)     # against the uniform row
        1.1269
        >>> q.table[0, 1].argmax().item()                 # row 1 now holds the wrong answer's softmax
        0
    """

    def __init__(self, *, mean_over_classes: bool = False) -> None:
        self.mean_over_classes = mean_over_classes
        self.table = torch.empty(0, 0, 0)

    def loss(self, t: int, logits: Tensor, label: Tensor, *, update: bool = True) -> Tensor:
        """Return the divergence of ``logits`` from the estimate at step ``t``, then update the estimate.

        Args:
            t: Index of the step, from 0.
            logits: Class scores, shape ``[B, C]``.
            label: Class indices, shape ``[B]``.
            update: Whether this batch also moves the estimate.

        Returns:
            A scalar.
        """
        return self.loss_of_row(self.row(t, logits), logits, label, update=update)

    def loss_of_row(self, row: Tensor, logits: Tensor, label: Tensor, *, update: bool = True) -> Tensor:
        """Like :meth:`loss`, given the estimate ``[C, C]`` of the step itself; an update writes into it."""
        label = label.long()  # 8-bit integers, which cross_entropy() takes as well, would index as a mask
        # The estimate is read before it is written, as in the authors' code.
        value = divergence(logits, row[label], mean_over_classes=self.mean_over_classes)
        if update:
            _update_(row, logits.detach(), label)
        return value

    def row(self, t: int, logits: Tensor) -> Tensor:
        """Return the estimate at one step; the table grows to hold it.

        Args:
            t: Index of the step, from 0.
            logits: Class scores, shape ``[B, C]``; their number of classes, dtype and device become the table's.

        Returns:
            A view of the table, ``[C, C]``.
        """
        classes = logits.shape[1]
        if self.table.shape[1:] != (classes, classes):
            self.table = logits.new_empty(0, classes, classes)
        if t >= len(self.table):
            # Doubling keeps the number of copies logarithmic in the sequence length.
            rows = max(t + 1, 2 * len(self.table)) - len(self.table)
            fresh = torch.full((rows, classes, classes), 1.0 / classes)
            self.table = torch.cat([self.table, fresh.to(self.table)])
        self.table = self.table.to(logits)
        return self.table[t]

    def state_dict(self) -> dict[str, Any]:
        """Return the table, for a checkpoint.

        Returns:
            A dictionary with the entry ``"table"``.
        """
        return {"table": self.table}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        Args:
            state: The state.
        """
        self.table = state["table"].clone()


@torch.no_grad()
def _update_(row: Tensor, logits: Tensor, label: Tensor) -> None:
    batch, classes = logits.shape
    position = torch.arange(batch, device=label.device)
    # An answer that is not finite would stay in the table, even if this update is skipped.
    wrong = torch.where((logits.argmax(dim=1) != label) & logits.isfinite().all(dim=1), position, batch)
    first = torch.full((classes,), batch, device=label.device)
    first = first.scatter_reduce(0, label, wrong, "amin")
    answer = torch.softmax(logits, dim=1)[first.clamp(max=batch - 1)]
    row.copy_(torch.where((first < batch).unsqueeze(1), answer, row))

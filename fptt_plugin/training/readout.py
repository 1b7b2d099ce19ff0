"""What loss and decision see of the outputs so far."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from ..errors import FPTTWarning
from ..state import ModelState

READOUTS = ("step", "mean", "sum", "max", "rate")


class Readout:
    """Turns the outputs of the steps into what loss and decision see.

    Args:
        mode: ``"step"``: each output by itself; ``"mean"``, ``"sum"``, ``"max"``: of the outputs so far; ``"rate"``:
            the loss sees each output by itself, the decision the mean so far.
        factor: Constant that a sum is multiplied with.

    Example:
        >>> import torch
        >>> readout = Readout("mean")
        >>> [readout(torch.tensor(value)).item() for value in (1.0, 3.0)]
        [1.0, 2.0]
    """

    def __init__(self, mode: str, factor: float = 1.0) -> None:
        self.mode = mode
        self.factor = factor
        self.total: Tensor | None = None
        self.count: int | Tensor = 0  # of time steps: a number, or one per sample

    def __call__(self, output: Tensor, steps: int = 1) -> Tensor:
        """What the decision sees, and the loss too unless :meth:`for_loss` says otherwise.

        Args:
            output: Output ``[B, ...]`` of one step, or of several, combined by the network in the same mode.
            steps: How many steps it stands for.
        """
        if self.mode == "step":
            return output
        dtype, output = output.dtype, summable(output.detach() if self.mode == "rate" else output)
        averages = self.mode in ("mean", "rate")
        if averages and steps > 1:
            output = steps * output
        if self.total is None or self.mode == "max":
            # A neuron that changes its membrane in place and returns it would change what is kept here: the first
            # output, and for a maximum, whose backward pass compares, each.
            output = output.clone()
        if self.total is None:
            self.total = output
        else:
            self.total = torch.maximum(self.total, output) if self.mode == "max" else self.total + output
        self.count = self.count + steps
        if averages:
            return (self.total / self.count).to(dtype)
        return (self.total if self.factor == 1.0 else self.factor * self.total).to(dtype)

    def for_loss(self, output: Tensor, seen: Tensor) -> Tensor:
        """What the loss sees of an output, for which a call returned ``seen``."""
        return output if self.mode == "rate" else seen

    def restart(self, rows: Tensor) -> None:
        """Restart the readout of some rows of the batch, boolean ``[B]``."""
        if self.total is not None:
            rows = rows.to(self.total.device).view(-1, *[1] * (self.total.dim() - 1))
            self.total = self.total.masked_fill(rows, float("-inf") if self.mode == "max" else 0.0)
            self.count = torch.where(rows, 0, self.count)

    def detach(self) -> None:
        """Detach the past from its graph."""
        if self.total is not None:
            self.total = self.total.detach()

    def get(self) -> tuple[Tensor | None, int | Tensor]:
        """The state, for a checkpoint."""
        return self.total, self.count

    def set(self, state: tuple[Tensor | None, int | Tensor]) -> None:
        """Restore what :meth:`get` returned."""
        self.total, self.count = state


def summable(tensor: Tensor) -> Tensor:
    """The tensor in single precision at least: sums over many steps come to a stop in bfloat16 (at 256 spikes)."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def warn_of_liquid_counts(readout: Readout, state: ModelState) -> None:
    """Warn of a liquid neuron with adaptation at the output of a network whose spikes are counted."""
    layers, total = state.modules(), readout.total
    if not layers or readout.mode not in ("rate", "mean", "sum") or total is None or not total.any():
        return
    name, last = layers[-1]
    if hasattr(last, "adp_gate") and bool((total == total.round()).all()):
        warnings.warn(
            f"{name!r} ({type(last).__name__}) is the output layer, and its spikes are counted: with an adaptive "
            "threshold and a leaky average such a layer learns poorly. End the network in LTCIntegrator() and swap the "
            "hidden layers alone",
            FPTTWarning,
            stacklevel=4,
        )

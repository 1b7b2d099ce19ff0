"""One update of the weights: backward passes, the check that all is finite, the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ._finite import all_finite, blame
from .regularizer import DynamicRegularizer
from .state import ModelState


class Updater:
    """Gathers gradients of windows and turns them into FPTT updates.

    Args:
        net: The network.
        optimizer: Its optimizer, which carries ``regularizer``.
        regularizer: The dynamic regulariser.
        state: The network's recurrent state, for messages.
        grad_scaler: Scales the loss and steps the optimizer; ``None`` for neither.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        regularizer: DynamicRegularizer,
        state: ModelState,
        grad_scaler: GradScaler | None,
    ) -> None:
        self.net = net
        self.optimizer = optimizer
        self.regularizer = regularizer
        self.state = state
        self.grad_scaler = grad_scaler
        self._parameters = list(net.parameters())  # walking the modules at every step would cost more than the norm
        self._loss = torch.zeros(())  # sum since the last update

    def backward(self, loss: Tensor, *, first: bool) -> None:
        """Adds the gradients of one window; the ``first`` since the last update starts from none."""
        if first:
            self.zero_grad()
            self._loss = torch.zeros(())
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        self._loss = self._loss.to(loss.device) + loss.detach()

    def zero_grad(self) -> None:
        """Forgets the gradients of every parameter, those unknown to the optimizer too."""
        for parameter in self._parameters:
            parameter.grad = None

    def complaint(self, step: int) -> str | None:
        """What is not finite, if something is; infinite gradients of scaled losses are the scaler's business."""
        grads = [] if self.grad_scaler else [p.grad for p in self._parameters if p.grad is not None]
        if all_finite([self._loss, *grads]):
            return None
        return blame(self.net, self.state, self._loss, step)

    def step(self, windows: int, replayed_loss: Callable[[], Tensor]) -> bool:
        """One update with the mean gradient of so many windows.

        Args:
            windows: Number of backward passes since the last update.
            replayed_loss: The same loss at the new weights, for ``variant="gradient"``.

        Returns:
            Whether the weights moved: a scaler skips a step whose gradients overflow.
        """
        if windows > 1:
            torch._foreach_div_([p.grad for p in self._parameters if p.grad is not None], windows)
        before = self.regularizer.updates
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        moved = self.regularizer.updates > before
        if moved and self.regularizer.variant == "gradient":
            self.regularizer.second_gradient(replayed_loss)
        return moved

"""One update of the weights: backward passes, the check that all is finite, the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ..errors import NotFiniteError
from ..regularizer import DynamicRegularizer
from ..state import ModelState
from .finite import all_finite, not_finite
from .statistics import RunningStatistics


class Updater:
    """Accumulates the gradients of windows and turns them into FPTT updates.

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
        self.statistics = RunningStatistics(net)
        self._parameters: list[nn.Parameter] = []
        self._in_groups = -1
        self._losses: list[Tensor] = []  # since the last update

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of network and optimizer; looked up again when the optimizer has got more of them."""
        in_groups = sum([len(group["params"]) for group in self.optimizer.param_groups])
        if in_groups != self._in_groups:  # walking the modules at every step would cost more than the norm
            groups = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            self._parameters = list(dict.fromkeys([*self.net.parameters(), *groups]))
            self._in_groups = in_groups
        return self._parameters

    @property
    def checked(self) -> list[Tensor]:
        """What must be finite besides the gradients: losses since the last update, and running statistics."""
        # An input too large to be squared leaves loss and gradient finite, and the running statistics not.
        return [*self._losses, *self.statistics.tensors()]

    def backward(self, loss: Tensor, *, first: bool) -> None:
        """Add the gradients of one window; the ``first`` since the last update starts from none."""
        if first:
            self.zero_grad()
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        self._losses.append(loss.detach())

    def zero_grad(self) -> None:
        """Drop the gradients of every parameter, those unknown to the optimizer too."""
        for parameter in self.parameters:
            parameter.grad = None
        self._losses = []

    @contextmanager
    def gradients_restored_on_error(self) -> Iterator[None]:
        """Context that restores gradients which wait for an update when an error leaves it."""
        kept, losses = [(parameter, parameter.grad) for parameter in self.parameters], self._losses
        try:
            yield
        except BaseException:
            for parameter, grad in kept:
                parameter.grad = grad
            self._losses = losses
            raise

    def error(self, step: int) -> NotFiniteError | None:
        """The error if loss, gradients or statistics are not finite; a scaler deals with its infinite gradients."""
        grads = [] if self.grad_scaler else [p.grad for p in self.parameters if p.grad is not None]
        if all_finite([*grads, *self.checked]):
            return None
        return not_finite(self.net, self.state, torch.stack(self._losses).sum(), step)

    def step(self, windows: int, replayed_loss: Callable[[], Tensor] | None = None) -> bool:
        """One update with the gradient averaged over ``windows`` backward passes.

        Args:
            windows: Number of backward passes since the last update.
            replayed_loss: The same loss at the new weights, for ``variant="gradient"``.

        Returns:
            Whether the weights moved: a scaler skips a step whose gradients overflow.
        """
        if windows > 1:
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], windows)
        before = self.regularizer.updates
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        moved = self.regularizer.updates > before
        if moved and replayed_loss is not None:
            self.regularizer.second_gradient(replayed_loss)
        return moved

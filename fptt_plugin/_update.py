"""One update of the weights: backward passes, the check that all is finite, the optimizer's step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from ._finite import all_finite, blame
from .drivers import normalizations
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
        self._parameters: list[nn.Parameter] = []
        self._in_groups = 0
        self._loss = torch.zeros(())  # sum since the last update
        self._normalizations = list(normalizations(net).values())
        self._statistics: list[tuple[Tensor, Tensor]] = []  # of normalisations, beside their values at the last update

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Parameters of network and optimizer; looked up anew when the optimizer has got more of them."""
        in_groups = sum(len(group["params"]) for group in self.optimizer.param_groups)
        if in_groups != self._in_groups:  # walking the modules at every step would cost more than the norm
            groups = (parameter for group in self.optimizer.param_groups for parameter in group["params"])
            self._parameters = list(dict.fromkeys([*self.net.parameters(), *groups]))
            self._in_groups = in_groups
        return self._parameters

    def backward(self, loss: Tensor, *, first: bool) -> None:
        """Adds the gradients of one window; the ``first`` since the last update starts from none."""
        if first:
            self.zero_grad()
            self._loss = torch.zeros(())
        (loss if self.grad_scaler is None else self.grad_scaler.scale(loss)).backward()
        self._loss = self._loss.to(loss.device) + loss.detach()

    def zero_grad(self) -> None:
        """Forgets the gradients of every parameter, those unknown to the optimizer too."""
        for parameter in self.parameters:
            parameter.grad = None

    @contextmanager
    def gradients_back_on_error(self) -> Iterator[None]:
        """Whatever error leaves the context, gradients that waited for an update before it wait again."""
        kept, loss = [(parameter, parameter.grad) for parameter in self.parameters], self._loss
        try:
            yield
        except BaseException:
            for parameter, grad in kept:
                parameter.grad = grad
            self._loss = loss
            raise

    def keep_statistics(self) -> None:
        """Notes the running statistics of normalisations, which every forward pass moves."""
        buffers = (b for m in self._normalizations for b in m._buffers.values() if b is not None and not is_lazy(b))
        self._statistics = [(buffer, buffer.clone()) for buffer in buffers]

    def restore_statistics(self) -> None:
        """Puts them back: what is not finite would stay in them for good."""
        for buffer, kept in self._statistics:
            buffer.copy_(kept)

    def complaint(self, step: int) -> str | None:
        """What is not finite, if something is; infinite gradients of scaled losses are the scaler's business."""
        grads = [] if self.grad_scaler else [p.grad for p in self.parameters if p.grad is not None]
        # Input too large to be squared leaves loss and gradient finite, and the statistics not.
        if all_finite([self._loss, *grads, *(buffer for buffer, _ in self._statistics)]):
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
            torch._foreach_div_([p.grad for p in self.parameters if p.grad is not None], windows)
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

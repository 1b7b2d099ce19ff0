"""One update of the weights: backward passes, the check that all is finite, the optimizer's step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from ..errors import FPTTWarning, NotFiniteError
from ..regularizer import DynamicRegularizer
from ..state import ModelState
from .finite import all_finite, not_finite
from .processes import is_parallel
from .statistics import RunningStatistics


class Updater:
    """Accumulates the gradients of windows and turns them into FPTT updates.

    Args:
        net: The network.
        optimizer: Its optimizer, which carries ``regularizer``.
        regularizer: The dynamic regularizer.
        state: The network's recurrent state, for messages.
        grad_scaler: Scales the loss and steps the optimizer; ``None`` for neither.

    Attributes:
        gradient_watch: Is to see the gradients of every update, also of those that are made elsewhere.
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
        # The processes of a DistributedDataParallel must agree before any of them steps.
        early = grad_scaler is not None or is_parallel(net)
        regularizer.check_norm = None if early else self._check_norm
        self._parameters: list[nn.Parameter] = []
        self._in_groups = -1
        self._losses: list[Tensor] = []  # since the last update
        self.gradient_watch = GradientWatch(net)

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

    def error(self) -> NotFiniteError | None:
        """The error if loss, gradients or running statistics are not finite, as far as it is known before the step.

        A scaler deals with its infinite gradients.
        """
        # Clipping computes the norm of the gradient anyway, see _check_norm.
        later = self.regularizer.check_norm is not None and self.regularizer.max_grad_norm is not None
        suspects = [] if later else [*self._losses, *([] if self.grad_scaler else self._gradients())]
        if self.statistics.modules:
            # An input too large to be squared leaves loss and gradient finite, and the running statistics not.
            suspects += self.statistics.tensors()
        return self._not_finite() if suspects and not all_finite(suspects) else None

    def _check_norm(self, norm: Tensor) -> None:
        # One synchronization with the host for norm and losses. A norm can overflow where all gradients are finite.
        finite = torch.stack([norm, *self._losses]).isfinite().all()
        if not (finite or all_finite([*self._gradients(), *self._losses])):
            raise self._not_finite()

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.parameters if p.grad is not None]

    def _not_finite(self) -> NotFiniteError:
        return not_finite(self.net, self.state, torch.stack(self._losses).sum())

    def step(self, windows: int, replayed_loss: Callable[[], Tensor] | None = None) -> None:
        """One update with the gradient averaged over ``windows`` backward passes; the regularizer counts it.

        A scaler skips it where gradients overflow.

        Args:
            windows: Number of backward passes since the last update.
            replayed_loss: The same loss at the new weights, for ``variant="gradient"``.

        Raises:
            NotFiniteError: If loss or gradients are not finite. Nothing has moved then.
        """
        if windows > 1:
            torch._foreach_div_(self._gradients(), windows)
        self.gradient_watch.look()
        before = self.regularizer.updates
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        if self.regularizer.updates > before and replayed_loss is not None:
            self.regularizer.second_gradient(replayed_loss)


class GradientWatch:
    """Warns of parameters that have had no gradient, or a gradient of zero, in all of the first updates.

    Args:
        net: The network.
        updates: How many updates to look at.

    Attributes:
        is_over: Whether it has seen enough.
    """

    def __init__(self, net: nn.Module, updates: int = 100) -> None:
        self._net = net
        self._updates = updates
        self._looks = 0
        self.is_over = False
        self._sizes: dict[tuple[Tensor, ...], Tensor] = {}  # summed, by the parameters that had a gradient

    def look(self) -> None:
        """Look at the gradients of one update, those in ``.grad``."""
        if self.is_over:
            return
        grads = {p: p.grad for p in self._net.parameters() if p.grad is not None}
        norms = torch._foreach_norm([*grads.values()]) if grads else []
        self.note(tuple(grads), torch.stack([norm.float() for norm in norms]) if grads else None)

    def note(self, reached: tuple[Tensor, ...], sizes: Tensor | None) -> None:
        """Take in the gradients of one update.

        Args:
            reached: Parameters that had a gradient.
            sizes: A number for each of these, 0 for a gradient of zero; ``None`` without any.
        """
        if self.is_over:
            return
        if sizes is not None:
            self._sizes[reached] = self._sizes[reached] + sizes if reached in self._sizes else sizes
        self._looks += 1
        if self._looks == self._updates:
            self.is_over = True
            seen, self._sizes = self._sizes, {}
            self._warn(seen)

    def _warn(self, seen: dict[tuple[Tensor, ...], Tensor]) -> None:
        reached = {p for parameters in seen for p in parameters}
        totals = [pair for parameters, sums in seen.items() for pair in zip(parameters, sums.tolist(), strict=True)]
        moved = {p for p, total in totals if total != 0}
        trained = [(name, p) for name, p in self._net.named_parameters() if p.requires_grad]
        unreached = [name for name, p in trained if p not in reached]
        still = [name for name, p in trained if p in reached and p not in moved]
        if unreached:
            self._say(
                unreached,
                "had no gradient",
                "the loss does not depend on them within the window: they are not used, or their signal is delayed by "
                "more steps than the window holds (a larger window reaches them)",
            )
        if still:
            self._say(
                still,
                "had a gradient of zero",
                "the layers behind them do not fire, or stay so far from their threshold that the surrogate gradient "
                "vanishes: lower the threshold or the neurons' time constant, scale the input, or compare with alpha=0",
            )

    def _say(self, names: list[str], what: str, why: str) -> None:
        listed = ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        they = "it does" if len(names) == 1 else "they do"
        text = f"{listed} {what} in all of the first {self._updates} updates, so {they} not learn. Likely {why}"
        warnings.warn(f"{text}. Freeze with requires_grad_(False) what is not to be trained", FPTTWarning, stacklevel=2)

"""FPTT's dynamic regulariser on any ``torch.optim`` optimizer, through its step hooks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ._averages import Averages, check_averages
from .errors import ErrorList
from .functional.fptt import add_regularizer_gradient_, update_averages_


class DynamicRegularizer:
    """Turns the steps of an optimizer into FPTT updates.

    Before each ``optimizer.step()`` the gradient of the regulariser is added to every ``.grad`` and the sum is clipped;
    after it the dual and the running average move (``W`` weights, ``W_bar`` their running average, ``lam`` the dual)::

        g    += alpha (W - W_bar) - (1 - rho) lam
        clip g by its global norm
        W     = optimizer step with g
        lam  -= alpha (W - W_bar)
        W_bar = (1 - beta) W_bar + beta W - (beta / alpha) lam

    Gradients are taken at ``W``; ``W_bar`` is for evaluation, see :meth:`averaged_weights`. ``alpha=0`` switches all
    of it off, clipping apart: the optimizer then does truncated BPTT, and ``W_bar`` is ``W``. After weights have been
    set from outside, as by ``net.load_state_dict()``, call :meth:`restart_averages`.

    A parameter without a gradient in some step (frozen, or unused) is left alone in that step. Copies and pickles of
    the regulariser, with their optimizer, go on by themselves. Parameters may be lazy,
    shared, and spread over several groups; groups may be added later. Works with schedulers, ``foreach``, ``fused``
    and ``capturable`` optimizers and ``torch.amp.GradScaler``.

    Args:
        optimizer: Optimizer of the network to train.
        alpha: Strength of the regulariser, >= 0. Default 0.1.
        beta: Rate of the running average, in (0, 1]. Default 0.5.
        rho: Fraction of the dual left out of the gradient, in [0, 1]. Default 0.
        variant: ``"dual"`` is the authors' code; ``"gradient"`` is the paper's Algorithm 2, with half the dual and
            ``lam = grad loss(W_new)``: call :meth:`second_gradient` after each optimizer step.
        max_grad_norm: Largest global 2-norm of the regularised gradient; ``None`` does not clip.

    Attributes:
        alpha: May be set anew: ``lam`` stays as it is, and with 0 the averages are forgotten.
        grad_norm: Norm before clipping of the last update, a 0-d tensor; ``None`` without clipping.
        updates: Optimizer steps so far; those that a ``GradScaler`` skipped do not count.

    Raises:
        ValueError: If an argument is out of range, or the optimizer already carries a regulariser.

    Source: Yin, Corradi, Bohté 2023, and the authors' training scripts; theirs is the update order.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> regularizer = DynamicRegularizer(optimizer, alpha=0.5)
        >>> for _ in range(2):
        ...     optimizer.zero_grad()
        ...     (-weight).sum().backward()
        ...     optimizer.step()
        >>> weight.item(), regularizer.average_of(weight).item()
        (1.5, 2.0)
    """

    def __init__(
        self,
        optimizer: Optimizer,
        alpha: float = 0.1,
        beta: float = 0.5,
        rho: float = 0.0,
        *,
        variant: str = "dual",
        max_grad_norm: float | None = None,
    ) -> None:
        problems = ErrorList("DynamicRegularizer")
        check_regularizer_options(problems, alpha, beta, rho, variant, max_grad_norm)
        check_optimizer(problems, optimizer)
        problems.raise_any()
        self.optimizer = optimizer
        self._alpha = float(alpha)
        self.beta = float(beta)
        self.rho = float(rho)
        self.variant = variant
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        self.updates = 0
        self._averages = Averages()
        self._updated: list[Tensor] = []  # parameters of the step in progress
        self._signs: list[int] = []  # theirs: -1 where the optimizer maximizes
        self._awaits_gradient = False
        self._register()

    def _register(self) -> None:
        self._hooks = [
            self.optimizer.register_step_pre_hook(self._before_step),
            self.optimizer.register_step_post_hook(self._after_step),
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_hooks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._register()  # an optimizer loses its hooks when it is copied

    @property
    def alpha(self) -> float:
        return self._alpha

    @alpha.setter
    def alpha(self, alpha: float) -> None:
        problems = ErrorList("DynamicRegularizer")
        check_regularizer_options(problems, alpha, self.beta, self.rho, self.variant, self.max_grad_norm)
        problems.raise_any()
        if alpha == 0 or self._alpha == 0:
            self._averages.clear()
        elif self._averages.dual:
            torch._foreach_mul_(list(self._averages.dual.values()), self._alpha / alpha)  # they hold lam / alpha
        self._alpha = float(alpha)

    def remove(self) -> None:
        """Takes the hooks off: the optimizer steps as if the regulariser had never been there."""
        for hook in self._hooks:
            hook.remove()

    # ------------------------------------------------------------------ one update

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(argument is not None for argument in (*args[1:], kwargs.get("closure"))):
            raise ValueError(
                "FPTT adds its gradient before the optimizer steps, but a closure computes gradients within the step: "
                "call backward() first and optimizer.step() without a closure"
            )
        self.check_weights()
        if self._awaits_gradient:
            raise RuntimeError("variant='gradient': call second_gradient(loss) after every optimizer step")
        self._updated, self._signs = [], []
        for group in optimizer.param_groups:
            weights = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not weights:
                continue
            grads = [weight.grad for weight in weights]
            if any(grad.layout != torch.strided for grad in grads):
                raise ValueError("sparse gradients are not supported: build the embedding with sparse=False")
            self._unscale(optimizer, grads)
            sign = -1 if group.get("maximize") else 1
            if self.alpha > 0:
                self._averages.take_in(weights)
                add_regularizer_gradient_(
                    grads,
                    weights,
                    [self._averages.average[weight] for weight in weights],
                    [self._averages.dual[weight] for weight in weights],
                    alpha=sign * self.alpha,
                    dual_weight=(1 - self.rho) * (1.0 if self.variant == "dual" else 0.5),
                )
            self._updated += weights
            self._signs += [sign] * len(weights)
        if getattr(optimizer, "grad_scale", None) is not None:
            optimizer.grad_scale = None  # type: ignore[attr-defined]  # done above
        if self.max_grad_norm is not None:
            self.grad_norm = torch.nn.utils.clip_grad_norm_(self._updated, self.max_grad_norm)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf):
            return
        self.updates += 1
        if self.alpha == 0 or not self._updated:
            return
        if self.variant == "gradient":
            self._awaits_gradient = True
        else:
            self._move_averages(None)

    @staticmethod
    def _unscale(optimizer: Optimizer, grads: list[Tensor]) -> None:
        """Takes GradScaler's scale out of gradients that a fused optimizer would unscale in its kernel, too late."""
        scale = getattr(optimizer, "grad_scale", None)
        if scale is not None:
            torch._foreach_div_(grads, scale.to(grads[0].device))

    def _move_averages(self, new_duals: list[Tensor] | None) -> None:
        update_averages_(
            [weight.detach() for weight in self._updated],
            [self._averages.average[weight] for weight in self._updated],
            [self._averages.dual[weight] for weight in self._updated],
            beta=self.beta,
            new_duals=new_duals,
        )
        self._averages.note(self._updated)

    def second_gradient(self, loss: Callable[[], Tensor]) -> None:
        """Completes an update of ``variant="gradient"`` with the loss gradient at the new weights.

        Args:
            loss: Computes this step's loss again, from the *same* recurrent state as before the step and with
                normalisation statistics frozen. ``.grad`` stays untouched.

        Raises:
            RuntimeError: If no update of that variant is waiting.
        """
        if not self._awaits_gradient:
            if self.alpha == 0 and self.variant == "gradient":
                return
            raise RuntimeError("second_gradient() completes an update of variant='gradient'; none is waiting")
        grads = torch.autograd.grad(loss(), self._updated, allow_unused=True, materialize_grads=True)
        self._awaits_gradient = False
        self._move_averages([sign * grad / self.alpha for sign, grad in zip(self._signs, grads, strict=True)])

    # ------------------------------------------------------------------ the averages

    def average_of(self, parameter: Tensor) -> Tensor:
        """``W_bar`` of a parameter; the parameter itself if frozen, before its first update and with ``alpha=0``."""
        found = self._averages.average.get(parameter) if parameter.requires_grad else None
        return parameter.detach() if found is None else found

    def dual_of(self, parameter: Tensor) -> Tensor:
        """``lam`` of a parameter, zero before its first update and with ``alpha=0``."""
        if parameter not in self._averages.dual:
            return torch.zeros_like(parameter, requires_grad=False)
        return self.alpha * self._averages.dual[parameter]

    def load_averages(self) -> None:
        """Puts ``W_bar`` into the weights (the authors do so at the end of every epoch); the duals stay.

        Warns if weights have been changed from outside since their last update.
        """
        self._averages.load()

    def averaged_weights(self) -> AbstractContextManager[None]:
        """Within the context the weights hold ``W_bar``; afterwards they are back, bit for bit.

        Warns if weights have been changed from outside since their last update.
        """
        return self._averages.in_place_of_weights()

    def restart_averages(self) -> None:
        """Begins anew from the present weights, ``W_bar = W`` and ``lam = 0``: after weights were set from outside."""
        self._averages.clear()

    def check_weights(self) -> None:
        """Refuses, with a RuntimeError, to train or save while the weights are swapped for their averages."""
        if self._averages.swapped:
            raise RuntimeError(
                "within averaged_weights() the network holds W_bar in place of W, so nothing can be trained or saved: "
                "leave the context first"
            )

    # ------------------------------------------------------------------ checkpoints

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Averages and scaled duals by position in the optimizer's groups, and the hyperparameters."""
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "rho": self.rho,
            "variant": self.variant,
            "updates": self.updates,
            **self._averages.state_dict(self._parameters()),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; as with torch's optimizers, hyperparameters too.

        Raises:
            ValueError: If the state belongs to another optimizer or variant. Nothing is changed then.
        """
        self.check_state_dict(state)
        self._alpha, self.beta, self.rho = state["alpha"], state["beta"], state["rho"]
        self.updates = state["updates"]
        self._averages.load_state_dict(self._parameters(), state)

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses the state of another optimizer or variant.

        Raises:
            ValueError: If it is one.
        """
        if state["variant"] != self.variant:
            raise ValueError(f"the state is of variant={state['variant']!r}, this regulariser of {self.variant!r}")
        check_averages(self._parameters(), state)


def check_optimizer(problems: ErrorList, optimizer: Optimizer) -> None:
    """Notes what is no optimizer, or one that is taken already."""
    if not isinstance(optimizer, Optimizer):
        problems.check(False, f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        return
    problems.check(
        not isinstance(optimizer, torch.optim.LBFGS),
        "LBFGS evaluates the loss several times within one step, FPTT once per step: use Adam or SGD",
    )
    hooks = optimizer._optimizer_step_pre_hooks.values()
    taken = any(isinstance(getattr(hook, "__self__", None), DynamicRegularizer) for hook in hooks)
    problems.check(
        not taken,
        "the optimizer already carries a DynamicRegularizer (from an earlier trainer?): build a new optimizer, or call "
        "remove() on that regulariser",
    )


def check_regularizer_options(
    problems: ErrorList, alpha: float, beta: float, rho: float, variant: str, max_grad_norm: float | None
) -> None:
    """Record options of the regulariser that are out of range."""
    problems.check(0 <= alpha < float("inf"), f"alpha={alpha} must be >= 0 and finite (0 is plain truncated BPTT)")
    problems.check(0 < beta <= 1, f"beta={beta} must lie in (0, 1]; the paper uses 0.5")
    problems.check(0 <= rho <= 1, f"rho={rho} must lie in [0, 1]; the paper uses 0")
    problems.check_choice("variant", variant, ("dual", "gradient"))
    problems.check(
        max_grad_norm is None or max_grad_norm > 0, f"max_grad_norm={max_grad_norm} must be > 0, or None to not clip"
    )

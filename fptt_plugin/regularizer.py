"""FPTT's dynamic regulariser on any ``torch.optim`` optimizer, through its step hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from ._validation import Problems
from .functional.fptt import add_regularizer_gradient_, update_averages_

VARIANTS = ("dual", "gradient")


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
    of it off, clipping apart: the optimizer then does truncated BPTT, and ``W_bar`` is ``W``.

    A parameter without a gradient in some step (frozen, or unused) is left alone in that step. Parameters may be lazy,
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
        problems = Problems("DynamicRegularizer")
        check_regularizer_options(problems, alpha, beta, rho, variant, max_grad_norm)
        check_optimizer(problems, optimizer)
        problems.raise_any()
        self.optimizer = optimizer
        self.alpha = float(alpha)
        self.beta = float(beta)
        self.rho = float(rho)
        self.variant = variant
        self.max_grad_norm = max_grad_norm
        self.grad_norm: Tensor | None = None
        self.updates = 0
        self._averages: dict[Tensor, Tensor] = {}
        self._duals: dict[Tensor, Tensor] = {}  # scaled: lam / alpha
        self._updated: list[Tensor] = []  # parameters of the step in progress
        self._signs: list[int] = []  # theirs: -1 where the optimizer maximizes
        self._awaits_gradient = False
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

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
                self._take_in(weights)
                add_regularizer_gradient_(
                    grads,
                    weights,
                    [self._averages[weight] for weight in weights],
                    [self._duals[weight] for weight in weights],
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

    def _take_in(self, weights: list[Tensor]) -> None:
        for weight in weights:
            if weight not in self._averages:
                self._averages[weight] = weight.detach().clone()
                self._duals[weight] = torch.zeros_like(weight, requires_grad=False)

    def _move_averages(self, new_duals: list[Tensor] | None) -> None:
        update_averages_(
            [weight.detach() for weight in self._updated],
            [self._averages[weight] for weight in self._updated],
            [self._duals[weight] for weight in self._updated],
            beta=self.beta,
            new_duals=new_duals,
        )

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
        """``W_bar`` of a parameter; the parameter itself before its first update and with ``alpha=0``."""
        return self._averages.get(parameter, parameter.detach())

    def dual_of(self, parameter: Tensor) -> Tensor:
        """``lam`` of a parameter, zero before its first update and with ``alpha=0``."""
        if parameter not in self._duals:
            return torch.zeros_like(parameter, requires_grad=False)
        return self.alpha * self._duals[parameter]

    @torch.no_grad()
    def load_averages(self) -> None:
        """Puts ``W_bar`` into the weights (the authors do so at the end of every epoch); the duals stay."""
        for weight, average in self._averages.items():
            weight.copy_(average)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Within the context the weights hold ``W_bar``; afterwards they are back, bit for bit."""
        # By way of .data, which autograd does not watch: as W comes back, a backward pass through it may be pending.
        kept = [(weight, weight.detach().clone()) for weight in self._averages]
        try:
            for weight, average in self._averages.items():
                weight.data.copy_(average)
            yield
        finally:
            for weight, value in kept:
                weight.data.copy_(value)

    # ------------------------------------------------------------------ checkpoints

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Averages and scaled duals by position in the optimizer's groups, and the hyperparameters."""
        parameters = self._parameters()
        return {
            "alpha": self.alpha,
            "beta": self.beta,
            "rho": self.rho,
            "variant": self.variant,
            "averages": {i: self._averages[p].clone() for i, p in enumerate(parameters) if p in self._averages},
            "duals": {i: self._duals[p].clone() for i, p in enumerate(parameters) if p in self._duals},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned; as with torch's optimizers, hyperparameters too.

        Raises:
            ValueError: If the state belongs to another optimizer or variant. Nothing is changed then.
        """
        self.check_state_dict(state)
        parameters = self._parameters()
        self.alpha, self.beta, self.rho = state["alpha"], state["beta"], state["rho"]
        self._averages, self._duals = (
            {parameters[i]: value.to(parameters[i].device, copy=True) for i, value in state[kind].items()}
            for kind in ("averages", "duals")
        )

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses the state of another optimizer or variant.

        Raises:
            ValueError: If it is one.
        """
        parameters = self._parameters()
        if state["variant"] != self.variant:
            raise ValueError(f"the state is of variant={state['variant']!r}, this regulariser of {self.variant!r}")
        for i, average in state["averages"].items():
            fits = i < len(parameters) and (
                isinstance(parameters[i], UninitializedParameter) or parameters[i].shape == average.shape
            )
            if not fits:
                raise ValueError(
                    f"the state belongs to another network: its parameter {i} has shape {tuple(average.shape)}; build "
                    "network and optimizer as they were when it was saved"
                )


def check_regularizer_options(
    problems: Problems, alpha: float, beta: float, rho: float, variant: str, max_grad_norm: float | None
) -> None:
    """Notes what is out of range."""
    problems.check(0 <= alpha < float("inf"), f"alpha={alpha} must be >= 0 and finite (0 is plain truncated BPTT)")
    problems.check(0 < beta <= 1, f"beta={beta} must lie in (0, 1]; the paper uses 0.5")
    problems.check(0 <= rho <= 1, f"rho={rho} must lie in [0, 1]; the paper uses 0")
    problems.check_choice("variant", variant, VARIANTS)
    problems.check(
        max_grad_norm is None or max_grad_norm > 0, f"max_grad_norm={max_grad_norm} must be > 0, or None to not clip"
    )


def check_optimizer(problems: Problems, optimizer: Optimizer) -> None:
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

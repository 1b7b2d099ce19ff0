"""The FPTT update in closed form, over lists of tensors with ``torch._foreach_*``.

Notation: ``W`` weights, ``W_bar`` running averages, ``d = lambda / alpha`` the *scaled* dual. The authors' update keeps
``lambda``; dividing it by the constant ``alpha`` gives the same numbers and takes the division out of the
update. ``tests/reference.py`` writes the same equations per tensor in the paper's letters.
"""

from __future__ import annotations

import torch
from torch import Tensor

# torch publishes the foreach kernels under these names only; its own optimizers are built on them.
_add_ = torch._foreach_add_
_sub = torch._foreach_sub
_sub_ = torch._foreach_sub_


@torch.no_grad()
def add_regularizer_gradient_(
    grads: list[Tensor],
    weights: list[Tensor],
    averages: list[Tensor],
    duals: list[Tensor],
    *,
    alpha: float,
    dual_weight: float = 1.0,
) -> None:
    """Add the gradient of the dynamic regularizer to ``grads`` in place.

    ``g += alpha * (W - W_bar - dual_weight * d)``

    Args:
        grads: Loss gradients, changed in place.
        weights: ``W``, one tensor per gradient and of its shape.
        averages: ``W_bar``.
        duals: Scaled dual ``d = lambda / alpha``.
        alpha: Strength of the regularizer; a negative value serves ``maximize=True`` optimizers.
        dual_weight: ``1 - rho`` for the authors' code, ``(1 - rho) / 2`` for the paper's Algorithm 2.

    Example:
        >>> g = [torch.zeros(2)]
        >>> add_regularizer_gradient_(g, [torch.ones(2)], [torch.zeros(2)], [torch.zeros(2)], alpha=0.1)
        >>> g
        [tensor([0.1000, 0.1000])]
    """
    pull = _sub(weights, averages)
    _add_(pull, duals, alpha=-dual_weight)
    _add_(grads, pull, alpha=alpha)


@torch.no_grad()
def update_averages_(
    weights: list[Tensor],
    averages: list[Tensor],
    duals: list[Tensor],
    *,
    beta: float,
    new_duals: list[Tensor] | None = None,
) -> None:
    """Move the duals and the running averages after an optimizer step, in place.

    ``d <- d - (W - W_bar)`` (or ``d <- new_duals``), then ``W_bar <- (1 - beta) W_bar + beta W - beta d``.

    Args:
        weights: ``W`` after the optimizer step.
        averages: ``W_bar``, changed in place.
        duals: Scaled dual, changed in place.
        beta: Rate of the running average, in (0, 1].
        new_duals: Replacement for the dual, ``grad loss(W_new) / alpha`` in the paper's Algorithm 2.

    Example:
        >>> average, dual = [torch.zeros(1)], [torch.zeros(1)]
        >>> update_averages_([torch.ones(1)], average, dual, beta=0.5)
        >>> average, dual
        ([tensor([1.])], [tensor([-1.])])
    """
    drift = _sub(weights, averages)
    if new_duals is None:
        _sub_(duals, drift)
    else:
        torch._foreach_copy_(duals, new_duals)
    _sub_(drift, duals)
    _add_(averages, drift, alpha=beta)

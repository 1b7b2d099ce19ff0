"""FPTT per tensor in the paper's letters: the readable twin of :mod:`fptt_plugin.functional.fptt`, and its oracle.

One update of the authors' code (the "dual" variant) reads::

    g = grad_loss(W)
    g = regularized_gradient(g, W, W_bar, lam, alpha, rho)
    g = clip(g, max_norm)
    W = optimizer_step(W, g)
    lam = dual_update(lam, W, W_bar, alpha)
    W_bar = average_update(W_bar, W, lam, alpha, beta)

Source: ``get_regularizer_named_params`` and ``post_optimizer_updates`` of the authors' training scripts; the paper's
Algorithm 2 differs in :func:`algorithm2_gradient` and sets ``lam`` to the loss gradient at the new weights.
"""

from __future__ import annotations

from torch import Tensor


def regularized_gradient(g: Tensor, W: Tensor, W_bar: Tensor, lam: Tensor, alpha: float, rho: float = 0.0) -> Tensor:
    """Loss gradient plus ``d/dW [alpha/2 |W - W_bar|^2 - (1 - rho) <lam, W>]``; all tensors of one shape.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> regularized_gradient(0 * one, 3 * one, one, one, alpha=0.5)
        tensor([0.])
    """
    return g + alpha * (W - W_bar) - (1 - rho) * lam


def algorithm2_gradient(g: Tensor, W: Tensor, W_bar: Tensor, lam: Tensor, alpha: float, rho: float = 0.0) -> Tensor:
    """The paper's printed form, ``d/dW alpha/2 |W - W_bar - lam / (2 alpha)|^2``: half the dual.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> algorithm2_gradient(0 * one, 3 * one, one, one, alpha=0.5)
        tensor([0.5000])
    """
    return g + alpha * (W - W_bar) - (1 - rho) * lam / 2


def dual_update(lam: Tensor, W: Tensor, W_bar: Tensor, alpha: float) -> Tensor:
    """``lam - alpha (W - W_bar)`` with the new weights and the old average.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> dual_update(0 * one, 3 * one, one, alpha=0.5)
        tensor([-1.])
    """
    return lam - alpha * (W - W_bar)


def average_update(W_bar: Tensor, W: Tensor, lam: Tensor, alpha: float, beta: float) -> Tensor:
    """``(1 - beta) W_bar + beta W - (beta / alpha) lam`` with the new weights and the new dual.

    Example:
        >>> import torch
        >>> one = torch.ones(1)
        >>> average_update(one, 3 * one, -one, alpha=0.5, beta=0.5)
        tensor([3.])
    """
    return (1 - beta) * W_bar + beta * W - (beta / alpha) * lam


def clip(gradients: list[Tensor], max_norm: float) -> list[Tensor]:
    """Scales all gradients by one factor so that their global 2-norm is at most ``max_norm``.

    Example:
        >>> import torch
        >>> clip([torch.tensor([3.0]), torch.tensor([4.0])], max_norm=1.0)
        [tensor([0.6000]), tensor([0.8000])]
    """
    norm = sum(float((g.double() ** 2).sum()) for g in gradients) ** 0.5
    # The small constant is torch.nn.utils.clip_grad_norm_'s guard against division by zero.
    factor = min(1.0, max_norm / (norm + 1e-6))
    return [g * factor for g in gradients]

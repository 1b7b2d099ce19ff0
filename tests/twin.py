"""FPTT as the readable reference writes it: plain tensors in double precision, an optimizer without hooks."""

import reference
import torch


class Twin:
    """Independent copies of some weights, trained by the reference from gradients of the loss.

    Args:
        parameters: The weights to copy.
        make_optimizer: Builds an optimizer from ``[weights of group 0, weights of group 1, ...]``.
        groups: Index of each parameter's group; all in one by default.
        sign: -1 if the loss is to be maximized.
    """

    def __init__(
        self, parameters, make_optimizer, *, alpha, beta=0.5, rho=0.0, clip=None, variant="dual", groups=None, sign=1
    ):
        self.W = [parameter.detach().double().clone() for parameter in parameters]
        self.W_bar = [W.clone() for W in self.W]
        self.lam = [torch.zeros_like(W) for W in self.W]
        self.alpha, self.beta, self.rho, self.clip, self.sign = alpha, beta, rho, clip, sign
        self.variant = variant
        groups = groups or [0] * len(self.W)
        self.optimizer = make_optimizer(
            [[W for W, own in zip(self.W, groups, strict=True) if own == group] for group in sorted(set(groups))]
        )

    def step(self, grads, second=None):
        """One update; ``grads`` has ``None`` where there is none, ``second(weights)`` gives gradients at ``W_new``."""
        used = [i for i, grad in enumerate(grads) if grad is not None]
        regularize = reference.regularized_gradient if self.variant == "dual" else reference.algorithm2_gradient
        g = [
            regularize(self.sign * grads[i].double(), self.W[i], self.W_bar[i], self.lam[i], self.alpha, self.rho)
            for i in used
        ]
        if self.clip is not None:
            g = reference.clip(g, self.clip)
        for W in self.W:
            W.grad = None
        for i, value in zip(used, g, strict=True):
            self.W[i].grad = value
        self.optimizer.step()
        new = None if self.variant == "dual" else second(self.W)
        for i in used:
            if new is None:
                self.lam[i] = reference.dual_update(self.lam[i], self.W[i], self.W_bar[i], self.alpha)
            else:
                self.lam[i] = self.sign * new[i]
            self.W_bar[i] = reference.average_update(self.W_bar[i], self.W[i], self.lam[i], self.alpha, self.beta)

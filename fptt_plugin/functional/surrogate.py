"""The paper's surrogate gradient, as a picklable callable that either library accepts."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..torch_internals import with_signature

_SQRT_2PI = math.sqrt(2.0 * math.pi)


def heaviside(v: Tensor) -> Tensor:
    """Step function ``H(v)``, strict: 1 where ``v > 0`` and 0 elsewhere, in ``v``'s dtype.

    Has no gradient. The authors' code and snnTorch fire at ``u > theta``; the paper's Eq. 4 and SpikingJelly's own
    surrogates at ``u >= theta``. The two differ where a membrane equals its threshold exactly.

    Args:
        v: Distance of the membrane from its threshold, any shape.

    Returns:
        Spikes, shape and dtype of ``v``.

    Example:
        >>> heaviside(torch.tensor([-1.0, 0.0, 0.5]))
        tensor([0., 0., 1.])
    """
    return (v > 0).to(v.dtype)


class _MultiGaussianSpike(torch.autograd.Function):
    generate_vmap_rule = True  # torch.vmap and torch.func ask for it

    @staticmethod
    @with_signature
    def forward(v: Tensor, sigma: float, scale: float, height: float, gamma: float) -> Tensor:
        return (v > 0).to(v.dtype)  # heaviside(v)

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
        v, *ctx.shape = inputs
        ctx.save_for_backward(v)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (v,) = ctx.saved_tensors
        return grad * multi_gaussian(v, *ctx.shape), None, None, None, None


def multi_gaussian(
    v: Tensor, sigma: float = 0.3, scale: float = 6.0, height: float = 0.15, gamma: float = 0.5
) -> Tensor:
    r"""Multi-Gaussian pseudo-derivative of the spike function.

    .. math:: \gamma \left[ (1+h) N(v; 0, \sigma^2) - h N(v; \sigma, (s\sigma)^2) - h N(v; -\sigma, (s\sigma)^2) \right]

    Args:
        v: Distance of the membrane from its threshold, any shape.
        sigma: Width of the center Gaussian, in units of the membrane.
        scale: Width ``s`` of the two negative side lobes, in units of ``sigma``.
        height: Weight ``h`` of each side lobe.
        gamma: Overall factor.

    Returns:
        The pseudo-derivative, shape and dtype of ``v``; 0.73 at ``v = 0`` with the defaults.

    Source: Yin, Corradi, Bohté 2021 (adaptive SRNN), with the constants of the FPTT paper's code.

    Example:
        >>> round(multi_gaussian(torch.zeros(())).item(), 3)
        0.732
    """
    center, right, left = [
        torch.exp(-0.5 * ((v - mean) / std) ** 2) / (std * _SQRT_2PI)  # density of the normal distribution
        for mean, std in ((0.0, sigma), (sigma, scale * sigma), (-sigma, scale * sigma))
    ]
    return gamma * ((1.0 + height) * center - height * (right + left))


class MultiGaussian:
    """Spike function with the multi-Gaussian surrogate gradient of :func:`multi_gaussian`.

    Forward is :func:`heaviside`, backward multiplies by :func:`multi_gaussian`. Works as ``spike_grad`` of a
    snnTorch neuron and as ``surrogate_function`` of a SpikingJelly node; instances pickle, deep-copy and
    keep the dtype.

    Args:
        sigma: Width of the center Gaussian, in units of the membrane. Default 0.3.
        scale: Width of the side lobes in units of ``sigma``. Default 6.
        height: Weight of each side lobe. Default 0.15.
        gamma: Overall factor. Default 0.5.

    Raises:
        ValueError: If ``sigma`` or ``scale`` is not positive.

    Example:
        >>> v = torch.tensor([-0.2, 0.2], requires_grad=True)
        >>> spikes = MultiGaussian()(v)
        >>> spikes.sum().backward()
        >>> spikes.tolist(), [round(g, 2) for g in v.grad.tolist()]
        ([0.0, 1.0], [0.58, 0.58])
    """

    def __init__(self, sigma: float = 0.3, scale: float = 6.0, height: float = 0.15, gamma: float = 0.5) -> None:
        if sigma <= 0 or scale <= 0:
            raise ValueError(f"sigma and scale are widths and must be > 0, got {sigma} and {scale}")
        self.sigma = sigma
        self.scale = scale
        self.height = height
        self.gamma = gamma

    def __call__(self, v: Tensor) -> Tensor:
        return _MultiGaussianSpike.apply(v, self.sigma, self.scale, self.height, self.gamma)  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"MultiGaussian(sigma={self.sigma}, scale={self.scale}, height={self.height}, gamma={self.gamma})"

"""Builds gates from the options of a neuron."""

from __future__ import annotations

import torch
from torch import Tensor

from ._concrete import GATES, ConvGate, Gate, KernelSize
from ._lazy import LazyGate


def make_gate(kind: str, features: int | None, kernel_size: KernelSize = 3, bias: Tensor | float = 0.0) -> Gate:
    """Builds the gate of that kind, or a :class:`LazyGate` where ``features`` is ``None``.

    Args:
        kind: ``"dense"``, ``"conv"``, ``"elementwise"``, or ``"auto"`` without ``features``.
        features: Neurons of a flat layer or channels of a map; ``None`` infers them from the first input.
        kernel_size: Of a convolutional gate, odd. Default 3.
        bias: Initial bias, a number or a tensor that broadcasts to ``[features]``.

    Returns:
        The gate.

    Raises:
        ValueError: If ``kind`` is unknown or ``kernel_size`` is even.

    Example:
        >>> make_gate("elementwise", 3).weight.shape
        torch.Size([2, 3])
    """
    allowed = [*GATES] if features is not None else ["auto", *GATES]
    if kind not in allowed:
        raise ValueError(f"gate={kind!r} is unknown here; choose one of {', '.join(map(repr, allowed))}")
    sizes = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
    if any(size % 2 == 0 for size in sizes):
        raise ValueError(f"kernel_size={kernel_size} must be odd, so that the gate keeps the shape of its input")
    if features is None:
        return LazyGate(kind, kernel_size, bias)
    return GATES[kind](features, kernel_size, bias)


def make_gates(
    count: int,
    beta: Tensor | float,
    gate: str,
    linear_features: int | None,
    conv2d_channels: int | None,
    kernel_size: KernelSize | None,
    learn: bool = True,
    norm: bool = False,
) -> list[Gate]:
    """The gates of one neuron, from the options that the neurons of both libraries share.

    Args:
        count: 1 for the membrane's gate alone, 2 with the adaptation's.
        beta: Membrane decay per step at the start, in (0, 1): sets the membrane gate's bias to ``logit(1 - beta)``.
        gate: ``"auto"``, ``"dense"``, ``"conv"`` or ``"elementwise"``.
        linear_features: Neurons of a flat layer.
        conv2d_channels: Channels of a map. Without either, sizes come from the first input.
        kernel_size: Of a convolutional gate, odd; ``None`` means 3.
        learn: ``False`` freezes the gates.
        norm: Batch-normalise convolutional gates, which must have an explicit size.

    Returns:
        The gates, the membrane's first.

    Raises:
        TypeError: If both sizes are given, or ``norm`` without the size of a map.
        ValueError: If an option has an impossible value.

    Example:
        >>> make_gates(1, 0.9, "dense", 2, None, None)[0].bias.detach()
        tensor([-2.1972, -2.1972])
    """
    if linear_features and conv2d_channels:
        raise TypeError("pass linear_features (flat layer) or conv2d_channels (feature map), not both")
    kept = 1 - torch.as_tensor(beta, dtype=torch.float64).detach()
    if not bool(((kept > 0) & (kept < 1)).all()):
        raise ValueError(f"beta must lie strictly between 0 and 1, got {beta}; use 0.99 or 0.01 for the extremes")
    if gate == "auto" and (linear_features or conv2d_channels):
        gate = "dense" if linear_features else "conv"
    biases = [torch.logit(kept).float(), torch.zeros(())]
    gates = [make_gate(gate, linear_features or conv2d_channels, kernel_size or 3, bias) for bias in biases[:count]]
    if norm:
        if gate != "conv" or not conv2d_channels:
            raise TypeError("gate_norm=True normalises the gates of a feature map: pass conv2d_channels, too")
        for made in gates:
            assert isinstance(made, ConvGate)
            made.normalize()
    for parameter in (parameter for made in gates for parameter in made.parameters()):
        parameter.requires_grad = learn  # the method of that name refuses lazy parameters
    return gates


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raises a ``ValueError`` that lists the allowed values of an option."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, allowed))}")

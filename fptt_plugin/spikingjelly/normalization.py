"""Batch normalization per time step in networks of SpikingJelly."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import check_choice
from ..neurons import NormState, PerStepNorm
from .versions import FunctionalMemory

States = tuple[Any, ...]


class MemoryNorm(PerStepNorm, FunctionalMemory):
    """Keeps its state in memories, as SpikingJelly's nodes keep theirs; they are 0 before the first input."""

    register_memory: Any  # MemoryModule's, whose types mypy does not see

    def __init__(
        self,
        num_features: int,
        steps: int,
        *,
        eps: float = 1e-5,
        momentum: float = 0.1,
        gamma: float = 1.0,
        affine: bool = True,
        accumulate: bool = False,
        step_mode: str = "s",
    ) -> None:
        check_choice("step_mode", step_mode, ("s", "m"))
        super().__init__(
            num_features, steps, eps=eps, momentum=momentum, gamma=gamma, affine=affine, accumulate=accumulate
        )
        self.step_mode = step_mode

    def _init_state(self) -> None:
        for name in NormState._fields:
            self.register_memory(name, 0)

    def materialize_states(self, inputs: tuple[Tensor, ...], states: States, step_mode: str) -> States:
        """Turn the memories' initial numbers into tensors, out of place; another batch size begins at step 0."""
        x: Tensor = inputs[0][0] if step_mode == "m" else inputs[0]
        if all(isinstance(state, Tensor) and len(state) == len(x) for state in states):
            return states
        return tuple(self.initial_state(x))

    def single_step_functional_forward(
        self, inputs: tuple[Tensor, ...], states: States, **kwargs: Any
    ) -> tuple[tuple[Tensor, ...], States]:
        """Normalize one time step: ``((y,), states)``; in training mode its running statistics move."""
        y, after = self.normalize(inputs[0], NormState(*states))
        return (y,), tuple(after)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, step_mode={self.step_mode}"


class PerStepBatchNorm1d(MemoryNorm):
    """Batch normalization of a flat drive with statistics of each time step.

    Step ``t`` of a sequence is normalized by the mean and variance of the batch at that step, and has a row of its own
    in the running statistics, which evaluation uses. Scale and shift are shared by all steps. The authors' networks
    have it; see :class:`fptt_plugin.snntorch.PerStepBatchNorm1d` for the sources and for ``accumulate``.
    ``layer.BatchNormThroughTime1d`` differs: it scales each step by parameters of its own.

    The count of steps is a memory. The trainer resets it before each sequence. If you call ``net(x)`` yourself, call
    ``functional.reset_net(net)`` before each sequence: without it the count continues, and steps get the statistics of
    later ones. Slices of a sequence in ``'m'`` mode go on where the last one ended. Within
    ``layer.LinearRecurrentContainer`` or ``layer.ElementWiseRecurrentContainer`` it normalizes the recurrent drive, in
    ``'s'`` mode.

    Args:
        num_features: Neurons ``N``.
        steps: Time steps with statistics of their own; later ones use the last step's.
        eps: Added to the variance. Default 1e-5.
        momentum: Share of the batch in the running statistics. Default 0.1.
        gamma: Initial scale. Default 1; the authors' code starts at 0.1.
        affine: Learn scale and shift. Default True.
        accumulate: Statistics of all steps so far. Default False.
        step_mode: ``"s"`` for input ``[B, N]``, ``"m"`` for ``[T, B, N]``.

    Shape:
        Input and output ``[B, N]``, or ``[T, B, N]`` in ``"m"`` mode.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If an option has another type.

    Example:
        >>> import torch
        >>> norm = PerStepBatchNorm1d(3, steps=10, step_mode="m")
        >>> norm(torch.randn(5, 8, 3)).shape
        torch.Size([5, 8, 3])
        >>> norm.step
        tensor([5, 5, 5, 5, 5, 5, 5, 5])
    """

    dimensions = 2


class PerStepBatchNorm2d(MemoryNorm):
    """:class:`PerStepBatchNorm1d` for feature maps: statistics of each channel over batch, height and width.

    Args:
        num_features: Channels ``C``.
        steps: Time steps with statistics of their own; later ones use the last step's.
        eps: Added to the variance. Default 1e-5.
        momentum: Share of the batch in the running statistics. Default 0.1.
        gamma: Initial scale. Default 1; the authors' code starts at 0.1.
        affine: Learn scale and shift. Default True.
        accumulate: Statistics of all steps so far. Default False.
        step_mode: ``"s"`` for input ``[B, C, H, W]``, ``"m"`` for ``[T, B, C, H, W]``.

    Shape:
        Input and output ``[B, C, H, W]``, or ``[T, B, C, H, W]`` in ``"m"`` mode.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If an option has another type.

    Example:
        >>> import torch
        >>> PerStepBatchNorm2d(2, steps=10)(torch.randn(4, 2, 5, 5)).shape
        torch.Size([4, 2, 5, 5])
    """

    dimensions = 4

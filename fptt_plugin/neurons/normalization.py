"""Batch normalization with statistics of each time step, the ingredient of the authors' recurrent networks.

The drive of a recurrent spiking network changes over the steps of a sequence: one set of statistics for all of them
fits none. Here each step has its own running statistics, and the module counts the steps of each sample by itself.
Both libraries' modules are this one; they differ in where the count is kept.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import BatchShapeError, ConfigurationError, check_count
from .checks import check_number


class NormState(NamedTuple):
    """Recurrent state of a :class:`PerStepNorm`; every field has the batch first, as the state of a neuron has.

    Attributes:
        step: Steps that each sample has seen, ``[B]``, integer.
        mean: Mean of each sample over its steps so far, ``[B, C]``; with ``accumulate`` alone, else ``[B, 0]``.
        m2: Sum of squared deviations from that mean, likewise.
    """

    step: Tensor
    mean: Tensor
    m2: Tensor


class PerStepNorm(nn.Module):
    """What the modules of both libraries share: options, statistics, and one step as a function of its state.

    Args:
        num_features: Neurons or channels ``C``.
        steps: Time steps with statistics of their own; later ones use the last step's.
        eps: Added to the variance.
        momentum: Share of the batch in the running statistics.
        gamma: Initial scale of each feature.
        affine: Learn scale and shift, which all steps share.
        accumulate: Normalize by the statistics of all steps so far instead of those of the step alone.

    Raises:
        ConfigurationError: If an option has an impossible value.
        ConfigurationTypeError: If an option has another type.
    """

    dimensions: int  # of one time step: 2 for [B, C], 4 for [B, C, H, W]
    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor
    momentum: float | None  # None while the statistics are taken anew, as plain means
    num_batches_tracked: Tensor  # [steps]: how often the statistics of each step have moved meanwhile

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
    ) -> None:
        super().__init__()
        self.num_features = check_count("num_features", num_features)
        self.steps = check_count("steps", steps)
        self.eps = check_number("eps", eps)
        momentum = self.momentum = check_number("momentum", momentum)
        self.gamma = check_number("gamma", gamma)
        self.accumulate = bool(accumulate)
        if self.eps <= 0 or not 0 < momentum <= 1:
            raise ConfigurationError(f"eps must be positive and momentum in (0, 1], got eps={eps}, momentum={momentum}")
        for name in ("weight", "bias"):
            self.register_parameter(name, nn.Parameter(torch.empty(self.num_features)) if affine else None)
        self.register_buffer("running_mean", torch.empty(self.steps, self.num_features))
        self.register_buffer("running_var", torch.empty(self.steps, self.num_features))
        self.reset_parameters()
        self._init_state()

    def _init_state(self) -> None:
        """Make the places in which the module of a library keeps its :class:`NormState`."""
        raise NotImplementedError

    def reset_running_stats(self) -> None:
        """Set the running statistics of every step to mean 0 and variance 1."""
        self.running_mean.zero_()
        self.running_var.fill_(1)
        self.num_batches_tracked = torch.zeros(self.steps, dtype=torch.long, device=self.running_mean.device)

    def reset_parameters(self) -> None:
        """Set scale, shift and running statistics to their initial values."""
        self.reset_running_stats()
        if self.weight is not None and self.bias is not None:
            nn.init.constant_(self.weight, self.gamma)
            nn.init.zeros_(self.bias)

    def _check(self, x: Tensor) -> None:
        if x.dim() != self.dimensions or x.shape[1] != self.num_features:
            shape = f"[B, {self.num_features}{', H, W' if self.dimensions == 4 else ''}]"
            raise BatchShapeError(f"{type(self).__name__} takes one time step {shape}, got {tuple(x.shape)}")
        if self.training and not self.accumulate and x.numel() == self.num_features:
            raise BatchShapeError(
                "a batch of one sample has no statistics of its own",
                "pass accumulate=True, which normalizes by all steps so far, or a larger batch",
            )

    def initial_state(self, x: Tensor) -> NormState:
        """Return the state before the first step of ``x`` ``[B, C, ...]``."""
        features = self.num_features if self.accumulate else 0
        zeros = torch.zeros(len(x), features, dtype=self.running_mean.dtype, device=x.device)
        return NormState(torch.zeros(len(x), dtype=torch.long, device=x.device), zeros, torch.zeros_like(zeros))

    def normalize(self, x: Tensor, state: NormState) -> tuple[Tensor, NormState]:
        """Normalize one time step.

        Args:
            x: One time step, ``[B, C]`` or ``[B, C, H, W]``.
            state: State after the step before.

        Returns:
            The normalized step, shape and dtype of ``x``, and the new state. In training mode the running statistics
            of the step move, once for all samples that are at it.

        Raises:
            BatchShapeError: If ``x`` has another shape, or is a single value per feature in training mode.
        """
        self._check(x)
        row = state.step.clamp(max=self.steps - 1)
        step = state.step + 1
        if self.accumulate:
            mean, m2 = self._accumulated(x.to(self.running_mean.dtype), state, step)
        else:
            mean, m2 = state.mean, state.m2
        after = NormState(step, mean, m2)
        if not self.training:
            return self._apply_statistics(x, *(table.index_select(0, row) for table in self._tables())), after
        if self.accumulate:
            total_mean, total_var = self._total(after, x[0, 0].numel())
            y = self._apply_statistics(x, total_mean.unsqueeze(0), total_var.unsqueeze(0))
        else:
            # With momentum 1 the running statistics of torch's kernel are those of the batch.
            total_mean, total_var = torch.zeros_like(self.running_mean[0]), torch.ones_like(self.running_var[0])
            y = F.batch_norm(x, total_mean, total_var, self.weight, self.bias, True, 1.0, self.eps)
        self._move_statistics(row, total_mean, total_var)
        return y, after

    def _tables(self) -> tuple[Tensor, Tensor]:
        return self.running_mean, self.running_var

    def _apply_statistics(self, x: Tensor, mean: Tensor, var: Tensor) -> Tensor:
        """Normalize ``x`` by statistics ``[B, C]``, or ``[1, C]`` for all samples alike."""
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        ends = (1,) * (x.dim() - 2)
        y: Tensor = (x - mean.view(*mean.shape, *ends)) * scale.view(*scale.shape, *ends)
        if self.bias is not None:
            y = y + self.bias.view(-1, *ends)
        return y.to(x.dtype)

    def _accumulated(self, x: Tensor, state: NormState, step: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and sum of squared deviations of each sample with this step (Chan, Golub, LeVeque 1983, Eq. 2.1)."""
        places = x.flatten(2) if x.dim() > 2 else x.unsqueeze(2)
        here = places.mean(2)
        m2_here = (places - here.unsqueeze(2)).square().sum(2)
        before, now = state.step.to(x.dtype).unsqueeze(1), step.to(x.dtype).unsqueeze(1)
        delta = here - state.mean
        mean = state.mean + delta / now
        m2 = state.m2 + m2_here + delta.square() * (places.shape[2] * before / now)
        return mean, m2

    @staticmethod
    def _total(state: NormState, places: int) -> tuple[Tensor, Tensor]:
        """Mean and variance over all samples and their steps so far."""
        weight = state.step.to(state.mean.dtype).unsqueeze(1)
        total = weight.sum()
        mean = (weight * state.mean).sum(0) / total
        spread = places * (weight * (state.mean - mean).square()).sum(0)
        return mean, (state.m2.sum(0) + spread) / (places * total)

    @torch.no_grad()
    def _move_statistics(self, row: Tensor, mean: Tensor, var: Tensor) -> None:
        # Samples at one step write one row, all the same values.
        share: Any = self.momentum
        if share is None:
            count = self.num_batches_tracked.index_select(0, row) + 1
            self.num_batches_tracked.index_copy_(0, row, count)
            share = count.to(self.running_mean.dtype).reciprocal().unsqueeze(1)
        for table, new in zip(self._tables(), (mean, var), strict=True):
            moved = table.index_select(0, row).lerp_(new.detach().expand(len(row), -1), share)
            table.index_copy_(0, row, moved)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, steps={self.steps}, eps={self.eps}, momentum={self.momentum}, "
            f"affine={self.weight is not None}, accumulate={self.accumulate}"
        )


_normalizing: list[type[nn.Module]] = []


def register_normalizing(module_type: type[nn.Module]) -> None:
    """Declare neurons that normalize with the statistics of a child that they never call, as their own mode says.

    Args:
        module_type: The class; subclasses are included.
    """
    _normalizing.append(module_type)


def normalizes_itself(module: nn.Module) -> bool:
    """Whether a module was declared with :func:`register_normalizing`."""
    return isinstance(module, tuple(_normalizing))

"""Time constants at the start of training: from a decay per step to the initial bias of the gate that holds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import ConfigurationError, ConfigurationTypeError

Decay = Tensor | float | tuple[float, float]  # one, one per neuron, or the ends of a range


@dataclass(frozen=True)
class TimeConstants:
    """Initial biases of a gate that spread time constants log-uniformly over the neurons.

    Attributes:
        shortest: Shortest time constant ``tau = 1 / (1 - decay)``, in steps, greater than 1.
        longest: Longest one.
        decays: The gate's sigmoid is the decay (the adaptation's), or ``False``: one minus the decay (the membrane's).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> kept = torch.sigmoid(TimeConstants(2, 100, decays=False).draw(1000))
        >>> tau = 1 / kept
        >>> tau.min().round(), tau.median().round(), tau.max().round()
        (tensor(2.), tensor(15.), tensor(100.))
    """

    shortest: float
    longest: float
    decays: bool

    def draw(self, features: int) -> Tensor:
        """Draw one bias per neuron, ``[features]``."""
        tau = torch.exp(torch.empty(features).uniform_(math.log(self.shortest), math.log(self.longest)))
        kept = torch.logit(1 / tau)
        return -kept if self.decays else kept


InitialBias = Tensor | float | TimeConstants


def initial_bias(name: str, decay: Decay, *, decays: bool) -> InitialBias:
    """Return the gate's initial bias for a decay per step: a number, a tensor, or ``(low, high)``.

    Args:
        name: The option's name, for messages.
        decay: Decay in (0, 1); of a pair, the time constants ``1 / (1 - decay)`` between its ends are log-uniform.
        decays: Whether the gate's sigmoid is the decay, or one minus it.

    Raises:
        ConfigurationError: If a decay is not strictly between 0 and 1, or a range has its ends exchanged.
        ConfigurationTypeError: If it is a tuple of another length.

    Example:
        >>> initial_bias("beta", 0.9, decays=False)
        tensor(-2.1972)
        >>> initial_bias("beta", (0.5, 0.75), decays=False)
        TimeConstants(shortest=2.0, longest=4.0, decays=False)
    """
    if isinstance(decay, tuple) and len(decay) != 2:
        raise ConfigurationTypeError(
            f"{name} is a tuple of {len(decay)}, but a tuple is a range (low, high)",
            f"for one decay per neuron pass {name}=torch.tensor([...])",
        )
    values = torch.as_tensor(decay, dtype=torch.float64).detach()
    if not bool(((values > 0) & (values < 1)).all()):
        raise ConfigurationError(
            f"{name} must lie strictly between 0 and 1, got {decay}", "use 0.99 or 0.01 for the extremes"
        )
    if isinstance(decay, tuple):
        low, high = values.tolist()
        if low > high:
            raise ConfigurationError(f"{name}={decay} has its ends exchanged", f"pass {name}=({high}, {low})")
        return TimeConstants(1 / (1 - low), 1 / (1 - high), decays)
    return torch.logit(values if decays else 1 - values).float()

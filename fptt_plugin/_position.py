"""Small records of where training stands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Chunk(NamedTuple):
    """Consecutive steps within one window.

    Attributes:
        x: Input ``[K, B, ...]``.
        target: Target of step ``t``, ``None`` where there is none.
        steps: Length of the sequence; ``None`` for a stream.
        per_sequence: Whether the target is one for the whole sequence.
        mask: Which samples are labelled at step ``t``, boolean ``[B]``; ``None`` where all are.
        new_rows: Which samples begin a new sequence with this chunk; ``None`` where none does.
    """

    x: Tensor
    target: Callable[[int], Tensor | None]
    steps: int | None
    per_sequence: bool
    mask: Callable[[int], Tensor | None] = lambda t: None
    new_rows: Tensor | None = None

    def labelled(self, t: int, output: Tensor) -> tuple[Tensor, Tensor] | None:
        """Output and target of step ``t``, of the labelled samples alone; ``None`` if there are none."""
        target, mask = self.target(t), self.mask(t)
        if target is None or mask is None:
            return None if target is None else (output, target)
        return (output[mask], target[mask]) if mask.any() else None


class Progress(NamedTuple):
    """Where training stands in sequence, window and update."""

    t: int = 0  # steps since the last reset
    in_window: int = 0  # steps since the state was last detached
    since_update: int = 0  # steps since the weights last moved
    backwards: int = 0  # windows whose gradients wait in .grad
    shape: tuple[int, ...] = ()  # of a step's input; empty before the first


class Snapshot(NamedTuple):
    """Everything but the weights that a step changes; references, as states are replaced and never overwritten."""

    state: dict[str, dict[str, Any]]
    readout: tuple[Tensor | None, int | Tensor]
    progress: Progress
    losses: list[Tensor]
    chunks: list[Chunk]
    new_rows: Tensor | None  # rows that began anew since the last update
    random: list[Tensor]  # of the generators; empty where nothing is replayed
    table: Tensor | None  # of the class distribution; likewise


def random_state() -> list[Tensor]:
    """State of the random generators: the CPU's, then each GPU's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)

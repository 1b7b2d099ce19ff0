"""Small records of where training stands."""

from __future__ import annotations

import math
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
        random: State of the random generators before these steps, where they may be run a second time and other random
            numbers may have been drawn since the steps before.
    """

    x: Tensor
    target: Callable[[int], Tensor | None]
    steps: int | None
    per_sequence: bool
    mask: Callable[[int], Tensor | None] = lambda t: None
    new_rows: Tensor | None = None
    random: tuple[Tensor, ...] = ()

    def labelled(self, t: int, output: Tensor) -> tuple[Tensor, Tensor] | None:
        """Output and target of step ``t``, of the labelled samples alone; ``None`` if there are none."""
        target, mask = self.target(t), self.mask(t)
        if target is None or mask is None:
            return None if target is None else (output, target)
        return (output[mask], target[mask]) if mask.any() else None


class Strides(NamedTuple):
    """Steps between what happens in time.

    Attributes:
        window: Steps per window, ``None`` for the whole sequence.
        loss_every: Steps per loss, ``None`` for one at the window's end.
        update_every: Steps per update, ``None`` for one at every window's end.
    """

    window: int | None
    loss_every: int | None
    update_every: int | None

    def is_due(self, t: int, steps: int | None) -> bool:
        """Whether step ``t`` of a sequence of so many steps carries a loss."""
        stride = self.loss_every or self.window
        return (stride is not None and (t + 1) % stride == 0) or t + 1 == steps

    def whole(self, t: int) -> int:
        """Where a stream goes on after a sequence of ``t`` steps, so that losses end its windows again."""
        stride = math.lcm(self.window or 1, self.loss_every or 1)
        return -(-t // stride) * stride


class Progress(NamedTuple):
    """Where training stands in sequence, window and update."""

    t: int = 0  # steps since the last reset; after a whole sequence counted in whole windows
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
    random: tuple[Tensor, ...]  # of the generators; empty where nothing is replayed
    table: Tensor | None  # of the class distribution; likewise
    steps: int  # trained so far


def random_state() -> tuple[Tensor, ...]:
    """State of the random generators: the CPU's, then each GPU's."""
    return (torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []))


def set_random_state(states: tuple[Tensor, ...]) -> None:
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)

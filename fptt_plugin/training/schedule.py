"""When a loss, a window's end and an update are due."""

from __future__ import annotations

import math
import sys
import warnings
from typing import NamedTuple

from ..errors import ErrorList, FPTTWarning, integer


class Schedule(NamedTuple):
    """Strides between losses, ends of windows and updates, in time steps.

    Attributes:
        window: Steps per window; ``None`` for the whole sequence.
        loss_every: Steps per loss; ``None`` for one at each window's end.
        update_every: Steps per update; ``None`` for one at each window's end.

    Example:
        >>> schedule = Schedule(window=4, loss_every=None, update_every=None)
        >>> list(schedule.windows(10)), list(schedule.due()[:3])
        ([0, 4, 8], [3, 7, 11])
    """

    window: int | None = 1
    loss_every: int | None = None
    update_every: int | None = None

    def windows(self, steps: int) -> range:
        """First step of every window of a sequence."""
        return range(0, steps, self.window or steps)

    def due(self) -> range:
        """Steps with a loss, without end; the last step of a sequence always carries one, too."""
        stride = self.loss_every or self.window
        return range(0) if stride is None else range(stride - 1, sys.maxsize, stride)

    def warn_of_short_sequences(self, steps: int | None) -> None:
        """Warn where updates were meant to be rarer than sequences: each sequence ends with one."""
        if self.update_every is not None and steps is not None and self.update_every > steps:
            warnings.warn(
                f"update_every={self.update_every}, and this sequence has {steps} steps: each sequence ends with an "
                "update, and gradients do not add up over batches. For that, raise the batch size, or call backward() "
                "several times before optimizer.step() in a loop of your own, with DynamicRegularizer on the optimizer",
                FPTTWarning,
                stacklevel=4,
            )

    def next_stream(self, t: int) -> int:
        """Step at which a stream goes on after a sequence of ``t`` steps, so that losses end its windows again."""
        stride = math.lcm(self.window or 1, self.loss_every or 1)
        return -(-t // stride) * stride


class Position(NamedTuple):
    """Where training stands in sequence, window and update.

    Attributes:
        t: Steps since the last reset; after a whole sequence, see :meth:`Schedule.next_stream`.
        in_window: Steps since the state was last detached.
        since_update: Steps since the weights last moved.
        backwards: Windows whose gradients wait in ``.grad``.
        shape: Shape of a step's input ``[B, ...]``; empty before the first.
    """

    t: int = 0
    in_window: int = 0
    since_update: int = 0
    backwards: int = 0
    shape: tuple[int, ...] = ()


def check_schedule(
    problems: ErrorList, window: int | None, loss_every: int | None, update_every: int | None, variant: str
) -> Schedule:
    """Record strides that are not positive integers, or that do not go together; returns them as a schedule."""
    given = {"window": window, "loss_every": loss_every, "update_every": update_every}
    strides = {name: None if stride is None else integer(stride) for name, stride in given.items()}
    wrong = [name for name, stride in given.items() if stride is not None and (strides[name] or 0) < 1]
    for name in wrong:
        problems.check(False, f"{name}={given[name]!r} must be an integer >= 1")
    schedule = Schedule(**strides)
    if schedule.update_every is not None and not wrong:
        window, update_every = schedule.window, schedule.update_every
        problems.check(
            window is not None and update_every % window == 0,
            f"update_every={update_every} must be a multiple of window={window}: no update may fall into a window",
        )
        problems.check(
            variant != "gradient" or update_every == window,
            "variant='gradient' takes its second gradient over one window: leave update_every out",
        )
    return schedule

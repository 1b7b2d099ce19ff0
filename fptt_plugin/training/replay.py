"""The second gradient of ``variant="gradient"``: a window's loss at the new weights, from where the window began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..drivers import Driver
from ..state import random_state, set_random_state
from .batch import Window
from .objective import Objective
from .run_state import RunState
from .schedule import Schedule
from .statistics import FrozenNormalization


class Replay:
    """Records the windows since the last update and computes their loss again.

    Args:
        net: The network.
        run_state: The training's state; its restore point is where the recorded windows begin.
        objective: The loss of a step.
        schedule: When losses are due.
    """

    def __init__(self, net: nn.Module, run_state: RunState, objective: Objective, schedule: Schedule) -> None:
        self._net = net
        self._run_state = run_state
        self._objective = objective
        self._due = schedule.due()
        self.begin()

    def begin(self) -> None:
        """Forget the recorded windows: the next ones begin from the present random numbers and class distribution."""
        self._windows: list[Window] = []
        self._table = self._objective.distribution.table.clone()

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """Context that forgets the windows recorded within it when an error leaves it, and restores those before."""
        windows, table = list(self._windows), self._table
        try:
            yield
        except BaseException:
            self._windows, self._table = windows, table
            raise

    def record(self, window: Window) -> None:
        """Record a window before it runs; other random numbers may have been drawn since the one before."""
        self._windows.append(window._replace(random=random_state()))

    def loss(self, driver: Driver) -> Tensor:
        """Mean loss of the recorded windows at the present weights, with the same state and random numbers.

        Normalization uses each window's own statistics, and its running statistics do not move.
        """
        run_state, distribution = self._run_state, self._objective.distribution
        now, table = run_state.snapshot(), distribution.table
        losses: list[Tensor] = []
        try:
            run_state.model.restore(run_state.restore_point.recurrent)
            run_state.readout.set(run_state.restore_point.readout)
            distribution.table = self._table
            with FrozenNormalization(self._net), torch.random.fork_rng():
                for window in self._windows:
                    set_random_state(window.random)
                    if window.batch.new_rows is not None and window.t > 0:
                        run_state.restart_rows(window.batch.new_rows)
                    outputs, span = driver.advance(window.x), window.length if driver.combines_steps else 1
                    losses += self._objective.losses(
                        outputs, span, window, run_state.readout, self._due, None, update=False
                    )[1]
        finally:
            run_state.restore(now)
            distribution.table = table
        return torch.stack(losses).mean()

"""What a step changes apart from the weights: noted before it, undone after an error, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ._position import Chunk, Progress, Snapshot, random_state
from ._rows import restarted
from .objective import Objective, Readout
from .state import ModelState, map_tensors


class Recurrence:
    """Recurrent state, readout and position of one training in its sequence, window and update.

    Args:
        state: The network's recurrent state.
        objective: The loss of a step, with the class distribution.
        readout: What loss and decision see of the outputs.
        replays: Whether windows are run a second time, so that random numbers and inputs are kept.
    """

    def __init__(self, state: ModelState, objective: Objective, readout: Readout, *, replays: bool) -> None:
        self.state = state
        self.objective = objective
        self.readout = readout
        self._replays = replays
        self.steps = self.updates = self.skipped = 0
        self.progress = Progress()
        self.losses: list[Tensor] = []  # of the open window
        self._chunks: list[Chunk] = []  # of the open window, kept for the second gradient alone
        self._new_rows: Tensor | None = None  # rows that began anew since the last update
        self.restore_point = self.snapshot()  # where the steps since the last update began

    def reset(self) -> None:
        """A new sequence: every neuron is as before its first input."""
        self.state.reset()
        self.readout.set((None, 0))
        self.progress = Progress()
        self.losses, self._chunks, self._new_rows = [], [], None
        self.note_restore_point()

    def note_restore_point(self) -> None:
        """The next update begins here."""
        self.restore_point = self.snapshot()

    def restart_rows(self, rows: Tensor) -> None:
        """Some rows of the batch, boolean ``[B]``, are as before their first input."""
        self.state.set(restarted(self.state, rows))
        self.readout.restart(rows)

    def snapshot(self) -> Snapshot:
        """Where everything but the weights stands."""
        random = random_state() if self._replays else ()
        table = self.objective.distribution.table.clone() if self._replays else None
        return Snapshot(
            self.state.get(),
            self.readout.get(),
            self.progress,
            list(self.losses),
            list(self._chunks),
            self._new_rows,
            random,
            table,
            self.steps,
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a :meth:`snapshot`, random numbers apart."""
        self.state.set(snapshot.state)
        self.readout.set(snapshot.readout)
        self.progress = snapshot.progress
        self.losses, self._chunks = list(snapshot.losses), list(snapshot.chunks)
        self._new_rows = snapshot.new_rows
        self.steps = snapshot.steps

    @contextmanager
    def undone_on_error(self, snapshot: Snapshot, new_rows: Tensor | None = None) -> Iterator[None]:
        """Whatever error leaves the context, the state is as it was at the snapshot; some rows begin anew."""
        try:
            yield
        except BaseException:
            self.restore(snapshot)
            if new_rows is not None:
                self.restart_rows(new_rows)
            raise

    def state_dict(self) -> dict[str, Any]:
        """Counters, class distribution, readout and recurrent state.

        Raises:
            RuntimeError: Between two updates.
        """
        if self.progress.in_window or self.progress.backwards:
            raise RuntimeError(
                "a checkpoint between two updates would lose the pending gradients: take it when step() has returned "
                "updated=True, or call reset() first"
            )
        total, count = self.readout.get()
        return {
            "counters": [self.steps, self.updates, self.skipped],
            "progress": list(self.progress),
            "readout": {"total": total, "count": count},
            "distribution": map_tensors(Tensor.clone, self.objective.distribution.state_dict()),
            "state": map_tensors(lambda tensor: tensor.detach().clone(), self.state.get()),
        }

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses the state of another network.

        Raises:
            ValueError: If the stateful modules differ.
        """
        self.state.check(state["state"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""
        self.steps, self.updates, self.skipped = state["counters"]
        self.objective.distribution.load_state_dict(state["distribution"])
        self.restore(
            Snapshot(
                map_tensors(Tensor.clone, state["state"]),
                (state["readout"]["total"], state["readout"]["count"]),
                Progress(*state["progress"]),
                [],
                [],
                None,
                (),
                None,
                self.steps,
            )
        )
        self.note_restore_point()

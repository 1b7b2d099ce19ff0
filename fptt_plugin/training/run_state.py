"""What a training step changes apart from the weights: restored after an error, saved in checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor

from ..errors import CallOrderError, check_entry
from ..functional.losses import ClassDistribution
from ..state import ModelState
from ..tree import map_tensors
from .readout import Readout
from .restart import restarted
from .schedule import Position


class Snapshot(NamedTuple):
    """Values of a :class:`RunState`: no later step writes to them."""

    recurrent: dict[str, dict[str, Any]]
    readout: tuple[Tensor | None, int | Tensor]
    position: Position
    losses: list[Tensor]
    restarted: Tensor | None
    steps: int


class RunState:
    """Recurrent state, readout and position of one training in its sequence, window and update.

    Args:
        model: The network's recurrent state.
        readout: What loss and decision see of the outputs, with their mean so far.
        distribution: Class distribution of the auxiliary term.

    Attributes:
        steps: Time steps trained so far.
        updates: Weight updates so far.
        skipped: Updates, and steps of a stream, that were skipped because something was not finite.
        position: Where training stands.
        losses: Losses of the open window.
        restarted_rows: Rows of the batch that began a new sequence since the last update, boolean ``[B]``.
        restore_point: The state after the last update.
    """

    def __init__(self, model: ModelState, readout: Readout, distribution: ClassDistribution) -> None:
        self.model = model
        self.readout = readout
        self.distribution = distribution
        self.steps = self.updates = self.skipped = 0
        self.position = Position()
        self.losses: list[Tensor] = []
        self.restarted_rows: Tensor | None = None
        self.restore_point = self.snapshot()

    def reset(self, shape: tuple[int, ...] = ()) -> None:
        """Begin a new sequence, or a stream of inputs of that shape ``[B, ...]``; the restore point stays."""
        self.model.reset()
        self.readout.set((None, 0))
        self.position = Position(shape=shape)
        self.losses, self.restarted_rows = [], None

    def detach(self) -> None:
        """Detach recurrent state and readout from their graphs."""
        self.model.detach()
        self.readout.detach()

    def advance(self, steps: int) -> None:
        """Count time steps."""
        self.steps += steps
        at = self.position
        self.position = Position(at.t + steps, at.in_window + steps, at.since_update + steps, at.backwards, at.shape)

    def restart_rows(self, rows: Tensor) -> None:
        """Restore the state before the first input in some rows of the batch, boolean ``[B]``."""
        self.model.set(restarted(self.model, rows))
        self.readout.restart(rows)

    # ------------------------------------------------------------------ back to an earlier state

    def snapshot(self) -> Snapshot:
        """The present values."""
        return Snapshot(
            self.model.snapshot(), self.readout.get(), self.position, list(self.losses), self.restarted_rows, self.steps
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Restore what :meth:`snapshot` returned."""
        self.model.restore(snapshot.recurrent)
        self.readout.set(snapshot.readout)
        self.position = snapshot.position
        self.losses = list(snapshot.losses)
        self.restarted_rows = snapshot.restarted
        self.steps = snapshot.steps

    def set_restore_point(self) -> None:
        """Remember the present state as that after the last update."""
        self.restarted_rows = None
        self.restore_point = self.snapshot()

    @contextmanager
    def rolled_back_on_error(self, to: Snapshot | None = None, rows: Tensor | None = None) -> Iterator[None]:
        """Context that restores a state when an error leaves it.

        Args:
            to: The state; ``None`` for the present one.
            rows: Rows of the batch to restart after that, boolean ``[B]``.
        """
        to, point = to or self.snapshot(), self.restore_point
        try:
            yield
        except BaseException:
            self.restore(to)
            self.restore_point = point
            if rows is not None:
                self.restart_rows(rows)
            raise

    @contextmanager
    def distribution_restored_on_error(self) -> Iterator[None]:
        """Context that restores the class distribution when an error leaves it."""
        table = self.distribution.table.clone()
        try:
            yield
        except BaseException:
            self.distribution.table = table
            raise

    # ------------------------------------------------------------------ checkpoints

    @property
    def is_pending(self) -> bool:
        """Whether a graph or gradients wait for the next update."""
        return self.position.in_window > 0 or self.position.backwards > 0

    def state_dict(self) -> dict[str, Any]:
        """Counters, class distribution, readout and recurrent state.

        Raises:
            CallOrderError: Between two updates.
        """
        self.check_complete("checkpoint")
        total, count = self.readout.get()
        return {
            "counters": [self.steps, self.updates, self.skipped],
            "progress": list(self.position),
            "readout": {"total": total, "count": count},
            "distribution": map_tensors(Tensor.clone, self.distribution.state_dict()),
            "state": map_tensors(lambda tensor: tensor.detach().clone(), self.model.get()),
        }

    def check_complete(self, what: str) -> None:
        """Check that no gradients are pending, which a checkpoint or copy does not hold.

        Raises:
            CallOrderError: Between two updates.
        """
        if self.is_pending:
            raise CallOrderError(
                f"a {what} between two updates would lose the pending gradients",
                "take it when trainer.can_save is True, as it is at the end of every window without a loss and after "
                "every update, or call reset() first",
            )

    def check_state_dict(self, state: dict[str, Any]) -> None:
        """Check that :meth:`load_state_dict` can read a state.

        Raises:
            CheckpointError: If an entry is missing or malformed, or the state belongs to another network.
        """
        check_entry(state, "counters", lambda counters: _are_counts(counters) and len(counters) == 3)
        check_entry(state, "progress", lambda at: _are_counts(at[:4]) and _are_counts(at[4]) and len(at) == 5)
        check_entry(state, "readout", _is_readout)
        check_entry(state, "distribution", lambda saved: saved["table"].dim() == 3)
        check_entry(state, "state", lambda saved: all(isinstance(entry, dict) for entry in saved.values()))
        self.model.check(state["state"])

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self.steps, self.updates, self.skipped = state["counters"]
        self.distribution.load_state_dict(state["distribution"])
        recurrent = map_tensors(Tensor.clone, state["state"])
        readout = state["readout"]["total"], state["readout"]["count"]
        self.restore(Snapshot(recurrent, readout, Position(*state["progress"]), [], None, self.steps))
        self.restore_point = self.snapshot()


def _are_counts(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and all(isinstance(value, int) and value >= 0 for value in values)


def _is_readout(saved: dict[str, Any]) -> bool:
    return isinstance(saved["total"], Tensor | None) and isinstance(saved["count"], int | Tensor)

"""The mechanics of online training: advance the network, close a window, update the weights, undo on errors."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ._compiled_window import Outcome
from ._finite import all_finite
from ._inputs import Sequence
from ._position import Chunk, Progress, Strides, random_state, set_random_state
from ._recurrence import Recurrence
from ._rows import check_rows
from ._update import Updater
from .acceleration import Accelerator
from .drivers import Driver, FrozenNormalization
from .objective import Objective, Readout
from .results import SequenceResult, StepResult
from .state import ModelState


class Engine(Recurrence):
    """Advances one network through time and updates its weights; :class:`~fptt_plugin.FPTTTrainer` is its face.

    Args:
        net: The network.
        updater: Updates its weights.
        state: The network's recurrent state.
        driver: How the network is called; may follow before the first step.
        objective: The loss of a step.
        readout: What loss and decision see of the outputs.
        strides: Steps per window, loss and update.
        on_nonfinite: ``"raise"`` or ``"skip"``.
        accelerate: What is compiled, see :mod:`~fptt_plugin.acceleration`.
    """

    def __init__(
        self,
        net: nn.Module,
        updater: Updater,
        state: ModelState,
        driver: Driver | None,
        objective: Objective,
        readout: Readout,
        strides: Strides,
        on_nonfinite: str,
        accelerate: str,
    ) -> None:
        super().__init__(state, objective, readout, replays=updater.regularizer.variant == "gradient")
        self.net = net
        self.updater = updater
        self.driver = driver
        self.strides = strides
        self.on_nonfinite = on_nonfinite
        self.accelerate = accelerate
        self._accelerator: Accelerator | None = None
        self._rows_checked = self._warned = self._had_loss = self._taught = False

    def note_restore_point(self) -> None:
        super().note_restore_point()
        self.updater.keep_statistics()

    @property
    def running(self) -> Driver:
        assert self.driver is not None, "the trainer finds the driver before the first step"
        return self.driver

    @property
    def accelerator(self) -> Accelerator | None:
        """Runs what is compiled; ``None`` where all is eager."""
        if self._accelerator is None and self.accelerate != "none":
            self._accelerator = Accelerator(self, self.accelerate)
        return self._accelerator

    # ------------------------------------------------------------------ forward

    def train(self, sequence: Sequence) -> SequenceResult:
        """Trains on one checked batch of sequences, from the initial state."""
        before, total = self.updates, torch.zeros((), device=sequence.x.device)
        output = windows = total
        chunk = Chunk(sequence.x, sequence.target, sequence.steps, sequence.per_sequence, sequence.labelled)
        self._had_loss = self._taught = False

        def note(loss: Tensor | None) -> None:
            nonlocal total, windows
            if loss is not None:  # that of a skipped window may be nan
                total, windows = total + loss.nan_to_num(0.0, 0.0, 0.0), windows + loss.isfinite()

        def take(outputs: list[Tensor], x: Tensor) -> None:
            nonlocal output
            output = self.learn(outputs, chunk._replace(x=x))
            last = self.progress.t == sequence.steps
            if last or self.progress.in_window == self.strides.window:
                note(self.close_window(last=last))

        def take_compiled(rest: Tensor) -> int:
            nonlocal output
            outcome = self._run_compiled(chunk._replace(x=rest))
            if outcome is None:
                return 0
            output = outcome.output
            for loss in outcome.losses:
                note(loss)
            return outcome.steps

        with self.undone_on_error(self.snapshot()), self.updater.gradients_back_on_error():
            self.reset()
            self.progress = Progress(shape=tuple(sequence.x.shape[1:]))
            self.running.run(sequence.x, self.strides.window, take, take_compiled)
        self.progress = self.progress._replace(t=self.strides.whole(self.progress.t))
        self._warn_if_untaught()
        return SequenceResult(output.detach().clone(), total / windows, self.updates - before)

    def _run_compiled(self, chunk: Chunk) -> Outcome | None:
        """Trains some windows as compiled graphs; ``None`` if the first must be trained eagerly."""
        if self.accelerator is None or self.strides.window is None:
            return None
        outcome = self.accelerator.windows(chunk, self.strides.window)
        if outcome is not None:
            self.steps += outcome.steps
            self.updates += len(outcome.losses)
            self._had_loss = self._taught = True
            self.progress = self.progress._replace(t=self.progress.t + outcome.steps)
            self._new_rows = None
            self.note_restore_point()
        return outcome

    def step(self, chunk: Chunk) -> StepResult:
        """Trains on one step of a stream."""
        shape = tuple(chunk.x.shape[1:])
        if self.progress.shape not in ((), shape):
            raise ValueError(
                f"this stream has inputs of shape {self.progress.shape}, x_t has {shape}: the neurons' state belongs "
                "to its samples. Call reset() first to begin another stream; pass new_sequence where single samples end"
            )
        losses, before = len(self.losses), self.updates
        if self._replays:
            chunk = chunk._replace(random=random_state())
        with self.undone_on_error(self.snapshot()):
            self._restart(chunk)
            if self.on_nonfinite == "skip" and not all_finite([chunk.x]):
                return self._left_out(chunk)
            outcome = self._run_compiled(chunk) if self.strides.window == 1 else None
            if outcome is not None:
                return StepResult(outcome.output.clone(), outcome.losses[0], True)
            output = self.learn(self.running.advance(chunk.x), chunk)
            self.progress = self.progress._replace(shape=shape)
        loss = self.losses[-1].detach() if len(self.losses) > losses else None
        if self.progress.in_window == self.strides.window:
            with self.undone_on_error(self.restore_point, self._new_rows):
                self.close_window()
        return StepResult(output.detach().clone(), loss, self.updates > before)

    def _restart(self, chunk: Chunk, *, replay: bool = False) -> None:
        """Begins new sequences with some rows of the batch."""
        rows = chunk.new_rows
        if rows is None or self.progress.t == 0:
            return
        if not (self._rows_checked or replay):
            check_rows(self.net, self.state, rows, torch.nan_to_num(chunk.x), self.running.advance)
            self._rows_checked = True
        self.restart_rows(rows)
        if not replay:
            self._new_rows = rows if self._new_rows is None else self._new_rows | rows

    def _left_out(self, chunk: Chunk) -> StepResult:
        """The output for an input that is not finite; neither state nor statistics see it."""
        kept = self.snapshot()
        with torch.no_grad(), FrozenNormalization(self.net):
            output = self.readout(self.running.advance(chunk.x)[-1])
        self.restore(kept)
        self.skipped += 1
        self.steps += 1  # a place in the data, too
        return StepResult(output, None, False)

    def learn(self, outputs: list[Tensor], chunk: Chunk) -> Tensor:
        """Notes the losses of some steps of the open window; returns the readout of the last."""
        steps = len(chunk.x)
        output, losses = self._read(outputs, chunk, self.progress.t + steps)
        self.losses += losses
        if self._replays:
            self._chunks.append(chunk)
        self.steps += steps
        at = self.progress
        self.progress = at._replace(
            t=at.t + steps, in_window=at.in_window + steps, since_update=at.since_update + steps
        )
        return output

    def _read(
        self, outputs: list[Tensor], chunk: Chunk, end: int, *, first_time: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """Readout of the last output, and the losses due among them; the last step is ``end - 1``."""
        losses = []
        for t, raw in enumerate(outputs, start=end - len(outputs)):
            output = self.readout(raw)
            labelled = chunk.labelled(t, output) if self.strides.is_due(t, chunk.steps) else None
            if labelled is not None:
                loss = self.objective.loss(*labelled, t, chunk.steps, chunk.per_sequence, update=first_time)
                losses.append(loss)
        return output, losses

    def visit(self, x: Tensor, visitor: Callable[[int, Tensor], None] = lambda t, output: None) -> Tensor:
        """Runs a sequence from the initial state without losses; the visitor gets step and readout.

        Returns:
            The last readout: the decision.
        """
        t, output = 0, torch.zeros(())

        def take(outputs: list[Tensor], x_window: Tensor) -> None:
            nonlocal t, output
            t += len(x_window)
            for step, raw in enumerate(outputs, start=t - len(outputs)):
                output = self.readout(raw)
                visitor(step, output)
            self.running.detach()

        self.state.reset()
        self.readout.set((None, 0))
        self.running.run(x, self.strides.window, take)
        return output

    # ------------------------------------------------------------------ backward and update

    def close_window(self, last: bool = False) -> Tensor | None:
        """Backward through the window, then detaches the state; updates the weights if that is due.

        Args:
            last: The sequence ends here, so an update is due in any case.

        Returns:
            The window's loss, detached; ``None`` without one.

        Raises:
            FloatingPointError: If loss or gradient is not finite and ``on_nonfinite="raise"``.
        """
        loss = torch.stack(self.losses).mean() if self.losses else None
        self._had_loss = self._had_loss or loss is not None
        # An output that no parameter has reached yet (a delay at the start of a sequence) has nothing to teach.
        if loss is not None and loss.requires_grad:
            self.updater.backward(loss, first=self.progress.backwards == 0)
            self.progress = self.progress._replace(backwards=self.progress.backwards + 1)
            self._taught = True
        self.losses = []
        self.running.detach()
        self.readout.detach()
        self.progress = self.progress._replace(in_window=0)
        if last or self.progress.since_update >= (self.strides.update_every or 0):
            if self.progress.backwards:
                self._update(self.progress.backwards)
            self.progress = self.progress._replace(since_update=0, backwards=0)
            self._chunks, self._new_rows = [], None
            self.note_restore_point()
        return None if loss is None else loss.detach()

    def _update(self, backwards: int) -> None:
        """One FPTT update from the gradients of so many windows, unless something is not finite."""
        if self.accelerator is not None and self.accelerator.update(backwards):
            self.updates += 1
            return
        complaint = self.updater.complaint(self.steps)
        if complaint is None:
            moved = self.updater.step(backwards, self._replayed_loss)
            self.updates, self.skipped = self.updates + moved, self.skipped + (not moved)
            return
        self.updater.zero_grad()
        self.updater.restore_statistics()
        if self.on_nonfinite == "raise":
            raise FloatingPointError(complaint)
        self.skipped += 1
        self.state.set(self.restore_point.state)
        self.readout.set(self.restore_point.readout)
        if self._new_rows is not None:
            self.restart_rows(self._new_rows)

    def _warn_if_untaught(self) -> None:
        if not (self._taught or self._warned) and self._had_loss:
            self._warned = True
            warnings.warn(
                "no loss of this sequence depends on a parameter, so nothing was learned. Possible causes: the output "
                "is detached, all parameters are frozen, gradients are off (torch.no_grad), or a delay in the network "
                "is longer than the window",
                UserWarning,
                stacklevel=4,
            )

    def _replayed_loss(self) -> Tensor:
        """The window's loss at the present weights, from the state, random numbers and statistics it began with."""
        now, begin, distribution = self.snapshot(), self.restore_point, self.objective.distribution
        assert begin.table is not None
        self.state.set(begin.state)
        self.readout.set(begin.readout)
        losses, end = [], begin.progress.t
        with FrozenNormalization(self.net), torch.random.fork_rng():
            set_random_state(begin.random)
            distribution.table = begin.table
            for chunk in self._chunks:
                if chunk.random:
                    set_random_state(chunk.random)
                self._restart(chunk, replay=True)
                end += len(chunk.x)
                losses += self._read(self.running.advance(chunk.x), chunk, end, first_time=False)[1]
        self.restore(now)
        assert now.table is not None
        distribution.table = now.table
        return torch.stack(losses).mean()

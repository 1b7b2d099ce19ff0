"""The training loop: advance the network through a window, go backward, detach the state, update the weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..drivers import Driver, neurons_rest
from ..errors import BatchError, FPTTWarning, NotFiniteError
from ..interrupts import Interruptible, Uninterrupted
from ..results import SequenceResult, StepResult
from .batch import Batch, Window
from .finite import all_finite
from .objective import Objective
from .processes import Processes
from .readout import summable
from .replay import Replay
from .restart import check_rows
from .run_state import RunState
from .schedule import Schedule
from .statistics import INSTANCE_NORMS, FrozenNormalization, normalizations
from .update import Updater

Visitor = Callable[[int, Tensor], None]


class WindowResult(NamedTuple):
    """What an executor made of some windows.

    Attributes:
        steps: Time steps that were trained.
        output: Decision after the last.
        losses: Loss of every window.
        outputs: What the loss sees at each of the steps, of those that have an output, with their number.
        gradients: What :class:`~fptt_plugin.training.update.GradientWatch` notes of every window, until it is over.
    """

    steps: int
    output: Tensor
    losses: list[Tensor]
    outputs: list[tuple[int, Tensor]]
    gradients: list[tuple[tuple[Tensor, ...], Tensor]]


class Executor(Protocol):
    """Trains windows in another way than the loop: compiled."""

    def batch(self) -> AbstractContextManager[None]:
        """Context of one batch of sequences."""

    def settle(self) -> bool:
        """Whether all updates of this batch so far stand.

        If not, one of them was not finite, and everything is as before the batch: train it again. After this each
        update is checked before the next.
        """

    def run(self, window: Window) -> WindowResult | None:
        """Train a window and update the weights; ``None`` if the loop must do it."""

    def advance(self, window: Window) -> Iterable[Tensor]:
        """Run the network over a window that the loop trains, as the driver's ``advance`` does."""

    def update(self, windows: int) -> bool:
        """Update the weights with the gradients of that many windows; ``False`` if the loop must do it."""

    def explain(self) -> str:
        """One line on what is compiled."""


class TrainingLoop:
    """Trains one network window by window.

    Args:
        net: The network.
        objective: The loss of a step.
        run_state: The network's recurrent state and the position of training.
        updater: Updates the weights.
        schedule: When losses, ends of windows and updates are due.
        on_nonfinite: ``"raise"`` or ``"skip"``.

    Attributes:
        driver: How the network is called; the trainer sets it before the first batch.
        executor: Trains windows compiled, where it can; ``None`` trains all of them eagerly.
    """

    def __init__(
        self,
        net: nn.Module,
        objective: Objective,
        run_state: RunState,
        updater: Updater,
        schedule: Schedule,
        on_nonfinite: str,
    ) -> None:
        self.net = net
        self.driver: Driver = None  # type: ignore[assignment]  # the trainer sets it before the first batch
        self.objective = objective
        self.run_state = run_state
        self.updater = updater
        self.schedule = schedule
        self.on_nonfinite = on_nonfinite
        self._due = schedule.due()
        self.executor: Executor | None = None
        self._processes = Processes(net)
        second_gradient = updater.regularizer.variant == "gradient"
        self._replay = Replay(net, run_state, objective, schedule) if second_gradient else None
        self._decision: Tensor | None = None
        self._loss_sum: Tensor | None = None  # of the windows of this sequence
        self._loss_count: int | Tensor = 0
        self._had_loss = self._loss_reaches_weights = False
        self._warned = self._padding_warned = self._rows_checked = self._backward_checked = False
        self._streams = True  # False within a batch of sequences
        self._visitor: Visitor | None = None

    def __getstate__(self) -> dict[str, Any]:
        # What is compiled cannot be copied; the trainer makes an executor for the copy.
        return {**vars(self), "executor": None}

    def reset(self) -> None:
        """Begin a new sequence or stream."""
        self.run_state.reset()
        self._begin_update()

    # ------------------------------------------------------------------ a batch of sequences

    def train(self, batch: Batch, visitor: Visitor | None = None) -> SequenceResult:
        """Train on one batch of sequences, from the initial state.

        Args:
            batch: The batch.
            visitor: Called with every time step and what the loss sees there, ``[B, ...]``, detached.
        """
        run_state, schedule, regularizer = self.run_state, self.schedule, self.updater.regularizer
        before = run_state.updates
        regularizer.check_values()
        if batch.ends is not None:
            self._warn_of_padding()
        with (
            self._rolled_back_on_error(),
            self.updater.gradients_restored_on_error(),
            run_state.distribution_restored_on_error(),
            self._within_batch(visitor),
        ):
            self.objective.target_packing = batch.packing
            if self.executor is None:
                self._train_windows(batch)
            else:
                self._train_compiled(batch, self.executor)
            assert self._decision is not None
            decision = self._decision.detach().clone()
        run_state.position = run_state.position._replace(t=schedule.next_stream(run_state.position.t))
        run_state.set_restore_point()
        regularizer.remember_values()
        self._warn_if_nothing_is_learned()
        loss = torch.full((), torch.nan) if self._loss_sum is None else self._loss_sum / self._loss_count
        return SequenceResult(decision, loss, run_state.updates - before)

    def _train_compiled(self, batch: Batch, executor: Executor) -> None:
        """Train on a batch, and once more where one of its updates, which nobody waited for, was not finite."""
        visitor, visits = self._visitor, list[tuple[int, Tensor]]()
        if visitor is not None:
            self._visitor = lambda t, output: visits.append((t, output.clone()))
        with executor.batch():
            if not self._settles(batch, executor):
                visits.clear()
                self._train_windows(batch)
        if visitor is not None:
            for t, output in visits:
                visitor(t, output)

    def _settles(self, batch: Batch, executor: Executor) -> bool:
        """Train on a batch; returns whether all of its updates were finite."""
        try:
            self._train_windows(batch)
        except BaseException as error:
            if executor.settle() or not isinstance(error, Exception):
                raise
            return False
        return executor.settle()

    def _train_windows(self, batch: Batch) -> None:
        """Train on a batch of sequences, from the initial state, window by window."""
        run_state, schedule, driver = self.run_state, self.schedule, self.driver
        assert batch.steps is not None
        self._decision, self._loss_sum, self._loss_count = None, None, 0
        self._had_loss = self._loss_reaches_weights = False
        run_state.reset(tuple(batch.x.shape[1:]))
        self._begin_update()
        if driver.pushes:
            # The network runs its own loop over time and hands over the output of every step.
            def take(output: Tensor) -> bool:
                t = run_state.position.t
                with Uninterrupted():
                    return self._learn([output], 1, batch.window(t, schedule, count=1, x=batch.x))

            driver.run(batch.x, take)
            return
        t = 0
        while t < batch.steps:
            window = batch.window(t, schedule)
            if self.executor is None or not self._run_compiled(window):
                span = window.length if driver.combines_steps else 1
                if self._replay:  # before advance(): a driver may run the whole window in it
                    self._replay.record(window)
                self._learn(self._advance(window), span, window)
            t = run_state.position.t

    @contextmanager
    def _within_batch(self, visitor: Visitor | None) -> Iterator[None]:
        self._streams, self._visitor = False, visitor
        try:
            yield
        finally:
            self._streams, self._decision, self._visitor = True, None, None

    @contextmanager
    def _rolled_back_on_error(self) -> Iterator[None]:
        run_state, statistics = self.run_state, self.updater.statistics
        with (
            run_state.rolled_back_on_error(),
            statistics.restored_on_error(lambda: run_state.updates),
            self._replay.kept_on_error() if self._replay else nullcontext(),
        ):
            yield

    def _advance(self, window: Window) -> Iterable[Tensor]:
        return self.driver.advance(window.x) if self.executor is None else self.executor.advance(window)

    def _learn(self, outputs: Iterable[Tensor], span: int, window: Window) -> bool:
        """Losses of some steps; at the end of a window the backward pass and, where it is due, the update.

        Args:
            outputs: The network's outputs, as they come.
            span: Steps that one output stands for.
            window: The steps.

        Returns:
            Whether a window ended, so that nothing may reach back behind this step.
        """
        run_state = self.run_state
        with Interruptible():  # an error undoes the sequence
            self._decision, losses = self.objective.losses(
                outputs, span, window, run_state.readout, self._due, self._decision, visitor=self._visitor
            )
        run_state.losses += losses
        run_state.advance(window.length)
        ends = window.last or run_state.position.in_window == self.schedule.window
        if ends:
            self._close_window(last=window.last)
        return ends

    def _close_window(self, *, last: bool = False) -> None:
        """Go backward through the window and detach the state; update the weights if an update is due.

        Raises:
            NotFiniteError: If loss or gradient is not finite and ``on_nonfinite="raise"``.
        """
        run_state, updater = self.run_state, self.updater
        at = run_state.position
        backwards, update_is_due = at.backwards, last or at.since_update >= (self.schedule.update_every or 0)
        loss = torch.stack(run_state.losses).mean() if len(run_state.losses) > 1 else next(iter(run_state.losses), None)
        # An output that no parameter has reached yet (a delay at the start of a sequence) has nothing to teach.
        teaches = loss is not None and loss.requires_grad
        if self._processes.parallel:
            self._processes.check_window(has_loss=teaches, update_is_due=update_is_due, last=last)
        if loss is not None:
            self._count_loss(loss.detach())
            if teaches:
                with nullcontext() if self._backward_checked else neurons_rest(run_state.model):
                    updater.backward(loss, first=backwards == 0)
                self._backward_checked = True
                backwards += 1
                self._loss_reaches_weights = True
            run_state.losses = []
        # The state is detached after the backward pass and before the update: the next window starts from new leaves,
        # and no graph holds weights that are about to change.
        run_state.detach()
        run_state.position = at._replace(in_window=0, backwards=backwards)
        if update_is_due:
            if backwards:
                self._update(backwards)
            run_state.position = run_state.position._replace(since_update=0, backwards=0)
            self._begin_update()

    def _update(self, windows: int) -> None:
        """One FPTT update from the gradients of that many windows, unless something is not finite."""
        run_state, updater, replay = self.run_state, self.updater, self._replay
        if self.executor is not None and self.executor.update(windows):
            run_state.updates += 1
            updater.gradient_watch.look()
            return
        error = updater.error()
        if self._processes.parallel and self._processes.any(error is not None) and error is None:
            error = NotFiniteError(
                "not finite in another process of DistributedDataParallel. This update was applied in none of them",
                "see the error of that process",
            )
        before = updater.regularizer.updates
        if error is None:
            try:
                updater.step(windows, None if replay is None else lambda: replay.loss(self.driver))
            except NotFiniteError as found:  # by the norm of the gradient, before anything has moved
                error = found
            finally:  # another error, in the second gradient, comes after the weights have moved
                run_state.updates += updater.regularizer.updates - before
        if error is None:
            run_state.skipped += updater.regularizer.updates == before
            return
        updater.zero_grad()
        if self.on_nonfinite == "raise":  # whoever handles this error restores what the window has changed
            error.reason = f"step {run_state.steps}: {error.reason}"
            raise error
        run_state.skipped += 1
        self._undo_window()

    def _undo_window(self) -> None:
        """Put recurrent state and running statistics back to where they were after the last update."""
        run_state = self.run_state
        self.updater.statistics.restore()
        run_state.model.restore(run_state.restore_point.recurrent)
        run_state.readout.set(run_state.restore_point.readout)
        if run_state.restarted_rows is not None:
            run_state.restart_rows(run_state.restarted_rows)

    def _begin_update(self) -> None:
        """Remember what the next update begins with: it may have to go back there."""
        # An error in a batch of sequences undoes all of it, so a point in the middle serves skipped updates alone.
        if self._streams or self._replay or self.on_nonfinite == "skip":
            self.run_state.set_restore_point()
        if self.updater.statistics.modules:
            self.updater.statistics.keep()
        if self._replay:
            self._replay.begin()

    def _count_loss(self, loss: Tensor) -> None:
        self._had_loss = True
        finite: int | Tensor = 1
        if self.on_nonfinite == "skip":  # a skipped window does not count in the mean loss
            loss, finite = loss.nan_to_num(0.0, 0.0, 0.0), loss.isfinite()
        self._loss_sum = loss if self._loss_sum is None else summable(self._loss_sum) + loss
        self._loss_count = self._loss_count + finite

    def _run_compiled(self, window: Window) -> int:
        """Train from a window on by compiled graphs; the number of steps, 0 if the window must be trained eagerly."""
        assert self.executor is not None
        result = self.executor.run(window)
        if result is None:
            return 0
        run_state = self.run_state
        self._decision = result.output
        if self._visitor is not None:
            for t, output in result.outputs:
                self._visitor(t, output)
        for loss in result.losses:
            self._count_loss(loss)
        self._loss_reaches_weights = True
        run_state.updates += len(result.losses)
        run_state.advance(result.steps)
        run_state.position = run_state.position._replace(in_window=0, since_update=0)
        self._begin_update()
        for gradients in result.gradients:
            self.updater.gradient_watch.note(*gradients)
        return result.steps

    def _warn_if_nothing_is_learned(self) -> None:
        if self._had_loss and not (self._loss_reaches_weights or self._warned):
            self._warned = True
            warnings.warn(
                "no loss of this sequence depends on a parameter, so nothing was learned. Possible causes: the output "
                "is detached, all parameters are frozen, or a delay in the network is longer than the window",
                FPTTWarning,
                stacklevel=4,
            )

    def _warn_of_padding(self) -> None:
        # Instance normalization without running statistics sees one sample and one step at a time.
        norms = [(name, norm) for name, norm in normalizations(self.net).items() if norm.training]
        names = [name for name, norm in norms if not isinstance(norm, INSTANCE_NORMS) or norm.track_running_stats]
        if names and not self._padding_warned:
            self._padding_warned = True
            warnings.warn(
                f"normalization averages over the padding of shorter sequences, too, in {', '.join(names)}: use "
                "a normalization of each sample by itself (nn.LayerNorm, nn.GroupNorm), batches of one length, or "
                ".eval() on these modules once their running statistics are good",
                FPTTWarning,
                stacklevel=4,
            )

    # ------------------------------------------------------------------ a stream

    def step(self, batch: Batch) -> StepResult:
        """Train on one step of a stream."""
        run_state = self.run_state
        shape = tuple(batch.x.shape[1:])
        if run_state.position.shape not in ((), shape):
            raise BatchError(
                f"this stream has inputs of shape {run_state.position.shape}, x_t has {shape}, and the neurons' state "
                "belongs to its samples",
                "call reset() first to begin another stream; pass new_sequence where single samples end",
            )
        self.objective.target_packing = batch.packing
        window = batch.window(run_state.position.t, self.schedule)
        losses, updates = len(run_state.losses), run_state.updates
        self._loss_sum, self._loss_count = None, 0
        with self._rolled_back_on_error():
            self._restart_rows(batch)
            if self.on_nonfinite == "skip" and self._processes.any(not all_finite([batch.x])):
                return self._skip_step(window)
            if self.executor is not None and self.schedule.window == 1 and self._run_compiled(window):
                assert self._decision is not None
                assert self._loss_sum is not None
                return StepResult(self._decision.clone(), self._loss_sum, True)
            if self._replay:
                self._replay.record(window)
            with Interruptible():  # after this the step is completed: it would be half a step else
                decision, found = self.objective.losses(
                    self._advance(window), 1, window, run_state.readout, self._due, None
                )
            run_state.losses += found
            run_state.advance(1)
            run_state.position = run_state.position._replace(shape=shape)
        loss = run_state.losses[-1].detach() if len(run_state.losses) > losses else None
        if run_state.position.in_window == self.schedule.window:
            # An error in the update undoes the steps since the last update, not this one alone.
            with run_state.rolled_back_on_error(run_state.restore_point, run_state.restarted_rows):
                try:
                    self._close_window()
                except BaseException:
                    self.updater.statistics.restore()
                    raise
        return StepResult(decision.detach().clone(), loss, run_state.updates > updates)

    def _restart_rows(self, batch: Batch) -> None:
        """Begin new sequences in some rows of the batch."""
        rows, run_state = batch.new_rows, self.run_state
        if rows is None or run_state.position.t == 0:
            return
        if not self._rows_checked:
            x = torch.nan_to_num(batch.x)
            check_rows(self.net, run_state.model, rows, lambda: list(self.driver.advance(x)))
            self._rows_checked = True
        run_state.restart_rows(rows)
        before = run_state.restarted_rows
        run_state.restarted_rows = rows if before is None else before | rows

    def _skip_step(self, window: Window) -> StepResult:
        """The output for an input that is not finite; neither state nor statistics see it."""
        run_state = self.run_state
        kept = run_state.snapshot()
        with torch.no_grad(), FrozenNormalization(self.net):
            output = run_state.readout(next(iter(self.driver.advance(window.x))))
        run_state.restore(kept)
        run_state.skipped += 1
        run_state.steps += 1  # it has a place in the data, too
        return StepResult(output, None, False)

    # ------------------------------------------------------------------ without training

    def visit(self, batch: Batch, visitor: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Run a batch of sequences from the initial state without losses.

        Args:
            batch: The sequences.
            visitor: Called with every step and what the loss would see there.

        Returns:
            The decision.
        """
        run_state, driver = self.run_state, self.driver
        decision: Tensor | None = None

        def take(outputs: Iterable[Tensor], first: int, span: int) -> bool:
            nonlocal decision
            for t, raw in enumerate(outputs, start=first + span - 1):
                self.objective.check_output(raw, batch.size)
                output = run_state.readout(raw, span)
                decision = batch.merge(decision, output, t)
                if visitor is not None:
                    visitor(t, output)
            return True

        assert batch.steps is not None
        run_state.model.reset()
        run_state.readout.set((None, 0))
        if driver.pushes:
            steps = iter(range(batch.steps))
            driver.run(batch.x, lambda output: take([output], next(steps), 1))
        else:
            for t in self.schedule.windows(batch.steps):
                window = batch.window(t, self.schedule)
                with Interruptible():
                    take(driver.advance(window.x), t, window.length if driver.combines_steps else 1)
        assert decision is not None
        return decision

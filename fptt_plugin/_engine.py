"""The mechanics of online training: advance the network, close a window, update the weights, undo on errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._finite import all_finite, blame
from ._inputs import Sequence
from ._position import Chunk, Progress, Snapshot, random_state, set_random_state
from .drivers import Driver, FrozenNormalization
from .objective import Objective, Readout
from .regularizer import DynamicRegularizer
from .results import SequenceResult, StepResult
from .state import ModelState, map_tensors


class Engine:
    """Advances one network through time and updates its weights; :class:`~fptt_plugin.FPTTTrainer` is its face.

    Args:
        net: The network.
        optimizer: Its optimizer, which carries ``regularizer``.
        regularizer: The dynamic regulariser.
        state: The network's recurrent state.
        driver: How the network is called; may follow before the first step.
        objective: The loss of a step.
        readout: What loss and decision see of the outputs.
        window: Steps per window, ``None`` for the whole sequence.
        loss_every: Steps per loss, ``None`` for one at the window's end.
        update_every: Steps per update, ``None`` for one at every window's end.
        on_nonfinite: ``"raise"`` or ``"skip"``.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: Optimizer,
        regularizer: DynamicRegularizer,
        state: ModelState,
        driver: Driver | None,
        objective: Objective,
        readout: Readout,
        window: int | None,
        loss_every: int | None,
        update_every: int | None,
        on_nonfinite: str,
    ) -> None:
        self.net = net
        self.optimizer = optimizer
        self.regularizer = regularizer
        self.state = state
        self.driver = driver
        self.objective = objective
        self.readout = readout
        self.window = window
        self.loss_every = loss_every
        self.update_every = update_every
        self.on_nonfinite = on_nonfinite
        self._parameters = list(net.parameters())  # walking the modules at every step would cost more than the norm
        self.steps = self.updates = self.skipped = 0
        self.progress = Progress()
        self.losses: list[Tensor] = []  # of the open window
        self._chunks: list[Chunk] = []  # of the open window, kept for the second gradient alone
        self._loss_since_update = torch.zeros(())
        self.restore_point = self.snapshot()  # where the steps since the last update began

    @property
    def _running(self) -> Driver:
        assert self.driver is not None, "the trainer finds the driver before the first step"
        return self.driver

    def reset(self) -> None:
        """A new sequence: every neuron is as before its first input."""
        self.state.reset()
        self.readout.set((None, 0))
        self.progress = Progress()
        self.losses, self._chunks = [], []
        self.restore_point = self.snapshot()

    # ------------------------------------------------------------------ forward

    def train(self, sequence: Sequence) -> SequenceResult:
        """Trains on one checked batch of sequences, from the initial state."""
        before, total, windows = self.updates, torch.zeros((), device=sequence.x.device), 0
        output = total

        def take(outputs: list[Tensor], x: Tensor) -> None:
            nonlocal output, total, windows
            output = self.learn(outputs, Chunk(x, sequence.target, sequence.steps, sequence.per_sequence))
            last = self.progress.t == sequence.steps
            if last or self.progress.in_window == self.window:
                loss = self.close_window(last=last)
                if loss is not None:
                    total, windows = total + loss, windows + 1

        with self.undone_on_error(self.snapshot()):
            self.reset()
            self._running.run(sequence.x, self.window, take)
        return SequenceResult(output.detach(), total / windows, self.updates - before)

    def step(self, chunk: Chunk) -> StepResult:
        """Trains on one step of a stream."""
        losses, before = len(self.losses), self.updates
        with self.undone_on_error(self.snapshot()):
            output = self.learn(self._running.advance(chunk.x), chunk)
        loss = self.losses[-1].detach() if len(self.losses) > losses else None
        if self.progress.in_window == self.window:
            with self.undone_on_error(self.restore_point):
                self.close_window()
        return StepResult(output.detach(), loss, self.updates > before)

    def learn(self, outputs: list[Tensor], chunk: Chunk) -> Tensor:
        """Notes the losses of some steps of the open window; returns the readout of the last."""
        steps = len(chunk.x)
        output, losses = self._read(outputs, chunk, self.progress.t + steps)
        self.losses += losses
        if self._replays:
            self._chunks.append(chunk)
        self.steps += steps
        t, in_window, since_update, backwards = self.progress
        self.progress = Progress(t + steps, in_window + steps, since_update + steps, backwards)
        return output

    def _read(
        self, outputs: list[Tensor], chunk: Chunk, end: int, *, first_time: bool = True
    ) -> tuple[Tensor, list[Tensor]]:
        """Readout of the last output, and the losses due among them; the last step is ``end - 1``."""
        losses = []
        stride = self.loss_every or self.window
        for t, raw in enumerate(outputs, start=end - len(outputs)):
            output = self.readout(raw)
            due = (stride is not None and (t + 1) % stride == 0) or t + 1 == chunk.steps
            target = chunk.target(t) if due else None
            if target is not None:
                loss = self.objective.loss(output, target, t, chunk.steps, chunk.per_sequence, update=first_time)
                losses.append(loss)
        return output, losses

    def visit(self, x: Tensor, visitor: Callable[[int, Tensor], None]) -> None:
        """Runs a sequence from the initial state without losses; the visitor gets step and readout."""
        t = 0

        def take(outputs: list[Tensor], x_window: Tensor) -> None:
            nonlocal t
            t += len(x_window)
            for step, raw in enumerate(outputs, start=t - len(outputs)):
                visitor(step, self.readout(raw))
            self._running.detach()

        self.state.reset()
        self.readout.set((None, 0))
        self._running.run(x, self.window, take)

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
        # An output that no parameter has reached yet (a delay at the start of a sequence) has nothing to teach.
        if loss is not None and loss.requires_grad:
            if self.progress.backwards == 0:
                self._zero_grad()
                self._loss_since_update = torch.zeros(())
            loss.backward()
            self.progress = self.progress._replace(backwards=self.progress.backwards + 1)
            self._loss_since_update = self._loss_since_update.to(loss.device) + loss.detach()
        self.losses = []
        self._running.detach()
        self.readout.detach()
        self.progress = self.progress._replace(in_window=0)
        if last or self.progress.since_update >= (self.update_every or 0):
            if self.progress.backwards:
                self._update(self.progress.backwards)
            self.progress = self.progress._replace(since_update=0, backwards=0)
            self._chunks = []
            self.restore_point = self.snapshot()
        return None if loss is None else loss.detach()

    def _update(self, backwards: int) -> None:
        """One FPTT update from the gradients of so many windows, unless something is not finite."""
        grads = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        loss = self._loss_since_update
        if not all_finite([loss, *grads]):
            message = blame(self.net, self.state, loss, self.steps)
            self._zero_grad()
            if self.on_nonfinite == "raise":
                raise FloatingPointError(message)
            self.skipped += 1
            self.state.set(self.restore_point.state)
            self.readout.set(self.restore_point.readout)
            return
        if backwards > 1:
            torch._foreach_div_(grads, backwards)
        self.optimizer.step()
        if self._replays:
            self.regularizer.second_gradient(self._replayed_loss)
        self.updates += 1

    def _zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    @property
    def _replays(self) -> bool:
        return self.regularizer.variant == "gradient"

    def _replayed_loss(self) -> Tensor:
        """The window's loss at the present weights, from the state, random numbers and statistics it began with."""
        now, begin = self.snapshot(), self.restore_point
        self.state.set(begin.state)
        self.readout.set(begin.readout)
        losses, end = [], begin.progress.t
        with FrozenNormalization(self.net), torch.random.fork_rng():
            set_random_state(begin.random)
            for chunk in self._chunks:
                end += len(chunk.x)
                losses += self._read(self._running.advance(chunk.x), chunk, end, first_time=False)[1]
        self.restore(now)
        return torch.stack(losses).mean()

    # ------------------------------------------------------------------ undo

    def snapshot(self) -> Snapshot:
        """Where everything but the weights stands."""
        random = random_state() if self._replays else []
        return Snapshot(
            self.state.get(), self.readout.get(), self.progress, list(self.losses), list(self._chunks), random
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Back to a :meth:`snapshot`, random numbers apart."""
        self.state.set(snapshot.state)
        self.readout.set(snapshot.readout)
        self.progress = snapshot.progress
        self.losses, self._chunks = list(snapshot.losses), list(snapshot.chunks)

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
                [],
            )
        )
        self.restore_point = self.snapshot()

    @contextmanager
    def undone_on_error(self, snapshot: Snapshot) -> Iterator[None]:
        """Whatever error leaves the context, the recurrent state is as it was at the snapshot."""
        try:
            yield
        except BaseException:
            self.restore(snapshot)
            raise

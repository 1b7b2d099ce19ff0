"""The mechanics of online training: advance the network, close a window, update the weights, undo on errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ._finite import all_finite, blame
from ._position import Chunk, Progress, Snapshot
from ._validation import Problems
from .drivers import FrozenNormalization, StepDriver
from .objective import Objective, Readout
from .regularizer import DynamicRegularizer
from .state import ModelState, map_tensors


class Engine:
    """Advances one network through time and updates its weights; :class:`~fptt_plugin.FPTTTrainer` is its face.

    Args:
        net: The network.
        optimizer: Its optimizer, which carries ``regularizer``.
        regularizer: The dynamic regulariser.
        state: The network's recurrent state.
        driver: How the network is called.
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
        driver: StepDriver,
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

    def reset(self) -> None:
        """A new sequence: every neuron is as before its first input."""
        self.state.reset()
        self.readout.set((None, 0))
        self.progress = Progress()
        self.losses, self._chunks = [], []

    # ------------------------------------------------------------------ forward

    def advance(self, chunk: Chunk) -> Tensor:
        """Runs the network over some steps of the open window and notes their losses; returns the last output."""
        if self.progress.since_update == 0:
            self.restore_point = self.snapshot()
        if self._replays:
            self._chunks.append(chunk)
        steps = len(chunk.x)
        output, losses = self._forward(chunk, self.progress.t + steps)
        self.losses += losses
        self.steps += steps
        t, in_window, since_update, backwards = self.progress
        self.progress = Progress(t + steps, in_window + steps, since_update + steps, backwards)
        return output

    def _forward(self, chunk: Chunk, end: int, *, first_time: bool = True) -> tuple[Tensor, list[Tensor]]:
        """Readout of the chunk's last output, and the losses due in it; the chunk's last step is ``end - 1``."""
        outputs = self.driver.advance(chunk.x)
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

    def outputs(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Step and readout of a sequence ``[T, B, ...]``, without losses."""
        for x_window in x.split(self.window or len(x)):
            end = self.progress.t + len(x_window)
            outputs = self.driver.advance(x_window)
            yield from enumerate(map(self.readout, outputs), start=end - len(outputs))
            self.progress = Progress(t=end)

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
        self.driver.detach()
        self.readout.detach()
        self.progress = self.progress._replace(in_window=0)
        if last or self.progress.since_update >= (self.update_every or 0):
            if self.progress.backwards:
                self._update(self.progress.backwards)
            self.progress = self.progress._replace(since_update=0, backwards=0)
        self._chunks = []
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
            _set_random_state(begin.random)
            for chunk in self._chunks:
                end += len(chunk.x)
                losses += self._forward(chunk, end, first_time=False)[1]
        self.restore(now)
        return torch.stack(losses).mean()

    # ------------------------------------------------------------------ undo

    def snapshot(self) -> Snapshot:
        """Where everything but the weights stands."""
        random = _random_state() if self._replays else []
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


def _random_state() -> list[Tensor]:
    """State of the random generators: the CPU's, then each GPU's."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])]


def _set_random_state(states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        torch.cuda.set_rng_state(state, device)


def check_strides(
    problems: Problems, window: int | None, loss_every: int | None, update_every: int | None, variant: str
) -> None:
    """Notes strides that are no strides, or that do not go together."""
    for name, stride in (("window", window), ("loss_every", loss_every), ("update_every", update_every)):
        problems.check(
            stride is None or (isinstance(stride, int) and stride >= 1), f"{name}={stride!r} must be an integer >= 1"
        )
    if isinstance(update_every, int) and isinstance(window, int | None):
        problems.check(
            window is not None and update_every % max(window, 1) == 0,
            f"update_every={update_every} must be a multiple of window={window}: no update may fall into a window",
        )
        problems.check(
            variant != "gradient" or update_every == window,
            "variant='gradient' takes its second gradient over one window: leave update_every out",
        )

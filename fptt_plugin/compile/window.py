"""A window of training as one compiled function, and the network's step as one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..drivers import ExplicitDriver, StepDriver
from ..training import TrainingLoop, Window, WindowResult
from ..tree import tensors_in
from .cuda_graph import Recorder
from .dynamo import CannotCompile, Compiled, first_line
from .kept import Kept
from .update import Books, Part, Strength, UpdateTensors, Verdicts, on_device, update_


class WindowSpec(NamedTuple):
    """What distinguishes windows that are compiled apart; the rest is left to the compiler's guards.

    Attributes:
        steps: Length of the window.
        due: Which of its steps carry a loss.
        weighted: Whether the losses have weights other than 1.
        mixed: Whether the divergence from the class distribution takes part.
    """

    steps: int
    due: tuple[int, ...]
    weighted: bool
    mixed: bool


class WindowInputs(NamedTuple):
    """What a window reads besides network and optimizer.

    Attributes:
        x: Input ``[K, B, ...]``.
        targets: Of the steps with a loss.
        factors: Weights of their losses ``[len(due)]``; ``None`` if all are 1.
        rows: Their rows of the class distribution; empty without it.
    """

    x: Tensor
    targets: list[Tensor]
    factors: Tensor | None
    rows: list[Tensor]


class WindowOutputs(NamedTuple):
    """What a window returns; the state is left where the network keeps it.

    Attributes:
        outputs: What loss and decision see at each step that has an output; the last one is the decision.
        loss: Mean loss.
        rows: Rows of the class distribution after it.
        norm: Norm of the gradient before clipping.
        squares: Those of its parts that belong to one weight each, squared, of the weights that have a gradient.
        finite: Whether the update was made.
        live: Which weights have a gradient.
    """

    outputs: list[Tensor]
    loss: Tensor
    rows: list[Tensor]
    norm: Tensor
    squares: Tensor
    finite: Tensor
    live: list[list[bool]]

    def is_whole(self) -> bool:
        """Whether every weight has a gradient."""
        return all(flag for own in self.live for flag in own)


class CompiledWindow:
    """Forward pass, losses, backward pass and update of a whole window in one graph.

    A replay costs the host about as much as launching twenty kernels, so short windows that are recorded share one: the
    function then trains several, one after another, and the compiler traces what Python code does between them.

    Args:
        loop: Whose network, state and objective these are.
        verdicts: Where to ask whether all was finite.
        longest_fused: Steps whose kernels are fused; PyTorch's own are recorded of longer windows.
        replay: Record the graph's kernels as a CUDA graph.

    Attributes:
        most: Windows that are trained before the loop goes on: their outputs are held for it.
        together: Windows that one replay trains where nobody looks at their updates in between.
    """

    most = 64

    def __init__(self, loop: TrainingLoop, verdicts: Verdicts, *, longest_fused: int = 1, replay: bool = False) -> None:
        self._loop, self._verdicts = loop, verdicts
        self._books = Books(loop.updater.regularizer)
        length = loop.schedule.window or longest_fused
        self.recorder = Recorder(self._fixed, fuses=length <= longest_fused) if replay else None
        self.together = max(1, longest_fused // length) if replay else 1
        self._compiled: dict[tuple[WindowSpec, int], Compiled] = {}
        self._succeeded = self._failed = 0

    def run(self, window: Window) -> WindowResult | None:
        """Train the window and those after it that have its form, up to :attr:`most`.

        No Python code of the user runs between two of them, so what is looked up in network and optimizer is looked up
        once. The caller counts steps and updates.

        Returns:
            The result; ``None`` if the window must be trained eagerly, with everything as before.

        Raises:
            CannotCompile: If windows cannot be compiled, or too many different ones come; everything is as before.
        """
        loop, books, first = self._loop, self._books, window.t
        spec = self._spec(window)
        if spec is None:
            return None
        loop.updater.regularizer.check_ready()
        groups = loop.updater.optimizer.param_groups
        tensors = books.tensors([[weight for weight in group["params"] if weight.requires_grad] for group in groups])
        if not tensors.parts:
            return None
        done: list[WindowOutputs] = []
        count = self._tensor_count()
        kept = Kept(loop.net, loop.run_state)
        try:
            for windows in self._groups(window, spec):
                if done:
                    kept.renew()
                # The last one first: for its step the table of the class distribution grows, and is then another.
                inputs = [self._inputs(one, spec) for one in reversed(windows)][::-1]
                parts = [books.parts_after(len(done) + k, tensors) for k in range(len(windows))]
                outputs = self._train(spec, inputs, parts, tensors.newcomers)
                # A weight without state of the optimizer; or something is not finite: the eager window finds out what.
                if not outputs or not all(self._verdicts.allow(own.finite) for own in outputs):
                    kept.restore()
                    break
                for one, own in zip(inputs, outputs, strict=False):
                    for row, new in zip(one.rows, own.rows, strict=True):
                        row.copy_(new)
                done += outputs
                if len(outputs) < len(windows) or not outputs[-1].is_whole():
                    break  # the next update has other parts: these weights have not been counted
        except CannotCompile:
            kept.restore()
            if not done and self._is_final():
                raise
        finally:
            self._close(tensors, done)
            if count is not None:
                loop.run_state.readout.set((loop.run_state.readout.total, count + len(done) * spec.steps))
        return self._result(first, spec, tensors, done) if done else None

    def _stretch(self, window: Window, spec: WindowSpec) -> Iterator[Window]:
        """The window and those after it in its batch, as long as they have the same form."""
        for _ in range(self.most):
            yield window
            if window.last or window.batch.steps is None:
                return
            window = window.batch.window(window.t + window.length, self._loop.schedule)
            if self._spec(window) != spec:
                return

    def _groups(self, window: Window, spec: WindowSpec) -> Iterator[list[Window]]:
        """The windows of a stretch by calls of the compiled function: :attr:`together` at a time, or one."""
        together = 1 if self._verdicts.pending is None else self.together
        group: list[Window] = []
        for following in self._stretch(window, spec):
            group.append(following)
            if len(group) == together:
                yield group
                group = []
        yield from ([rest] for rest in group)

    def _train(
        self, spec: WindowSpec, inputs: list[WindowInputs], parts: list[list[Part]], newcomers: list[Tensor]
    ) -> list[WindowOutputs]:
        key = (spec, len(inputs))
        if key not in self._compiled:
            self._compiled[key] = Compiled(self._function(spec), backend=self.recorder or "inductor")
        updater = self._loop.updater
        strength, statistics = Strength.of(updater.regularizer), updater.statistics.tensors()
        try:
            outputs: list[WindowOutputs] = self._compiled[key](inputs, parts, newcomers, strength, statistics)
        except Exception as error:
            raise CannotCompile(first_line(error)) from error
        return outputs

    def _is_final(self) -> bool:
        """Count a failure at the first window of a stretch; whether no more windows are to be compiled."""
        self._failed += 1
        return not self._succeeded or self._failed >= 3

    def _close(self, tensors: UpdateTensors, done: list[WindowOutputs]) -> None:
        """Keep the books of the updates that were made; a recording that fails puts the weights back, too."""
        if not done:
            self._books.note([], None, 0)
            return
        self._succeeded, self._failed = self._succeeded + len(done), 0
        live = [flag for own in done[-1].live for flag in own]
        if all(live):
            self._books.note(tensors.steps, done[-1].norm, len(done))
            return
        if len(done) > 1:
            self._books.note(tensors.steps, done[-2].norm, len(done) - 1)
        self._books.note([*compress(tensors.steps, live)], done[-1].norm)

    def _result(self, first: int, spec: WindowSpec, tensors: UpdateTensors, done: list[WindowOutputs]) -> WindowResult:
        seen: list[tuple[int, Tensor]] = []
        for k, window in enumerate(done):
            end = first + (k + 1) * spec.steps
            seen += enumerate(window.outputs, start=end - len(window.outputs))
        gradients: list[tuple[tuple[Tensor, ...], Tensor]] = []
        if not self._loop.updater.gradient_watch.is_over:
            # With the regularizer's, which is zero for a weight that has never moved.
            weights = [weight for part in tensors.parts for weight in part.weights]
            gradients = [
                (tuple(compress(weights, itertools.chain.from_iterable(window.live))), window.squares)
                for window in done
            ]
        return WindowResult(len(done) * spec.steps, seen[-1][1], [window.loss for window in done], seen, gradients)

    def _fixed(self) -> list[Tensor]:
        """Weights, buffers that are no recurrent state, and the state of the optimizer."""
        loop = self._loop
        recurrent = {id(tensor) for tensor in tensors_in(loop.run_state.model.get())}
        return [
            *loop.updater.parameters,
            *(buffer for buffer in loop.net.buffers() if id(buffer) not in recurrent),
            *tensors_in([dict(entry) for entry in loop.updater.optimizer.state.values()]),
        ]

    def _tensor_count(self) -> int | None:
        """Have the readout count its steps in a tensor: a Python number would be another graph at every window."""
        readout = self._loop.run_state.readout
        total, count = readout.get()
        if total is None or isinstance(count, Tensor):
            return None
        readout.set((total, torch.full((), count, device=total.device)))
        return count

    def _spec(self, window: Window) -> WindowSpec | None:
        """The form of a window; ``None`` for one that is trained eagerly."""
        batch, due = window.batch, tuple(t - window.t for t in window.due(self._loop.schedule))
        if window.t == 0 or not due or batch.y is None:
            return None  # neurons make their state at the first step; a window without loss has no backward pass
        if batch.mask is not None or window.length != self._loop.schedule.window:
            return None  # how many samples are labeled is a matter of values; remainders have many lengths
        objective = self._loop.objective
        target = batch.target(window.t + due[0])
        assert target is not None
        weighted = not objective.is_constant(target, batch.per_sequence)
        mixed = weighted and objective.is_mixed(target, batch.per_sequence)
        if mixed and not len(objective.distribution.table):
            return None  # its first row tells the number of classes
        return WindowSpec(window.length, due, weighted, mixed)

    def _inputs(self, window: Window, spec: WindowSpec) -> WindowInputs:
        objective, batch, t = self._loop.objective, window.batch, window.t
        targets = [target for k in spec.due if (target := batch.target(t + k)) is not None]
        if not spec.weighted:
            return WindowInputs(window.x, targets, None, [])
        weights = [objective.weight(targets[0], t + k, batch.steps, batch.per_sequence) for k in spec.due]
        factors = on_device(weights, window.x.device, window.x.dtype)
        rows: list[Tensor] = []
        if spec.mixed:
            estimate = objective.distribution
            like = estimate.table[:0, 0]  # logits of no sample
            # The eager loss of weight 1 does not touch its row, either, so any copy will do.
            steps = [None if weight == 1.0 else t + k for k, weight in zip(spec.due, weights, strict=True)]
            estimate.row(max((step for step in steps if step is not None), default=0), like)  # grows the table
            rows = [estimate.row(0, like).clone() if step is None else estimate.row(step, like) for step in steps]
        return WindowInputs(window.x, targets, factors, rows)

    def _function(self, spec: WindowSpec) -> Any:
        """The function of windows of a form, of which the compiler makes one graph."""
        loop, rule = self._loop, self._books.rule

        def windows(
            inputs: list[WindowInputs],
            parts: list[list[Part]],
            newcomers: list[Tensor],
            strength: Strength,
            statistics: list[Tensor],
        ) -> list[WindowOutputs]:
            done: list[WindowOutputs] = []
            for one, own in zip(inputs, parts, strict=True):
                outputs = window(one, own, newcomers, strength, statistics)
                if outputs is None:
                    if done:  # only all of the batch can be undone now
                        done[-1] = done[-1]._replace(finite=torch.zeros_like(done[-1].finite))
                    break
                done.append(outputs)
                if not outputs.is_whole():
                    break
            return done

        def window(
            inputs: WindowInputs,
            parts: list[Part],
            newcomers: list[Tensor],
            strength: Strength,
            statistics: list[Tensor],
        ) -> WindowOutputs | None:
            driver, objective, readout = loop.driver, loop.objective, loop.run_state.readout
            rows = [row.clone() for row in inputs.rows]
            losses: list[Tensor] = []
            outputs: list[Tensor] = []
            span = spec.steps if driver.combines_steps else 1
            with torch.enable_grad():
                for k, raw in enumerate(driver.advance(inputs.x), start=span - 1):
                    output = readout(raw, span)
                    outputs.append(output.detach())
                    if k in spec.due:
                        i, seen = len(losses), readout.for_loss(raw, output)
                        if inputs.factors is None:
                            losses.append(objective.plain_loss(seen, inputs.targets[i]))
                        else:
                            row = rows[i] if spec.mixed else None
                            factor = inputs.factors[i]
                            losses.append(objective.weighted_loss(seen, inputs.targets[i], factor, row))
                loss = losses[0] if len(losses) == 1 else torch.stack(losses).mean()
                if not loss.requires_grad:
                    return None
                weights = [weight for part in parts for weight in part.weights]
                flat = iter(torch.autograd.grad(loss, [*weights, *newcomers], allow_unused=True))
            loop.run_state.model.detach()
            readout.detach()
            grads = [[next(flat) for _ in part.weights] for part in parts]
            live = [[grad is not None for grad in own] for own in grads]
            if any(grad is not None for grad in flat) or not any(flag for flags in live for flag in flags):
                return None
            moving = [part.only(flags) for part, flags in zip(parts, live, strict=True) if any(flags)]
            known = [[grad for grad in own if grad is not None] for own in grads]
            known = [own for own in known if own]
            norm, squares, finite = update_(rule, strength, moving, known, [loss.detach(), *statistics])
            return WindowOutputs(outputs, loss.detach(), rows, norm, squares, finite, live)

        return windows


class CompiledStep:
    """The network as its driver calls it, compiled; losses, backward pass and detaching are the loop's.

    Args:
        loop: Whose network this is.

    Attributes:
        reason: Why the compiler leaves parts of it to Python; ``None`` if it does not.
        failure: Why it could not compile even parts of it; the network then runs eagerly.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self._loop = loop
        self.reason: str | None = None
        self.failure: str | None = None
        self._compiled: Callable[..., Any] = self._compile(fullgraph=True)

    def _compile(self, *, fullgraph: bool) -> Compiled:
        net = self._loop.net

        def step(*args: Any) -> Any:
            return net(*args)

        return Compiled(step, fullgraph=fullgraph)

    def advance(self, window: Window) -> Iterable[Tensor]:
        """Run the network over a window, as its driver does."""
        driver = self._loop.driver
        compiled = copy.copy(driver)
        compiled.net = self  # type: ignore[assignment]  # a driver only calls it
        if window.t == 0 and isinstance(driver, (StepDriver, ExplicitDriver)):
            # The first step of a sequence, which makes the state, would be a graph of its own.
            return itertools.chain(driver.advance(window.x[:1]), compiled.advance(window.x[1:]))
        return compiled.advance(window.x)

    def __call__(self, *args: Any) -> Any:
        # Before it has one graph the compiler executes nothing; parts may have been executed when a later one fails.
        kept = Kept(self._loop.net, self._loop.run_state) if self.reason else None
        try:
            return self._compiled(*args)
        except Exception as error:
            if kept is None:
                self.reason = first_line(error)
                self._compiled = self._compile(fullgraph=False)
                return self(*args)
            kept.restore()
            returned = self._loop.net(*args)  # raises the network's own errors
            self.failure = first_line(error)
            self._compiled = self._loop.net
            return returned

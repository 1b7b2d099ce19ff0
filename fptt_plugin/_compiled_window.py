"""Trains window after window of a sequence, each by one call of a compiled graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ._capture import CannotCompile, Function, Graphs, dense, layout, refill
from ._compiled_update import CompiledUpdate, UpdateTensors, learning_rates, note_updates, settings
from ._position import Chunk
from ._window_graph import (
    Carried,
    Held,
    Inputs,
    Plan,
    WindowFunction,
    monitors,
    net_settings,
    refuse_hooks,
    restore_net_settings,
)
from .state import map_tensors, tensors_in

if TYPE_CHECKING:
    from ._engine import Engine


class Outcome(NamedTuple):
    """What a run of windows gave.

    Attributes:
        steps: How many steps were trained.
        output: Readout of the last.
        losses: Of each window.
    """

    steps: int
    output: Tensor
    losses: list[Tensor]


class CompiledWindow:
    """Trains windows of a network that is advanced step by step, each by one call of a compiled graph.

    Args:
        engine: Whose network, state and objective these are.
        update: The compiled update of its optimizer.
        replay: Record the graph's kernels as a CUDA graph.
    """

    def __init__(self, engine: Engine, update: CompiledUpdate, *, replay: bool) -> None:
        self.engine = engine
        self.update = update
        self._graphs = Graphs(replay=replay)
        self._function = WindowFunction(engine)
        self._parameters: list[nn.Parameter] = []
        self._names: dict[Tensor, str] = {}
        self._buffers: list[tuple[str, nn.Module, str]] = []  # name, owner, name there; without the recurrent state
        self._trainable: list[bool] = []
        self._trained: list[Tensor] = []

    def run(self, chunk: Chunk, window: int) -> Outcome | None:
        """Trains as many windows of the chunk as have the first one's form. The caller keeps the engine's books.

        Args:
            chunk: What is left of the sequence.
            window: Steps per window.

        Returns:
            The outcome; ``None`` if the first window must be trained eagerly.

        Raises:
            CannotCompile: At the first window of a form that cannot be compiled.
        """
        t = self.engine.progress.t
        plan = self._plan(chunk.x[:window], t, chunk)
        tensors = self._update_tensors()
        if plan is None or tensors is None:
            return None
        carried, held = self._carried(), Held(self._others(), tensors)
        rates = learning_rates(self.engine.updater.optimizer)
        fixed, flow = [*tensors_in(held.others), *self.update.flat], tensors_in(carried)
        losses: list[Tensor] = []
        graph: Function | None = None
        for x in (chunk.x[begin : begin + window] for begin in range(0, len(chunk.x), window)):
            if losses and self._plan(x, t, chunk) != plan:
                break
            inputs = self._inputs(x, t, plan, chunk)
            graph = graph or self._find(plan, inputs, carried, rates, held)
            found = graph([*tensors_in(inputs), *flow, *rates, *fixed])
            if not found[0]:  # not finite: nothing was changed, and the eager window says what it is
                break
            _, loss, norm, output, *flow = found
            losses.append(loss)
            t += plan.steps
        if not losses:
            note_updates(self.engine.updater.regularizer, None, 0)
            return None
        steps = len(losses) * plan.steps
        self._hand_back(refill(carried, iter(flow)), steps)
        note_updates(self.engine.updater.regularizer, norm, len(losses))
        return Outcome(steps, output, losses)

    # ------------------------------------------------------------------ what goes in and comes out

    def _plan(self, x: Tensor, t: int, chunk: Chunk) -> Plan | None:
        """The form of the window that begins at step ``t``; ``None`` for one that is trained eagerly."""
        engine = self.engine
        due = tuple(k for k in range(len(x)) if engine.strides.is_due(t + k, chunk.steps))
        targets = [target for target in (chunk.target(t + k) for k in due) if target is not None]
        if t == 0 or not due or len(targets) < len(due):
            return None  # neurons make their state at the first step; a window without loss has no backward pass
        if any(chunk.mask(t + k) is not None for k in due):
            return None  # how many samples are labelled is a matter of values
        objective = engine.objective
        weighted = not objective.is_constant(targets[0], chunk.per_sequence)
        mixed = weighted and objective.is_mixed(targets[0], chunk.per_sequence)
        if mixed and not len(objective.distribution.table):
            return None  # its first row tells the number of classes
        return Plan(len(x), due, weighted, mixed)

    def _update_tensors(self) -> UpdateTensors | None:
        """The tensors of an update; ``None`` until an eager window has shown which weights have a gradient."""
        if self._parameters is not self.engine.updater.parameters:  # the optimizer has got more of them
            self._parameters = self.engine.updater.parameters
            self._names = {parameter: name for name, parameter in self.engine.net.named_parameters()}
        trainable = [parameter.requires_grad for parameter in self._names]
        if trainable != self._trainable:
            self._trainable, self._trained = trainable, []
            return None
        if not self._trained:
            groups = self.engine.updater.optimizer.param_groups
            self._trained = [p for group in groups for p in group["params"] if p.grad is not None]
            state = {id(tensor) for tensor in tensors_in(self.engine.state.get())}
            self._buffers = [
                (f"{prefix}.{name}" if prefix else name, module, name)
                for prefix, module in self.engine.net.named_modules()
                for name, buffer in module._buffers.items()
                if buffer is not None and id(buffer) not in state
            ]
        return self.update.tensors(self._trained) if self._trained else None

    def _others(self) -> dict[str, Tensor]:
        """Parameters that are not trained, and buffers."""
        trained = set(self._trained)
        others: dict[str, Tensor] = {name: p for p, name in self._names.items() if p not in trained}
        return others | {full: getattr(module, name) for full, module, name in self._buffers}

    def _carried(self) -> Carried:
        engine = self.engine
        total, count = engine.readout.get()
        outputs = None if total is None else torch.as_tensor(count, device=total.device)
        rates = [monitor.sums for monitor in monitors(engine.net)]
        return Carried(map_tensors(dense, engine.state.get()), total, outputs, rates)

    def _inputs(self, x: Tensor, t: int, plan: Plan, chunk: Chunk) -> Inputs:
        objective = self.engine.objective
        x = dense(x)
        targets = [dense(target) for target in (chunk.target(t + k) for k in plan.due) if target is not None]
        if not plan.weighted:
            return Inputs(x, targets, [], [])
        weights = [objective.weight(targets[0], t + k, chunk.steps, chunk.per_sequence) for k in plan.due]
        rows: list[Tensor] = []
        if plan.mixed:
            estimate = objective.distribution
            like = estimate.table[:0, 0]  # logits of no sample
            # The eager loss of weight 1 does not touch its row, either, so any will do.
            steps = [None if weight == 1.0 else t + k for k, weight in zip(plan.due, weights, strict=True)]
            last = max((step for step in steps if step is not None), default=0)
            estimate.row(last, like)  # grows the table, of which the rows are views
            rows = [estimate.row(0, like).clone() if step is None else estimate.row(step, like) for step in steps]
        return Inputs(x, targets, list(torch.tensor(weights, device=x.device, dtype=x.dtype).unbind()), rows)

    def _hand_back(self, carried: Carried, steps: int) -> None:
        engine = self.engine
        engine.state.set(carried.state)
        _, count = engine.readout.get()
        if carried.outputs is not None:
            engine.readout.set((carried.total, count + steps if isinstance(count, int) else carried.outputs))
        for monitor, sums in zip(monitors(engine.net), carried.rates, strict=True):
            monitor.sums = sums

    # ------------------------------------------------------------------ the graph

    def _find(self, plan: Plan, inputs: Inputs, carried: Carried, rates: list[Tensor], held: Held) -> Function:
        """The graph for that plan and these tensors; what tracing does to network and books is undone."""
        engine, tree = self.engine, (inputs, carried, rates, held)
        names = [self._names[weight] for weight in self._trained]
        before = net_settings(engine.net)
        device = inputs.x.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = plan, layout((inputs, carried, held.others)), self.update.layout, settings(engine.updater.regularizer)

        def function(flat: list[Tensor]) -> list[Tensor]:
            return self._function(plan, names, *refill(tree, iter(flat)))

        def example() -> list[Tensor]:
            refuse_hooks(engine.net)
            return tensors_in(tree)

        kept, refused = engine.snapshot(), None
        try:
            moving = len(tensors_in(tree[:-1]))
            graph = self._graphs.find((key, before, autocast), function, example, moving)
        except CannotCompile as reason:
            refused = reason
        finally:
            engine.restore(kept)
            for monitor, sums in zip(monitors(engine.net), carried.rates, strict=True):
                monitor.sums = sums
            changed = net_settings(engine.net) != before
            restore_net_settings(engine.net, before)
        if changed:
            raise CannotCompile("a layer counts its steps in a Python number, which a graph would hold fixed")
        if refused is not None:
            raise refused
        return graph

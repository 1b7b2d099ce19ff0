"""A window of training as one compiled graph: forward pass, losses, backward pass and update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..interrupts import Interruptible
from ..monitor import FiringRates, SpikeHook
from ..training import TrainingLoop, Window, WindowResult, normalizations
from ..tree import map_tensors, refill, tensors_in
from .capture import CannotCompile, Function, Graphs, dense, layout
from .update import CompiledUpdate, UpdateTensors, learning_rates, note_updates, settings, update_


class CompiledWindow:
    """Trains windows of a network that is advanced step by step, each by one call of a compiled graph.

    Args:
        loop: Whose network, state and objective these are.
        update: The compiled update of its optimizer.
        replay: Record the graph's kernels as a CUDA graph.
    """

    def __init__(self, loop: TrainingLoop, update: CompiledUpdate, *, replay: bool) -> None:
        self.loop = loop
        self.update = update
        self._graphs = Graphs(replay=replay)
        self._function = WindowFunction(loop)
        self._parameters: list[nn.Parameter] = []
        self._names: dict[Tensor, str] = {}
        self._buffers: list[tuple[str, nn.Module, str]] = []  # name, owner, name there; without the recurrent state
        self._trainable: list[bool] = []
        self._trained: list[Tensor] = []

    def run(self, window: Window) -> WindowResult | None:
        """Train the window and those after it that have the same form. The caller counts steps and updates.

        Returns:
            The result; ``None`` if the window must be trained eagerly.

        Raises:
            CannotCompile: At the first window of a form that cannot be compiled.
        """
        spec, tensors = self._spec(window), self._update_tensors()
        if spec is None or tensors is None:
            return None
        carried, held = self._carried(), InPlace(self._others(), tensors)
        rates = learning_rates(self.loop.updater.optimizer)
        fixed, flow = [*tensors_in(held.others), *self.update.flat], tensors_in(carried)
        losses: list[Tensor] = []
        graph: Function | None = None
        while True:
            inputs = self._inputs(window, spec)
            if graph is None:
                with Interruptible():  # compiling takes its time, and nothing has moved
                    graph = self._find(spec, inputs, carried, rates, held)
            found = graph([*tensors_in(inputs), *flow, *rates, *fixed])
            if not found[0]:  # not finite: nothing was changed, and the eager window says what it is
                break
            _, loss, norm, output, *flow = found
            losses.append(loss)
            if window.last or window.batch.steps is None:
                break
            window = window.batch.window(window.t + window.length, self.loop.schedule)
            if self._spec(window) != spec:
                break
        if not losses:
            note_updates(self.loop.updater.regularizer, None, 0)
            return None
        steps = len(losses) * spec.steps
        self._hand_back(refill(carried, iter(flow)), steps)
        note_updates(self.loop.updater.regularizer, norm, len(losses))
        return WindowResult(steps, output, losses)

    # ------------------------------------------------------------------ what goes in and comes out

    def _spec(self, window: Window) -> WindowSpec | None:
        """The form of a window; ``None`` for one that is trained eagerly."""
        batch, due = window.batch, tuple(t - window.t for t in window.due(self.loop.schedule))
        if window.t == 0 or not due or batch.y is None:
            return None  # neurons make their state at the first step; a window without loss has no backward pass
        if batch.mask is not None:
            return None  # how many samples are labelled is a matter of values
        objective = self.loop.objective
        target = batch.target(window.t + due[0])
        assert target is not None
        weighted = not objective.is_constant(target, batch.per_sequence)
        mixed = weighted and objective.is_mixed(target, batch.per_sequence)
        if mixed and not len(objective.distribution.table):
            return None  # its first row tells the number of classes
        return WindowSpec(window.length, due, weighted, mixed)

    def _update_tensors(self) -> UpdateTensors | None:
        """The tensors of an update; ``None`` until an eager window has shown which weights have a gradient."""
        if self._parameters is not self.loop.updater.parameters:  # the optimizer has got more of them
            self._parameters = self.loop.updater.parameters
            self._names = {parameter: name for name, parameter in self.loop.net.named_parameters()}
        trainable = [parameter.requires_grad for parameter in self._names]
        if trainable != self._trainable:
            self._trainable, self._trained = trainable, []
            return None
        if not self._trained:
            groups = self.loop.updater.optimizer.param_groups
            self._trained = [p for group in groups for p in group["params"] if p.grad is not None]
            state = {id(tensor) for tensor in tensors_in(self.loop.run_state.model.get())}
            self._buffers = [
                (f"{prefix}.{name}" if prefix else name, module, name)
                for prefix, module in self.loop.net.named_modules()
                for name, buffer in module._buffers.items()
                if buffer is not None and id(buffer) not in state
            ]
        return self.update.tensors(self._trained) if self._trained else None

    def _others(self) -> dict[str, Tensor]:
        """Parameters that are not trained, and buffers."""
        trained = set(self._trained)
        others: dict[str, Tensor] = {name: p for p, name in self._names.items() if p not in trained}
        return others | {full: getattr(module, name) for full, module, name in self._buffers}

    def _carried(self) -> WindowState:
        loop = self.loop
        total, count = loop.run_state.readout.get()
        outputs = None if total is None else torch.as_tensor(count, device=total.device)
        rates = [monitor.sums for monitor in monitors(loop.net)]
        return WindowState(map_tensors(dense, loop.run_state.model.get()), total, outputs, rates)

    def _inputs(self, window: Window, spec: WindowSpec) -> WindowInputs:
        objective, batch, t = self.loop.objective, window.batch, window.t
        x = dense(window.x)
        targets = [dense(target) for target in (batch.target(t + k) for k in spec.due) if target is not None]
        if not spec.weighted:
            return WindowInputs(x, targets, [], [])
        weights = [objective.weight(targets[0], t + k, batch.steps, batch.per_sequence) for k in spec.due]
        rows: list[Tensor] = []
        if spec.mixed:
            estimate = objective.distribution
            like = estimate.table[:0, 0]  # logits of no sample
            # The eager loss of weight 1 does not touch its row, either, so any will do.
            steps = [None if weight == 1.0 else t + k for k, weight in zip(spec.due, weights, strict=True)]
            last = max((step for step in steps if step is not None), default=0)
            estimate.row(last, like)  # grows the table, of which the rows are views
            rows = [estimate.row(0, like).clone() if step is None else estimate.row(step, like) for step in steps]
        return WindowInputs(x, targets, list(torch.tensor(weights, device=x.device, dtype=x.dtype).unbind()), rows)

    def _hand_back(self, carried: WindowState, steps: int) -> None:
        loop = self.loop
        loop.run_state.model.set(carried.state)
        _, count = loop.run_state.readout.get()
        if carried.outputs is not None:
            loop.run_state.readout.set((carried.total, count + steps if isinstance(count, int) else carried.outputs))
        for monitor, sums in zip(monitors(loop.net), carried.rates, strict=True):
            monitor.sums = sums

    # ------------------------------------------------------------------ the graph

    def _find(
        self, spec: WindowSpec, inputs: WindowInputs, carried: WindowState, rates: list[Tensor], held: InPlace
    ) -> Function:
        """The graph for that plan and these tensors; what tracing does to network and books is undone."""
        loop, tree = self.loop, (inputs, carried, rates, held)
        names = [self._names[weight] for weight in self._trained]
        before = net_settings(loop.net)
        device = inputs.x.device.type
        autocast = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device)
        key = spec, layout((inputs, carried, held.others)), self.update.layout, settings(loop.updater.regularizer)

        def function(flat: list[Tensor]) -> list[Tensor]:
            return self._function(spec, names, *refill(tree, iter(flat)))

        def example() -> list[Tensor]:
            refuse_hooks(loop.net)
            return tensors_in(tree)

        kept, refused = loop.run_state.snapshot(), None
        try:
            moving = len(tensors_in(tree[:-1]))
            graph = self._graphs.find((key, before, autocast), function, example, moving)
        except CannotCompile as reason:
            refused = reason
        finally:
            loop.run_state.restore(kept)
            for monitor, sums in zip(monitors(loop.net), carried.rates, strict=True):
                monitor.sums = sums
            changed = net_settings(loop.net) != before
            restore_net_settings(loop.net, before)
        if changed:
            raise CannotCompile("a layer counts its steps in a Python number, which a graph would hold fixed")
        if refused is not None:
            raise refused
        return graph


# ---------------------------------------------------------------------- the function that is compiled


class WindowSpec(NamedTuple):
    """What distinguishes windows that need different graphs, apart from the layout of their tensors.

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
    """What every window brings.

    Attributes:
        x: Input ``[K, B, ...]``.
        targets: Of the steps with a loss.
        factors: Weights of their losses, 0-d; empty if all are 1.
        rows: Their rows of the class distribution; empty without it.
    """

    x: Tensor
    targets: list[Tensor]
    factors: list[Tensor]
    rows: list[Tensor]


class WindowState(NamedTuple):
    """What one window hands to the next.

    Attributes:
        state: Of the network.
        total: Sum of the outputs, for a readout of their mean.
        outputs: How many these are.
        rates: Sums of the firing-rate monitors.
    """

    state: dict[str, Any]
    total: Tensor | None
    outputs: Tensor | None
    rates: list[dict[str, Any]]


class InPlace(NamedTuple):
    """What stays where it is and is written in place.

    Attributes:
        others: Parameters that are not trained, and buffers, by name.
        update: Weights, averages, duals and optimizer state.
    """

    others: dict[str, Tensor]
    update: UpdateTensors


class WindowFunction:
    """The function that a window's graph is traced from.

    Args:
        loop: Whose network, state and objective these are.
    """

    def __init__(self, loop: TrainingLoop) -> None:
        self.loop = loop
        self._call = _Call(loop.net)
        self._statistics = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in normalizations(loop.net).items()
            for name in module._buffers
        }

    def __call__(
        self,
        spec: WindowSpec,
        names: list[str],
        inputs: WindowInputs,
        carried: WindowState,
        rates: list[Tensor],
        held: InPlace,
    ) -> list[Tensor]:
        """Forward pass, losses, backward pass and update.

        Args:
            spec: What window it is.
            names: Of the trained weights.
            inputs: What this window brings.
            carried: What the window before it left.
            rates: Learning rates.
            held: What is written in place, if all is finite.

        Returns:
            Whether all is finite, the loss, the gradient's norm, the readout, and the tensors that are carried on.

        Raises:
            CannotCompile: If a graph would not do for every step.
        """
        leaves = [weight.detach().requires_grad_() for weight in held.update.weights]
        copies = {name: tensor.clone() for name, tensor in held.others.items()}
        rows = [row.clone() for row in inputs.rows]
        net = dict(zip(names, leaves, strict=True)) | copies
        with torch.enable_grad():
            output, loss, after = torch.func.functional_call(
                self._call,
                {f"net.{name}": tensor for name, tensor in net.items()},
                (lambda: self._forward(spec, inputs._replace(rows=rows), carried),),
            )
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        if layout(after) != layout(carried):
            raise CannotCompile("the network's state changes its form from step to step")
        if any(grad is None for grad in grads):
            raise CannotCompile("which weights have a gradient changes from step to step")
        statistics = [tensor for name, tensor in copies.items() if name in self._statistics]
        regularizer = self.loop.updater.regularizer
        norm, valid = update_(regularizer, held.update, rates, list(grads), [loss.detach(), *statistics])
        for old, new in zip([*held.others.values(), *inputs.rows], [*copies.values(), *rows], strict=True):
            # Batch normalisation writes its statistics without a new version, so buffers are always handed back.
            if new._version or not isinstance(old, nn.Parameter):
                old.copy_(torch.where(valid, new, old))
        return [valid, loss.detach(), norm, output.detach(), *tensors_in(after)]

    def _forward(
        self, spec: WindowSpec, inputs: WindowInputs, carried: WindowState
    ) -> tuple[Tensor, Tensor, WindowState]:
        loop, objective = self.loop, self.loop.objective
        loop.run_state.model.set(carried.state)
        loop.run_state.readout.set((carried.total, 0 if carried.outputs is None else carried.outputs))
        observers = monitors(loop.net)
        for monitor, sums in zip(observers, carried.rates, strict=True):
            monitor.sums = dict(sums)
        losses: list[Tensor] = []
        span = spec.steps if loop.driver.combines_steps else 1
        for k, raw in enumerate(loop.driver.advance(inputs.x), start=span - 1):
            output = loop.run_state.readout(raw, span)
            if k in spec.due:
                i = len(losses)
                target = inputs.targets[i]
                if spec.weighted:
                    row = inputs.rows[i] if spec.mixed else None
                    losses.append(objective.weighted_loss(output, target, inputs.factors[i], row))
                else:
                    losses.append(objective.plain_loss(output, target))
        total, outputs = loop.run_state.readout.get()
        after = WindowState(
            map_tensors(dense, loop.run_state.model.get()),
            total,
            outputs if isinstance(outputs, Tensor) else None,
            [monitor.sums for monitor in observers],
        )
        return output, torch.stack(losses).mean(), map_tensors(Tensor.detach, after)


class _Call(nn.Module):
    """Calls a function while ``torch.func.functional_call`` has other tensors in the network."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, function: Callable[[], Any]) -> Any:
        return function()


def monitors(net: nn.Module) -> list[FiringRates]:
    """The firing-rate monitors on a network."""
    hooks = [hook for module in net.modules() for hook in module._forward_hooks.values()]
    return list(dict.fromkeys(hook.rates for hook in hooks if isinstance(hook, SpikeHook)))


def refuse_hooks(net: nn.Module) -> None:
    """Refuses a network whose hooks a graph would call only once.

    Raises:
        CannotCompile: If it has such hooks.
    """
    for name, module in net.named_modules():
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values(), *module._backward_hooks.values()]
        if any(not isinstance(hook, SpikeHook) for hook in hooks):
            raise CannotCompile(
                f"{name or 'the network'!r} ({type(module).__name__}) has hooks, which a graph would call only once"
            )


def net_settings(net: nn.Module) -> list[Any]:
    """Numbers, switches and hooks of a network's modules, which a graph holds as constants."""
    return [
        (len(module._forward_hooks), len(module._forward_pre_hooks), _constants(module)) for module in net.modules()
    ]


def restore_net_settings(net: nn.Module, settings: list[Any]) -> None:
    """Puts numbers and switches back to what :func:`net_settings` found."""
    for module, (*_, kept) in zip(net.modules(), settings, strict=True):
        for name in _constants(module).keys() - kept.keys():
            del vars(module)[name]
        vars(module).update(kept)


def _constants(module: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if type(value) in (bool, int, float, str, type(None))}

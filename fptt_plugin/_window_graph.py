"""One window of training as a function of tensors: what the compiled graph of a window does."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from ._capture import CannotCompile, dense, layout
from ._compiled_update import UpdateTensors, update_
from .drivers import normalizations
from .monitor import FiringRates, SpikeHook
from .state import map_tensors, tensors_in

if TYPE_CHECKING:
    from ._engine import Engine


class Plan(NamedTuple):
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


class Inputs(NamedTuple):
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


class Carried(NamedTuple):
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


class Held(NamedTuple):
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
        engine: Whose network, state and objective these are.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._call = _Call(engine.net)
        self._statistics = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in normalizations(engine.net).items()
            for name in module._buffers
        }

    def __call__(
        self, plan: Plan, names: list[str], inputs: Inputs, carried: Carried, rates: list[Tensor], held: Held
    ) -> list[Tensor]:
        """Forward pass, losses, backward pass and update.

        Args:
            plan: What window it is.
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
                (lambda: self._forward(plan, inputs._replace(rows=rows), carried),),
            )
            grads = torch.autograd.grad(loss, leaves, allow_unused=True)
        if layout(after) != layout(carried):
            raise CannotCompile("the network's state changes its form from step to step")
        if any(grad is None for grad in grads):
            raise CannotCompile("which weights have a gradient changes from step to step")
        statistics = [tensor for name, tensor in copies.items() if name in self._statistics]
        regularizer = self.engine.updater.regularizer
        norm, valid = update_(regularizer, held.update, rates, list(grads), [loss.detach(), *statistics])
        for old, new in zip([*held.others.values(), *inputs.rows], [*copies.values(), *rows], strict=True):
            # Batch normalisation writes its statistics without a new version, so buffers are always handed back.
            if new._version or not isinstance(old, nn.Parameter):
                old.copy_(torch.where(valid, new, old))
        return [valid, loss.detach(), norm, output.detach(), *tensors_in(after)]

    def _forward(self, plan: Plan, inputs: Inputs, carried: Carried) -> tuple[Tensor, Tensor, Carried]:
        engine, objective = self.engine, self.engine.objective
        engine.state.set(carried.state)
        engine.readout.set((carried.total, 0 if carried.outputs is None else carried.outputs))
        observers = monitors(engine.net)
        for monitor, sums in zip(observers, carried.rates, strict=True):
            monitor.sums = dict(sums)
        losses: list[Tensor] = []
        for k, raw in enumerate(engine.running.advance(inputs.x)):
            output = engine.readout(raw)
            if k in plan.due:
                i = len(losses)
                target = inputs.targets[i]
                if plan.weighted:
                    row = inputs.rows[i] if plan.mixed else None
                    losses.append(objective.weighted_loss(output, target, inputs.factors[i], row))
                else:
                    losses.append(objective.plain_loss(output, target))
        total, outputs = engine.readout.get()
        after = Carried(
            map_tensors(dense, engine.state.get()),
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

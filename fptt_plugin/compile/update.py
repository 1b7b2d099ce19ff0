"""Clipping, regulariser, optimizer and running averages of one update as a single compiled kernel."""

from __future__ import annotations

import copy
import itertools
import operator
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..functional.fptt import add_regularizer_gradient_, update_averages_
from ..regularizer import AVERAGE, DUAL, DynamicRegularizer
from ..tree import map_tensors, refill, tensors_in
from .capture import CannotCompile, Graphs, compiling, layout

# Their steps are made of tensors alone once torch takes its compilable path. A subclass may do anything.
COMPILABLE = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.AdamW,
    torch.optim.ASGD,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)

_NOT_CONSTANT = ("params", "lr", "initial_lr")


class UpdateTensors(NamedTuple):
    """Everything that an update writes; lists over the trained weights.

    Attributes:
        weights: ``W``, group after group.
        averages: ``W_bar``; empty with ``alpha=0``.
        duals: Scaled duals, likewise.
        moments: The optimizer's state.
        counts: Number of weights in each group.
    """

    weights: list[Tensor]
    averages: list[Tensor]
    duals: list[Tensor]
    moments: list[dict[str, Any]]
    counts: list[int]


def refusal(regularizer: DynamicRegularizer) -> str | None:
    """Why the updates of an optimizer cannot be compiled, if they cannot."""
    optimizer = regularizer.optimizer
    if type(optimizer) not in COMPILABLE:
        names = ", ".join(kind.__name__ for kind in COMPILABLE)
        return f"{type(optimizer).__name__} is none of torch's optimizers {names}"
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    if any(getattr(hook, "__self__", None) is not regularizer for hook in hooks):
        return "the optimizer has step hooks besides the regulariser's"
    if regularizer.variant != "dual":
        return f"variant={regularizer.variant!r} needs a second gradient in mid-update"
    return None


def settings(regularizer: DynamicRegularizer) -> Any:
    """Numbers that a compiled update holds as constants."""
    groups = regularizer.optimizer.param_groups
    return (
        [regularizer.alpha, regularizer.beta, regularizer.rho, regularizer.max_grad_norm],
        [[(key, value) for key, value in group.items() if key not in _NOT_CONSTANT] for group in groups],
    )


def update_tensors(regularizer: DynamicRegularizer, trained: set[Tensor]) -> UpdateTensors | None:
    """The tensors of an update of these weights; ``None`` while the optimizer's next step would make some of them."""
    optimizer = regularizer.optimizer
    groups = [[weight for weight in group["params"] if weight in trained] for group in optimizer.param_groups]
    weights = [weight for group in groups for weight in group]
    known = [weight in optimizer.state for weight in weights]
    if regularizer.updates == 0 or any(known) != all(known):
        return None
    regularizers = regularizer.averages_and_duals(weights)
    if regularizers is None:
        return None
    moments = [
        {key: value for key, value in optimizer.state.get(weight, {}).items() if key not in (AVERAGE, DUAL)}
        for weight in weights
    ]
    return UpdateTensors(weights, *regularizers, moments, [len(group) for group in groups])


def learning_rates(optimizer: Optimizer) -> list[Tensor]:
    """Learning rate of each group, 0-d, beside its step counts: schedulers change it, so it is an input."""
    counts = next((moments["step"] for moments in optimizer.state.values() if "step" in moments), None)
    device = torch.device("cpu") if counts is None else counts.device
    return [torch.as_tensor(group["lr"], dtype=torch.float64, device=device) for group in optimizer.param_groups]


def update_(
    regularizer: DynamicRegularizer,
    tensors: UpdateTensors,
    rates: list[Tensor],
    grads: list[Tensor],
    others: Sequence[Tensor] = (),
) -> tuple[Tensor, Tensor]:
    """One update in place, by the code of optimizer and regulariser, on other tensors than their own.

    Nothing is changed unless the gradients, and some other tensors, are finite.

    Returns:
        Norm of the gradient, before clipping if that is on, and whether all is finite.

    Raises:
        CannotCompile: If the optimizer keeps more than it did before.
    """
    new = map_tensors(Tensor.clone, tensors)
    optimizer = _stand_in(regularizer.optimizer, new, rates)
    for weight, grad in zip(new.weights, grads, strict=True):
        weight.grad = grad.clone()
    if regularizer.alpha > 0:
        start = 0
        for group, count in zip(optimizer.param_groups, new.counts, strict=True):
            own, start = slice(start, start + count), start + count
            if count:
                add_regularizer_gradient_(
                    [weight.grad for weight in new.weights[own]],
                    new.weights[own],
                    new.averages[own],
                    new.duals[own],
                    alpha=-regularizer.alpha if group.get("maximize") else regularizer.alpha,
                    dual_weight=regularizer.dual_weight,
                )
    if regularizer.max_grad_norm is None:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
    else:
        norm = torch.nn.utils.clip_grad_norm_(new.weights, regularizer.max_grad_norm)
    with compiling():
        optimizer.step()
    if regularizer.alpha > 0:
        update_averages_(new.weights, new.averages, new.duals, beta=regularizer.beta)
    moments = [optimizer.state.get(weight, {}) for weight in new.weights]
    written, values = tensors_in(tensors), tensors_in(new._replace(moments=moments))
    if len(written) != len(values):
        raise CannotCompile("the optimizer adds to its state at this step")
    finite = norm.isfinite()
    for other in others:
        finite = finite & other.isfinite().all()
    for old, value in zip(written, values, strict=True):
        old.copy_(torch.where(finite, value.to(old.dtype), old))
    return norm, finite


def _stand_in(optimizer: Optimizer, tensors: UpdateTensors, rates: list[Tensor]) -> Optimizer:
    """An optimizer of the same class and settings for other tensors."""
    twin = copy.copy(optimizer)
    twin.state, twin.param_groups = defaultdict(dict), []
    for weight, moments in zip(tensors.weights, tensors.moments, strict=True):
        if moments:  # in double precision, as Python counts: 1 - beta ** step loses its digits in single
            twin.state[weight] = {key: value.double() if key == "step" else value for key, value in moments.items()}
    weights = iter(tensors.weights)
    for group, rate, count in zip(optimizer.param_groups, rates, tensors.counts, strict=True):
        params = list(itertools.islice(weights, count))
        twin.param_groups.append(
            {**group, "params": params, "lr": rate, "capturable": True, "foreach": True, "fused": False}
        )
    return twin


class CompiledUpdate:
    """Does what ``optimizer.step()`` does for an optimizer with a :class:`DynamicRegularizer`, in one kernel.

    Args:
        regularizer: The regulariser on the optimizer.

    Attributes:
        flat: Tensors of the update that were gathered last.
        layout: Their form.

    Raises:
        CannotCompile: If this optimizer's updates cannot be compiled.
    """

    def __init__(self, regularizer: DynamicRegularizer) -> None:
        reason = refusal(regularizer)
        if reason is not None:
            raise CannotCompile(reason)
        self.regularizer = regularizer
        self._graphs = Graphs()
        self._gathered: UpdateTensors | None = None
        self._origin: list[Any] = []  # what they were gathered from
        self.flat: list[Tensor] = []
        self.layout: Any = None

    def step(self, windows: int = 1) -> bool:
        """One update with the gradients in ``.grad``, which are the sum over so many windows.

        Returns:
            Whether it was done. If not, nothing has changed and ``optimizer.step()`` is next: a gradient is not
            finite, or the optimizer's state is not there yet.

        Raises:
            CannotCompile: At the first update that can be compiled, or one of other shapes or settings.
        """
        regularizer = self.regularizer
        weights = [
            weight
            for group in regularizer.optimizer.param_groups
            for weight in group["params"]
            if weight.grad is not None
        ]
        tensors = self.tensors(weights)
        if tensors is None or not weights:
            return False
        grads, rates = [weight.grad for weight in weights], learning_rates(regularizer.optimizer)
        tree = grads, rates, tensors

        def update(flat: list[Tensor]) -> list[Tensor]:
            grads, rates, tensors = refill(tree, iter(flat))
            means = grads if windows == 1 else [grad / windows for grad in grads]
            return list(update_(regularizer, tensors, rates, means))

        key = windows, self.layout, [grad.stride() for grad in grads], settings(regularizer)
        graph = self._graphs.find(key, update, lambda: tensors_in(tree), len(grads) + len(rates))
        norm, finite = graph([*grads, *rates, *self.flat])
        if not finite:
            note_updates(regularizer, None, 0)
            return False
        note_updates(regularizer, norm)
        return True

    def tensors(self, weights: list[Tensor]) -> UpdateTensors | None:
        """The tensors of an update of these weights, looked up anew only when one may have been replaced."""
        regularizer = self.regularizer
        regularizer.check_ready()
        averages = regularizer.averages_and_duals(weights)
        origin = [regularizer.optimizer.state, *weights, *itertools.chain.from_iterable(averages or ())]
        unchanged = self._gathered is not None and len(origin) == len(self._origin)
        if not (unchanged and all(map(operator.is_, origin, self._origin))):
            self._gathered, self._origin = update_tensors(regularizer, set(weights)), origin
            self.flat, self.layout = tensors_in(self._gathered), layout(self._gathered)
        return self._gathered


def note_updates(regularizer: DynamicRegularizer, norm: Tensor | None, updates: int = 1) -> None:
    """Keeps the books of optimizer and regulariser after compiled updates."""
    regularizer.note_updates(updates, norm)
    if updates and hasattr(regularizer.optimizer.step, "_wrapped_by_lr_sched"):
        regularizer.optimizer._opt_called = True  # type: ignore[attr-defined]  # a scheduler waits for this

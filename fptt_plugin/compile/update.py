"""One update as a function of tensors: regularizer, clipping, optimizer and running averages, compiled as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..functional.fptt import add_regularizer_gradient_, update_averages_
from ..regularizer import AVERAGE, DUAL, DynamicRegularizer
from ..torch_internals import has_global_step_hooks, note_step, step_hooks, version_of
from .dynamo import CannotCompile, Compiled, first_line
from .rules import RULES, Moments, Rule

_NOTHING: dict[str, Any] = {}  # what plain SGD keeps of a weight
_AT_ONCE = 16  # updates whose scalars go to the device together

# ---------------------------------------------------------------------- the tensors of an update


class Part(NamedTuple):
    """Weights of one parameter group that have been updated equally often, and what belongs to them.

    Attributes:
        weights: ``W``.
        averages: ``W_bar``; empty with ``alpha=0``.
        duals: Scaled duals; empty with ``alpha=0``.
        moments: The optimizer's state by name, without step counts.
        options: The group's numbers and switches.
        sign: -1 if the optimizer maximizes.
        scalars: What :attr:`Rule.scalars` returns for the next step, in double precision.
    """

    weights: list[Tensor]
    averages: list[Tensor]
    duals: list[Tensor]
    moments: Moments
    options: dict[str, Any]
    sign: int
    scalars: Tensor

    def written(self) -> list[Tensor]:
        """Every tensor that an update writes."""
        moments = [moment for moments in self.moments.values() for moment in moments]
        return [*self.weights, *self.averages, *self.duals, *moments]

    def only(self, flags: list[bool]) -> Part:
        """The part without weights that are not flagged."""

        def pick(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor for tensor, flag in zip(tensors, flags, strict=True) if flag] if tensors else []

        moments = {name: pick(moments) for name, moments in self.moments.items()}
        return Part(pick(self.weights), pick(self.averages), pick(self.duals), moments, *self[4:])

    def cloned(self) -> Part:
        """Copies to compute with."""

        def copies(tensors: list[Tensor]) -> list[Tensor]:
            return [tensor.clone() for tensor in tensors]

        moments = {name: copies(moments) for name, moments in self.moments.items()}
        return Part(copies(self.weights), copies(self.averages), copies(self.duals), moments, *self[4:])


class UpdateTensors(NamedTuple):
    """What updates need, one after another, as long as the same weights move.

    Attributes:
        parts: What is updated.
        groups: The parameter group of each part.
        counts: How often each part has been updated, as the optimizer counts.
        steps: Step counts of their weights, part by part; empty for optimizers that do not count.
        newcomers: Weights whose state ``optimizer.step()`` has to make first.
    """

    parts: list[Part]
    groups: list[dict[str, Any]]
    counts: list[float]
    steps: list[Tensor]
    newcomers: list[Tensor]


class Strength(NamedTuple):
    """Numbers of the regularizer, and the largest norm of the gradient."""

    alpha: float
    beta: float
    dual_weight: float
    max_grad_norm: float | None

    @classmethod
    def of(cls, regularizer: DynamicRegularizer) -> Strength:
        return cls(regularizer.alpha, regularizer.beta, regularizer.dual_weight, regularizer.max_grad_norm)


class Books:
    """Reads optimizer and regularizer before an update without ``optimizer.step()``, and writes to them after it.

    Args:
        regularizer: The regularizer on the optimizer.

    Raises:
        CannotCompile: If the updates of this optimizer cannot be compiled.
    """

    def __init__(self, regularizer: DynamicRegularizer) -> None:
        self.regularizer = regularizer
        self._counts = StepCounts()
        self._ahead: list[Tensor] = []
        self._check_steps_are_plain()
        if any(weight.is_complex() for group in regularizer.optimizer.param_groups for weight in group["params"]):
            raise CannotCompile("there are complex weights")
        self.rule = RULES[type(regularizer.optimizer)]

    def _check_steps_are_plain(self) -> None:
        """Check that ``optimizer.step()`` does nothing but step: users may change that between two updates."""
        regularizer, optimizer = self.regularizer, self.regularizer.optimizer
        if type(optimizer) not in RULES:
            names = ", ".join(kind.__name__ for kind in RULES)
            raise CannotCompile(f"{type(optimizer).__name__} is none of torch's optimizers {names}")
        if any(group.get("differentiable") for group in optimizer.param_groups):
            raise CannotCompile("the optimizer is differentiable")
        if any(getattr(hook, "__self__", None) is not regularizer for hook in step_hooks(optimizer) or ()):
            raise CannotCompile("the optimizer has step hooks besides the regularizer's")
        if has_global_step_hooks():
            raise CannotCompile("there are step hooks on all optimizers")
        own_step = vars(optimizer).get("step")  # schedulers wrap it to see whether it is called, see note()
        if own_step is not None and getattr(own_step, "__wrapped__", None) is not type(optimizer).step:
            raise CannotCompile("the optimizer's step() was replaced")
        if regularizer.variant != "dual":
            raise CannotCompile(f"variant={regularizer.variant!r} needs a second gradient within the update")

    def tensors(self, weights: list[list[Tensor]]) -> UpdateTensors:
        """Gather the tensors of an update of some weights, given for each parameter group.

        Raises:
            CannotCompile: If the optimizer's step has become another since it was looked at.
        """
        self._check_steps_are_plain()
        regularizer, rule = self.regularizer, self.rule
        optimizer, needed = regularizer.optimizer, [] if regularizer.alpha == 0 else [AVERAGE, DUAL]
        parts: list[tuple[Any, list[Tensor], list[Any]]] = []
        newcomers: list[Tensor] = []
        regularizer.averages_and_duals([])  # brings the duals to the present alpha
        for group, own in zip(optimizer.param_groups, weights, strict=True):
            names = {*rule.moments(group), *needed}
            same, entries = own, [optimizer.state.get(weight, _NOTHING) for weight in own]
            if not regularizer.updates or not all(names <= entry.keys() for entry in entries):
                known = [bool(regularizer.updates) and names <= entry.keys() for entry in entries]
                newcomers += [weight for weight, is_known in zip(own, known, strict=True) if not is_known]
                same, entries = list(compress(own, known)), list(compress(entries, known))
            if same:
                parts.append((group, same, entries))
        steps = [entry["step"] for _, _, entries in parts for entry in entries if "step" in entry]
        counts = self._counts.of(steps) if steps else [0.0]
        if min(counts) == max(counts):
            groups = [group for group, _, _ in parts]
            gathered = [self._part(*part, counts[0]) for part in parts]
            return UpdateTensors(gathered, groups, counts[:1] * len(parts), steps, newcomers)
        # Weights that were without gradient at times have other bias corrections than the rest.
        found, of_each = UpdateTensors([], [], [], [], newcomers), iter(counts)
        for group, same, entries in parts:
            own_counts = [next(of_each) for _ in same]
            for count in dict.fromkeys(own_counts):
                mine = [other == count for other in own_counts]
                same_count = list(compress(entries, mine))
                found.parts.append(self._part(group, list(compress(same, mine)), same_count, count))
                found.groups.append(group)
                found.counts.append(count)
                found.steps.extend(entry["step"] for entry in same_count)
        return found

    def _part(self, group: dict[str, Any], weights: list[Tensor], entries: list[Any], step: float) -> Part:
        rule, averaged = self.rule, self.regularizer.alpha > 0
        return Part(
            weights,
            [entry[AVERAGE] for entry in entries] if averaged else [],
            [entry[DUAL] for entry in entries] if averaged else [],
            {name: [entry[name] for entry in entries] for name in rule.moments(group)},
            rule.options_of(group),
            -1 if group.get("maximize") else 1,
            on_device(self.rule.scalars(group, step + 1), weights[0].device),
        )

    def parts_after(self, updates: int, tensors: UpdateTensors) -> list[Part]:
        """The parts after that many updates that :meth:`note` has not recorded yet; asked for in this order."""
        if not updates:
            return tensors.parts
        row = (updates - 1) % _AT_ONCE
        if row == 0:
            own = zip(tensors.parts, tensors.groups, tensors.counts, strict=True)
            self._ahead = [
                on_device(
                    [self.rule.scalars(group, count + updates + k + 1) for k in range(_AT_ONCE)],
                    part.weights[0].device,
                )
                for part, group, count in own
            ]
        pairs = zip(tensors.parts, self._ahead, strict=True)
        return [part._replace(scalars=scalars[row]) for part, scalars in pairs]

    def note(self, steps: list[Tensor], norm: Tensor | None, updates: int = 1) -> None:
        """Keep the books of optimizer and regularizer after updates of the same weights.

        Args:
            steps: Step counts of the weights that moved.
            norm: Norm of the gradient before clipping, in the last of them.
            updates: Their number; 0 after an update that found something not finite and wrote the old values.
        """
        regularizer = self.regularizer
        if updates and steps:
            self._counts.add(updates, steps)
        regularizer.note_updates(updates, norm)
        if updates:
            note_step(regularizer.optimizer)


_ONE = torch.ones((), dtype=torch.float32, device="cpu")


class StepCounts:
    """Step counts that optimizers keep in tensors, read from the device only where somebody else has changed them."""

    def __init__(self) -> None:
        self._steps: list[Tensor] = []  # held, so that no other tensor gets the identity of one of them
        self._marks: list[tuple[int, int]] = []
        self._counts: list[float] = []

    def of(self, steps: list[Tensor]) -> list[float]:
        """Their values."""
        marks = [(id(step), version_of(step)) for step in steps]
        if marks != self._marks:
            self._steps, self._marks, self._counts = steps, marks, [float(step) for step in steps]
        return self._counts

    def add(self, updates: int, steps: list[Tensor]) -> None:
        """Add that many steps to every count."""
        if steps[0].is_cpu:  # a number would be made a tensor for each of them
            torch._foreach_add_(steps, _ONE, alpha=float(updates))
        else:
            torch._foreach_add_(steps, updates)
        if len(steps) == len(self._steps):
            self._marks = [(id(step), version_of(step)) for step in self._steps]
            self._counts = [count + updates for count in self._counts]


def on_device(numbers: list[Any], device: torch.device, dtype: torch.dtype = torch.float64) -> Tensor:
    """The numbers as a tensor; the host does not wait for a GPU."""
    tensor = torch.tensor(numbers, dtype=dtype)
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class Verdicts:
    """Whether updates found everything finite. Asking a GPU makes the host wait, so there the answers are collected.

    Attributes:
        pending: Those that nobody has asked for; ``None`` where each is asked for at once.
    """

    def __init__(self) -> None:
        self.pending: list[Tensor] | None = None

    def allow(self, finite: Tensor) -> bool:
        """Whether to go on: the update was finite, or will be asked for later."""
        if self.pending is None:
            return bool(finite)
        self.pending.append(finite)
        return True

    def settle(self) -> bool:
        """Whether all pending ones were finite; from now on each is asked for at once."""
        pending, self.pending = self.pending, None
        return not pending or bool(torch.stack(pending).all())


# ---------------------------------------------------------------------- the update


@torch.no_grad()
def update_(
    rule: Rule, strength: Strength, parts: list[Part], grads: list[list[Tensor]], checked: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Make one update in place, unless something is not finite.

    Args:
        rule: The optimizer's step.
        strength: Numbers of the regularizer.
        parts: What is updated.
        grads: Gradients of the loss for each part; not written to.
        checked: Further tensors that must be finite.

    Returns:
        Norm of the gradient before clipping, the squared norms of which it consists, and whether all is finite.
    """
    new, grads = [part.cloned() for part in parts], [[grad.clone() for grad in own] for own in grads]
    flat = [grad for own in grads for grad in own]
    finite = torch.stack([grad.isfinite().all() for grad in checked]).all() if checked else None
    if strength.alpha > 0:
        for part, own in zip(new, grads, strict=True):
            add_regularizer_gradient_(
                own,
                part.weights,
                part.averages,
                part.duals,
                alpha=part.sign * strength.alpha,
                dual_weight=strength.dual_weight,
            )
    # Sums of squares, unlike norms, become part of the kernels around them. If one overflows, eager training decides.
    wide = [grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in flat]
    squares = torch.stack([(grad * grad).sum() for grad in wide])
    norm = squares.sum().sqrt()
    finite = norm.isfinite() if finite is None else finite & norm.isfinite()
    if strength.max_grad_norm is not None:
        torch._foreach_mul_(flat, torch.clamp(strength.max_grad_norm / (norm + 1e-6), max=1.0))
    for old, part, own in zip(parts, new, grads, strict=True):
        if part.sign < 0:
            torch._foreach_neg_(own)
        rule.apply(part.weights, own, part.moments, part.options, part.scalars)
        if strength.alpha > 0:
            update_averages_(part.weights, part.averages, part.duals, beta=strength.beta)
        for place, value in zip(old.written(), part.written(), strict=True):
            place.copy_(torch.where(finite, value, place))
    return norm, squares, finite


# ---------------------------------------------------------------------- by itself


class CompiledUpdate:
    """Does what ``optimizer.step()`` does for an optimizer with a :class:`DynamicRegularizer`, in one graph.

    Args:
        regularizer: The regularizer on the optimizer.
        verdicts: Where to ask whether all was finite.

    Raises:
        CannotCompile: If the updates of this optimizer cannot be compiled.
    """

    def __init__(self, regularizer: DynamicRegularizer, verdicts: Verdicts | None = None) -> None:
        self._books, self._verdicts = Books(regularizer), verdicts or Verdicts()
        rule = self._books.rule
        self._factors: dict[int, Tensor] = {}

        def update(
            strength: Strength, parts: list[Part], grads: list[list[Tensor]], factor: Tensor, checked: list[Tensor]
        ) -> tuple[Tensor, Tensor]:
            means = [[grad * factor.to(grad.dtype) for grad in own] for own in grads]
            norm, _, finite = update_(rule, strength, parts, means, checked)
            return norm, finite

        self._compiled = Compiled(update)

    def step(self, windows: int = 1, checked: Sequence[Tensor] = ()) -> bool:
        """Make one update with the gradients in ``.grad``, the sums over that many windows.

        Returns:
            Whether it was made. If not, no value has changed and ``optimizer.step()`` is next: something is not finite,
            or a weight has no state yet.

        Raises:
            CannotCompile: If the compiler fails, or the optimizer's step has become another; no value has changed.
        """
        books, regularizer = self._books, self._books.regularizer
        regularizer.check_ready()
        groups = [[w for w in group["params"] if w.grad is not None] for group in regularizer.optimizer.param_groups]
        tensors = books.tensors(groups)
        if tensors.newcomers or not tensors.parts:
            return False
        grads = [[weight.grad for weight in part.weights] for part in tensors.parts]
        if any(grad.layout != torch.strided for own in grads for grad in own):  # type: ignore[union-attr]
            return False  # the regularizer says that
        factor = self._factor(windows, tensors.parts[0].weights[0].device)
        try:
            norm, finite = self._compiled(Strength.of(regularizer), tensors.parts, grads, factor, list(checked))
        except Exception as error:
            raise CannotCompile(first_line(error)) from error
        if not self._verdicts.allow(finite):
            books.note([], None, 0)
            return False
        books.note(tensors.steps, norm)
        return True

    def _factor(self, windows: int, device: torch.device) -> Tensor:
        """That turns sums into means, ``[1]``: in a 0-d tensor the compiler would look for a number."""
        if windows not in self._factors or self._factors[windows].device != device:
            self._factors[windows] = on_device([1 / windows], device)
        return self._factors[windows]

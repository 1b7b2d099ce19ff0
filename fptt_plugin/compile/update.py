"""One update as a function of tensors: regulariser, clipping, optimizer and running averages, compiled as a whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..functional.fptt import add_regularizer_gradient_, update_averages_
from ..regularizer import AVERAGE, DynamicRegularizer
from .dynamo import CannotCompile, Compiled, first_line

Moments = dict[str, list[Tensor]]
Options = Mapping[str, Any]

# ---------------------------------------------------------------------- torch's optimizers, as functions


class Rule(NamedTuple):
    """The step of an optimizer of torch.

    Attributes:
        apply: ``apply(weights, grads, moments, options, scalars)`` steps in place, as torch's optimizer does.
        scalars: ``scalars(options, step)`` returns the numbers that depend on learning rate and step count. They come
            in from outside, so that a scheduler recompiles nothing, and in double precision.
        moments: ``moments(options)`` names the state of one weight, step count left out.
        options: Entries of the parameter group that ``apply`` reads.
    """

    apply: Callable[[list[Tensor], list[Tensor], Moments, Options, Tensor], None]
    scalars: Callable[[Options, float], list[float]]
    moments: Callable[[Options], list[str]]
    options: tuple[str, ...]


def _sgd(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    (rate,) = scalars.unbind()
    if options["weight_decay"]:
        torch._foreach_add_(grads, weights, alpha=options["weight_decay"])
    if options["momentum"]:
        buffers = moments["momentum_buffer"]
        torch._foreach_mul_(buffers, options["momentum"])
        torch._foreach_add_(buffers, grads, alpha=1 - options["dampening"])
        if options["nesterov"]:
            torch._foreach_add_(grads, buffers, alpha=options["momentum"])
        else:
            grads = buffers
    for weight, grad in zip(weights, grads, strict=True):
        weight.sub_(rate.to(weight.dtype) * grad)


def _adam(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    rate, decay, root = scalars.unbind()
    if options["weight_decay"] and not options["decoupled_weight_decay"]:
        torch._foreach_add_(grads, weights, alpha=options["weight_decay"])
    beta1, beta2 = options["betas"]
    means, squares = moments["exp_avg"], moments["exp_avg_sq"]
    torch._foreach_lerp_(means, grads, 1 - beta1)
    torch._foreach_mul_(squares, beta2)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
    if options["amsgrad"]:
        torch._foreach_maximum_(moments["max_exp_avg_sq"], squares)
        squares = moments["max_exp_avg_sq"]
    for weight, mean, square in zip(weights, means, squares, strict=True):
        if options["decoupled_weight_decay"]:
            weight.mul_(decay.to(weight.dtype))
        weight.sub_(rate.to(weight.dtype) * mean / (square.sqrt() / root.to(weight.dtype) + options["eps"]))


def _adam_scalars(options: Options, step: float) -> list[float]:
    beta1, beta2 = options["betas"]
    rate = float(options["lr"])
    return [rate / (1 - beta1**step), 1 - rate * options["weight_decay"], (1 - beta2**step) ** 0.5]


def _rmsprop(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    (rate,) = scalars.unbind()
    if options["weight_decay"]:
        torch._foreach_add_(grads, weights, alpha=options["weight_decay"])
    squares = moments["square_avg"]
    torch._foreach_mul_(squares, options["alpha"])
    torch._foreach_addcmul_(squares, grads, grads, value=1 - options["alpha"])
    if options["centered"]:
        means = moments["grad_avg"]
        torch._foreach_lerp_(means, grads, 1 - options["alpha"])
        squares = [square - mean * mean for square, mean in zip(squares, means, strict=True)]
    steps = [grad / (square.sqrt() + options["eps"]) for grad, square in zip(grads, squares, strict=True)]
    if options["momentum"]:
        torch._foreach_mul_(moments["momentum_buffer"], options["momentum"])
        torch._foreach_add_(moments["momentum_buffer"], steps)
        steps = moments["momentum_buffer"]
    for weight, step in zip(weights, steps, strict=True):
        weight.sub_(rate.to(weight.dtype) * step)


def _adagrad(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    (rate,) = scalars.unbind()
    if options["weight_decay"]:
        torch._foreach_add_(grads, weights, alpha=options["weight_decay"])
    torch._foreach_addcmul_(moments["sum"], grads, grads)
    for weight, grad, total in zip(weights, grads, moments["sum"], strict=True):
        weight.sub_(rate.to(weight.dtype) * grad / (total.sqrt() + options["eps"]))


def _rate(options: Options, step: float) -> list[float]:
    return [float(options["lr"])]


def _adagrad_scalars(options: Options, step: float) -> list[float]:
    return [float(options["lr"]) / (1 + (step - 1) * options["lr_decay"])]


def _adam_moments(options: Options) -> list[str]:
    return ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if options["amsgrad"] else [])]


def _rmsprop_moments(options: Options) -> list[str]:
    more = {"momentum_buffer": options["momentum"], "grad_avg": options["centered"]}
    return ["square_avg", *(name for name, used in more.items() if used)]


_ADAM = Rule(_adam, _adam_scalars, _adam_moments, ("betas", "eps", "weight_decay", "amsgrad", "decoupled_weight_decay"))

# A subclass may do anything.
RULES: dict[type[Optimizer], Rule] = {
    torch.optim.SGD: Rule(
        _sgd,
        _rate,
        lambda options: ["momentum_buffer"] if options["momentum"] else [],
        ("weight_decay", "momentum", "dampening", "nesterov"),
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.RMSprop: Rule(
        _rmsprop, _rate, _rmsprop_moments, ("weight_decay", "alpha", "eps", "momentum", "centered")
    ),
    torch.optim.Adagrad: Rule(_adagrad, _adagrad_scalars, lambda options: ["sum"], ("weight_decay", "eps")),
}


def refusal(regularizer: DynamicRegularizer) -> str | None:
    """Return why the updates of an optimizer cannot be compiled; ``None`` if they can."""
    optimizer = regularizer.optimizer
    if type(optimizer) not in RULES:
        names = ", ".join(kind.__name__ for kind in RULES)
        return f"{type(optimizer).__name__} is none of torch's optimizers {names}"
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return "the optimizer is differentiable"
    if any(weight.is_complex() for group in optimizer.param_groups for weight in group["params"]):
        return "there are complex weights"
    hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
    if any(getattr(hook, "__self__", None) is not regularizer for hook in hooks):
        return "the optimizer has step hooks besides the regulariser's"
    if regularizer.variant != "dual":
        return f"variant={regularizer.variant!r} needs a second gradient within the update"
    return None


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
    """What one update needs.

    Attributes:
        parts: What is updated.
        steps: Step counts of the weights of each part.
        newcomers: Weights whose state ``optimizer.step()`` has to make first.
    """

    parts: list[Part]
    steps: list[list[Tensor]]
    newcomers: list[Tensor]


def update_tensors(regularizer: DynamicRegularizer, weights: list[list[Tensor]]) -> UpdateTensors:
    """Gather the tensors of an update of some weights, given for each parameter group."""
    optimizer = regularizer.optimizer
    rule, tensors = RULES[type(optimizer)], UpdateTensors([], [], [])
    for group, own in zip(optimizer.param_groups, weights, strict=True):
        options = {name: group.get(name, False) for name in rule.options}
        names = rule.moments(options)
        by_step: dict[float, list[Tensor]] = {}
        for weight in own:
            entry = optimizer.state.get(weight, {})
            known = all(entry.get(name) is not None for name in names) and (regularizer.alpha == 0 or AVERAGE in entry)
            if known and regularizer.updates:
                # Weights that were without gradient at times have other bias corrections than the rest.
                by_step.setdefault(float(entry.get("step", 0.0)), []).append(weight)
            else:
                tensors.newcomers.append(weight)
        for step, same in by_step.items():
            averages_and_duals = regularizer.averages_and_duals(same)
            assert averages_and_duals is not None
            entries = [optimizer.state.get(weight, {}) for weight in same]
            moments = {name: [entry[name] for entry in entries] for name in names}
            scalars = torch.tensor(rule.scalars(group, step + 1), dtype=torch.float64, device=same[0].device)
            sign = -1 if group.get("maximize") else 1
            tensors.parts.append(Part(same, *averages_and_duals, moments, options, sign, scalars))
            tensors.steps.append([entry["step"] for entry in entries if "step" in entry])
    return tensors


class Strength(NamedTuple):
    """Numbers of the regulariser, and the largest norm of the gradient."""

    alpha: float
    beta: float
    dual_weight: float
    max_grad_norm: float | None

    @classmethod
    def of(cls, regularizer: DynamicRegularizer) -> Strength:
        return cls(regularizer.alpha, regularizer.beta, regularizer.dual_weight, regularizer.max_grad_norm)


@torch.no_grad()
def update_(
    rule: Rule, strength: Strength, parts: list[Part], grads: list[list[Tensor]], checked: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """Make one update in place, unless something is not finite.

    Args:
        rule: The optimizer's step.
        strength: Numbers of the regulariser.
        parts: What is updated.
        grads: Gradients of the loss for each part; not written to.
        checked: Further tensors that must be finite.

    Returns:
        Norm of the gradient before clipping, and whether all is finite.
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
    norm = torch.stack([(grad * grad).sum() for grad in wide]).sum().sqrt()
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
    return norm, finite


def note_updates(regularizer: DynamicRegularizer, steps: list[Tensor], norm: Tensor | None, updates: int) -> None:
    """Keep the books of optimizer and regulariser after a compiled update.

    Args:
        regularizer: The regulariser.
        steps: Step counts of the weights that moved.
        norm: Norm of the gradient before clipping.
        updates: 1; 0 after an update that found something not finite and wrote the old values.
    """
    for step in steps:
        step += updates
    regularizer.note_updates(updates, norm)
    if updates and hasattr(regularizer.optimizer.step, "_wrapped_by_lr_sched"):
        regularizer.optimizer._opt_called = True  # type: ignore[attr-defined]  # a scheduler waits for this


# ---------------------------------------------------------------------- by itself


class CompiledUpdate:
    """Does what ``optimizer.step()`` does for an optimizer with a :class:`DynamicRegularizer`, in one graph.

    Args:
        regularizer: The regulariser on the optimizer.

    Raises:
        CannotCompile: If the updates of this optimizer cannot be compiled.
    """

    def __init__(self, regularizer: DynamicRegularizer) -> None:
        reason = refusal(regularizer)
        if reason is not None:
            raise CannotCompile(reason)
        self._regularizer = regularizer
        rule = RULES[type(regularizer.optimizer)]

        def update(
            strength: Strength, parts: list[Part], grads: list[list[Tensor]], factor: Tensor, checked: list[Tensor]
        ) -> tuple[Tensor, Tensor]:
            means = [[grad * factor.to(grad.dtype) for grad in own] for own in grads]
            return update_(rule, strength, parts, means, checked)

        self._compiled = Compiled(update)

    def step(self, windows: int = 1, checked: Sequence[Tensor] = ()) -> bool:
        """Make one update with the gradients in ``.grad``, the sums over that many windows.

        Returns:
            Whether it was made. If not, no value has changed and ``optimizer.step()`` is next: something is not finite,
            or a weight has no state yet.

        Raises:
            CannotCompile: If the compiler fails; no value has changed.
        """
        regularizer = self._regularizer
        regularizer.check_ready()
        groups = [[w for w in group["params"] if w.grad is not None] for group in regularizer.optimizer.param_groups]
        tensors = update_tensors(regularizer, groups)
        if tensors.newcomers or not tensors.parts:
            return False
        grads = [[weight.grad for weight in part.weights] for part in tensors.parts]
        if any(grad is None or grad.layout != torch.strided for own in grads for grad in own):
            return False  # the regulariser says that
        factor = torch.tensor(1 / windows, dtype=torch.float64, device=grads[0][0].device)  # type: ignore[union-attr]
        try:
            norm, finite = self._compiled(Strength.of(regularizer), tensors.parts, grads, factor, list(checked))
        except Exception as error:
            raise CannotCompile(first_line(error)) from error
        if not finite:
            note_updates(regularizer, [], None, 0)
            return False
        note_updates(regularizer, [step for steps in tensors.steps for step in steps], norm, 1)
        return True

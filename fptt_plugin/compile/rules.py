"""Steps of torch's optimizers as functions of tensors, so that they compile together with what is around them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

Moments = dict[str, list[Tensor]]
Options = Mapping[str, Any]


class Rule(NamedTuple):
    """The step of an optimizer of torch.

    Attributes:
        apply: ``apply(weights, grads, moments, options, scalars)`` steps in place, as torch's optimizer does; ``grads``
            may be written to.
        scalars: ``scalars(options, step)`` returns the numbers that depend on step count, learning rate and what
            schedulers change with it, momentum and betas. They come in from outside, so that a scheduler recompiles
            nothing, and in double precision.
        moments: ``moments(options)`` names the state of one weight, step count left out.
        options: Entries of the parameter group that ``apply`` reads; of ``momentum`` it sees whether there is any.
    """

    apply: Callable[[list[Tensor], list[Tensor], Moments, Options, Tensor], None]
    scalars: Callable[[Options, float], list[float]]
    moments: Callable[[Options], list[str]]
    options: tuple[str, ...]

    def options_of(self, group: Options) -> dict[str, Any]:
        """Return what ``apply`` reads of a parameter group."""
        found = {name: group.get(name, False) for name in self.options}
        return found | {"momentum": bool(found["momentum"])} if "momentum" in found else found


def _rate(options: Options, step: float) -> list[float]:
    return [float(options["lr"])]


def _rate_and_momentum(options: Options, step: float) -> list[float]:
    return [float(options["lr"]), float(options["momentum"])]


def _decay(weights: list[Tensor], grads: list[Tensor], options: Options) -> None:
    """Weight decay as part of the gradient."""
    if options["weight_decay"]:
        torch._foreach_add_(grads, weights, alpha=options["weight_decay"])


def _scale(tensors: list[Tensor], factor: Tensor) -> None:
    for tensor in tensors:
        tensor.mul_(factor.to(tensor.dtype))


def _average(means: list[Tensor], values: list[Tensor], share: Tensor) -> None:
    """Running means, of which the values become that share."""
    for mean, value in zip(means, values, strict=True):
        mean.add_(share.to(mean.dtype) * (value - mean))


# ---------------------------------------------------------------------- without second moments


def _sgd(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    rate, momentum = scalars.unbind()
    _decay(weights, grads, options)
    if options["momentum"]:
        buffers = moments["momentum_buffer"]
        _scale(buffers, momentum)
        torch._foreach_add_(buffers, grads, alpha=1 - options["dampening"])
        if options["nesterov"]:
            grads = [grad + momentum.to(grad.dtype) * buffer for grad, buffer in zip(grads, buffers, strict=True)]
        else:
            grads = buffers
    for weight, grad in zip(weights, grads, strict=True):
        weight.sub_(rate.to(weight.dtype) * grad)


def _asgd(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    next_rate, next_share = scalars.unbind()
    _decay(weights, grads, options)
    for weight, grad, average, rate, share in zip(
        weights, grads, moments["ax"], moments["eta"], moments["mu"], strict=True
    ):
        weight.sub_(rate.to(weight.dtype) * (grad + options["lambd"] * weight))
        average.add_(share.to(weight.dtype) * (weight - average))
        rate.copy_(next_rate)  # each step leaves the next one its numbers
        share.copy_(next_share)


def _asgd_scalars(options: Options, step: float) -> list[float]:
    rate = float(options["lr"])
    return [rate / (1 + options["lambd"] * rate * step) ** options["alpha"], 1 / max(1.0, step - options["t0"])]


def _rprop(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    (shrink, grow), (least, most) = options["etas"], options["step_sizes"]
    for weight, grad, previous, size in zip(weights, grads, moments["prev"], moments["step_size"], strict=True):
        product = grad * previous
        size.copy_(torch.where(product > 0, grow * size, torch.where(product < 0, shrink * size, size)))
        size.clamp_(least, most)
        kept = torch.where(product < 0, 0.0, grad)
        weight.sub_(kept.sign() * size)
        previous.copy_(kept)


# ---------------------------------------------------------------------- with second moments


def _adam(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    rate, root, *shared = scalars.unbind()
    squares = _adam_moments_(weights, grads, moments, options, *shared)
    if options["amsgrad"]:
        torch._foreach_maximum_(moments["max_exp_avg_sq"], squares)
        squares = moments["max_exp_avg_sq"]
    for weight, mean, square in zip(weights, moments["exp_avg"], squares, strict=True):
        weight.sub_(rate.to(weight.dtype) * mean / (square.sqrt() / root.to(weight.dtype) + options["eps"]))


def _adam_moments_(
    weights: list[Tensor],
    grads: list[Tensor],
    moments: Moments,
    options: Options,
    decay: Tensor,
    share: Tensor,
    beta2: Tensor,
) -> list[Tensor]:
    """Weight decay and running moments of Adam and its kin; the second moments."""
    if options["decoupled_weight_decay"]:
        _scale(weights, decay)
    else:
        _decay(weights, grads, options)
    _average(moments["exp_avg"], grads, share)
    squares = moments["exp_avg_sq"]
    for square, grad in zip(squares, grads, strict=True):
        square.mul_(beta2.to(square.dtype)).add_((1 - beta2).to(square.dtype) * grad * grad)
    return squares


def _kin_scalars(options: Options) -> list[float]:
    """The last three arguments of :func:`_adam_moments_`."""
    beta1, beta2 = options["betas"]
    return [1 - float(options["lr"]) * options["weight_decay"], 1 - beta1, beta2]


def _adam_scalars(options: Options, step: float) -> list[float]:
    beta1, beta2 = options["betas"]
    rate = float(options["lr"])
    return [rate / (1 - beta1**step), (1 - beta2**step) ** 0.5, *_kin_scalars(options)]


def _nadam(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    rate, root, momentum, next_momentum, *shared = scalars.unbind()
    squares = _adam_moments_(weights, grads, moments, options, *shared)
    for weight, grad, mean, square, product in zip(
        weights, grads, moments["exp_avg"], squares, moments["mu_product"], strict=True
    ):
        product.mul_(momentum.to(product.dtype))
        so_far = product.to(scalars.dtype)
        of_grad = (rate * (1 - momentum) / (1 - so_far)).to(weight.dtype)
        of_mean = (rate * next_momentum / (1 - so_far * next_momentum)).to(weight.dtype)
        weight.sub_((of_grad * grad + of_mean * mean) / (square.sqrt() / root.to(weight.dtype) + options["eps"]))


def _nadam_scalars(options: Options, step: float) -> list[float]:
    beta1, beta2 = options["betas"]
    rate = float(options["lr"])
    now, after = (beta1 * (1 - 0.5 * 0.96 ** (t * options["momentum_decay"])) for t in (step, step + 1))
    return [rate, (1 - beta2**step) ** 0.5, now, after, *_kin_scalars(options)]


def _radam(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    rate, rectified, adapts, *shared = scalars.unbind()
    squares = _adam_moments_(weights, grads, moments, options, *shared)
    for weight, mean, square in zip(weights, moments["exp_avg"], squares, strict=True):
        adapted = rectified.to(weight.dtype) / (square.sqrt() + options["eps"])
        weight.sub_(rate.to(weight.dtype) * mean * torch.where(adapts > 0, adapted, 1.0))


def _radam_scalars(options: Options, step: float) -> list[float]:
    beta1, beta2 = options["betas"]
    rate = float(options["lr"])
    most = 2 / (1 - beta2) - 1
    length = most - 2 * step * beta2**step / (1 - beta2**step)
    adapts = length > 5.0  # before that the variance of the adaptive rate is infinite
    rectified = ((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)) ** 0.5 if adapts else 0.0
    root = (1 - beta2**step) ** 0.5
    return [rate / (1 - beta1**step), rectified * root, float(adapts), *_kin_scalars(options)]


def _adamax(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    rate, share, beta2 = scalars.unbind()
    _decay(weights, grads, options)
    _average(moments["exp_avg"], grads, share)
    for weight, grad, mean, largest in zip(weights, grads, moments["exp_avg"], moments["exp_inf"], strict=True):
        largest.copy_(torch.maximum(beta2.to(largest.dtype) * largest, grad.abs() + options["eps"]))
        weight.sub_(rate.to(weight.dtype) * mean / largest)


def _adamax_scalars(options: Options, step: float) -> list[float]:
    beta1, beta2 = options["betas"]
    return [float(options["lr"]) / (1 - beta1**step), 1 - beta1, beta2]


def _adadelta(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    (rate,) = scalars.unbind()
    _decay(weights, grads, options)
    rho, eps = options["rho"], options["eps"]
    squares, steps = moments["square_avg"], moments["acc_delta"]
    torch._foreach_mul_(squares, rho)
    torch._foreach_addcmul_(squares, grads, grads, value=1 - rho)
    for weight, grad, square, step in zip(weights, grads, squares, steps, strict=True):
        delta = (step + eps).sqrt() / (square + eps).sqrt() * grad
        step.copy_(rho * step + (1 - rho) * delta * delta)
        weight.sub_(rate.to(weight.dtype) * delta)


def _rmsprop(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    rate, momentum = scalars.unbind()
    _decay(weights, grads, options)
    squares = moments["square_avg"]
    torch._foreach_mul_(squares, options["alpha"])
    torch._foreach_addcmul_(squares, grads, grads, value=1 - options["alpha"])
    if options["centered"]:
        means = moments["grad_avg"]
        torch._foreach_lerp_(means, grads, 1 - options["alpha"])
        squares = [square - mean * mean for square, mean in zip(squares, means, strict=True)]
    steps = [grad / (square.sqrt() + options["eps"]) for grad, square in zip(grads, squares, strict=True)]
    if options["momentum"]:
        _scale(moments["momentum_buffer"], momentum)
        torch._foreach_add_(moments["momentum_buffer"], steps)
        steps = moments["momentum_buffer"]
    for weight, step in zip(weights, steps, strict=True):
        weight.sub_(rate.to(weight.dtype) * step)


def _adagrad(weights: list[Tensor], grads: list[Tensor], moments: Moments, options: Options, scalars: Tensor) -> None:
    (rate,) = scalars.unbind()
    _decay(weights, grads, options)
    torch._foreach_addcmul_(moments["sum"], grads, grads)
    for weight, grad, total in zip(weights, grads, moments["sum"], strict=True):
        weight.sub_(rate.to(weight.dtype) * grad / (total.sqrt() + options["eps"]))


def _adagrad_scalars(options: Options, step: float) -> list[float]:
    return [float(options["lr"]) / (1 + (step - 1) * options["lr_decay"])]


# ---------------------------------------------------------------------- by class


def _rmsprop_moments(options: Options) -> list[str]:
    more = {"momentum_buffer": options["momentum"], "grad_avg": options["centered"]}
    return ["square_avg", *(name for name, used in more.items() if used)]


def _always(*names: str) -> Callable[[Options], list[str]]:
    return lambda options: list(names)


_KIN = ("eps", "weight_decay", "decoupled_weight_decay")  # options of Adam and its kin
_ADAM = Rule(
    _adam,
    _adam_scalars,
    lambda options: ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if options["amsgrad"] else [])],
    (*_KIN, "amsgrad"),
)

# A subclass may do anything.
RULES: dict[type[Optimizer], Rule] = {
    torch.optim.SGD: Rule(
        _sgd,
        _rate_and_momentum,
        lambda options: ["momentum_buffer"] if options["momentum"] else [],
        ("weight_decay", "momentum", "dampening", "nesterov"),
    ),
    torch.optim.Adam: _ADAM,
    torch.optim.AdamW: _ADAM,
    torch.optim.NAdam: Rule(_nadam, _nadam_scalars, _always("exp_avg", "exp_avg_sq", "mu_product"), _KIN),
    torch.optim.RAdam: Rule(_radam, _radam_scalars, _always("exp_avg", "exp_avg_sq"), _KIN),
    torch.optim.Adamax: Rule(_adamax, _adamax_scalars, _always("exp_avg", "exp_inf"), ("eps", "weight_decay")),
    torch.optim.Adadelta: Rule(_adadelta, _rate, _always("square_avg", "acc_delta"), ("rho", "eps", "weight_decay")),
    torch.optim.RMSprop: Rule(
        _rmsprop, _rate_and_momentum, _rmsprop_moments, ("weight_decay", "alpha", "eps", "momentum", "centered")
    ),
    torch.optim.Adagrad: Rule(_adagrad, _adagrad_scalars, _always("sum"), ("weight_decay", "eps")),
    torch.optim.ASGD: Rule(_asgd, _asgd_scalars, _always("ax", "eta", "mu"), ("weight_decay", "lambd")),
    torch.optim.Rprop: Rule(_rprop, _rate, _always("prev", "step_size"), ("etas", "step_sizes")),
}

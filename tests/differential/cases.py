"""Random combinations of network, options and data, and the two trainings that each of them compares."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from differential import random_networks as networks
from differential.by_hand import ByHand, Sequences
from differential.random_networks import COMBINED, Kind
from torch import Tensor, nn

from fptt_plugin import FPTTTrainer


def late(t: int, steps: int | None) -> float:
    """A ramp of the user's own, which never reaches 1."""
    return 0.2 + 0.7 * (t / (steps or 1)) ** 2


def margin(output: Tensor, target: Tensor) -> Tensor:
    """A loss of the user's own."""
    return F.multi_margin_loss(output.to(torch.float64), target, p=2)


LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1),
    "function": F.cross_entropy,
    "margin": margin,
    "mse": nn.MSELoss(),
}
EPS = {"eps": 1e-4}  # of the order of no gradient: a division by less would turn rounding into a step
OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "momentum": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, weight_decay=1e-2),
    "nesterov": lambda groups: torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.02, **EPS),
    "amsgrad": lambda groups: torch.optim.Adam(groups, lr=0.02, amsgrad=True, foreach=False, **EPS),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.02, weight_decay=0.1, **EPS),
    "adamax": lambda groups: torch.optim.Adamax(groups, lr=0.02, **EPS),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, **EPS),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.02, **EPS),
    "radam": lambda groups: torch.optim.RAdam(groups, lr=0.02, **EPS),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.05, **EPS),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.05),
}
RAMPS = {None: None, "linear": "linear", "constant": "constant", "late": late}


class Case(NamedTuple):
    """One combination; ``repr()`` of it is the code that makes it."""

    seed: int
    kind: Kind
    batches: tuple[tuple[int, int], ...]  # T and B of each
    target: str  # "label", "label per step", "value" or "value per step"
    mask: str  # "none", "samples", "steps", "lengths" or "ignored"
    loss: str
    optimizer: str
    groups: int = 1
    maximize: bool = False  # in the last group
    frozen: str = ""  # name of a parameter that is not trained
    absent: str = ""  # of one that the optimizer does not know
    window: int | None = 1
    loss_every: int | None = None
    update_every: int | None = None
    alpha: float = 0.1
    beta: float = 0.5
    rho: float = 0.0
    variant: str = "dual"
    max_grad_norm: float | None = 1.0
    average_weights: str = "never"
    output: int | None = None
    readout: str | None = None
    loss_ramp: str | None = None
    auxiliary: bool | None = None
    batch_first: bool = False
    autocast: bool = False


def random_kind(random: random.Random) -> Kind:
    pick = random.choice
    driver = pick(["step", "slice", "in-flight", "explicit"])
    if driver == "slice" or (driver != "explicit" and pick([True, False])):
        neurons, sees = networks.JELLY_NEURONS, ["spikes", "membrane"]
    else:
        neurons, sees = networks.TORCH_NEURONS, ["spikes", "membrane", "both"]
    neuron = pick(neurons)
    bodies = [body for body in networks.BODIES if body != "conv" or neuron not in networks.RECURRENT]
    ends = {"slice": ["steps", "steps", "mean", "sum", "max"], "in-flight": ["steps", "last", *COMBINED]}
    kind = Kind(driver, neuron, pick(bodies), pick(sees), pick(ends.get(driver, ["steps"])))
    # Half the count of two spikes is their maximum, too: a dry run does not tell these apart.
    return kind._replace(sees="membrane") if kind.end == "scaled" else kind


def random_case(number: int) -> Case:
    """The same for the same number. (Strategies of hypothesis vary one example in places: 300 had 66 seeds.)"""
    chance = random.Random(number)

    def pick(*values):
        return chance.choice(values)

    kind = random_kind(chance)
    window = pick(1, 1, 2, 3, 4, 7, None)
    variant = "dual" if kind.driver == "in-flight" else pick("dual", "dual", "gradient")
    target = pick("label", "label", "label", "label per step", "value", "value per step")
    labels = target.startswith("label")
    strides = [1, 2, 3, 5]
    if kind.combines_slices:  # a slice has one output
        strides = [] if window is None else [window, 2 * window]
    masks = ["none", "none", "samples", "steps", "lengths"]
    if kind.combines_slices and target in ("label", "value") and window != 1:
        masks = ["none", "samples"]  # samples may not end within a slice
    loss = pick("cross-entropy", "cross-entropy", "smoothed", "function", "margin") if labels else "mse"
    return Case(
        seed=number,
        kind=kind,
        batches=tuple((chance.randint(1, 9), chance.randint(2, 5)) for _ in range(pick(2, 3))),
        target=target,
        mask=pick(*masks, *(["ignored"] if labels and loss != "margin" else [])),
        loss=loss,
        optimizer=pick(*OPTIMIZERS),
        groups=pick(1, 2),
        maximize=pick(False, False, False, True),
        frozen=pick("", "", "front.weight", "head.bias", "head.weight"),
        absent=pick("", "", "", "head.bias", "front.weight"),
        window=window,
        loss_every=pick(None, None, *strides),
        update_every=None if window is None or variant == "gradient" else pick(None, None, 2 * window, 3 * window),
        alpha=pick(0.0, 0.1, 0.1, 0.5),
        beta=pick(0.5, 0.5, 0.2, 1.0),
        rho=pick(0.0, 0.0, 0.3, 1.0),
        variant=variant,
        max_grad_norm=pick(1.0, 0.1, None),
        average_weights=pick("never", "never", "sequence"),
        output=pick(None, 0) if kind.sees == "both" else None,
        readout=pick(None, None, *([] if kind.combines_slices else ["step", "mean", "sum", "max"])),
        loss_ramp=pick(None, *RAMPS),
        auxiliary=pick(None, None, True, False),
        batch_first=kind.driver != "in-flight" and pick(False, False, True),
        autocast=kind.end != "scaled" and pick(False, False, False, True),  # bfloat16 does not show the exact factor
    )


# ---------------------------------------------------------------------- the data of a case


def data(case: Case) -> list[tuple[Tensor, Tensor, Tensor | None]]:
    """``(x, y, mask)`` of each batch, time first."""
    chance = torch.Generator().manual_seed(case.seed)
    dtype = torch.float32 if case.autocast else torch.float64
    features = (2, networks.SIDE, networks.SIDE) if case.kind.body == "conv" else (networks.INPUTS,)
    found = []
    for steps, size in case.batches:
        x = 1.5 * torch.rand(steps, size, *features, generator=chance, dtype=dtype)
        shape = (steps, size) if case.target.endswith("step") else (size,)
        if case.target.startswith("label"):
            y = torch.randint(networks.CLASSES, shape, generator=chance)
        else:
            y = torch.randn(*shape, networks.CLASSES, generator=chance, dtype=dtype)
        mask = None
        if case.mask == "ignored":
            y[torch.rand(shape, generator=chance) < 0.3] = -100
            y.view(-1)[0] = 0
        elif case.mask == "lengths":
            mask = torch.randint(1, steps + 1, (size,), generator=chance)
            mask[0] = steps  # all of length 1 are taken for a mistake
        elif case.mask != "none":
            mask = torch.rand((steps, size) if case.mask == "steps" else (size,), generator=chance) < 0.6
            mask.view(-1)[-1] = True
        found.append((x, y, mask))
    return found


def optimizer_of(case: Case, net: nn.Module) -> torch.optim.Optimizer:
    named = [(name, p) for name, p in net.named_parameters() if name != case.absent]
    first = [p for name, p in named if case.groups == 1 or not name.startswith("head")]
    groups = [{"params": first}, {"params": [p for _, p in named if not any(p is q for q in first)]}]
    groups = [group for group in groups if group["params"]]
    optimizer = OPTIMIZERS[case.optimizer](groups)
    for group in optimizer.param_groups[1:]:
        group["lr"] = 0.5 * group["lr"]
    optimizer.param_groups[-1]["maximize"] = case.maximize
    return optimizer


def metric_of(case: Case):
    return F.cross_entropy if case.target.startswith("label") else F.mse_loss


def ambient(case: Case):
    return torch.autocast("cpu", torch.bfloat16) if case.autocast else nullcontext()


def network_of(case: Case) -> nn.Module:
    net = networks.build(case.kind, case.seed)
    for name, parameter in net.named_parameters():
        if name == case.frozen:
            parameter.requires_grad_(False)
    return net if case.autocast else net.double()


# ---------------------------------------------------------------------- the two trainings

SHARED = (
    "window",
    "loss_every",
    "update_every",
    "alpha",
    "beta",
    "rho",
    "variant",
    "max_grad_norm",
    "average_weights",
)


class Run(NamedTuple):
    """What came out of a training: named values; and its weights after each update and each batch."""

    values: dict[str, Tensor]
    weights: list[list[Tensor]]
    fires: bool = True
    learns: bool = True


def by_the_package(case: Case, net: nn.Module, accelerate: str = "none") -> Run:
    values, weights = {}, []
    parameters = list(net.parameters())
    optimizer = optimizer_of(case, net)
    options = {name: getattr(case, name) for name in ("output", "readout", "auxiliary", "batch_first", *SHARED)}
    target = "step" if case.target.endswith("step") else "sequence"
    shapes_tell = not case.batch_first and all(
        steps != size and size != networks.CLASSES for steps, size in case.batches
    )
    trainer = FPTTTrainer(
        net,
        optimizer,
        LOSSES[case.loss],
        targets="auto" if shapes_tell else target,
        loss_ramp=RAMPS[case.loss_ramp],
        output_module=None,
        accelerate=accelerate,
        **options,
    )
    if accelerate == "none":  # with hooks of others the optimizer steps itself
        optimizer.register_step_post_hook(lambda *_: weights.append([p.detach().clone() for p in parameters]))
    with ambient(case):
        batches = [laid_out(case, *batch) for batch in data(case)]
        for k, (x, y, mask) in enumerate(batches):
            torch.manual_seed(case.seed + k)
            result = trainer.train_sequence(x, y, mask)
            weights.append([p.detach().clone() for p in parameters])
            values |= {f"decision {k}": result.output, f"loss {k}": result.loss, f"updates {k}": result.updates}
            values[f"predict {k}"] = trainer.predict(x, None if case.target.endswith("step") else over_time(mask))
        values["evaluate"] = trainer.evaluate(
            [batch if batch[2] is not None else batch[:2] for batch in batches], metric=metric_of(case)
        )
    values |= outcome(net, trainer.regularizer.average_of, trainer.regularizer.dual_of)
    values["steps"], values["updates"] = trainer.steps, trainer.updates
    return Run({name: torch.as_tensor(value).double() for name, value in values.items()}, weights)


def by_hand(case: Case, net: nn.Module, nudge=None) -> Run:
    kind, values, fired = case.kind, {}, []
    options = {name: getattr(case, name) for name in SHARED}
    options["loss_ramp"] = RAMPS[case.loss_ramp]
    has_term = case.loss in ("cross-entropy", "smoothed", "function")
    options["auxiliary"] = has_term if case.auxiliary is None else case.auxiliary
    own = {"scaled": "sum"}.get(kind.end, kind.end if kind.end in COMBINED else "step")
    index = -1 if case.output is None else case.output
    twin = ByHand(
        net,
        kind,
        optimizer_of(case, net),
        LOSSES[case.loss],
        options,
        readout=case.readout or own,
        factor=0.5 if kind.end == "scaled" and case.readout is None else 1.0,
        pick=lambda output: output[index] if isinstance(output, tuple) else output,
        nudge=nudge,
    )
    spikes = net.lif.register_forward_hook(lambda module, args, out: fired.append(first_of(out).detach().flatten()))
    with ambient(case):
        batches = [Sequences(*batch, per_step=case.target.endswith("step")) for batch in data(case)]
        for k, (batch, (x, y, mask)) in enumerate(zip(batches, data(case), strict=True)):
            torch.manual_seed(case.seed + k)
            decision, loss, updates = twin.train(batch)
            values |= {f"decision {k}": decision, f"loss {k}": loss, f"updates {k}": updates}
            seen = Sequences(x, torch.zeros_like(y), over_time(mask), per_step=batch.per_step)
            values[f"predict {k}"] = twin.decide(seen, twin.look(seen))
        values["evaluate"] = twin.evaluate(batches, metric_of(case))
    spikes.remove()
    values |= outcome(net, twin.W_bar.get if case.alpha else lambda p: p, twin.lam.get)
    values["steps"], values["updates"] = sum(steps for steps, _ in case.batches), twin.updates
    fires = bool(torch.cat(fired).any()) and not bool(torch.cat(fired).all())
    trained = {p for p in twin.signs if p.requires_grad}
    return Run(
        {name: torch.as_tensor(value).double() for name, value in values.items()}, [], fires, twin.moved == trained
    )


def over_time(mask: Tensor | None) -> Tensor | None:
    """The mask, if it says which steps count, as ``predict`` takes it."""
    return None if mask is None or (mask.dim() == 1 and mask.dtype == torch.bool) else mask


def first_of(output):
    return output[0] if isinstance(output, tuple) else output


def outcome(net: nn.Module, average_of, dual_of) -> dict[str, Tensor]:
    """Weights, their averages and duals, and the running statistics."""
    found = {f"W of {name}": p.detach().clone() for name, p in net.named_parameters()}
    found |= {f"W_bar of {name}": average_of(p).detach().clone() for name, p in net.named_parameters()}
    found |= {f"dual of {name}": dual_of(p).clone() for name, p in net.named_parameters()}
    return found | {name: buffer.clone() for name, buffer in net.named_buffers() if name.startswith("norm.")}


def laid_out(case: Case, x: Tensor, y: Tensor, mask: Tensor | None):
    """The batch in the layout that the case asks for."""
    if not case.batch_first:
        return x, y, mask
    mask = mask.transpose(0, 1) if mask is not None and mask.dim() == 2 else mask
    return x.transpose(0, 1), y.transpose(0, 1) if case.target.endswith("step") else y, mask


# ---------------------------------------------------------------------- the verdict


def differences(case: Case, one: Run, other: Run) -> dict[str, float]:
    """Values that differ by more than rounding, relative to the largest entry."""
    found, tolerance = {}, 1e-3 if case.autocast else 1e-9
    for name, value in other.values.items():
        scale = max(value.abs().nan_to_num().max().item(), 1e-6)
        if name.startswith("dual of "):  # a difference of weights, and rounded as they are
            scale = max(scale, other.values[name.replace("dual", "W")].abs().max().item())
        near = torch.isclose(one.values[name], value, rtol=0.0, atol=tolerance * scale, equal_nan=True)
        if one.values[name].shape != value.shape:
            found[name] = float("inf")
        elif not near.all():
            found[name] = ((one.values[name] - value).abs().max() / scale).item()
    return found


def nudged(case: Case, weights: list[list[Tensor]]):
    """Rounds the twin's weights, after each change, to those of the package where no more than rounding parts them."""
    rounding = 1e-6 if case.autocast else 1e-12

    ours = iter(weights)

    @torch.no_grad()
    def nudge(twin: ByHand) -> None:
        for p, W in zip(twin.net.parameters(), next(ours, []), strict=False):
            near = (p - W).abs() <= rounding * W.abs().max()
            p.copy_(torch.where(near, W, p))

    return nudge


def verdict(case: Case) -> str:
    """``"same"``, ``"vacuous"`` or ``"ill-conditioned"``.

    Raises:
        AssertionError: If package and twin differ.
    """
    net = network_of(case)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        package = by_the_package(case, copy.deepcopy(net))
    if any("does not show how it combines" in str(warning.message) for warning in caught):
        return "vacuous"  # it is silent, and the trainer says that it had to guess
    twin = by_hand(case, copy.deepcopy(net))
    found = differences(case, package, twin)
    if not found:
        return "same" if twin.fires and twin.learns else "vacuous"
    rounded = by_hand(case, copy.deepcopy(net), nudged(case, package.weights))
    still = differences(case, package, rounded)
    assert not still, (
        f"package and twin differ, relative to the largest entry: {found}; rounded alike {still}; {case!r}"
    )
    return "ill-conditioned"


def recorded_case(number: int) -> Case:
    """A random combination whose windows can be recorded, of sequences that have several of them."""
    chance = random.Random(number)
    case = random_case(number)
    while case.kind.driver == "in-flight" or case.variant != "dual":
        case = random_case(chance.randrange(10**6))
    return case._replace(
        autocast=False,
        mask="none",
        window=chance.choice([1, 1, 1, 2, 3, 5]),
        update_every=None,
        loss_every=None if case.kind.combines_slices else chance.choice([None, 1]),
        batches=tuple((chance.randint(7, 13), chance.randint(2, 5)) for _ in range(3)),
    )


def compiled_verdict(case: Case, mode: str = "compile") -> str:
    """``"same"`` or ``"ill-conditioned"``: compiled training against eager training.

    Raises:
        AssertionError: If they differ by more than eager training does from itself where its weights begin one
            rounding away.
    """
    net = network_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what runs eagerly
        eager, compiled = (by_the_package(case, copy.deepcopy(net), mode) for mode in ("none", mode))
        found = differences(case, compiled, eager)
        if not found:
            return "same"
        chance = torch.Generator().manual_seed(case.seed)
        with torch.no_grad():
            for p in net.parameters():
                p.mul_(1 + 1e-14 * torch.randn(p.shape, generator=chance, dtype=p.dtype))
        own = differences(case, by_the_package(case, net), eager)
    assert all(own.get(name, 0.0) > 0.01 * found[name] for name in found), (
        f"compiled and eager differ, relative to the largest entry: {found}; eager, one rounding away: {own}; {case!r}"
    )
    return "ill-conditioned"


def simplest(case: Case, error: Exception, verdict: Callable[[Case], str] = verdict) -> tuple[Case, Exception]:
    """The case with every option at its default, and every batch left out, that the failure does not need."""
    plain = Case(0, case.kind._replace(body="dense"), (), "label", "none", "cross-entropy", "sgd")
    options = [case._replace(kind=plain.kind)] if case.kind != plain.kind else []
    options += [case._replace(batches=case.batches[:-1])] if len(case.batches) > 1 else []
    options += [
        case._replace(**{name: value})
        for name, value in plain._asdict().items()
        if name not in ("seed", "kind", "batches") and value != getattr(case, name)
    ]
    for option in options:
        try:
            verdict(option)
        except Exception as other:
            if type(other) is type(error):
                return simplest(option, other, verdict)
    return case, error

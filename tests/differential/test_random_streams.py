"""Random streams: steps with and without targets, masks, rows that begin again, resets; against a loop by hand."""

from __future__ import annotations

import copy
import random
from collections import Counter
from typing import NamedTuple

import pytest
import torch
from differential import random_networks as networks
from differential.by_hand import ByHand, Sequences
from differential.cases import LOSSES, OPTIMIZERS, first_of, outcome
from torch import Tensor, nn

from fptt_plugin import FPTTTrainer


class Stream(NamedTuple):
    """One combination; ``repr()`` of it is the code that makes it."""

    seed: int
    kind: networks.Kind
    target: str  # "label" or "value"
    optimizer: str
    window: int
    loss_every: int | None
    update_every: int | None
    alpha: float
    beta: float
    rho: float
    max_grad_norm: float | None
    steps: int


def random_stream(number: int) -> Stream:
    chance = random.Random(number)
    pick = chance.choice
    driver = pick(["step", "step", "slice", "explicit"])
    neurons = networks.TORCH_NEURONS
    if driver == "slice" or (driver == "step" and pick([True, False])):
        neurons = networks.JELLY_NEURONS
    neuron = pick(neurons)
    bodies = [body for body in networks.BODIES if body != "conv" or neuron not in networks.RECURRENT]
    window = pick([1, 1, 2, 3, 4])
    return Stream(
        seed=number,
        kind=networks.Kind(driver, neuron, pick(bodies), "membrane", "steps"),
        target=pick(["label", "value"]),
        optimizer=pick([*OPTIMIZERS]),
        window=window,
        loss_every=pick([None, 1, 2, 3]),
        update_every=pick([None, None, 2 * window]),
        alpha=pick([0.0, 0.1, 0.1, 0.5]),
        beta=pick([0.5, 0.2, 1.0]),
        rho=pick([0.0, 0.0, 0.3]),
        max_grad_norm=pick([1.0, 0.1, None]),
        steps=chance.randint(10, 24),
    )


class Event(NamedTuple):
    """What happens at a step: a reset before it, or ``x_t``, ``y_t``, ``mask`` and ``new_sequence``."""

    reset: bool
    x: Tensor
    y: Tensor | None
    mask: Tensor | None
    new: Tensor | None


def events(case: Stream) -> list[Event]:
    torch.manual_seed(case.seed)
    chance, size = random.Random(case.seed), 4
    # SpikingJelly's dropout keeps its mask for a sequence, and cannot draw another one in some rows.
    restarts = case.kind.body != "dropout" or case.kind.neuron in networks.TORCH_NEURONS
    features = (2, networks.SIDE, networks.SIDE) if case.kind.body == "conv" else (networks.INPUTS,)
    found = []
    for t in range(case.steps):
        x = 1.5 * torch.rand(size, *features, dtype=torch.float64)
        labels = torch.randint(networks.CLASSES, (size,))
        y = labels if case.target == "label" else torch.randn(size, networks.CLASSES, dtype=torch.float64)
        mask = torch.rand(size) < 0.6
        mask[0] = chance.random() < 0.8  # or none of them, sometimes
        found.append(
            Event(
                reset=t > 0 and chance.random() < 0.08,
                x=x,
                y=y if chance.random() < 0.8 else None,
                mask=mask if chance.random() < 0.4 else None,
                new=torch.rand(size) < 0.5 if restarts and t > 0 and chance.random() < 0.3 else None,
            )
        )
    return found


OPTIONS = ("window", "loss_every", "update_every", "alpha", "beta", "rho", "max_grad_norm")


def by_the_package(case: Stream, net: nn.Module) -> dict[str, Tensor]:
    optimizer, loss = (
        OPTIMIZERS[case.optimizer](net.parameters()),
        LOSSES["mse" if case.target == "value" else "function"],
    )
    trainer = FPTTTrainer(net, optimizer, loss, **{name: getattr(case, name) for name in OPTIONS})
    outputs, losses, moved = [], [], []
    torch.manual_seed(case.seed)
    for event in events_of(case):
        if event.reset:
            trainer.reset()
        result = trainer.step(event.x, event.y, event.mask, event.new)
        outputs.append(result.output)
        losses.append(torch.tensor(torch.nan) if result.loss is None else result.loss)
        moved.append(result.updated)
    values = outcome(net, trainer.regularizer.average_of, trainer.regularizer.dual_of)
    return values | {"outputs": torch.stack(outputs), "losses": torch.stack(losses), "moved": torch.tensor(moved)}


def by_hand(case: Stream, net: nn.Module) -> tuple[dict[str, Tensor], bool]:
    options = {name: getattr(case, name) for name in OPTIONS}
    options |= {"loss_ramp": "constant", "auxiliary": False, "variant": "dual", "average_weights": "never"}
    loss_fn = LOSSES["mse" if case.target == "value" else "function"]
    twin = ByHand(
        net,
        case.kind,
        OPTIMIZERS[case.optimizer](net.parameters()),
        loss_fn,
        options,
        readout="step",
        factor=1.0,
        pick=lambda output: output[-1] if isinstance(output, tuple) else output,
    )
    fired = []
    spikes = net.lif.register_forward_hook(lambda module, args, out: fired.append(first_of(out).detach().flatten()))
    outputs, losses, moved = [], [], []
    every, update_every = case.loss_every or case.window, case.update_every or case.window
    torch.manual_seed(case.seed)
    for t, event in enumerate(events_of(case)):
        if t == 0 or event.reset:
            twin.begin()
            position, since, backwards, window = 0, 0, 0, []
        if event.new is not None and position > 0:
            begin_again(twin, event.new)
        ((_, output),) = twin.advance(event.x[None])
        before, loss = twin.updates, None
        if event.y is not None and (position + 1) % every == 0:
            mask = None if event.mask is None else event.mask[None]
            loss = twin.loss(0, output, Sequences(event.x[None], event.y[None], mask, per_step=True), True, False)
        window += [] if loss is None else [loss]
        position, since = position + 1, since + 1
        if position % case.window == 0:
            if window:
                if backwards == 0:
                    net.zero_grad()
                torch.stack(window).mean().backward()
                backwards += 1
            window = []
            twin.detach()
            if since >= update_every:
                if backwards:
                    twin.update(backwards, None)
                since = backwards = 0
        outputs.append(output.detach())
        losses.append(torch.tensor(torch.nan) if loss is None else loss.detach())
        moved.append(twin.updates > before)
    spikes.remove()
    values = outcome(net, twin.W_bar.get if case.alpha else lambda p: p, twin.lam.get)
    values |= {"outputs": torch.stack(outputs), "losses": torch.stack(losses), "moved": torch.tensor(moved)}
    fires = bool(torch.cat(fired).any()) and not bool(torch.cat(fired).all())
    return values, fires and twin.moved == set(net.parameters())


def begin_again(twin: ByHand, rows: Tensor) -> None:
    """Zeros, the state before the first input of all these neurons, in some rows of the batch."""

    def zeroed(value):
        if isinstance(value, tuple):
            return tuple(map(zeroed, value))
        if not isinstance(value, Tensor) or value.dim() < 2 or len(value) != len(rows):
            return value
        return torch.where(rows.view(-1, *[1] * (value.dim() - 1)), torch.zeros_like(value), value)

    state = [
        {key: zeroed(value) if value is not first[key] else value for key, value in place.items()}
        for place, first in zip(twin.memories.get(), twin.memories.first, strict=True)
    ]
    twin.memories.set(state)
    twin.state = zeroed(twin.state)


def events_of(case: Stream) -> list[Event]:
    """The events, without a change of the random state."""
    with torch.random.fork_rng():
        return events(case)


def verdict(case: Stream) -> str:
    net = networks.build(case.kind, case.seed).double()
    package = by_the_package(case, copy.deepcopy(net))
    twin, lives = by_hand(case, copy.deepcopy(net))
    for name, value in twin.items():
        found = package[name].double()
        scale = value.double().nan_to_num().abs().max().clamp(min=1e-3)
        error = ((found - value.double()).nan_to_num().abs().max() / scale).item()
        assert error < 1e-9, f"{name} differs by {error:.1e}; {case!r}"
        assert torch.equal(found.isnan(), value.isnan()), f"{name}; {case!r}"
    return "same" if lives else "vacuous"


def compare(numbers):
    verdicts = Counter(verdict(random_stream(number)) for number in numbers)
    assert verdicts["vacuous"] <= 0.15 * sum(verdicts.values()), verdicts


def test_a_few_streams():
    compare(range(15))


@pytest.mark.slow
def test_a_hundred_streams():
    compare(range(2000, 2100))

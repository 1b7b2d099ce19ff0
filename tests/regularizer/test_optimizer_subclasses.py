"""An optimizer whose ``step()`` calls that of its base class makes one update per step.

torch runs an optimizer's hooks for each class whose ``step()`` it has wrapped, which it does when one of that class is
built: each test builds one of the base class first.
"""

import pytest
import torch
from nets import identical
from test_regularizer_checkpoints import OPTIONS, build, everything
from torch import nn, optim

from fptt_plugin import DynamicRegularizer
from fptt_plugin.errors import WeightsChangedError


class Plain(optim.Adam):
    def step(self, closure=None):
        return super().step(closure)


class Deeper(Plain):
    def step(self, closure=None):
        return super().step(closure)


class ByName(optim.Adam):
    def step(self, closure=None):
        return optim.Adam.step(self, closure)


class Centered(optim.Adam):
    """Changes the gradients on their way."""

    def step(self, closure=None):
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.grad -= weight.grad.mean()
        return super().step(closure)


class Clamped(optim.Adam):
    """Changes the weights after it."""

    def step(self, closure=None):
        loss = super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for weight in group["params"]:
                    weight.clamp_(-0.3, 0.3)
        return loss


class Fragile(optim.Adam):
    """Raises an exception in its third and fifth step, before and after that of the base class."""

    calls = 0

    def step(self, closure=None):
        self.calls += 1
        if self.calls == 3:
            raise KeyError
        loss = super().step(closure)
        if self.calls == 5:
            raise KeyError
        return loss


def run(make, steps=8, through_closure=False, prepare=None, compiled=False, alpha=0.3):
    net = build()
    optimizer = make(net.parameters(), lr=0.05)
    regularizer = DynamicRegularizer(optimizer, **{**OPTIONS, "alpha": alpha})
    if prepare is not None:
        prepare(optimizer)
    generator = torch.Generator().manual_seed(1)

    def update(x, y):
        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        if through_closure:
            return optimizer.step(closure)
        closure()
        return optimizer.step()

    if compiled:
        torch._dynamo.reset()
        update = torch.compile(update, backend="eager")
    for _ in range(steps):
        x, y = torch.rand(4, 5, generator=generator), torch.randint(3, (4,), generator=generator)
        update(x, y)
    return everything(net, regularizer), regularizer.updates


@pytest.fixture(autouse=True)
def _the_base_classes_are_hooked():
    for kind in (optim.Adam, Plain):
        kind([nn.Parameter(torch.ones(1))])


@pytest.mark.parametrize("through_closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize("kind", [Plain, Deeper, ByName])
def test_steps_are_those_of_the_base_class(kind, through_closure):
    expected, _ = run(optim.Adam)
    found, updates = run(kind, through_closure=through_closure)
    assert updates == 8
    assert identical(found, expected)
    assert expected[-1].abs().max() > 0  # a dual
    assert not identical(expected, run(kind, alpha=0.0)[0])


def center(optimizer):
    def hook(*_):
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad -= weight.grad.mean()

    optimizer.register_step_pre_hook(hook)


def test_gradients_that_a_subclass_changes_are_regularized_once():
    expected, _ = run(optim.Adam, prepare=center)
    assert identical(run(Centered)[0], expected)
    assert not identical(run(optim.Adam)[0], expected)


def test_weights_that_a_subclass_changes_after_its_step_are_those_of_the_update():
    found, updates = run(Clamped, steps=20)  # else: WeightsChangedError
    weights = found[: len(found) // 3]
    assert updates == 20
    assert max(weight.abs().max() for weight in weights) == pytest.approx(0.3)


def step(net, optimizer, value):
    optimizer.zero_grad()
    net(torch.full((4, 5), value)).square().mean().backward()
    optimizer.step()


def test_a_step_that_fails_does_not_count_and_the_next_is_regularized():
    net, twin = build(), build()
    fragile, adam = Fragile(net.parameters(), lr=0.05), optim.Adam(twin.parameters(), lr=0.05)
    regularizers = [DynamicRegularizer(optimizer, **OPTIONS) for optimizer in (fragile, adam)]
    for value in (1.0, 2.0):
        step(net, fragile, value)
        step(twin, adam, value)
    with pytest.raises(KeyError):
        step(net, fragile, 3.0)
    step(net, fragile, 4.0)
    step(twin, adam, 4.0)
    assert [regularizer.updates for regularizer in regularizers] == [3, 3]
    assert identical(everything(net, regularizers[0]), everything(twin, regularizers[1]))
    with pytest.raises(KeyError):
        step(net, fragile, 5.0)  # after the base class has moved the weights
    with pytest.raises(WeightsChangedError):
        step(net, fragile, 6.0)
    regularizers[0].accept_weights()
    step(net, fragile, 7.0)
    assert regularizers[0].updates == 4


def test_a_compiled_step_of_a_subclass():
    found, updates = run(Plain, compiled=True)
    expected, _ = run(optim.Adam, compiled=True)
    torch._dynamo.reset()
    assert updates == 8
    assert identical(found, expected)


def test_another_optimizers_step_within_the_step_is_its_own():
    class Outer(Plain):
        def step(self, closure=None):
            self.inner.zero_grad()
            self.inner.param_groups[0]["params"][0].sum().backward()
            self.inner.step()
            return super().step(closure)

    weights = [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]
    outer, inner = Outer(weights[:1]), Plain(weights[1:])
    outer.inner = inner
    counts = [DynamicRegularizer(optimizer) for optimizer in (outer, inner)]
    for _ in range(3):
        outer.zero_grad()
        weights[0].sum().backward()
        outer.step()
    assert [regularizer.updates for regularizer in counts] == [3, 3]

"""Sixty updates of ``DynamicRegularizer`` on real optimizers against the readable twin."""

from functools import partial

import pytest
import torch
from nets import LIF, batch, check_setting, distance, identical, spikes, spiking_net
from torch import nn
from torch.optim import SGD, Adam, Adamax, AdamW
from twin import Twin

from fptt_plugin import DynamicRegularizer
from fptt_plugin.errors import CallOrderError, ConfigurationError

OPTIMIZERS = {
    "sgd": partial(SGD, lr=0.1),
    "momentum": partial(SGD, lr=0.05, momentum=0.9),
    "adam": partial(Adam, lr=0.01),
    "adamax": partial(Adamax, lr=0.01),
    "adamw": partial(AdamW, lr=0.01, weight_decay=0.1),
}
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}


class Awkward(nn.Module):
    """Has a frozen parameter, an unused one, one used by two layers, and one used at every other step only."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.body = spiking_net(dtype=dtype)
        self.sometimes = nn.Parameter(torch.full((2,), 0.3, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(3, dtype=dtype))
        self.frozen = nn.Parameter(torch.full((3,), 1.1, dtype=dtype), requires_grad=False)
        self.again = nn.Linear(8, 2).to(dtype)
        self.again.weight = self.body[2].weight
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        hidden = self.body[1](self.body[0](x * self.frozen))
        out = self.body[3](self.body[2](hidden) + self.again(hidden))
        return out + self.sometimes if self.calls % 2 else out

    def detach(self):
        for module in (self.body[1], self.body[3]):
            module.mem = module.mem.detach()


def train(net, optimizer, updates=60, twin=None, sign=1, between=lambda t: None):
    """Online updates on random data, and the twin's from the same loss gradients."""
    dtype = net.sometimes.dtype
    for t in range(updates):
        x, y = batch(1, dtype=dtype)
        net.zero_grad()
        loss = nn.functional.cross_entropy(net(x[0]), y)
        (sign * loss).backward()
        net.detach()
        grads = [None if p.grad is None else p.grad.clone() for p in net.parameters()]
        assert net.body[0].weight.grad.abs().max() > 0
        optimizer.step()
        if twin is not None:
            twin.step(grads)
        between(t)


def assert_equal(regularizer, net, twin, tolerance):
    own = list(net.parameters())
    averages, duals = [list(map(f, own)) for f in (regularizer.average_of, regularizer.dual_of)]
    assert distance(own, twin.W) <= tolerance
    assert distance(averages, twin.W_bar) <= tolerance
    assert distance(duals, twin.lam) <= tolerance
    assert distance(own, averages) > 1e-4  # else all of this would hold of an average that does nothing
    assert max(dual.abs().max() for dual in duals) > 1e-4


def two_groups(make):
    """Optimizer of a list of two groups, the second with a learning rate of its own."""
    return lambda groups: make([{"params": groups[0]}, {"params": groups[1], "lr": 0.02}])


@pytest.mark.parametrize("clip", [None, 0.2])
@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_twin(name, dtype, clip):
    net = Awkward(dtype)
    frozen, unused, first = net.frozen.clone(), net.unused.clone(), net.body[0].weight.clone()
    make = two_groups(OPTIMIZERS[name])
    groups = [int("body" in key) for key, _ in net.named_parameters()]
    optimizer = make([[p for p, g in zip(net.parameters(), groups, strict=True) if g == k] for k in (0, 1)])
    regularizer = DynamicRegularizer(optimizer, 0.1, max_grad_norm=clip)
    twin = Twin(net.parameters(), make, alpha=0.1, clip=clip, groups=groups)
    with spikes(net):
        train(net, optimizer, twin=twin)
    assert_equal(regularizer, net, twin, TOLERANCE[dtype])
    assert torch.equal(net.frozen, frozen)
    assert torch.equal(net.unused, unused)
    assert not torch.equal(net.body[0].weight, first)
    if clip is not None:
        assert regularizer.grad_norm > clip  # it did clip


@pytest.mark.parametrize("options", [{"beta": 0.2}, {"beta": 1.0}, {"rho": 0.5}, {"rho": 1.0}, {"alpha": 1.0}], ids=str)
def test_every_constant_is_the_twins_and_changes_something(options):
    ends = []
    for constants in ({"alpha": 0.1}, {"alpha": 0.1, **options}):
        torch.manual_seed(1)
        net = Awkward()
        optimizer = SGD(net.parameters(), lr=0.1)
        regularizer = DynamicRegularizer(optimizer, **constants)
        twin = Twin(net.parameters(), lambda groups: SGD(groups[0], lr=0.1), **constants)
        train(net, optimizer, twin=twin)
        assert_equal(regularizer, net, twin, 1e-6)
        ends.append(net.body[0].weight.detach())
    assert (ends[0] - ends[1]).abs().max() > 1e-4


@pytest.mark.parametrize("implementation", ["foreach", "fused"])
@pytest.mark.parametrize("maximize", [False, True])
def test_any_implementation_of_the_optimizer(implementation, maximize):
    net = Awkward()
    sign = -1 if maximize else 1
    optimizer = Adam(net.parameters(), lr=0.01, maximize=maximize, **{implementation: True})
    regularizer = DynamicRegularizer(optimizer, 0.1, max_grad_norm=0.2)
    twin = Twin(net.parameters(), lambda g: Adam(g[0], lr=0.01, foreach=False), alpha=0.1, clip=0.2, sign=sign)
    with spikes(net):
        train(net, optimizer, twin=twin, sign=sign)
    assert_equal(regularizer, net, twin, 1e-6)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("rho", [0.0, 0.5])
def test_gradient_variant_equals_the_twin(rho, maximize):
    # The loss is quadratic, so its gradient at any weights is known.
    sign = -1 if maximize else 1
    goals = [torch.randn(3, 2, dtype=torch.float64), torch.randn(2, dtype=torch.float64)]
    weights = [nn.Parameter(torch.zeros_like(goal)) for goal in goals]
    optimizer = SGD(weights, lr=0.1, maximize=maximize)
    regularizer = DynamicRegularizer(optimizer, 0.5, rho=rho, variant="gradient")
    twin = Twin(weights, lambda g: SGD(g[0], lr=0.1), alpha=0.5, rho=rho, variant="gradient", sign=sign)

    def loss():
        return sign * sum(((w - goal) ** 2).sum() / 2 for w, goal in zip(weights, goals, strict=True))

    def gradients(at):
        return [sign * (w - goal) for w, goal in zip(at, goals, strict=True)]

    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        grads = [w.grad.clone() for w in weights]
        optimizer.step()
        before = [w.grad.clone() for w in weights]
        regularizer.second_gradient(loss)
        assert identical(before, [w.grad for w in weights])
        twin.step(grads, second=gradients)
    assert distance(weights, twin.W) <= 1e-12
    assert distance(map(regularizer.average_of, weights), twin.W_bar) <= 1e-12
    assert distance(map(regularizer.dual_of, weights), twin.lam) <= 1e-12
    assert distance(weights, map(torch.zeros_like, goals)) > 0.1


def test_gradient_variant_insists_on_its_second_gradient():
    weight = nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1)
    regularizer = DynamicRegularizer(optimizer, variant="gradient")
    with pytest.raises(CallOrderError):
        regularizer.second_gradient(lambda: weight.sum())
    weight.sum().backward()
    optimizer.step()
    with pytest.raises(CallOrderError):
        optimizer.step()


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_second_gradient_that_fails_leaves_a_regularizer_that_goes_on(error):
    weight = nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1)
    regularizer = DynamicRegularizer(optimizer, variant="gradient")

    def loss():
        return weight.square().sum()

    def failing():
        loss()
        raise error

    def step(second):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        regularizer.second_gradient(second)

    step(loss)
    average, dual = regularizer.average_of(weight).clone(), regularizer.dual_of(weight).clone()
    with pytest.raises(error):
        step(failing)
    assert torch.equal(regularizer.average_of(weight), average)
    assert torch.equal(regularizer.dual_of(weight), dual)
    step(loss)
    assert regularizer.updates == 3
    torch.testing.assert_close(regularizer.dual_of(weight), 2 * weight.detach())


@pytest.mark.parametrize("way", ["accept_weights", "restart_averages", "load_state_dict"])
def test_an_update_interrupted_before_its_second_gradient_is_given_up(way):
    weight = nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1)
    regularizer = DynamicRegularizer(optimizer, variant="gradient")
    weight.sum().backward()
    optimizer.step()
    with pytest.raises(CallOrderError):
        optimizer.step()
    if way == "load_state_dict":
        optimizer.load_state_dict(optimizer.state_dict())
    else:
        getattr(regularizer, way)()
    optimizer.step()
    regularizer.second_gradient(lambda: weight.sum())
    with pytest.raises(CallOrderError):
        regularizer.second_gradient(lambda: weight.sum())


def test_averages_of_the_gradient_variant_can_be_put_in_place():
    weight = nn.Parameter(torch.ones(2))
    optimizer = SGD([weight], lr=0.1)
    regularizer = DynamicRegularizer(optimizer, variant="gradient")
    weight.sum().backward()
    optimizer.step()
    regularizer.second_gradient(lambda: weight.sum())
    before = weight.detach().clone()
    with regularizer.averaged_weights():
        assert torch.equal(weight, regularizer.average_of(weight))
        assert not torch.equal(weight, before)
    assert torch.equal(weight, before)


def test_group_and_lazy_parameters_join_later():
    torch.manual_seed(3)
    net = nn.Sequential(nn.LazyLinear(8), LIF(), nn.Linear(8, 2))
    later = nn.Parameter(torch.full((2,), 0.1))
    optimizer = SGD(net.parameters(), lr=0.1)
    regularizer = DynamicRegularizer(optimizer, 0.2)
    twin = None
    for t in range(20):
        x, y = batch(1)
        net[1].mem = None
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(3 * x[0]) + later, y).backward()
        if twin is None:
            parameters = [*net.parameters(), later]
            twin = Twin(parameters, lambda g: SGD(g[0], lr=0.1), alpha=0.2)
        if t == 5:
            optimizer.add_param_group({"params": [later]})
        twin.step([p.grad.clone() if t >= 5 or p is not later else None for p in parameters])
        optimizer.step()
    assert distance(parameters, twin.W) <= 1e-6
    assert distance(map(regularizer.average_of, parameters), twin.W_bar) <= 1e-6
    assert regularizer.dual_of(later).abs().max() > 0
    assert regularizer.dual_of(net[0].weight).abs().max() > 0


def test_alpha_0_and_remove_leave_the_plain_optimizer():
    ends = []
    for kind in ("plain", "alpha 0", "removed"):
        torch.manual_seed(1)
        net = Awkward()
        optimizer = Adam(net.parameters(), lr=0.01)
        if kind == "alpha 0":
            DynamicRegularizer(optimizer, 0.0)
        elif kind == "removed":
            DynamicRegularizer(optimizer, 0.5, max_grad_norm=0.1).remove()
        train(net, optimizer, 10)
        ends.append(list(net.parameters()))
    assert identical(ends[0], ends[1])
    assert identical(ends[0], ends[2])


def test_a_removed_regularizer_frees_the_optimizer_for_another():
    net = Awkward()
    optimizer = SGD(net.parameters(), lr=0.1)
    regularizer = DynamicRegularizer(optimizer)
    with pytest.raises(ConfigurationError):
        DynamicRegularizer(optimizer)
    train(net, optimizer, 2)
    regularizer.remove()
    other = DynamicRegularizer(optimizer)
    assert identical(map(other.average_of, net.parameters()), [p.detach() for p in net.parameters()])
    train(net, optimizer, 2)


@pytest.mark.parametrize(
    ("name", "wrong", "right"),
    [("alpha", -0.1, 0.2), ("beta", 7, 1), ("rho", -3, 0.5), ("max_grad_norm", -1, None), ("beta", "0.5", 0.25)],
)
def test_options_are_checked_when_they_are_changed(name, wrong, right):
    regularizer = DynamicRegularizer(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1), max_grad_norm=1.0)
    check_setting(regularizer, name, wrong, right)


def test_the_variant_stays():
    regularizer = DynamicRegularizer(torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1))
    with pytest.raises(ConfigurationError, match="variant"):
        regularizer.variant = "gradient"
    assert regularizer.variant == "dual"

"""``optimizer.step(closure)``, as Lightning calls it, is the plain loop bit for bit."""

import pytest
import torch
from nets import copies, identical, sgd
from test_regularizer_checkpoints import OPTIMIZERS, OPTIONS, build, everything
from torch import nn

from fptt_plugin import DynamicRegularizer
from fptt_plugin.errors import CallOrderError, ConfigurationError, WeightsChangedError


def run(make, call, steps=6, **options):
    """Train a network; ``call(optimizer, closure)`` makes the step and returns the loss."""
    net = build()
    optimizer = make(net.parameters())
    regularizer = DynamicRegularizer(optimizer, **{**OPTIONS, **options})
    generator = torch.Generator().manual_seed(1)
    losses, calls = [], []
    for _ in range(steps):
        x, y = torch.rand(4, 5, generator=generator), torch.randint(3, (4,), generator=generator)

        def closure(x=x, y=y):
            calls.append(torch.is_grad_enabled())
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            return loss

        losses.append(call(optimizer, closure).detach())
    assert calls == [True] * steps  # once per step
    assert regularizer.updates == steps
    return [*losses, *everything(net, regularizer)]


def plain(optimizer, closure):
    loss = closure()
    optimizer.step()
    return loss


def without_grad(optimizer, closure):
    with torch.no_grad():
        return optimizer.step(closure)


CALLS = {
    "positional": lambda optimizer, closure: optimizer.step(closure),
    "keyword": lambda optimizer, closure: optimizer.step(closure=closure),
    "no_grad": without_grad,
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("muon", "maximize")])
def test_a_closure_is_the_plain_loop(name, call):
    assert identical(run(OPTIMIZERS[name], CALLS[call]), run(OPTIMIZERS[name], plain))


def test_an_empty_closure_after_backward():
    # Lightning's manual optimization.
    def manual(optimizer, closure):
        loss = closure()
        assert optimizer.step(lambda: None) is None
        assert optimizer.step.__self__ is optimizer
        return loss

    assert identical(run(OPTIMIZERS["adam"], manual), run(OPTIMIZERS["adam"], plain))


def test_the_controls_closure():
    assert identical(run(OPTIMIZERS["adam"], CALLS["positional"], alpha=0.0), run(OPTIMIZERS["adam"], plain, alpha=0.0))


def test_other_hooks_see_the_whole_gradient():
    def seen(call):
        found = []

        def spying(optimizer, closure):
            weight = optimizer.param_groups[0]["params"][0]
            hook = optimizer.register_step_pre_hook(lambda *_: found.append(weight.grad.clone()))
            loss = call(optimizer, closure)
            hook.remove()
            return loss

        run(OPTIMIZERS["sgd"], spying)
        return found

    assert identical(seen(CALLS["positional"]), seen(plain))


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt])
def test_a_closure_that_fails_leaves_a_regularizer_that_goes_on(error):
    net = build()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)

    def closure():
        optimizer.zero_grad()
        loss = net(torch.ones(1, 5)).square().sum()
        loss.backward()
        return loss

    def failing():
        closure()
        raise error

    optimizer.step(closure)
    before = everything(net, regularizer)
    with pytest.raises(error):
        optimizer.step(failing)
    assert identical(everything(net, regularizer), before)
    optimizer.step(closure)
    assert regularizer.updates == 2


def test_a_change_is_noticed_before_the_closure_runs():
    net = build()
    optimizer = sgd(net)
    DynamicRegularizer(optimizer, **OPTIONS)
    optimizer.step(lambda: net(torch.ones(1, 5)).sum().backward())
    net.load_state_dict(build().state_dict())
    with pytest.raises(WeightsChangedError):
        optimizer.step(lambda: pytest.fail("evaluated"))


def test_an_optimizer_that_evaluates_its_closure_again_is_refused():
    class Extragradient(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure):
            with torch.enable_grad():
                closure()
                return closure()

    weight = nn.Parameter(torch.ones(2))
    optimizer = Extragradient([weight], lr=0.1)
    DynamicRegularizer(optimizer)
    with pytest.raises(CallOrderError):
        optimizer.step(lambda: weight.sum().backward())
    assert torch.equal(weight, torch.ones(2))


def test_lbfgs_is_refused():
    class Own(torch.optim.LBFGS):
        pass

    for kind in (torch.optim.LBFGS, Own):
        optimizer = kind([nn.Parameter(torch.zeros(1))])
        with pytest.raises(ConfigurationError):
            DynamicRegularizer(optimizer)


def test_accelerates_optimizer_hands_the_closure_on():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True)
    net = build()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    model, wrapped = accelerator.prepare(net, optimizer)
    with pytest.raises(ConfigurationError, match=r"AcceleratedOptimizer.*that it wraps"):
        DynamicRegularizer(wrapped)
    before = copies(net.parameters())

    def closure():
        wrapped.zero_grad()
        loss = model(torch.ones(2, 5)).square().sum()
        accelerator.backward(loss)
        return loss

    for _ in range(3):
        wrapped.step(closure)
    assert regularizer.updates == 3
    assert not identical(net.parameters(), before)
    assert regularizer.dual_of(net[0].weight).abs().max() > 0

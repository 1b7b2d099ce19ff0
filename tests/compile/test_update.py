"""The compiled update against optimizer and regularizer as they are."""

import copy

import pytest
import torch
from nets import distance
from torch import nn

from fptt_plugin import DynamicRegularizer
from fptt_plugin.compile.dynamo import CannotCompile
from fptt_plugin.compile.rules import RULES
from fptt_plugin.compile.update import CompiledUpdate

pytestmark = pytest.mark.usefixtures("traced")

SETTINGS = [(kind, {}) for kind in RULES] + [
    (torch.optim.SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (torch.optim.Adam, {"amsgrad": True, "maximize": True, "fused": False}),
    (torch.optim.AdamW, {"weight_decay": 0.1, "fused": True}),
    (torch.optim.RMSprop, {"momentum": 0.5, "centered": True, "weight_decay": 0.1}),
    (torch.optim.Adagrad, {"lr_decay": 0.1, "maximize": True}),
    (torch.optim.Adadelta, {"rho": 0.7, "weight_decay": 0.1, "maximize": True}),
    (torch.optim.Adamax, {"betas": (0.7, 0.9), "weight_decay": 0.1, "maximize": True}),
    (torch.optim.ASGD, {"lambd": 0.1, "t0": 3, "alpha": 0.5, "weight_decay": 0.1}),
    (torch.optim.NAdam, {"momentum_decay": 0.1, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.NAdam, {"weight_decay": 0.1, "maximize": True, "foreach": False}),
    (torch.optim.RAdam, {"betas": (0.8, 0.9), "weight_decay": 0.1, "decoupled_weight_decay": True}),
    (torch.optim.RAdam, {"weight_decay": 0.1, "maximize": True, "foreach": False}),
    (torch.optim.Rprop, {"etas": (0.6, 1.1), "step_sizes": (1e-3, 1e-2), "maximize": True}),
]


def twins(kind, options, **settings):
    """Two copies of a network of two groups, each with optimizer and regularizer; the second has a compiled update."""
    net = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
    found = []
    for own in (net, copy.deepcopy(net)):
        groups = [{"params": own[0].parameters(), "lr": 0.02}, {"params": own[1].parameters()}]
        optimizer = kind(groups, lr=0.01, **options)
        found.append((own, optimizer, DynamicRegularizer(optimizer, **settings)))
    return found


def gradients(nets, scale=1.0, used=(0, 1)):
    x = torch.randn(4, 5).double()
    for net in nets:
        net.zero_grad()
        (scale * net(x)).square().sum().backward()
        for i in {0, 1} - set(used):
            net[i].zero_grad()


def change_by_hand(optimizers, lr):
    """The learning rate, as a scheduler does, or else the step counts."""
    for optimizer in optimizers:
        for group in optimizer.param_groups if lr else ():
            group["lr"] /= 2
        for entry in () if lr else optimizer.state.values():
            if "step" in entry:
                entry["step"].fill_(12)


@pytest.mark.parametrize("settings", [{"max_grad_norm": 1.0}, {"alpha": 0.0}, {"alpha": 0.5, "rho": 0.3, "beta": 0.2}])
@pytest.mark.parametrize(("kind", "options"), SETTINGS, ids=lambda value: getattr(value, "__name__", None))
def test_it_does_what_the_optimizer_does(kind, options, settings):
    (net, optimizer, regularizer), (own, other, shadowed) = twins(kind, options, **settings)
    update = CompiledUpdate(shadowed)
    compiled = 0
    for i in range(30):
        if i in (4, 5):
            change_by_hand([optimizer, other], lr=i == 4)
        if i == 6:
            other.load_state_dict(copy.deepcopy(other.state_dict()))
            shadowed.load_state_dict(copy.deepcopy(shadowed.state_dict()))
        gradients((net, own), used=(0, 1) if i != 3 else (1,))
        optimizer.step()
        if update.step():
            compiled += 1
        else:
            other.step()
    assert compiled >= 28
    # torch keeps the rates of ASGD in single precision: its own foreach=True and False differ by 2e-9 here.
    same = 1e-8 if kind is torch.optim.ASGD else 1e-10
    assert distance(net.parameters(), own.parameters()) < same
    for one, two in zip(net.parameters(), own.parameters(), strict=True):
        assert torch.allclose(regularizer.average_of(one), shadowed.average_of(two), atol=same)
        assert torch.allclose(regularizer.dual_of(one), shadowed.dual_of(two), atol=same)
        for key, value in optimizer.state[one].items():
            if isinstance(value, torch.Tensor):
                assert torch.allclose(value.double(), other.state[two][key].double(), atol=same), key
    assert regularizer.updates == shadowed.updates == 30
    if "max_grad_norm" in settings:
        assert torch.allclose(regularizer.grad_norm, shadowed.grad_norm)


def test_windows_are_averaged():
    (net, optimizer, _), (own, other, shadowed) = twins(torch.optim.SGD, {})
    update = CompiledUpdate(shadowed)
    gradients((net, own))
    optimizer.step()
    other.step()
    gradients((net, own))
    for parameter in net.parameters():
        parameter.grad /= 3
    optimizer.step()
    assert update.step(windows=3)
    assert distance(net.parameters(), own.parameters()) < 1e-12


def test_nothing_changes_where_a_gradient_is_not_finite():
    _, (own, other, shadowed) = twins(torch.optim.Adam, {}, max_grad_norm=1.0)
    update = CompiledUpdate(shadowed)
    gradients([own])
    other.step()
    before = copy.deepcopy([own.state_dict(), other.state_dict(), shadowed.state_dict()])
    gradients([own], scale=float("nan"))
    assert not update.step()
    after = [own.state_dict(), other.state_dict(), shadowed.state_dict()]
    assert str(before) == str(after)
    assert shadowed.updates == 1


def test_a_scheduler_sees_that_the_optimizer_stepped(recwarn):
    _, (own, other, shadowed) = twins(torch.optim.Adam, {})
    gradients([own])
    other.step()
    schedule = torch.optim.lr_scheduler.StepLR(other, 1)
    assert CompiledUpdate(shadowed).step()
    schedule.step()
    assert not recwarn


def test_other_hooks_would_be_passed_over():
    _, (_, other, shadowed) = twins(torch.optim.Adam, {})
    other.register_step_post_hook(lambda *args: None)
    with pytest.raises(CannotCompile, match="step hooks besides"):
        CompiledUpdate(shadowed)


class Own(torch.optim.Adam):
    """Anyone's."""


def test_hooks_that_come_later_are_seen():
    _, (own, other, shadowed) = twins(torch.optim.Adam, {})
    update = CompiledUpdate(shadowed)
    for _ in range(2):
        gradients([own])
        if not update.step():
            other.step()
    handle = other.register_step_pre_hook(lambda *args: None)
    with pytest.raises(CannotCompile, match="step hooks besides"):
        update.step()
    handle.remove()
    assert update.step()


def test_other_optimizers_step_themselves():
    _, (_, _, shadowed) = twins(Own, {})
    with pytest.raises(CannotCompile, match="Own is none of"):
        CompiledUpdate(shadowed)


@pytest.mark.slow
def test_the_compiled_kernel(monkeypatch):
    monkeypatch.undo()
    (net, optimizer, _), (own, other, shadowed) = twins(torch.optim.Adam, {}, max_grad_norm=1.0)
    update = CompiledUpdate(shadowed)
    done = []
    for _ in range(5):
        gradients((net, own))
        optimizer.step()
        done.append(update.step() or other.step())
    assert done == [None, True, True, True, True]
    assert distance(net.parameters(), own.parameters()) < 1e-12

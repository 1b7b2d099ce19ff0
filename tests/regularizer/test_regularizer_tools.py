"""``DynamicRegularizer`` beside what users do with optimizers: averages, mixed precision, misuse."""

import pytest
import torch
from nets import batch, copies, distance, identical, sgd, spikes, spiking_net
from torch import nn
from torch.optim import SGD, Adam

from fptt_plugin import DynamicRegularizer
from fptt_plugin.functional import add_regularizer_gradient_, update_averages_


def train(net, optimizer, updates, scaler=None, spoil=()):
    """Updates on random data; those whose number is in ``spoil`` get an infinite gradient."""
    for update in range(updates):
        x, y = batch(1)
        net[1].mem = net[3].mem = None
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(3 * x[0]), y)
        loss = loss * float("inf") if update in spoil else loss
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


def everything(net, regularizer):
    parameters = list(net.parameters())
    return copies([*parameters, *map(regularizer.average_of, parameters), *map(regularizer.dual_of, parameters)])


def test_averaged_weights_come_and_go_bit_for_bit():
    net = spiking_net()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, 0.5)
    train(net, optimizer, 5)
    weights, averages = copies(net.parameters()), copies(map(regularizer.average_of, net.parameters()))
    assert not identical(weights, averages)
    with regularizer.averaged_weights():
        assert identical(net.parameters(), averages)
    assert identical(net.parameters(), weights)
    with pytest.raises(KeyError), regularizer.averaged_weights():
        raise KeyError
    assert identical(net.parameters(), weights)
    regularizer.load_averages()
    assert identical(net.parameters(), averages)
    assert regularizer.dual_of(net[0].weight).abs().max() > 0  # the duals stay


def test_averaged_weights_in_the_middle_of_a_graph():
    net = spiking_net()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, 0.5)
    train(net, optimizer, 5)
    net[1].mem = net[3].mem = None
    x = torch.rand(4, 3)
    gradients = []
    for look in (False, True):
        net[1].mem = net[3].mem = None
        loss = net(x).square().sum()
        if look:
            with regularizer.averaged_weights():
                assert not torch.equal(net[0].weight, gradients[0])
        gradients.append(torch.autograd.grad(loss, net[0].weight)[0])
    assert torch.equal(*gradients)


@pytest.mark.parametrize("implementation", ["foreach", "fused"])
def test_grad_scaler(implementation):
    ends = {}
    for scaled in (False, True):
        torch.manual_seed(2)
        net = spiking_net()
        optimizer = Adam(net.parameters(), lr=0.01, **{implementation: True})
        regularizer = DynamicRegularizer(optimizer, 0.2, max_grad_norm=0.3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10) if scaled else None
        with spikes(net):
            train(net, optimizer, 15, scaler)
        ends[scaled] = everything(net, regularizer)
    assert distance(*ends.values()) < 1e-5
    train(net, optimizer, 1, scaler, spoil=[0])
    assert identical(everything(net, regularizer), ends[True])  # W, W_bar and dual skip the overflow together
    assert scaler.get_scale() < 2.0**10
    train(net, optimizer, 1, scaler)
    assert not identical(everything(net, regularizer), ends[True])
    assert all(tensor.isfinite().all() for tensor in everything(net, regularizer))


def test_an_optimizer_that_evaluates_the_loss_itself_is_refused():
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.zeros(1))])
    with pytest.raises(ValueError, match=r"LBFGS.*use Adam or SGD"):
        DynamicRegularizer(optimizer)


def test_sparse_gradients_are_refused():
    embedding = nn.Embedding(4, 2, sparse=True)
    dense = nn.Parameter(torch.ones(2))
    optimizer = SGD([{"params": [dense]}, {"params": embedding.parameters()}], lr=0.1)
    regularizer = DynamicRegularizer(optimizer)
    before = everything(embedding, regularizer)
    (embedding(torch.tensor([1])) * dense).sum().backward()
    with pytest.raises(ValueError, match="sparse=False"):
        optimizer.step()
    assert identical(everything(embedding, regularizer), before)
    assert torch.equal(dense, torch.ones(2))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alpha": -0.1}, "alpha=-0.1 must be"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"alpha": float("inf")}, "alpha=inf"),
        ({"beta": 0.0}, r"beta=0.0 must lie in \(0, 1\]"),
        ({"beta": 1.1}, "beta=1.1"),
        ({"rho": -0.1}, r"rho=-0.1 must lie in \[0, 1\]"),
        ({"rho": 2}, "rho=2"),
        ({"variant": "newton"}, "variant='newton' is unknown; choose one of 'dual', 'gradient'"),
        ({"max_grad_norm": 0}, "max_grad_norm=0 must be > 0, or None"),
        ({"alpha": "1e-1"}, r"alpha='1e-1' is of type str: pass a number, float\('1e-1'\)"),
        ({"beta": None}, "beta=None is of type NoneType: pass a number"),
        ({"rho": [0.1]}, r"rho=\[0.1\] is of type list: pass a number"),
        ({"max_grad_norm": "1.0"}, r"max_grad_norm='1.0' is of type str: pass a number, float\('1.0'\)"),
    ],
)
def test_impossible_options(options, words):
    optimizer = sgd(spiking_net())
    with pytest.raises(ValueError, match=words):
        DynamicRegularizer(optimizer, **options)
    DynamicRegularizer(optimizer)  # the failure left no hook behind


def test_all_problems_at_once():
    with pytest.raises(ValueError, match=r"alpha=-1(.|\n)*beta=3(.|\n)*must be a torch.optim.Optimizer, got generator"):
        DynamicRegularizer(spiking_net().parameters(), alpha=-1, beta=3)


def test_schedulers_act():
    net = spiking_net()
    optimizer = sgd(net)
    DynamicRegularizer(optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    train(net, optimizer, 1)
    scheduler.step()
    before = copies(net.parameters())
    train(net, optimizer, 1)
    assert identical(net.parameters(), before)


# ---------------------------------------------------------------------- an update made elsewhere


@pytest.mark.parametrize("options", [{}, {"rho": 0.5, "beta": 0.2}, {"alpha": 0.0}], ids=str)
def test_the_pure_functions_make_the_same_update(options):
    ends = []
    for elsewhere in (False, True):
        torch.manual_seed(4)
        net = spiking_net()
        optimizer = sgd(net)
        regularizer = DynamicRegularizer(optimizer, max_grad_norm=0.3, **options)
        lists = []
        for _ in range(6):
            x, y = batch(1)
            net[1].mem = net[3].mem = None
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(3 * x[0]), y).backward()
            weights = list(net.parameters())
            lists.append(regularizer.averages_and_duals(weights))
            if not elsewhere or lists[-1] is None:
                optimizer.step()
                continue
            regularizer.check_ready()
            averages, duals = lists[-1]
            if averages:
                grads = [weight.grad for weight in weights]
                add_regularizer_gradient_(
                    grads, weights, averages, duals, alpha=regularizer.alpha, dual_weight=regularizer.dual_weight
                )
            norm = nn.utils.clip_grad_norm_(weights, 0.3)
            with torch.no_grad():
                for weight in weights:
                    weight -= 0.1 * weight.grad
            if averages:
                update_averages_(weights, averages, duals, beta=regularizer.beta)
            regularizer.note_updates(grad_norm=norm)
        assert [pair is None for pair in lists] == [regularizer.alpha > 0, *[False] * 5]
        ends.append([*everything(net, regularizer), regularizer.grad_norm])
        assert regularizer.updates == 6
    assert distance(*ends) < 1e-6


def test_an_update_made_elsewhere_that_was_given_up():
    net = spiking_net()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, max_grad_norm=0.3)
    train(net, optimizer, 2)
    norm = regularizer.grad_norm
    with torch.autocast("cpu", torch.bfloat16):
        stale = net[0](torch.ones(1, 3))
        with torch.no_grad():
            net[0].weight.add_(1.0)
        regularizer.note_updates(0)
        assert not torch.equal(net[0](torch.ones(1, 3)), stale)
    train(net, optimizer, 1)
    assert regularizer.updates == 3
    assert regularizer.grad_norm is not norm


def test_a_compiled_training_step_does_not_recompile_at_every_update():
    ends = []
    for compiled in (False, True):
        torch.manual_seed(4)
        net = nn.Linear(3, 2)
        optimizer = sgd(net)
        regularizer = DynamicRegularizer(optimizer, 0.3, max_grad_norm=0.1)

        def step(x, net=net, optimizer=optimizer):
            optimizer.zero_grad()
            net(x).square().sum().backward()
            optimizer.step()

        if compiled:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            step = torch.compile(step, backend="eager")
        for update in range(12):
            step(torch.rand(4, 3))
            if compiled and update == 3:
                graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        assert regularizer.updates == 12
        ends.append(everything(net, regularizer))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs > 0
    assert distance(*ends) < 1e-6
    torch._dynamo.reset()

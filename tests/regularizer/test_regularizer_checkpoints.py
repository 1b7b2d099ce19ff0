"""A checkpoint of network and optimizer, as every loop writes it, resumes FPTT bit for bit."""

import copy
import io
import itertools
import pickle
from functools import partial

import pytest
import torch
from nets import adam, copies, identical, sgd
from torch import nn, optim
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict

from fptt_plugin import DynamicRegularizer
from fptt_plugin.errors import CallOrderError, CheckpointError, WeightsChangedError

OPTIONS = {"alpha": 0.3, "beta": 0.4, "rho": 0.1, "max_grad_norm": 1.0}
OPTIMIZERS = {
    "sgd": partial(optim.SGD, lr=0.1),
    "momentum": partial(optim.SGD, lr=0.05, momentum=0.9),
    "nesterov": partial(optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "maximize": partial(optim.SGD, lr=0.01, maximize=True),
    "fused sgd": partial(optim.SGD, lr=0.05, momentum=0.9, fused=True),
    "adam": partial(optim.Adam, lr=0.05),
    "amsgrad": partial(optim.Adam, lr=0.05, amsgrad=True),
    "foreach adam": partial(optim.Adam, lr=0.05, foreach=True),
    "fused adam": partial(optim.Adam, lr=0.05, fused=True),
    "tensor rate": partial(optim.Adam, lr=torch.tensor(0.05), foreach=False),
    "adamw": partial(optim.AdamW, lr=0.05),
    "fused adamw": partial(optim.AdamW, lr=0.05, fused=True),
    "adamax": partial(optim.Adamax, lr=0.05),
    "nadam": partial(optim.NAdam, lr=0.05),
    "radam": partial(optim.RAdam, lr=0.05),
    "rmsprop": partial(optim.RMSprop, lr=0.01),
    "centered rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.5, centered=True),
    "rprop": partial(optim.Rprop, lr=0.01),
    "adagrad": partial(optim.Adagrad, lr=0.05),
    "fused adagrad": partial(optim.Adagrad, lr=0.05, fused=True),
    "adadelta": optim.Adadelta,
    "asgd": partial(optim.ASGD, lr=0.05, t0=3),
}
if hasattr(optim, "Adafactor"):
    OPTIMIZERS["adafactor"] = partial(optim.Adafactor, lr=0.05)
if hasattr(optim, "Muon"):
    OPTIMIZERS["muon"] = lambda parameters: optim.Muon([p for p in parameters if p.ndim == 2], lr=0.05)


def build(dtype=torch.float32, first=None):
    torch.manual_seed(0)
    return nn.Sequential(first or nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def train(net, optimizer, steps, seed=1, used=lambda t: True):
    generator = torch.Generator().manual_seed(seed)
    for t in range(steps):
        x, y = torch.rand(4, 5, generator=generator), torch.randint(3, (4,), generator=generator)
        net.zero_grad()
        nn.functional.cross_entropy(net(x.to(net[2].weight.dtype)), y).backward()
        if not used(t):
            net[2].weight.grad = None
        optimizer.step()


def everything(net, regularizer):
    parameters = list(net.parameters())
    return copies([*parameters, *map(regularizer.average_of, parameters), *map(regularizer.dual_of, parameters)])


def saved(*parts):
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumes(make_net, make_optimizer, *, before=7, after=5, options=OPTIONS, orders=((0, 0), (0, 1), (1, 0), (1, 1))):
    """Compare an uninterrupted run with one resumed from ``state_dict()`` of network and optimizer alone."""
    net = make_net()
    optimizer = make_optimizer(net.parameters())
    regularizer = DynamicRegularizer(optimizer, **options)
    train(net, optimizer, before)
    weights, moments = saved(net, optimizer)
    train(net, optimizer, after, seed=2)
    expected = everything(net, regularizer)
    for regularizer_first, net_first in orders:
        other = make_net()
        second = make_optimizer(other.parameters())
        if regularizer_first:
            resumed = DynamicRegularizer(second, **options)
            train(other, second, 2, seed=3)  # not new: as after a range test
        if net_first:
            other.load_state_dict(weights)
        second.load_state_dict(copy.deepcopy(moments))  # torch's own entries would be shared with it
        if not net_first:
            other.load_state_dict(weights)
        if not regularizer_first:
            resumed = DynamicRegularizer(second, **options)
        train(other, second, after, seed=2)
        assert identical(everything(other, resumed), expected)
        assert resumed.updates == regularizer.updates == before + after
        records = [value for group in second.param_groups for key, value in group.items() if key.startswith("fptt")]
        assert set(records) == {None}  # none that a later regularizer would read
    return regularizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_resumes_whatever_is_loaded_or_built_first(name, dtype):
    net = build(dtype)
    regularizer = resumes(lambda: build(dtype), OPTIMIZERS[name])
    moved = [p for group in regularizer.optimizer.param_groups for p in group["params"]]
    assert len(moved) >= 2
    if (name, dtype) != ("fused sgd", torch.bfloat16):  # torch 2.13: does not move such weights on a CPU
        assert all(regularizer.dual_of(weight).abs().max() > 0 for weight in moved if weight.ndim == 2)
    assert net[0].weight.dtype == regularizer.average_of(moved[0]).dtype == dtype


def test_several_groups_and_a_frozen_weight_resume():
    def make_net():
        net = build()
        net[0].bias.requires_grad_(False)
        return net

    def two_groups(parameters):
        first, *others = parameters
        return optim.Adam([{"params": [first], "lr": 0.1}, {"params": others}], lr=0.01)

    regularizer = resumes(make_net, two_groups)
    frozen = regularizer.optimizer.param_groups[1]["params"][0]
    assert not frozen.requires_grad
    assert "fptt_average" not in regularizer.optimizer.state[frozen]


@pytest.mark.parametrize("before", [1, 4])
def test_lazy_parameters_resume(before):
    resumes(lambda: build(first=nn.LazyLinear(7)), OPTIMIZERS["adam"], before=before, orders=[(0, 0), (0, 1)])


def test_a_group_added_later_resumes():
    def late(net, optimizer):
        optimizer.add_param_group({"params": net[2].parameters(), "lr": 0.02})
        return optimizer

    net = build()
    optimizer = adam(net[0])
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 3)
    late(net, optimizer)
    train(net, optimizer, 3)
    weights, moments = saved(net, optimizer)
    train(net, optimizer, 3, seed=2)
    other = build()
    second = late(other, adam(other[0]))
    resumed = DynamicRegularizer(second, **OPTIONS)
    other.load_state_dict(weights)
    second.load_state_dict(moments)
    train(other, second, 3, seed=2)
    assert identical(everything(other, resumed), everything(net, regularizer))
    assert resumed.dual_of(other[2].weight).abs().max() > 0


@pytest.mark.parametrize("name", ["sgd", "adam", "adagrad", "asgd", "rprop"])
def test_a_weight_whose_first_gradient_comes_late(name):
    # An optimizer takes a state that is not empty for its own: W_bar must not be the first there.
    net = build()
    optimizer = OPTIMIZERS[name](net.parameters())
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 3, used=lambda t: False)
    assert "fptt_average" not in optimizer.state.get(net[2].weight, {})
    weights, moments = saved(net, optimizer)
    other = build()
    second = OPTIMIZERS[name](other.parameters())
    other.load_state_dict(weights)
    second.load_state_dict(moments)
    resumed = DynamicRegularizer(second, **OPTIONS)
    for one in ((net, optimizer), (other, second)):
        train(*one, 4, seed=2)
    assert identical(everything(other, resumed), everything(net, regularizer))
    assert regularizer.dual_of(net[2].weight).abs().max() > 0


@pytest.mark.parametrize("name", ["sgd", "fused adam", "adamax"])
def test_alpha_switched_on_after_some_updates(name):
    net = build()
    optimizer = OPTIMIZERS[name](net.parameters())
    regularizer = DynamicRegularizer(optimizer, alpha=0.0)
    train(net, optimizer, 4)
    assert not any("fptt_average" in entry for entry in optimizer.state.values())
    regularizer.alpha = 0.3
    train(net, optimizer, 4)
    weights, moments = saved(net, optimizer)
    other = build()
    second = OPTIMIZERS[name](other.parameters())
    resumed = DynamicRegularizer(second, alpha=0.3)
    second.load_state_dict(moments)
    other.load_state_dict(weights)
    for one in ((net, optimizer), (other, second)):
        train(*one, 4, seed=2)
    assert identical(everything(other, resumed), everything(net, regularizer))
    regularizer.alpha = 0.0
    train(net, optimizer, 1)
    assert not any("fptt_average" in entry for entry in optimizer.state.values())
    assert identical(map(regularizer.average_of, net.parameters()), copies(net.parameters()))


@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_another_alpha_after_loading_keeps_the_dual(variant):
    net = build()
    optimizer = adam(net)
    regularizer = DynamicRegularizer(optimizer, 0.3, variant=variant)
    for seed in range(4):
        train(net, optimizer, 1, seed)
        if variant == "gradient":
            regularizer.second_gradient(lambda: net(torch.ones(1, 5)).square().sum())
    weights, moments = saved(net, optimizer)
    other = build()
    other.load_state_dict(weights)
    second = adam(other)
    second.load_state_dict(moments)
    resumed = DynamicRegularizer(second, 0.12, variant=variant)
    for mine, its in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(regularizer.dual_of(mine), resumed.dual_of(its))
    scaled = second.state[other[0].weight]["fptt_dual"].clone()
    train(other, second, 1, used=lambda t: False)  # no gradient for the last layer
    torch.testing.assert_close(resumed.dual_of(other[2].weight), regularizer.dual_of(net[2].weight))
    assert not torch.equal(second.state[other[0].weight]["fptt_dual"], scaled)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
@pytest.mark.parametrize("make", [sgd, adam])
def test_copies_of_network_optimizer_and_regularizer_go_on_by_themselves(make, duplicate):
    net = build()
    optimizer = make(net)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 4)
    other, second, copied = duplicate((net, optimizer, regularizer))
    before = everything(other, copied)
    train(net, optimizer, 4, seed=2)
    assert identical(everything(other, copied), before)
    train(other, second, 4, seed=2)
    assert identical(everything(other, copied), everything(net, regularizer))


def test_a_copy_made_with_the_averages_in_place_trains_from_them():
    net = build()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 4)
    with regularizer.averaged_weights():
        other, second, copied = copy.deepcopy((net, optimizer, regularizer))
    regularizer.load_averages()
    for one in ((net, optimizer), (other, second)):
        train(*one, 3, seed=2)
    assert identical(everything(other, copied), everything(net, regularizer))


def test_complex_weights_resume():
    def make_net():
        torch.manual_seed(0)
        return nn.ParameterList([torch.randn(3, 2, dtype=torch.complex64)])

    def step(net, optimizer):
        optimizer.zero_grad()
        (net[0] - 1j).abs().square().sum().backward()
        optimizer.step()

    net = make_net()
    optimizer = adam(net)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    step(net, optimizer)
    weights, moments = saved(net, optimizer)
    other = make_net()
    second = adam(other)
    resumed = DynamicRegularizer(second, **OPTIONS)
    other.load_state_dict(weights)
    second.load_state_dict(moments)
    for one in ((net, optimizer), (other, second)):
        step(*one)
    assert identical(everything(other, resumed), everything(net, regularizer))


def test_two_optimizers_do_not_share_the_averages_of_a_state():
    net = build()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 4)
    other = copy.deepcopy(net)
    second = sgd(other)
    resumed = DynamicRegularizer(second, **OPTIONS)
    second.load_state_dict(optimizer.state_dict())  # not copied
    before = everything(other, resumed)
    train(net, optimizer, 4)
    assert identical(everything(other, resumed), before)
    assert not identical(everything(net, regularizer), before)


# ---------------------------------------------------------------------- into parameters in another order


class Named(nn.Module):
    """The layers of a network, built in any order; those of other names take no part in the output."""

    def __init__(self, *order):
        super().__init__()
        torch.manual_seed(len(order))
        for name in order:
            setattr(self, name, nn.Linear(5, 5))

    def forward(self, x):
        return self.second(self.first(x).tanh())


def by_name(optimizer, state):
    """A hook that finds the state of each parameter by its name, as in the documentation of ``torch.optim``."""
    adapted = copy.deepcopy(optimizer.state_dict())
    for own, saved_group in zip(adapted["param_groups"], state["param_groups"], strict=True):
        own.update({key: value for key, value in saved_group.items() if key not in ("params", "param_names")})
        there = dict(zip(saved_group["param_names"], saved_group["params"], strict=True))
        for name, position in zip(own["param_names"], own["params"], strict=True):
            if there.get(name) in state["state"]:
                adapted["state"][position] = copy.deepcopy(state["state"][there[name]])
    return adapted


def train_named(net, optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.rand(4, 5, generator=generator)).square().sum().backward()
        optimizer.step()


FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


def load_by_name(net, optimizer, other, second):
    second.register_load_state_dict_pre_hook(by_name)
    other.load_state_dict(net.state_dict(), strict=False)
    second.load_state_dict(optimizer.state_dict())


def load_distributed(net, optimizer, other, second):
    weights, moments = copy.deepcopy(get_state_dict(net, optimizer))
    options = StateDictOptions(strict=False)
    set_state_dict(other, second, model_state_dict=weights, optim_state_dict=moments, options=options)


@pytest.mark.parametrize("hook_first", [False, True])
@pytest.mark.parametrize(
    ("load", "order"),
    [
        (load_by_name, ("second", "first")),
        (load_by_name, ("new", "first", "second")),
        (load_by_name, ("second", "new", "first")),
        (load_distributed, ("first", "second")),
        (load_distributed, ("second", "first")),
    ],
)
def test_averages_follow_their_weights_into_another_order(load, order, hook_first):
    net = Named("first", "second")
    optimizer = optim.Adam(net.named_parameters(), lr=0.05)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train_named(net, optimizer, 4)
    other = Named(*order)
    second = optim.Adam(other.named_parameters(), lr=0.05)
    resumed = DynamicRegularizer(second, **OPTIONS) if not hook_first else None
    load(net, optimizer, other, second)
    resumed = resumed or DynamicRegularizer(second, **OPTIONS)
    for one in ((net, optimizer), (other, second)):
        train_named(*one, 3, seed=2)
    for name, weight in net.named_parameters():
        twin = other.get_parameter(name)
        average = regularizer.average_of(weight)
        assert (average - weight).abs().max() > 1e-3
        torch.testing.assert_close(twin, weight, rtol=0, atol=1e-6)  # norms are summed in the order of the parameters
        torch.testing.assert_close(resumed.average_of(twin), average, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam])
def test_a_flattened_state_has_all_that_a_nested_one_has(kind):
    """Count of updates, and the unit of the duals: ``alpha`` may have another value when the file is loaded."""
    net = Named("first", "second")
    layers = [{"params": layer.parameters()} for layer in net.children()]
    optimizer = kind(layers, lr=0.05)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train_named(net, optimizer, 4)
    regularizer.alpha *= 2
    weights, moments = copy.deepcopy(get_state_dict(net, optimizer, options=FLAT))
    other = Named("first", "second")
    second = kind([{"params": layer.parameters()} for layer in other.children()], lr=0.05)
    resumed = DynamicRegularizer(second, **OPTIONS)
    set_state_dict(other, second, model_state_dict=weights, optim_state_dict=moments, options=FLAT)
    assert resumed.updates == regularizer.updates == 4
    resumed.alpha = regularizer.alpha
    for one in ((net, optimizer), (other, second)):
        train_named(*one, 3, seed=2)
    assert regularizer.dual_of(net.first.weight).abs().max() > 1e-3
    for weight, twin in zip(net.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, twin)
        assert torch.equal(regularizer.average_of(weight), resumed.average_of(twin))
        assert torch.equal(regularizer.dual_of(weight), resumed.dual_of(twin))


def test_a_removed_regularizer_leaves_no_keys():
    net = Named("first", "second")
    optimizer = optim.Adam(net.parameters(), lr=0.05)
    before = [*optimizer.param_groups[0]]
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train_named(net, optimizer, 2)
    regularizer.remove()
    assert [*optimizer.param_groups[0]] == before


# ---------------------------------------------------------------------- what does not belong together


@pytest.mark.parametrize(
    "make_net", [partial(build, first=nn.Linear(4, 7)), lambda: nn.Linear(5, 7), lambda: nn.Sequential(nn.Linear(7, 5))]
)
def test_the_state_of_another_network_is_refused(make_net):
    net, other = build(), make_net()
    optimizer, second = sgd(net), sgd(other)
    DynamicRegularizer(optimizer, 0.2)
    stranger = DynamicRegularizer(second)
    train(net, optimizer, 2)
    before, moments = everything(other, stranger), str(second.state_dict())
    with pytest.raises(ValueError):  # noqa: PT011  torch's for other groups, CheckpointError for other shapes
        second.load_state_dict(optimizer.state_dict())
    assert identical(everything(other, stranger), before)
    assert str(second.state_dict()) == moments


def test_the_state_of_another_variant_is_refused():
    net = build()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, variant="gradient")
    train(net, optimizer, 1)
    regularizer.second_gradient(lambda: net(torch.ones(1, 5)).sum())
    first, after = sgd(build()), sgd(build())
    DynamicRegularizer(first)
    with pytest.raises(CheckpointError):
        first.load_state_dict(optimizer.state_dict())
    after.load_state_dict(optimizer.state_dict())
    with pytest.raises(CheckpointError):
        DynamicRegularizer(after)
    with pytest.raises(CheckpointError):
        DynamicRegularizer(sgd(build())).load_state_dict(regularizer.state_dict())


def test_a_state_without_averages_has_no_variant():
    optimizer = sgd(build())
    DynamicRegularizer(optimizer, alpha=0.0)
    other = sgd(build())
    DynamicRegularizer(other, variant="gradient")
    other.load_state_dict(optimizer.state_dict())


def test_the_control_stays_one():
    net = build()
    optimizer = sgd(net)
    DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 3)
    weights, moments = saved(net, optimizer)
    ends = []
    for options in (None, {"alpha": 0.0}, {"alpha": 0.0, "variant": "gradient"}):
        control = build()
        plain = sgd(control)
        if options is not None:
            DynamicRegularizer(plain, **options)
        control.load_state_dict(weights)
        plain.load_state_dict(moments)
        train(control, plain, 3)
        ends.append(copies(control.parameters()))
    assert identical(ends[0], ends[1])
    assert identical(ends[0], ends[2])


def test_nothing_is_saved_or_loaded_with_the_averages_in_place():
    net = build()
    optimizer = sgd(net)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 3)
    state = copy.deepcopy(optimizer.state_dict())
    with regularizer.averaged_weights():
        with pytest.raises(CallOrderError):
            optimizer.state_dict()
        with pytest.raises(CallOrderError):
            optimizer.load_state_dict(state)
    optimizer.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_to_another_precision(dtype):
    net = build()
    optimizer = adam(net)
    DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 5)
    weights, moments = saved(net, optimizer)
    other = build(dtype)
    second = adam(other)
    resumed = DynamicRegularizer(second, **OPTIONS)
    other.load_state_dict(weights)
    second.load_state_dict(moments)
    train(other, second, 2)
    assert resumed.average_of(other[0].weight).dtype == dtype
    assert resumed.updates == 7


# ---------------------------------------------------------------------- files of version 0.1


def old_state(net, regularizer):
    parameters = list(net.parameters())
    scaled = [regularizer.dual_of(p) / regularizer.alpha for p in parameters]
    averages = copies(map(regularizer.average_of, parameters))
    return {**regularizer.state_dict(), "averages": dict(enumerate(averages)), "duals": dict(enumerate(scaled))}


def without_fptt(state):
    state = copy.deepcopy(state)
    for entry in itertools.chain(state["state"].values(), state["param_groups"]):
        for key in [key for key in entry if str(key).startswith("fptt")]:
            del entry[key]
    return state


@pytest.mark.parametrize("regularizer_first", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamax"])
def test_a_state_of_version_0_1_resumes(name, regularizer_first):
    options = {**OPTIONS, "alpha": 0.25}  # a power of two: old_state() divides by it
    net = build()
    optimizer = OPTIMIZERS[name](net.parameters())
    regularizer = DynamicRegularizer(optimizer, **options)
    train(net, optimizer, 4)
    weights, moments, old = copy.deepcopy(
        (net.state_dict(), without_fptt(optimizer.state_dict()), old_state(net, regularizer))
    )
    other = build()
    second = OPTIMIZERS[name](other.parameters())
    resumed = DynamicRegularizer(second, max_grad_norm=1.0)
    other.load_state_dict(weights)
    for part in [resumed, second] if regularizer_first else [second, resumed]:
        part.load_state_dict(old if part is resumed else moments)
    assert identical(everything(other, resumed), everything(net, regularizer))
    for one in ((net, optimizer), (other, second)):
        train(*one, 4, seed=2)
    assert identical(everything(other, resumed), everything(net, regularizer))
    assert (resumed.alpha, resumed.beta, resumed.rho, resumed.updates) == (0.25, 0.4, 0.1, 8)
    second.load_state_dict(moments)  # of a plain optimizer
    assert identical(map(resumed.average_of, other.parameters()), copies(other.parameters()))


def test_an_old_state_of_another_network_is_refused():
    net, other = build(), build(first=nn.Linear(4, 7))
    optimizer, second = sgd(net), sgd(other)
    regularizer, stranger = DynamicRegularizer(optimizer, 0.2), DynamicRegularizer(second)
    train(net, optimizer, 2)
    for state in (old_state(net, regularizer), {**old_state(net, regularizer), "averages": {9: torch.ones(1)}}):
        with pytest.raises(CheckpointError):
            stranger.load_state_dict(state)
    assert (stranger.alpha, stranger.updates) == (0.1, 0)


# ---------------------------------------------------------------------- weights that are not those of the averages


@pytest.mark.parametrize(
    "spoil",
    [
        lambda net, weights: None,  # the optimizer alone
        lambda net, weights: net.load_state_dict({**weights, "2.weight": weights["2.weight"] + 1e-3}),
        lambda net, weights: net.load_state_dict(weights) and net.load_state_dict(build().state_dict()),
    ],
    ids=["optimizer alone", "one weight", "loaded twice"],
)
@pytest.mark.parametrize("before", [False, True])
def test_an_optimizer_with_other_weights_is_noticed(spoil, before):
    net = build()
    optimizer = adam(net)
    DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 5)
    weights, moments = saved(net, optimizer)
    other = build()
    second = adam(other)
    resumed = DynamicRegularizer(second, **OPTIONS) if before else None
    second.load_state_dict(moments)
    spoil(other, weights)
    resumed = resumed or DynamicRegularizer(second, **OPTIONS)
    present = everything(other, resumed)
    for attempt in (lambda: train(other, second, 1), resumed.load_averages, resumed.averaged_weights().__enter__):
        with pytest.raises(WeightsChangedError):
            attempt()
        assert identical(everything(other, resumed), present)
    other.load_state_dict(weights)  # the right ones after all
    train(other, second, 1)


def test_layers_in_another_order_are_noticed():
    def layers():
        return nn.Sequential(nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 3))

    net = layers()
    optimizer = sgd(net)
    DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 3)
    other = layers()
    second = optim.SGD([*other[1].parameters(), *other[0].parameters(), *other[2].parameters()], lr=0.1)
    resumed = DynamicRegularizer(second, **OPTIONS)
    other.load_state_dict(net.state_dict())
    second.load_state_dict(optimizer.state_dict())
    with pytest.raises(WeightsChangedError):
        train(other, second, 1)
    resumed.restart_averages()
    train(other, second, 1)


def test_a_change_before_saving_is_noticed_after_loading():
    net = build()
    optimizer = sgd(net)
    DynamicRegularizer(optimizer, **OPTIONS)
    train(net, optimizer, 3)
    net.load_state_dict(build().state_dict())  # the best epoch, say
    weights, moments = saved(net, optimizer)
    for _ in range(2):  # and again if that is saved untouched
        other = build()
        second = sgd(other)
        resumed = DynamicRegularizer(second, **OPTIONS)
        other.load_state_dict(weights)
        second.load_state_dict(moments)
        weights, moments = saved(other, second)
        with pytest.raises(WeightsChangedError):
            train(other, second, 1)
    resumed.restart_averages()
    train(other, second, 1)
    assert identical(everything(other, resumed)[:4], copies(other.parameters()))

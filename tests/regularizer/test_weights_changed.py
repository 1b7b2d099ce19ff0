"""Weights that change by other hands than the optimizer's are noticed before anything moves, and only then."""

import copy
import warnings

import pytest
import torch
from nets import adam, batch, copies, identical, sgd, spiking_net
from test_regularizer_checkpoints import OPTIONS, build, everything, train
from torch import nn

from fptt_plugin import DynamicRegularizer, FPTTTrainer
from fptt_plugin.errors import CallOrderError, FPTTWarning, WeightsChangedError


def trained(make=adam, steps=4, **options):
    net = build()
    optimizer = make(net)
    regularizer = DynamicRegularizer(optimizer, **{**OPTIONS, **options})
    train(net, optimizer, steps)
    return net, optimizer, regularizer


@torch.no_grad()
def in_place(net):
    net[2].bias.mul_(1.5)


def to_vector_and_back(net):
    vector = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(2 * vector, net.parameters())  # a new tensor in .data


CHANGES = {
    "load_state_dict": lambda net: net.load_state_dict(build().state_dict()),
    "one layer": lambda net: net[2].load_state_dict(build()[2].state_dict()),
    "in place": in_place,
    "vector_to_parameters": to_vector_and_back,
    "init": lambda net: nn.init.orthogonal_(net[0].weight),
    "prune": lambda net: net[0].weight.detach().masked_fill_(net[0].weight.abs() < 0.1, 0.0),
}


@pytest.mark.parametrize("attempt", ["step", "load_averages", "averaged_weights"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_noticed_before_anything_moves(change, attempt):
    net, optimizer, regularizer = trained()
    CHANGES[change](net)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before, moments = everything(net, regularizer), copy.deepcopy(optimizer.state_dict()["state"])
    attempts = {
        "step": optimizer.step,
        "load_averages": regularizer.load_averages,
        "averaged_weights": lambda: regularizer.averaged_weights().__enter__(),
    }
    for _ in range(2):  # not once only
        with pytest.raises(WeightsChangedError) as raised:
            attempts[attempt]()
    assert "restart_averages()" in raised.value.remedy
    assert "accept_weights()" in raised.value.remedy
    assert identical(everything(net, regularizer), before)
    assert str(optimizer.state_dict()["state"]) == str(moments)
    assert all(torch.equal(p.grad, torch.ones_like(p)) for p in net.parameters())
    assert regularizer.updates == 4


@pytest.mark.parametrize("change", CHANGES)
def test_restarting_begins_from_the_present_weights(change):
    net, optimizer, regularizer = trained(sgd)
    CHANGES[change](net)
    other = copy.deepcopy(net)
    regularizer.restart_averages()
    with regularizer.averaged_weights():
        assert identical(net.parameters(), other.parameters())
    fresh = DynamicRegularizer(second := sgd(other), **OPTIONS)
    for one in ((net, optimizer), (other, second)):
        train(*one, 4, seed=2)
    assert identical(everything(net, regularizer), everything(other, fresh))


@pytest.mark.parametrize("change", CHANGES)
def test_accepting_keeps_the_averages(change):
    net, optimizer, regularizer = trained()
    before = everything(net, regularizer)[4:]
    CHANGES[change](net)
    present = copies(net.parameters())
    regularizer.accept_weights()
    assert identical(everything(net, regularizer)[4:], before)
    assert identical(net.parameters(), present)
    train(net, optimizer, 2)


@pytest.mark.parametrize("way", ["accepted", "hook", "data"])
def test_weights_are_clipped_after_every_step(way):
    net = build()
    optimizer = sgd(net)

    @torch.no_grad()
    def clip(*_):
        for parameter in net.parameters():
            (parameter.data if way == "data" else parameter).clamp_(-0.2, 0.2)

    if way == "hook":  # before the regularizer's, whose averages then see the clipped weights
        optimizer.register_step_post_hook(clip)
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    for step in range(6):
        train(net, optimizer, 1, seed=step)
        if way != "hook":
            clip()
        if way == "accepted":
            regularizer.accept_weights()
    assert max(p.abs().max() for p in net.parameters()) == torch.tensor(0.2)
    assert regularizer.dual_of(net[0].weight).abs().max() > 0
    assert regularizer.updates == 6


# ---------------------------------------------------------------------- legitimate use


def test_a_range_test_that_restores_weights_and_optimizer():
    for order in ("net first", "optimizer first"):
        for steps in (0, 4):
            net, optimizer, regularizer = trained(steps=steps)
            state = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
            control, second, controlled = copy.deepcopy((net, optimizer, regularizer))
            train(net, optimizer, 5, seed=7)
            for part in (net, optimizer) if order == "net first" else (optimizer, net):
                part.load_state_dict(copy.deepcopy(state[part is optimizer]))
            for one in ((net, optimizer), (control, second)):
                train(*one, 4, seed=2)
            assert identical(everything(net, regularizer), everything(control, controlled))
            assert regularizer.updates == steps + 4


@pytest.mark.parametrize("make", [sgd, lambda net: torch.optim.AdamW(net.parameters(), fused=True)])
def test_ordinary_use_is_not_taken_for_a_change(make, tmp_path):
    net, optimizer, regularizer = trained(make)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(3):
            with regularizer.averaged_weights(), regularizer.averaged_weights(), torch.no_grad():
                net(torch.ones(1, 5))
            train(net, optimizer, 2, seed, used=lambda t: t != 1)
            regularizer.load_averages()
            torch.save([net.state_dict(), optimizer.state_dict()], tmp_path / "a.pt")
            net.float()
            train(net, optimizer, 1, seed)
        for _ in range(2):
            net.requires_grad_(False)
            net.load_state_dict(net.state_dict())
            regularizer.accept_weights()
            net.requires_grad_(True)
            train(net, optimizer, 1)
            net, optimizer, regularizer = copy.deepcopy((net, optimizer, regularizer))
    assert regularizer.updates == 4 + 9 + 2


def test_a_frozen_weight_may_change_until_it_trains_again():
    net, optimizer, regularizer = trained()
    net[0].requires_grad_(False)
    net[0].load_state_dict(build()[0].state_dict())
    net.zero_grad()
    train(net, optimizer, 2)
    net[0].requires_grad_(True)
    with pytest.raises(WeightsChangedError):
        train(net, optimizer, 1)
    regularizer.restart_averages()
    train(net, optimizer, 1)


def test_a_control_is_not_bothered():
    net, optimizer, regularizer = trained(alpha=0.0)
    for change in CHANGES.values():
        change(net)
        train(net, optimizer, 1)
        with regularizer.averaged_weights():
            pass
    assert regularizer.updates == 4 + len(CHANGES)


class Masked(torch.optim.SGD):
    """Writes to every weight, and its old value where the gradients overflow."""

    _step_supports_amp_scaling = True

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter.copy_(torch.where(self.found_inf > 0, parameter, parameter - 0.1 * parameter.grad))


@pytest.mark.parametrize("make", [lambda p: torch.optim.Adam(p, fused=True), lambda p: Masked(p, lr=0.1)])
def test_an_overflow_in_the_kernel_is_not_a_change(make):
    net = build()
    optimizer = make(net.parameters())
    regularizer = DynamicRegularizer(optimizer, **OPTIONS)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(factor):
        optimizer.zero_grad()
        scaler.scale(factor * net(torch.ones(2, 5)).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()

    for factor in (float("inf"), 1.0, float("inf"), 1.0, 1.0):
        step(factor)
    assert regularizer.updates == 3
    in_place(net)
    before = everything(net, regularizer)
    with pytest.raises(WeightsChangedError):
        step(1.0)
    assert identical(everything(net, regularizer), before)


def test_weights_replaced_behind_the_optimizer_warn():
    net, optimizer, _ = trained()
    net.load_state_dict(build().state_dict(), assign=True)
    before = copies(net.parameters())
    optimizer.zero_grad()
    with pytest.warns(FPTTWarning):
        train(net, optimizer, 1)
    assert identical(net.parameters(), before)


def test_a_change_within_averaged_weights_is_lost_with_a_warning():
    net, optimizer, regularizer = trained()
    before = copies(net.parameters())
    with pytest.warns(FPTTWarning), regularizer.averaged_weights():
        net.load_state_dict(build().state_dict())
    assert identical(net.parameters(), before)
    train(net, optimizer, 1)


def test_nothing_restarts_within_averaged_weights():
    _, _, regularizer = trained()
    with regularizer.averaged_weights():
        for attempt in (regularizer.restart_averages, regularizer.load_averages, regularizer.remove):
            with pytest.raises(CallOrderError):
                attempt()


# ---------------------------------------------------------------------- autocast


@pytest.mark.parametrize("act", ["step", "nothing", "load_averages", "averaged_weights"])
def test_autocast_sees_weights_as_they_are(act):
    # Autocast caches the low-precision copies of weights that require a gradient for the life of the context.
    net, optimizer, regularizer = trained(sgd)
    x = torch.rand(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        stale = net[0](x)
        stale.float().square().sum().backward()
        if act == "step":
            optimizer.step()
        elif act == "load_averages":
            regularizer.load_averages()
        elif act == "averaged_weights":
            with regularizer.averaged_weights():
                now = net[0](x)
                with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                    assert torch.equal(now, net[0](x))
                assert not torch.equal(now, stale)
        now = net[0](x)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            assert torch.equal(now, net[0](x))
    assert torch.equal(now, stale) == (act in ("averaged_weights", "nothing"))


@pytest.mark.parametrize("variant", ["dual", "gradient"])
def test_a_loop_within_autocast_is_one_with_a_context_per_step(variant):
    def loop(per_step):
        net = build()
        optimizer = sgd(net)
        regularizer = DynamicRegularizer(optimizer, variant=variant, **OPTIONS)
        generator = torch.Generator().manual_seed(1)

        def context():
            return torch.autocast("cpu", torch.bfloat16)

        with torch.autocast("cpu", torch.bfloat16, enabled=not per_step):
            for _ in range(8):
                x = torch.rand(4, 5, generator=generator)

                def loss(x=x):
                    if per_step:
                        with context():
                            return net(x).float().square().sum()
                    return net(x).float().square().sum()

                optimizer.zero_grad()
                loss().backward()
                optimizer.step()
                if variant == "gradient":
                    regularizer.second_gradient(loss)
        return everything(net, regularizer)

    assert identical(loop(True), loop(False))
    assert not identical(loop(True)[:4], copies(build().parameters()))


# ---------------------------------------------------------------------- values, which the trainer looks at


def to_data(change):
    def changed(net):
        with torch.no_grad():
            change(net[0].weight.data)

    return changed


IN_DATA = {
    "mul_": to_data(lambda data: data.mul_(0.5)),
    "copy_": to_data(lambda data: data.copy_(torch.rand_like(data))),
    "clamp_": to_data(lambda data: data.clamp_(-0.1, 0.1)),
    "one entry": to_data(lambda data: data[0].zero_()),
    "nan": to_data(lambda data: data[0, 0].fill_(torch.nan)),
}


def of_trainer(**options):
    torch.manual_seed(0)
    net = spiking_net()
    trainer = FPTTTrainer(net, sgd(net), nn.CrossEntropyLoss(), **options)
    for _ in range(2):
        trainer.train_sequence(*batch())
    return trainer


ATTEMPTS = {
    "train_sequence": lambda trainer: trainer.train_sequence(*batch()),
    "evaluate": lambda trainer: trainer.evaluate([batch()], averaged=True),
    "averaged_weights": lambda trainer: trainer.averaged_weights().__enter__(),
    "load_averages": lambda trainer: trainer.regularizer.load_averages(),
}


@pytest.mark.parametrize("options", [{}, {"window": 3}, {"variant": "gradient"}])
@pytest.mark.parametrize("change", IN_DATA)
def test_the_trainer_notices_changes_of_data(change, options):
    for attempt in ATTEMPTS.values():
        trainer = of_trainer(**options)
        trainer.evaluate([batch()])  # swaps weights and averages, and leaves what is remembered
        IN_DATA[change](trainer.net)
        before = everything(trainer.net, trainer.regularizer)
        with pytest.raises(WeightsChangedError):
            attempt(trainer)
        assert str(everything(trainer.net, trainer.regularizer)) == str(before)
        trainer.regularizer.accept_weights()
        if change != "nan":
            attempt(trainer)


@pytest.mark.parametrize("options", [{}, {"window": 4}, {"variant": "gradient"}, {"average_weights": "sequence"}])
def test_what_belongs_to_training_is_no_change_of_values(options, tmp_path):
    trainer = of_trainer(**options)
    x, y = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.train_sequence(x, y)
        trainer.reset()
        for x_t in x:
            trainer.step(x_t, y)
        trainer.train_sequence(x, y)
        trainer.evaluate([(x, y)])
        trainer.regularizer.load_averages()
        trainer.train_sequence(x, y)
        trainer.save(tmp_path / "a.pt")
        trainer.train_sequence(x, y)
        trainer.load(tmp_path / "a.pt")
        trainer.train_sequence(x, y)
        trainer.net.load_state_dict(spiking_net().state_dict())
        trainer.regularizer.restart_averages()
        trainer.train_sequence(x, y)
        threads = torch.get_num_threads()
        torch.set_num_threads(threads + 1)
        trainer.train_sequence(x, y)
        torch.set_num_threads(threads)
        copy.deepcopy(trainer).train_sequence(x, y)


def test_without_averages_weights_may_change():
    trainer = of_trainer(alpha=0)
    trainer.net[0].weight.data.mul_(0.5)
    trainer.train_sequence(*batch())

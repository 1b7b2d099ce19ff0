"""``W_bar`` where weights change by other hands than the optimizer's: loading, freezing, copying, another alpha."""

import copy
import pickle
import warnings

import pytest
import torch
from nets import adam, batch, copies, distance, identical, sgd, spikes, spiking_net
from torch import nn

from fptt_plugin import DynamicRegularizer, FPTTTrainer, TruncatedBPTT
from fptt_plugin.errors import CallOrderError, WeightsChangedError

CE = nn.CrossEntropyLoss()


def make(optimizer=adam, **options):
    torch.manual_seed(0)
    net = spiking_net()
    return FPTTTrainer(net, optimizer(net), CE, **{"alpha": 0.5, **options})


def train(trainer, sequences=3):
    with spikes(trainer.net):
        for _ in range(sequences):
            trainer.train_sequence(*batch())
    return trainer


def averages(trainer):
    return copies(map(trainer.regularizer.average_of, trainer.net.parameters()))


def test_weights_loaded_into_the_network_are_noticed_and_taken_over():
    trainer = make()
    best = copy.deepcopy(trainer.net.state_dict())
    x = batch()[0]
    wanted = trainer.predict(x)
    train(trainer)
    trainer.net.load_state_dict(best)
    with pytest.raises(WeightsChangedError):
        trainer.predict(x)  # W_bar is that of the weights before
    trainer.regularizer.restart_averages()
    assert torch.equal(trainer.predict(x), wanted)
    train(trainer)
    assert not identical(averages(trainer), copies(trainer.net.parameters()))


@pytest.mark.parametrize("fused", [False, True])
def test_ordinary_use_does_not_warn(tmp_path, fused):
    trainer = make(lambda net: torch.optim.Adam(net.parameters(), fused=fused), average_weights="sequence")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            train(trainer)
            trainer.predict(batch()[0])
            trainer.save(tmp_path / "a.pt")
            trainer.load(tmp_path / "a.pt")
            trainer.predict(batch()[0])


def test_a_frozen_weight_is_its_own_average():
    trainer = train(make())
    frozen, other = trainer.net[0].weight, trainer.net[2].weight
    before = frozen.clone()
    assert not torch.equal(trainer.regularizer.average_of(frozen), frozen)
    frozen.requires_grad_(False)
    assert torch.equal(trainer.regularizer.average_of(frozen), frozen)
    train(trainer)
    trainer.regularizer.load_averages()
    assert torch.equal(frozen, before)
    with trainer.averaged_weights():
        assert torch.equal(frozen, before)
    frozen.requires_grad_(True)
    assert not torch.equal(trainer.regularizer.average_of(frozen), frozen)
    assert torch.equal(trainer.regularizer.average_of(other), other)


def test_another_alpha_keeps_the_dual():
    trainer = train(make(sgd))
    weight, regularizer = trainer.net[0].weight, trainer.regularizer
    dual, average = regularizer.dual_of(weight).clone(), regularizer.average_of(weight).clone()
    assert dual.abs().max() > 0
    regularizer.alpha = 0.1
    torch.testing.assert_close(regularizer.dual_of(weight), dual)
    assert torch.equal(regularizer.average_of(weight), average)


def test_alpha_set_to_zero_is_truncated_bptt():
    trainer = train(make())
    trainer.regularizer.alpha = 0.0
    control = TruncatedBPTT(net := copy.deepcopy(trainer.net), adam(net), CE)
    control.optimizer.load_state_dict(copy.deepcopy(trainer.optimizer.state_dict()))
    control.objective.distribution.load_state_dict(trainer.objective.distribution.state_dict())
    for one in (trainer, control):
        torch.manual_seed(3)
        train(one)
    assert identical(trainer.net.parameters(), control.net.parameters())
    assert identical(averages(trainer), copies(trainer.net.parameters()))
    trainer.regularizer.alpha = 0.2
    train(trainer)
    assert not identical(averages(trainer), copies(trainer.net.parameters()))


@pytest.mark.parametrize("alpha", [-0.1, float("inf")])
def test_an_impossible_alpha_is_refused(alpha):
    trainer = make()
    with pytest.raises(ValueError, match=f"alpha={alpha} must be"):
        trainer.regularizer.alpha = alpha
    assert trainer.regularizer.alpha == 0.5


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_copies_train_on_as_the_original(duplicate):
    trainer = train(make(max_grad_norm=1e-2))
    other = duplicate(trainer)
    for one in (trainer, other):
        torch.manual_seed(5)
        assert one.train_sequence(*batch()).updates == 6
        assert one.skipped == 0
    assert identical(other.net.parameters(), trainer.net.parameters())
    assert identical(averages(other), averages(trainer))
    assert distance(averages(trainer), copies(trainer.net.parameters())) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.predict(batch()[0])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
@pytest.mark.parametrize(("strides", "steps"), [({"window": 3}, 2), ({"update_every": 2}, 1), ({"window": 2}, 5)])
def test_a_copy_between_two_updates_would_lose_gradients(duplicate, strides, steps):
    trainer = train(make(**strides))
    trainer.reset()
    x, y = batch()
    for t in range(steps):
        trainer.step(x[t], y)
    with pytest.raises(CallOrderError, match="a copy between two updates"):
        duplicate(trainer)
    trainer.reset()
    other = duplicate(trainer)
    for one in (trainer, other):
        one.train_sequence(x, y)
    assert identical(other.net.parameters(), trainer.net.parameters())


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda trainer: pickle.loads(pickle.dumps(trainer))])
def test_a_copy_of_a_compiled_trainer_compiles_again(duplicate):
    trainer = train(make(accelerate="compile"))
    other = duplicate(trainer)
    x, y = batch()
    for one in (trainer, other):
        one.train_sequence(x, y)
    assert "compiled: the whole window" in other.explain()
    assert distance(other.net.parameters(), copies(trainer.net.parameters())) < 1e-5
    assert distance(averages(other), averages(trainer)) < 1e-5


@pytest.mark.parametrize(
    "attempt",
    [
        lambda trainer, path: trainer.train_sequence(*batch()),
        lambda trainer, path: trainer.step(torch.rand(4, 3)),
        lambda trainer, path: trainer.save(path / "a.pt"),
        lambda trainer, path: trainer.optimizer.step(),
    ],
)
def test_nothing_is_trained_or_saved_with_the_averages_in_place(attempt, tmp_path):
    trainer = train(make())
    weights = copies(trainer.net.parameters())
    with trainer.averaged_weights(), pytest.raises(RuntimeError, match=r"within averaged_weights\(\)"):
        attempt(trainer, tmp_path)
    assert identical(trainer.net.parameters(), weights)
    assert list(tmp_path.iterdir()) == []
    assert train(trainer).updates == 36


def test_evaluation_with_the_averages_in_place():
    trainer = train(make())
    x = batch()[0]
    wanted = trainer.predict(x)
    with trainer.averaged_weights():
        assert torch.equal(trainer.predict(x), wanted)
    assert torch.equal(trainer.predict(x), wanted)


@pytest.mark.parametrize("within", ["averaged_weights", "evaluation"])
def test_scores_of_weights_that_are_not_in_place_are_refused(within):
    trainer = train(make())
    x, y = batch()
    calls = [
        lambda averaged: trainer.predict(x, averaged=averaged),
        lambda averaged: trainer.evaluate([(x, y)], averaged=averaged, metric=None),
    ]
    wanted = [call(True) for call in calls]
    with getattr(trainer, within)():
        for call, value in zip(calls, wanted, strict=True):
            with pytest.raises(CallOrderError, match=r"averaged=False asks for W.*leave the context first"):
                call(False)
            assert torch.equal(torch.as_tensor(call(None)), torch.as_tensor(value))
    assert not torch.equal(calls[0](False), wanted[0])
    control = TruncatedBPTT(net := spiking_net(), adam(net), CE)
    with getattr(control, within)():
        control.predict(x, averaged=False)  # W_bar is W


def test_the_control_does_not_become_fptt_by_a_file(tmp_path):
    train(make()).save(tmp_path / "fptt.pt")
    control = TruncatedBPTT(net := spiking_net(), adam(net), CE)
    before = copies(net.parameters())
    with pytest.raises(ValueError, match=r"trained with alpha=0.5, and TruncatedBPTT has no regularizer"):
        control.load(tmp_path / "fptt.pt")
    assert identical(net.parameters(), before)
    train(control).save(tmp_path / "control.pt")
    TruncatedBPTT(net := spiking_net(), adam(net), CE).load(tmp_path / "control.pt")


@pytest.mark.parametrize("through", ["regularizer", "optimizer"])
def test_the_number_of_updates_comes_back(through):
    regularizer = train(make()).regularizer
    other = DynamicRegularizer(adam(spiking_net()), alpha=0.5)
    if through == "regularizer":
        other.load_state_dict(regularizer.state_dict())
    else:
        other.optimizer.load_state_dict(regularizer.optimizer.state_dict())
    assert other.updates == regularizer.updates == 18

"""Parameters and neurons that change under a trainer are noticed at its next call, before anything moves."""

import copy
import time

import pytest
import torch
from nets import LIF, Before, adam, batch, copies, distance, spiking_net
from torch import nn
from torch.nn.utils import parametrizations

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CallOrderError, NotFiniteError, WeightsChangedError

CE = nn.CrossEntropyLoss()


def make(net=None):
    net = spiking_net() if net is None else net
    trainer = FPTTTrainer(net, adam(net), CE, readout="mean")
    trainer.train_sequence(*batch())
    return trainer


CALLS = {
    "train_sequence": lambda trainer: trainer.train_sequence(*batch()),
    "step": lambda trainer: trainer.step(torch.rand(4, 3), torch.arange(4) % 2),
    "fit": lambda trainer: trainer.fit([batch()], progress=False),
}


def assign(net):
    net.load_state_dict({name: value.clone() for name, value in net.state_dict().items()}, assign=True)


def replace_layer(net):
    net[2] = nn.Linear(8, 2)


def replace_one_weight(net):
    net[0].weight = nn.Parameter(torch.rand(8, 3))


def grow_a_bias_within_a_layer(net):
    net[2].register_parameter("gain", nn.Parameter(torch.ones(2)))


def append_layer(net):
    net.append(nn.Linear(2, 2))


def parametrize(net):
    parametrizations.weight_norm(net[2])


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize(
    "change", [assign, replace_layer, replace_one_weight, grow_a_bias_within_a_layer, append_layer, parametrize]
)
def test_a_parameter_that_is_not_the_optimizers_is_named_before_anything_moves(change, call):
    trainer = make()
    trainer.reset()
    change(trainer.net)
    before, weights = Before(trainer), copies(trainer.net.parameters())
    updates = trainer.updates
    for _ in range(2):
        with pytest.raises(WeightsChangedError, match=r"'[0-9]+\.\w+.*never be trained"):
            call(trainer)
    assert trainer.updates == updates
    assert before.differs() == []
    assert distance(weights, trainer.net.parameters()) == 0


def test_the_remedies_work():
    trainer = make()
    append_layer(trainer.net)
    trainer.optimizer.add_param_group({"params": list(trainer.net[4].parameters())})
    before = copies(trainer.net[4].parameters())
    trainer.train_sequence(*batch())
    assert distance(before, trainer.net[4].parameters()) > 0

    trainer.net[2] = nn.Linear(8, 2)
    other = FPTTTrainer(trainer.net, adam(trainer.net), CE, readout="mean")
    other.train_sequence(*batch())

    other.net.insert(4, LIF(spikes=False))
    with pytest.raises(CallOrderError, match=r"'4'.*neither resets"):
        other.train_sequence(*batch())
    other.regularizer.remove()
    third = FPTTTrainer(other.net, other.optimizer, CE, readout="mean")
    for _ in range(3):
        third.train_sequence(*batch())
        third.reset()
        assert other.net[4].mem is None


def nested(net):
    net[0] = nn.Sequential(net[0], LIF())


def swapped(net):
    net[1] = LIF(decay=0.5)


def removed(net):
    del net[3]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("change", [nested, swapped, removed])
def test_a_neuron_that_came_or_went_is_named(change, call):
    trainer = make()
    trainer.reset()
    change(trainer.net)
    weights, updates = copies(trainer.net.parameters()), trainer.updates
    with pytest.raises(CallOrderError, match="remove"):
        call(trainer)
    assert distance(weights, trainer.net.parameters()) == 0
    assert trainer.updates == updates


def test_what_is_meant_goes_on():
    """Frozen, left out, moved and wrapped parameters are no change; neither is a copy of the trainer."""
    net = spiking_net()
    trainer = FPTTTrainer(net, torch.optim.Adam(net[2].parameters()), CE, readout="mean")  # the rest on purpose
    trainer.train_sequence(*batch())
    net[2].bias.requires_grad_(False)
    trainer.train_sequence(*batch())
    net.register_parameter("frozen", nn.Parameter(torch.ones(1), requires_grad=False))
    net[0].register_buffer("more", torch.ones(1))
    net[0] = net[0]
    trainer.train_sequence(*batch())
    net[0].append = None
    copied = copy.deepcopy(trainer)
    copied.train_sequence(*batch())
    replace_layer(copied.net)
    with pytest.raises(WeightsChangedError):
        copied.train_sequence(*batch())
    trainer.train_sequence(*batch())


def plain_norm(net):
    net[0] = nn.Sequential(net[0], nn.BatchNorm1d(8, affine=False))


def norm_with_weights(net):
    net[0] = nn.Sequential(net[0], nn.BatchNorm1d(8))


def synchronized_norm(net):
    """Another module with the same weights."""
    old = net[0][1]
    net[0][1] = nn.BatchNorm1d(8)
    net[0][1].weight, net[0][1].bias = old.weight, old.bias


@pytest.mark.parametrize("change", [plain_norm, norm_with_weights, synchronized_norm])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("skip", [False, True])
def test_statistics_of_a_normalization_that_came_are_as_before_after_an_error(change, stream, skip):
    net = spiking_net()
    if change is synchronized_norm:
        net[0] = nn.Sequential(net[0], nn.BatchNorm1d(8))
    options = {"on_nonfinite": "skip"} if skip else {}
    trainer = FPTTTrainer(net, adam(net), CE, readout="mean", window=2, **options)
    x, y = batch()
    send = (lambda x: [trainer.step(x_t, y) for x_t in x]) if stream else (lambda x: trainer.train_sequence(x, y))
    send(x[:4])
    change(net)
    if change is norm_with_weights:
        trainer.optimizer.add_param_group({"params": net[0][1].parameters()})
    norm = next(m for m in net.modules() if isinstance(m, nn.BatchNorm1d))
    for _ in range(2):
        before = copies(norm.buffers())
        if skip:
            send(1e30 * x[:2])  # its squares are not finite
        else:
            with pytest.raises(NotFiniteError):
                send(1e30 * x[:2])
        assert all(map(torch.equal, norm.buffers(), before))
        send(x[:4])
        assert not all(map(torch.equal, norm.buffers(), before))


def test_it_costs_little():
    net = spiking_net(extra=[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(20)])
    trainer = make(net)

    def seconds(work):
        begin = time.perf_counter()
        for _ in range(50):
            work()
        return time.perf_counter() - begin

    x, y = batch()
    assert min(seconds(trainer._structure.check) for _ in range(3)) < 0.05 * seconds(lambda: trainer.step(x[0], y))

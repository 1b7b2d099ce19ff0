"""Pairs of trainers, eager and accelerated, that must agree."""

import copy

import torch
from nets import Before, adam, batch, spikes, spiking_net
from torch import nn

from fptt_plugin import FPTTTrainer
from fptt_plugin.snntorch import LTCIntegrator, RLTCLeaky

CE = nn.CrossEntropyLoss()


def double_net(**options):
    return spiking_net(dtype=torch.float64, **options)


def pair(build=double_net, optimizer=adam, loss=CE, **options):
    """The same trainer twice, eager and accelerated."""
    net = build()
    nets = net, copy.deepcopy(net)
    return [
        FPTTTrainer(n, optimizer(n), loss, accelerate=accelerate, **options)
        for n, accelerate in zip(nets, ("none", "compile"), strict=True)
    ]


def train_both(trainers, train, same=1e-12):
    """Trains one, then the other, from the same random state; checks that all they hold agrees."""
    results = []
    for trainer in trainers:
        torch.manual_seed(1)
        with spikes(trainer.net):
            results.append(train(trainer))
    assert_same(trainers, same)
    return results


def assert_same(trainers, same=1e-12):
    eager, accelerated = (Before(trainer).seen for trainer in trainers)
    for name, tensors in eager.items():
        for one, other in zip(tensors, accelerated[name], strict=True):
            assert torch.allclose(one, other, rtol=same, atol=same), name
    assert [t.updates for t in trainers] == [trainers[0].updates] * 2
    assert [t.steps for t in trainers] == [trainers[0].steps] * 2
    assert [t.regularizer.updates for t in trainers] == [trainers[0].regularizer.updates] * 2


def sequences(count=3, steps=7, **options):
    """Batches in double precision."""
    return [batch(steps, dtype=torch.float64, **options) for _ in range(count)]


def train(trainer, count=3, steps=7):
    return [trainer.train_sequence(2 * x, y) for x, y in sequences(count, steps)]


def liquid():
    return nn.Sequential(
        nn.Linear(3, 8),
        RLTCLeaky(linear_features=8, init_hidden=True),
        nn.Linear(8, 2),
        LTCIntegrator(init_hidden=True),
    ).double()

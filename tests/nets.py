"""Tiny networks of the tests, in plain torch: what a user's own neuron looks like, in any floating-point type."""

import copy
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fptt_plugin import FiringRates, FPTTTrainer
from fptt_plugin.errors import ConfigurationError
from fptt_plugin.functional import MultiGaussian
from fptt_plugin.state import AttributeHandler, ModelState, register_state_handler
from fptt_plugin.tree import map_tensors


class LIF(nn.Module):
    """A leaky integrate-and-fire neuron; without ``spikes`` a leaky integrator."""

    def __init__(self, decay=0.8, threshold=0.3, spikes=True):
        super().__init__()
        self.decay, self.threshold, self.spikes = decay, threshold, spikes
        self.spike = MultiGaussian()
        self.mem = None

    def forward(self, x):
        self.mem = x if self.mem is None else self.decay * self.mem + x
        if not self.spikes:
            return self.mem
        spk = self.spike(self.mem - self.threshold)
        self.mem = self.mem - self.threshold * spk
        return spk


CE = nn.CrossEntropyLoss()

register_state_handler(LIF, AttributeHandler(mem=None))


def spiking_net(inputs=3, hidden=8, classes=2, extra=(), dtype=torch.float32):
    """A hidden spiking layer and an integrator; ``extra`` modules come before the spiking layer."""
    # The gradient of a bias ahead of a batch normalization is rounding alone, and Adam makes whole steps of it.
    normalized = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in extra)
    layers = [
        nn.Linear(inputs, hidden, bias=not normalized),
        *extra,
        LIF(),
        nn.Linear(hidden, classes),
        LIF(spikes=False),
    ]
    return nn.Sequential(*layers).to(dtype)


class Mean(nn.Module):
    """Averages the output of a network over time, its first axis."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x).mean(0)


class Grows(nn.Module):
    """A network whose ``head`` is to come."""

    def __init__(self, body):
        super().__init__()
        self.body, self.head = body, nn.Identity()

    def forward(self, x):
        return self.head(self.body(x))


def batch(steps=6, samples=4, inputs=3, classes=2, dtype=torch.float32):
    """Random sequences ``[T, B, N]`` and a label for each."""
    return torch.rand(steps, samples, inputs, dtype=dtype), torch.arange(samples) % classes


def adam(net, lr=0.05):
    return torch.optim.Adam(net.parameters(), lr=lr)


def sgd(net, lr=0.1):
    return torch.optim.SGD(net.parameters(), lr=lr)


def twins(options=None, build=spiking_net):
    """Trainers with the same options, one on a network and one on its copy."""
    net = build()
    other = copy.deepcopy(net)
    return [FPTTTrainer(n, adam(n), nn.CrossEntropyLoss(), **(options or {})) for n in (net, other)]


@contextmanager
def spikes(net):
    """What happens within the context is vacuous unless every spiking layer fires sometimes, and not always."""
    with FiringRates(net) as firing:
        yield
    rates = firing.rates()
    assert rates
    assert all(0 < rate < 1 for rate in rates.values()), rates


def gradients(net):
    return [parameter.grad for parameter in net.parameters()]


def copies(tensors):
    return [tensor.detach().clone() for tensor in tensors]


def identical(ones, others):
    ones, others = list(ones), list(others)
    return len(ones) == len(others) and all(torch.equal(*pair) for pair in zip(ones, others, strict=True))


def distance(ones, others):
    """Largest absolute difference."""
    return max((one.double() - other).abs().max().item() for one, other in zip(ones, others, strict=True))


def flat(value):
    """All tensors in nested containers."""
    found = []
    map_tensors(found.append, value)
    return found


class Before:
    """Everything that a refused call may not have changed."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.seen = self.look()

    def look(self):
        net, optimizer, regularizer = self.trainer.net, self.trainer.optimizer, self.trainer.regularizer
        parameters = list(net.parameters())
        return {
            "weights": copies(net.state_dict().values()),
            "W_bar": copies(map(regularizer.average_of, parameters)),
            "dual": copies(map(regularizer.dual_of, parameters)),
            "recurrent state": copies(flat(ModelState(net).get())),
            "optimizer state": copies(flat(optimizer.state_dict())),
            "distribution": copies([self.trainer.objective.distribution.table]),
        }

    def differs(self):
        """Names of what has changed."""
        return [name for name, tensors in self.look().items() if not identical(tensors, self.seen[name])]


def check_setting(owner, name, wrong, right):
    """An option of ``owner`` refuses one value, by its name and without a change, and takes another."""
    before = getattr(owner, name)
    with pytest.raises(ConfigurationError, match=name):
        setattr(owner, name, wrong)
    assert getattr(owner, name) == before
    setattr(owner, name, right)
    assert getattr(owner, name) == right

"""Firing rates, exactly, on networks whose spikes are known."""

import pytest
import torch
from nets import LIF
from torch import nn

from fptt_plugin import FiringRates
from fptt_plugin.state import AttributeHandler, register_state_handler

# The membrane of the first column rises by 0.5 a step without leak: over the threshold of 0.9 at steps 2 and 4.
X = torch.tensor([[0.5, 0.0], [0.5, 2.0]])


def neuron():
    return LIF(decay=1.0, threshold=0.9)


class Box(nn.Module):
    """A container with state of its own around a neuron, as SpikingJelly's recurrent containers."""

    last = None

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        self.last = self.inner(x)
        return self.last


register_state_handler(Box, AttributeHandler(last=None))


def test_rates_are_exact():
    net = nn.Sequential(neuron(), LIF(spikes=False))
    with FiringRates(net) as firing:
        for _ in range(4):
            net(X)
    # Spikes of neurons 00, 10, 11 in four steps: 2, 2, 4; of the silent one 0; the integrator is no spiking layer.
    assert firing.rates() == {"0": (2 + 0 + 2 + 4) / 16}
    firing.reset()
    assert firing.rates() == {}


def test_hooks_are_gone_afterward():
    net = nn.Sequential(neuron())
    firing = FiringRates(net)
    net(X)
    assert firing.rates() == {}
    with pytest.raises(TypeError), firing:
        net(X, "too much")
    with firing:
        net(X)
    assert not net[0]._forward_hooks
    rates = firing.rates()
    net(10 * X)
    assert firing.rates() == rates


def test_a_container_and_its_neuron_count_once():
    net = nn.Sequential(Box(neuron()), Box(LIF(spikes=False)))
    with FiringRates(net) as firing:
        net(X)
        net(X)
    assert firing.rates() == {"0.inner": (1 + 3) / 8}


def test_the_first_of_several_outputs_are_the_spikes():
    class Pair(LIF):
        def forward(self, x):
            return super().forward(x), self.mem

    net = Pair(decay=1.0, threshold=0.9)
    with FiringRates(net) as firing:
        net(X)
    assert firing.rates() == {"": 0.25}


def test_graded_outputs_are_no_spikes():
    class Graded(LIF):
        def forward(self, x):
            return 2 * super().forward(x)

    with FiringRates(Graded(threshold=0.9)) as firing:
        firing._layers[0][1](X)
    assert firing.rates() == {}


def test_nothing_is_kept_of_the_graph():
    net = nn.Sequential(nn.Linear(2, 2), neuron())
    with FiringRates(net) as firing:
        assert net(X).requires_grad
    assert not any(tensor.requires_grad for tensor in firing.sums["1"])


def test_every_neuron_and_step_counts_the_same():
    net = nn.Sequential(neuron())
    with FiringRates(net) as firing:
        net(torch.full((1, 2), 2.0))
        net[0].mem = None
        net(torch.zeros(7, 2))
    assert firing.rates() == {"0": 1 / 8}


def test_a_long_stream_is_counted_exactly():
    """In single precision a sum stops to grow where one spike more is less than its last digit."""
    net = nn.Sequential(neuron())
    with FiringRates(net) as firing:
        net(X)
        for total, many in zip(firing.sums["0"][::2], (2**24, 2**26), strict=True):
            total.fill_(many)
        net[0].mem = None
        net(torch.tensor([[2.0]]))
    assert firing.rates() == {"0": (2**24 + 1) / (2**26 + 1)}

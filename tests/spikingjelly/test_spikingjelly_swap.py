"""One line swapped in a user's SpikingJelly network, and the library's model zoo: all else stays as it was."""

import io

import pytest
import torch
import torch.nn.functional as F
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import parametric_lif_net
from torch import nn

from fptt_plugin.spikingjelly import LTCLeaky

T, B = 4, 6


class ConvNet(nn.Module):
    """A user's network for event frames [T, B, 1, 8, 8], in multi-step mode."""

    def __init__(self, node, **options):
        super().__init__()
        self.layers = nn.Sequential(
            layer.Conv2d(1, 4, 3, padding=1),
            layer.BatchNorm2d(4),
            node(**options),
            layer.MaxPool2d(2),
            layer.Flatten(),
            layer.Linear(64, 20),
            node(**options),
            layer.VotingLayer(10),
        )
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.layers(x).mean(0)


def train(net, steps):
    """An ordinary training loop; the optimizer is there before the first batch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    x = torch.rand(T, B, 1, 8, 8)
    y = torch.arange(B) % 2
    net(x)  # lazy sizes
    functional.reset_net(net)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    losses = []
    for _ in range(steps):
        out = net(x)
        assert 0 < out.mean() < 1
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
        losses.append(loss.item())
    moved = {name: not torch.equal(before[name], parameter) for name, parameter in net.named_parameters()}
    return losses, moved


OPTIONS = [
    {},
    {"surrogate_function": surrogate.ATan(), "detach_reset": True},
    {"v_threshold": 0.3, "v_reset": None},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["defaults", "ATan", "soft reset"])
def test_the_swap_trains_every_parameter(options):
    ours, stock = ConvNet(LTCLeaky, **options), ConvNet(neuron.LIFNode, **options)
    assert len(list(ours.layers)) == len(list(stock.layers))
    losses, moved = train(ours, steps=15)
    assert all(moved.values()), moved
    assert sum(losses[-3:]) < sum(losses[:3])


def test_gates_follow_the_input_flat_or_map():
    net = ConvNet(LTCLeaky)
    net(torch.rand(T, B, 1, 8, 8))
    names = [type(node.mem_gate).__name__ for node in net.modules() if isinstance(node, LTCLeaky)]
    assert names == ["ConvGate", "DenseGate"]


def test_a_network_saved_before_its_first_batch_loads_and_trains():
    net = ConvNet(LTCLeaky)
    whole, weights = io.BytesIO(), io.BytesIO()
    torch.save(net, whole)
    torch.save(net.state_dict(), weights)
    whole.seek(0)
    weights.seek(0)
    loaded = torch.load(whole, weights_only=False)
    loaded.load_state_dict(torch.load(weights, weights_only=False))  # as of every lazy module
    _, moved = train(loaded, steps=2)
    assert all(moved.values())


def test_a_trained_network_loads_into_a_fresh_one():
    net, fresh = ConvNet(LTCLeaky), ConvNet(LTCLeaky)
    train(net, steps=2)
    fresh.load_state_dict(net.state_dict())
    x = torch.rand(T, B, 1, 8, 8)
    assert torch.equal(net.eval()(x), fresh.eval()(x))


def test_two_networks_do_not_touch_each_other():
    one, other = ConvNet(LTCLeaky), ConvNet(LTCLeaky)
    x = torch.rand(T, B, 1, 8, 8)
    one(x)
    other(x)
    node = next(module for module in other.modules() if isinstance(module, LTCLeaky))
    before = node.v
    one(x)
    functional.detach_net(one)
    functional.reset_net(one)
    assert node.v is before
    assert node.v.requires_grad


def test_a_network_of_the_model_zoo():
    net = parametric_lif_net.MNISTNet(channels=2, spiking_neuron=LTCLeaky, detach_reset=True, step_mode="m")
    functional.set_step_mode(net, "m")
    out = net(torch.rand(2, 2, 1, 28, 28))
    assert 0 < out.mean() < 1
    out.mean(0).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())

"""What the monitors see of SpikingJelly's less common nodes."""

import gc

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

from fptt_plugin import FiringRates, FPTTTrainer, SavedForBackward


class KeepsItsOutput(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y = x.exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        return grad * y


class Exponential(nn.Module):
    def forward(self, x):
        return KeepsItsOutput.apply(-x.abs())


def peak(net, steps):
    trainer = FPTTTrainer(net, torch.optim.SGD(net.parameters(), 0.1), nn.CrossEntropyLoss())
    x, y = 2 * torch.rand(steps, 4, 6), torch.arange(4) % 3
    trainer.train_sequence(x, y)
    gc.disable()  # what only the collector of cycles would free counts as held
    try:
        with SavedForBackward(net) as saved:
            trainer.train_sequence(x, y)
    finally:
        gc.enable()
    return saved.peak


@pytest.mark.parametrize(
    "build",
    [
        lambda: nn.Sequential(layer.Linear(6, 8), neuron.ComplementaryLIFNode(), layer.Linear(8, 3)),
        lambda: nn.Sequential(layer.Linear(6, 8), nn.Sigmoid(), neuron.LIFNode(), layer.Linear(8, 3), nn.Tanh()),
        lambda: nn.Sequential(layer.Linear(6, 8), Exponential(), neuron.ParametricLIFNode(), layer.Linear(8, 3)),
        lambda: nn.Sequential(layer.Linear(6, 8), nn.Softmax(1), neuron.IFNode(), layer.Linear(8, 3)),
    ],
)
def test_functions_that_save_their_own_output_do_not_count_after_they_are_gone(build):
    torch.manual_seed(0)
    net = build()
    short, long = peak(net, 10), peak(net, 40)
    assert 0 < short == long


def test_saved_tensors_still_go_backward_twice():
    x = torch.tensor([0.5], requires_grad=True)
    with SavedForBackward(nn.Identity()) as saved:
        (first,) = torch.autograd.grad((x.exp() * x).sum(), x, create_graph=True)
        first.sum().backward()
    torch.testing.assert_close(x.grad, (x.exp() * (x + 2)).detach())
    assert saved.peak > 0


@pytest.mark.parametrize("steps", [1, 3, 7])
def test_nodes_that_return_spikes_and_trace_in_a_list(steps):
    torch.manual_seed(0)
    node = neuron.OTTTLIFNode(tau=2.0, decay_input=False, v_reset=None, detach_reset=True)
    net = nn.Sequential(node)
    spikes = []
    with FiringRates(net) as firing:
        for _ in range(steps):
            returned = net(2 * torch.rand(4, 5))
            assert isinstance(returned, list)
            spikes.append(returned[0].detach())
    assert firing.rates() == {"0": pytest.approx(torch.stack(spikes).mean().item())}
    assert 0 < firing.rates()["0"] < 1
    functional.reset_net(net)

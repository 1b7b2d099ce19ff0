"""Backward passes that run layers again, to save memory: neurons must not be stepped twice."""

import copy

import pytest
import snntorch as snn
import torch
from nets import CE, adam, batch
from spikingjelly.activation_based import neuron
from torch import nn
from torch.utils.checkpoint import checkpoint

from fptt_plugin import FPTTTrainer
from fptt_plugin.errors import CannotStepError
from fptt_plugin.snntorch import LTCLeaky
from fptt_plugin.spikingjelly import LTCLeaky as SpikingJellyLTC

NEURONS = {
    "Leaky": lambda: snn.Leaky(beta=0.8, init_hidden=True),
    "LTCLeaky": lambda: LTCLeaky(linear_features=8, init_hidden=True),
    "LIFNode": lambda: neuron.LIFNode(v_threshold=0.2),
}


class Recomputing(nn.Module):
    """A network that runs one of its two parts again in the backward pass."""

    def __init__(self, kind, again=None, loops=False):
        super().__init__()
        torch.manual_seed(0)
        self.dense = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8))
        self.cell = nn.Sequential(nn.Linear(8, 8), NEURONS[kind]())
        self.readout = nn.Linear(8, 2)
        self.again, self.loops = again, loops

    def part(self, name, x):
        module = getattr(self, name)
        return checkpoint(module, x, use_reentrant=False) if name == self.again else module(x)

    def step(self, x):
        return self.readout(self.part("cell", self.part("dense", 4 * x)))

    def forward(self, x):
        return torch.stack([self.step(x_t) for x_t in x]) if self.loops else self.step(x)


@pytest.mark.parametrize("loops", [False, True], ids=["step", "in-flight"])
@pytest.mark.parametrize("kind", NEURONS)
def test_a_neuron_that_is_run_again_is_refused_before_the_first_update(kind, loops):
    net = Recomputing(kind, "cell", loops)
    before = copy.deepcopy(net.state_dict())
    trainer = FPTTTrainer(net, adam(net), CE)
    with pytest.raises(CannotStepError, match="stepped a second time by the backward pass") as caught:
        trainer.train_sequence(*batch())
    assert caught.value.layer == "cell.1"
    assert trainer.updates == 0
    assert all(torch.equal(net.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("loops", [False, True], ids=["step", "in-flight"])
@pytest.mark.parametrize("kind", NEURONS)
def test_stateless_layers_may_be_run_again(kind, loops):
    nets = [Recomputing(kind, again, loops) for again in (None, "dense")]
    start, data = copy.deepcopy(nets[0]), batch()
    for net in nets:
        assert FPTTTrainer(net, adam(net), CE, window=4).train_sequence(*data).updates == 2
    assert all(map(torch.equal, nets[0].parameters(), nets[1].parameters()))
    assert all(map(torch.not_equal, map(torch.norm, nets[0].parameters()), map(torch.norm, start.parameters())))


@pytest.mark.parametrize("kind", ["LIFNode", "LTCLeaky"])
def test_spikingjelly_runs_neurons_again_from_the_right_state(kind):
    memopt = pytest.importorskip("spikingjelly.activation_based.memopt", reason="SpikingJelly 0.0.0.0.14 has none")
    make = {"LIFNode": lambda: neuron.LIFNode(v_threshold=0.2), "LTCLeaky": lambda: SpikingJellyLTC(linear_features=8)}[
        kind
    ]
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 8), make(), nn.Linear(8, 2))
    again = copy.deepcopy(plain)
    again[3] = memopt.checkpoint_module(again[3])
    start, data = copy.deepcopy(plain), batch()
    for net in (plain, again):
        FPTTTrainer(net, adam(net), CE, window=4, driver="step").train_sequence(*data)
    assert all(map(torch.equal, plain.parameters(), again.parameters()))
    assert all(map(torch.not_equal, map(torch.norm, plain.parameters()), map(torch.norm, start.parameters())))

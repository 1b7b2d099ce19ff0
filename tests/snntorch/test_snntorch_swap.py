"""The one-line swap in networks written the way snnTorch's tutorials write them, trained by plain BPTT."""

import pytest
import torch
from torch import nn

snn = pytest.importorskip("snntorch")
utils = pytest.importorskip("snntorch.utils")
from fptt_plugin.snntorch import LTCIntegrator, LTCLeaky, RLTCLeaky  # noqa: E402

STEPS = 12


class TutorialNet(nn.Module):
    """The network's forward loops over time; the membranes travel through local variables."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1 = nn.Linear(10, 24)
        self.lif1 = neuron()
        self.fc2 = nn.Linear(24, 4)
        self.lif2 = neuron()

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, membranes = [], []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            membranes.append(mem2)
        self.rate1 = spk1.mean().item()
        return torch.stack(spikes), torch.stack(membranes)


def problem():
    """Four clusters, one per class."""
    y = torch.arange(32) % 4
    return torch.randn(4, 10)[y] + 0.3 * torch.randn(32, 10), y


def train(net, optimizer, loss_of, updates):
    losses = []
    for _ in range(updates):
        loss = loss_of(net)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def loss_of_tutorial(x, y):
    return lambda net: sum(nn.functional.cross_entropy(mem, y) for mem in net(x)[1]) / STEPS


@pytest.mark.parametrize("neuron", [lambda: snn.Leaky(beta=0.9), lambda: LTCLeaky(beta=0.9)], ids=["Leaky", "LTCLeaky"])
def test_one_line_swap_trains_with_an_optimizer_built_before_the_first_batch(neuron):
    net = TutorialNet(neuron)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with torch.no_grad():
        net(problem()[0])  # draws what had no size, so that the start is known
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    losses = train(net, optimizer, loss_of_tutorial(*problem()), updates=15)
    moved = {name for name, parameter in net.named_parameters() if (parameter != before[name]).any()}
    assert losses[-1] < 0.9 * losses[0]
    assert 0 < net.rate1 < 1
    assert moved == set(before)
    assert moved >= {"fc1.weight", "fc2.weight"}
    assert isinstance(net.lif1, LTCLeaky) is ({"lif1.mem_gate.weight", "lif2.adp_gate.bias"} <= moved)


def test_swap_of_hidden_state_neurons_in_a_sequential():
    """The other idiom: ``utils.reset``, then the caller loops."""
    net = nn.Sequential(
        nn.Linear(10, 24),
        LTCLeaky(beta=0.9, init_hidden=True),
        nn.Linear(24, 4),
        LTCIntegrator(beta=0.9, init_hidden=True),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, y = problem()

    def loss_of(net):
        utils.reset(net)
        return sum(nn.functional.cross_entropy(net(x), y) for _ in range(STEPS)) / STEPS

    losses = train(net, optimizer, loss_of, updates=15)
    assert losses[-1] < 0.9 * losses[0]
    assert 0 < net[1].spk.mean() < 1


def test_swap_of_a_recurrent_neuron():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1 = nn.Linear(10, 24)
            self.rlif = RLTCLeaky(beta=0.9, linear_features=24)
            self.fc2 = nn.Linear(24, 4)

        def forward(self, x):
            spk, mem = self.rlif.init_rleaky()
            total = 0.0
            for _ in range(STEPS):
                spk, mem = self.rlif(self.fc1(x), spk, mem)
                total = total + self.fc2(spk)
            self.rate = spk.mean().item()
            return total

    net, (x, y) = Net(), problem()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    before = net.rlif.recurrent.weight.detach().clone()
    losses = train(net, optimizer, lambda net: nn.functional.cross_entropy(net(x), y), updates=15)
    assert losses[-1] < 0.9 * losses[0]
    assert 0 < net.rate < 1
    assert not torch.equal(net.rlif.recurrent.weight, before)


def test_truncated_backprop_over_the_users_own_loop():
    """``Leaky.detach_hidden`` between chunks, as in snnTorch's documentation of truncated BPTT."""
    net = nn.Sequential(
        nn.Linear(10, 24), LTCLeaky(init_hidden=True), nn.Linear(24, 4), LTCIntegrator(init_hidden=True)
    )
    x, y = problem()
    utils.reset(net)
    for _ in range(4):
        loss = sum(nn.functional.cross_entropy(net(x), y) for _ in range(3))
        net.zero_grad()
        loss.backward()
        snn.Leaky.detach_hidden()
        assert all(parameter.grad.abs().max() > 0 for parameter in net.parameters())
    assert 0 < net[1].spk.mean() < 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_snntorchs_own_truncated_backprop():
    backprop = pytest.importorskip("snntorch.backprop")
    losses = pytest.importorskip("snntorch.functional")
    net = nn.Sequential(
        nn.Linear(10, 24), LTCLeaky(init_hidden=True), nn.Linear(24, 4), LTCLeaky(init_hidden=True, output=True)
    )
    x, y = problem()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    with torch.no_grad():
        net(x)
    before = net[0].weight.detach().clone()
    backprop.TBPTT(net, [(x, y)], optimizer, losses.mse_count_loss(), num_steps=STEPS, time_var=False, K=4)
    assert 0 < net[1].spk.mean() < 1
    assert not torch.equal(net[0].weight, before)


@pytest.fixture
def swapped(monkeypatch):
    """A whole code base swapped at once: every ``snn.Leaky`` and ``snn.RLeaky`` is a liquid neuron."""
    monkeypatch.setattr(snn, "Leaky", LTCLeaky)
    monkeypatch.setattr(snn, "RLeaky", RLTCLeaky)


CALLS = {
    "positional": lambda: snn.Leaky(0.9, 1.0, snn.surrogate.atan(), False, True, False, True, True, "subtract"),
    "keywords": lambda: snn.Leaky(beta=torch.tensor(0.9), threshold=1, init_hidden=True, reset_mechanism="subtract"),
    "one to one": lambda: snn.RLeaky(0.9, 0.5, False, threshold=1.0, init_hidden=True),
    "all to all": lambda: snn.RLeaky(beta=0.9, linear_features=24, init_hidden=True),
}


@pytest.mark.usefixtures("swapped")
@pytest.mark.parametrize("call", CALLS)
def test_calls_of_a_swapped_code_base(call):
    lif = CALLS[call]()
    assert isinstance(lif, (LTCLeaky, RLTCLeaky))
    spikes = lif(8 * torch.rand(2, 24))
    assert isinstance(spikes, torch.Tensor)
    assert 0 < spikes.mean() < 1
    assert torch.allclose(torch.sigmoid(lif.mem_gate.bias), torch.tensor(0.1))
    with pytest.raises(TypeError, match="init_hidden"):
        lif(torch.rand(2, 24), torch.rand(2, 24))
    utils.reset(nn.Sequential(lif))
    assert not any(state.any() for state in (lif.mem, lif.spk, lif.b))


@pytest.mark.usefixtures("swapped")
@pytest.mark.parametrize("neuron", [lambda **o: snn.Leaky(**o), lambda **o: snn.RLeaky(V=0.5, all_to_all=False, **o)])
def test_what_snntorch_promises_of_its_neurons_holds_for_a_swapped_code_base(neuron):
    """What its own tests check, save the values of its dynamics and the default of ``reset_mechanism``."""
    for number, (mechanism, other) in enumerate([("subtract", "zero"), ("zero", "none"), ("none", "subtract")]):
        lif = neuron(beta=0.5, reset_mechanism=mechanism)
        assert lif.reset_mechanism_val == number
        lif.reset_mechanism = other
        assert lif.reset_mechanism_val == (number + 1) % 3
    assert neuron(beta=0.5).reset_mechanism_val == 1  # "zero" where snnTorch has "subtract"
    lif = neuron(beta=0.5, surrogate_disable=True)
    assert torch._dynamo.explain(lif)(torch.rand(1)).graph_break_count == 0
    states = lif.reset_mem()
    assert len(lif(torch.rand(1), *(states if isinstance(states, tuple) else (states,)))) == 2


@pytest.mark.usefixtures("swapped")
def test_a_swapped_tutorial_network_trains_in_chunks():
    net = TutorialNet(lambda: snn.Leaky(beta=0.5))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    losses = train(net, optimizer, loss_of_tutorial(*problem()), updates=15)
    assert losses[-1] < 0.9 * losses[0]
    assert 0 < net.rate1 < 1
    snn.Leaky.detach_hidden()
    assert not any(state.requires_grad for state in (net.lif1.mem, net.lif1.spk, net.lif1.b))

"""More networks in the style of snnTorch's tutorials: other neurons, other wirings."""

import snntorch as snn
import torch
from idioms.snntorch_nets import GRAD, Recurrent, Static, leaky
from torch import nn

from fptt_plugin.snntorch import LTCLeaky, RLTCLeaky


class TopDown(Static):
    """The last layer's spikes, a local variable, go back to the first layer."""

    def __init__(self):
        super().__init__()
        self.feedback = nn.Linear(3, 10)

    def forward(self, x):
        mem1, mem2, record = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        spk2 = torch.zeros(x.size(1), 3)
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]) + self.feedback(spk2), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)

    def by_hand(self, x, state):
        mem1, mem2, spk2 = state or (torch.zeros(len(x), 10), torch.zeros(len(x), 3), torch.zeros(len(x), 3))
        spk1, mem1 = self.lif1(self.fc1(x) + self.feedback(spk2), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return mem2, (mem1, mem2, spk2)


class Mixed(nn.Module):
    """Leaky and Synaptic neurons in one network."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 10), leaky()
        self.fc2, self.syn2 = nn.Linear(10, 3), snn.Synaptic(0.5, 0.8, threshold=3.0, spike_grad=GRAD)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        syn2, mem2 = self.syn2.init_synaptic()
        record = []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            _, syn2, mem2 = self.syn2(self.fc2(spk1), syn2, mem2)
            record.append(mem2)
        return torch.stack(record)

    def by_hand(self, x, state):
        mem1, syn2, mem2 = state or [torch.zeros(len(x), n) for n in (10, 3, 3)]
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        _, syn2, mem2 = self.syn2(self.fc2(spk1), syn2, mem2)
        return mem2, (mem1, syn2, mem2)


class Alpha(nn.Module):
    """A layer of Alpha neurons: what comes in shows in their membrane one step later."""

    def __init__(self):
        super().__init__()
        self.fc1, self.alpha1 = nn.Linear(5, 10), snn.Alpha(0.8, 0.6, threshold=0.2, spike_grad=GRAD)
        self.fc2, self.lif2 = nn.Linear(10, 3), leaky()

    def forward(self, x):
        exc, inh, mem1 = self.alpha1.init_alpha()
        mem2, record = self.lif2.init_leaky(), []
        for step in range(x.size(0)):
            spk1, exc, inh, mem1 = self.alpha1(self.fc1(x[step]), exc, inh, mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)

    def by_hand(self, x, state):
        exc, inh, mem1, mem2 = state or [torch.zeros(len(x), n) for n in (10, 10, 10, 3)]
        spk1, exc, inh, mem1 = self.alpha1(self.fc1(x), exc, inh, mem1)
        _, mem2 = self.lif2(self.fc2(spk1), mem2)
        return mem2, (exc, inh, mem1, mem2)


class Liquid(Static):
    """Liquid neurons in the place of Leaky ones; their adaptation stays inside."""

    def __init__(self):
        super().__init__()
        self.lif1, self.lif2 = LTCLeaky(linear_features=10), LTCLeaky(linear_features=3)

    def forward(self, x):
        mem1, mem2, record = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)

    def by_hand(self, x, state):
        one, two = state or (3 * (torch.zeros(len(x), 10),), 3 * (torch.zeros(len(x), 3),))
        spk1, mem1 = self.lif1(self.fc1(x), one[0], spk=one[1], b=one[2])
        spk2, mem2 = self.lif2(self.fc2(spk1), two[0], spk=two[1], b=two[2])
        return mem2, ((mem1, spk1, self.lif1.b), (mem2, spk2, self.lif2.b))


class LiquidRecurrent(Recurrent):
    """E with recurrent liquid neurons."""

    def __init__(self):
        super().__init__()
        self.rlif1, self.rlif2 = RLTCLeaky(linear_features=10), RLTCLeaky(linear_features=3)

    def by_hand(self, x, state):
        (spk1, mem1, b1), (spk2, mem2, b2) = state or [3 * (torch.zeros(len(x), n),) for n in (10, 3)]
        spk1, mem1 = self.rlif1(self.fc1(x), spk1, mem1, b=b1)
        spk2, mem2 = self.rlif2(self.fc2(spk1), spk2, mem2, b=b2)
        return mem2, ((spk1, mem1, self.rlif1.b), (spk2, mem2, self.rlif2.b))


class Population(nn.Module):
    """More output neurons than classes; each class is the mean of its share."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 10), leaky()
        self.fc2, self.lif2 = nn.Linear(10, 12), leaky(beta=0.8, threshold=0.2)

    def forward(self, x):
        mem1, mem2, record = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(spk2)
        return torch.stack(record)

    @staticmethod
    def classes(returned):
        return returned.unflatten(1, (3, 4)).mean(2)

    def by_hand(self, x, state):
        mem1, mem2 = state or (torch.zeros(len(x), 10), torch.zeros(len(x), 12))
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return self.classes(spk2), (mem1, mem2)


class Shared(nn.Module):
    """One neuron that serves both layers, each with a state of its own."""

    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.lif = nn.Linear(5, 10), nn.Linear(10, 3), leaky()

    def forward(self, x):
        mem1, mem2, record = torch.zeros(x.size(1), 10), torch.zeros(x.size(1), 3), []
        for x_t in x:
            spk1, mem1 = self.lif(self.fc1(x_t), mem1)
            _, mem2 = self.lif(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)

    def by_hand(self, x, state):
        mem1, mem2 = state or (torch.zeros(len(x), 10), torch.zeros(len(x), 3))
        spk1, mem1 = self.lif(self.fc1(x), mem1)
        _, mem2 = self.lif(self.fc2(spk1), mem2)
        return mem2, (mem1, mem2)

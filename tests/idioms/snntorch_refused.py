"""snnTorch networks that cannot be trained step by step, and what the refusal says to write instead."""

import snntorch as snn
import torch
from idioms.snntorch_more_nets import Shared
from idioms.snntorch_nets import LinearReadout, Static, leaky
from torch import nn


class Autoencoder(Static):
    """G2: encodes all steps, then decodes all steps."""

    def forward(self, x):
        mem1, mem2, codes, record = self.lif1.init_leaky(), self.lif2.init_leaky(), [], []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            codes.append(spk1)
        for code in torch.stack(codes):
            _, mem2 = self.lif2(self.fc2(code), mem2)
            record.append(mem2)
        return torch.stack(record)


class Hoisted(Static):
    """The first layer sees the whole sequence before the loop."""

    def forward(self, x):
        mem1, mem2, record = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for current in self.fc1(x):
            spk1, mem1 = self.lif1(current, mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)


class Trace(Static):
    """A low-pass filter of the spikes, kept by the user from step to step."""

    def __init__(self, detach=False):
        super().__init__()
        self.detach = detach

    def forward(self, x):
        mem1, mem2, trace, record = self.lif1.init_leaky(), self.lif2.init_leaky(), 0.0, []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            before = trace.detach() if self.detach and torch.is_tensor(trace) else trace
            trace = 0.9 * before + spk1
            _, mem2 = self.lif2(self.fc2(trace), mem2)
            record.append(mem2)
        return torch.stack(record)


class LateReadout(LinearReadout):
    """The readout sees the mean over time, after the loop."""

    def forward(self, x):
        mem1, record = self.lif1.init_leaky(), []
        for x_t in x:
            spk1, mem1 = self.lif1(self.fc1(x_t), mem1)
            record.append(spk1)
        return self.fc_out(torch.stack(record).mean(0))


class SharedStep(Shared):
    """One neuron for two layers, in a network that takes one step per call."""

    def forward(self, x):
        spk1, _ = self.lif(self.fc1(x))
        return self.lif(self.fc2(spk1))


class SharedFunctional(nn.Module):
    """One neuron for two layers with bare weights; what ends a time step may have a name, or not."""

    def __init__(self, named):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.rand(5, 8) - 0.2), nn.Parameter(torch.rand(8, 3) - 0.2)
        self.lif = leaky()
        self.out = nn.Identity() if named else lambda x: x

    def forward(self, x):
        mem1, mem2, record = torch.zeros(x.size(1), 8), torch.zeros(x.size(1), 3), []
        for x_t in x:
            spk1, mem1 = self.lif(x_t @ self.w1, mem1)
            _, mem2 = self.lif(spk1 @ self.w2, mem2)
            record.append(self.out(mem2))
        return torch.stack(record)


class Separate(Static):
    """H as snnTorch's docstrings write it: every state an argument of its own."""

    def forward(self, x, mem1, mem2):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


class Wrapped(nn.Module):
    """The remedy of the refusal for such a network."""

    def __init__(self):
        super().__init__()
        self.net = Separate()

    def forward(self, x_t, state):
        spk2, mem1, mem2 = self.net(x_t, *(state or (torch.zeros(len(x_t), 10), torch.zeros(len(x_t), 3))))
        return (spk2, mem2), (mem1, mem2)


class Parallel(nn.Module):
    """J: one neuron layer that takes all time steps at once."""

    def __init__(self, neuron):
        super().__init__()
        self.fc1, self.cell, self.fc2 = nn.Linear(5, 10), neuron, nn.Linear(10, 3)

    def forward(self, x):
        out = self.cell(self.fc1(x))
        return self.fc2(out[0] if isinstance(out, tuple) else out)


PARALLEL = {
    "StateLeaky": lambda: snn.StateLeaky(0.9, 10),
    "LinearLeaky": lambda: snn.LinearLeaky(0.9, 10, 10),
    "AssociativeLeaky": lambda: snn.AssociativeLeaky(10, 2, 5, 10),
    "LeakyParallel": lambda: snn.LeakyParallel(10, 10, beta=0.9),
}


def slstm(hidden, linear):
    front = [nn.Linear(5, hidden)] if linear else []
    cell = snn.SLSTM(hidden if linear else 5, hidden, threshold=0.1, init_hidden=True)
    return nn.Sequential(*front, cell, nn.Linear(hidden, 3))

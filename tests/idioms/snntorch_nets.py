"""Networks the way snnTorch's tutorials build them, and one time step of each as its user would write it by hand."""

import snntorch as snn
import torch
from snntorch import surrogate, utils
from torch import nn

num_steps = 6  # a global, as in the tutorials
GRAD = surrogate.fast_sigmoid(slope=5)


def leaky(**options):
    return snn.Leaky(**{"beta": 0.9, "threshold": 0.4, "spike_grad": GRAD, **options})


class Static(nn.Module):
    """A: a still image, shown for a global number of steps."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1 = nn.Linear(5, 10), leaky()
        self.fc2, self.lif2 = nn.Linear(10, 3), leaky()

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for _ in range(num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)

    def by_hand(self, x, state):
        mem1, mem2 = state or (torch.zeros(len(x), 10), torch.zeros(len(x), 3))
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        _, mem2 = self.lif2(self.fc2(spk1), mem2)
        return mem2, (mem1, mem2)


class Regression(Static):
    """B: a series ``[T, B, F]``, and the last membrane alone."""

    def __init__(self, timesteps=num_steps):
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x):
        mem1 = self.lif1.reset_mem()
        mem2 = self.lif2.reset_mem()
        record = []
        for step in range(self.timesteps):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)


class Sequence(Static):
    """B, as long as its input."""

    def forward(self, x):
        mem1, mem2, record = self.lif1.reset_mem(), self.lif2.reset_mem(), []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            record.append(mem2)
        return torch.stack(record)


class BatchFirst(Sequence):
    """The same with ``[B, T, F]``."""

    def forward(self, x):
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


def conv_sequential():
    """C: everything in a Sequential, states inside."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.MaxPool2d(2),
        leaky(init_hidden=True),
        nn.Flatten(),
        nn.Linear(16, 3),
        leaky(init_hidden=True, output=True),
    )


class Forgetful(Static):
    """D: one step per call, and the reset inside of it."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem2


class Remembering(Static):
    """D as its warning says: no reset in forward, and the neurons called without their state."""

    def forward(self, x):
        spk1, _ = self.lif1(self.fc1(x))
        return self.lif2(self.fc2(spk1))


class Recurrent(nn.Module):
    """E: recurrent neurons, their spikes passed back to them."""

    def __init__(self, timesteps=num_steps):
        super().__init__()
        self.timesteps = timesteps
        self.fc1, self.rlif1 = nn.Linear(5, 10), snn.RLeaky(0.8, linear_features=10, threshold=0.4, spike_grad=GRAD)
        self.fc2, self.rlif2 = nn.Linear(10, 3), snn.RLeaky(0.8, linear_features=3, threshold=0.6, spike_grad=GRAD)

    def forward(self, x):
        spk1, mem1 = self.rlif1.init_rleaky()
        spk2, mem2 = self.rlif2.init_rleaky()
        spk_rec, mem_rec = [], []
        for step in range(self.timesteps):
            spk1, mem1 = self.rlif1(self.fc1(x[step]), spk1, mem1)
            spk2, mem2 = self.rlif2(self.fc2(spk1), spk2, mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)

    def by_hand(self, x, state):
        zeros = [torch.zeros(len(x), n) for n in (10, 10, 3, 3)]
        spk1, mem1, spk2, mem2 = state or zeros
        spk1, mem1 = self.rlif1(self.fc1(x), spk1, mem1)
        spk2, mem2 = self.rlif2(self.fc2(spk1), spk2, mem2)
        return mem2, (spk1, mem1, spk2, mem2)


class Hidden(Static):
    """F: reset_mem() at the top, and no state passed."""

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        record = []
        for step in range(x.size(0)):
            spk1, _ = self.lif1(self.fc1(x[step]))
            _, mem2 = self.lif2(self.fc2(spk1))
            record.append(mem2)
        return torch.stack(record)


class Nested(nn.Module):
    """G: nested Sequentials, reset by snnTorch's helper in every forward."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(5, 10), leaky(init_hidden=True))
        self.decoder = nn.Sequential(nn.Linear(10, 3), leaky(init_hidden=True, output=True))

    def forward(self, x):
        utils.reset(self.encoder)
        utils.reset(self.decoder)
        record = []
        for step in range(x.shape[0]):
            _, mem = self.decoder(self.encoder(x[step]))
            record.append(mem)
        return torch.stack(record)

    def by_hand(self, x, state):
        for lif, mem in zip((self.encoder[1], self.decoder[1]), state or (torch.zeros(0), torch.zeros(0)), strict=True):
            lif.mem = mem
        _, mem = self.decoder(self.encoder(x))
        return mem, (self.encoder[1].mem, mem)


class Explicit(Static):
    """H: states in and out of forward, wrapped to go as one."""

    def forward(self, x, state=None):
        mem1, mem2 = state or (self.lif1.init_leaky(), self.lif2.init_leaky())
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return (spk2, mem2), (mem1, mem2)


class Conv(nn.Module):
    """conv-B: the loop over time inside the forward of a convolutional network."""

    def __init__(self):
        super().__init__()
        self.conv1, self.lif1 = nn.Conv2d(1, 4, 3, padding=1), leaky()
        self.pool = nn.MaxPool2d(2)
        self.fc1, self.lif2 = nn.Linear(16, 3), leaky()

    def forward(self, x):
        mem1, mem2, record = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.pool(self.conv1(x[step])), mem1)
            _, mem2 = self.lif2(self.fc1(spk1.flatten(1)), mem2)
            record.append(mem2)
        return torch.stack(record)

    def by_hand(self, x, state):
        mem1, mem2 = state or (torch.zeros(len(x), 4, 2, 2), torch.zeros(len(x), 3))
        spk1, mem1 = self.lif1(self.pool(self.conv1(x)), mem1)
        _, mem2 = self.lif2(self.fc1(spk1.flatten(1)), mem2)
        return mem2, (mem1, mem2)


class LinearReadout(nn.Module):
    """A Linear layer behind the last neuron, within the loop."""

    def __init__(self):
        super().__init__()
        self.fc1, self.lif1, self.fc_out = nn.Linear(5, 10), leaky(), nn.Linear(10, 3)

    def forward(self, x):
        mem1, record = self.lif1.init_leaky(), []
        for step in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            record.append(self.fc_out(spk1))
        return torch.stack(record)

    def by_hand(self, x, state):
        (mem1,) = state or (torch.zeros(len(x), 10),)
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        return self.fc_out(spk1), (mem1,)
